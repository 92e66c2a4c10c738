"""What the plans of a recipe's stages share: its collection, candidates and models, each had once."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sentence_transformers import SentenceTransformer

from nlt_trainer.arguments.data import DataArguments
from nlt_trainer.arguments.model import ModelArguments
from nlt_trainer.assembly.parts import chosen_queries, load_candidates, load_llm, load_training_collection
from nlt_trainer.assembly.training import load_start
from nlt_trainer.data.beir import Collection, Query
from nlt_trainer.data.candidates import QueryCandidates, mine_candidates
from nlt_trainer.errors import NLTError
from nlt_trainer.lm.dtypes import resolved_dtype
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.plan.flops import ModelShape
from nlt_trainer.plan.probes import BM25Rate, drawn, peak_memory, probe_bm25, timed, write_stand_in
from nlt_trainer.training_arguments import NLTTrainingArguments

MINED_DOCUMENTS, MINED_QUERIES = 5_000, 1_000
"""Documents and queries among which candidates are mined where there are none yet; of more, an equal part of both."""

LEAST_QUERIES = 32
"""Queries that are mined for at least, however small that part is: fewer say little about the length of texts."""

EARLIER = 0.78
"""Share of the time of plan's imports that stages before training need for theirs, which have no mteb."""


@dataclass(frozen=True)
class StagePlan:
    """What a stage costs; `None` where it cannot be known.

    Args:
        stage: its name.
        lm_tokens: tokens that the frozen LLM reads, without padding.
        flops: useful FLOPs of LLM and encoder.
        seconds: on this machine, from the start of the process to its end.
        other_seconds: of these what an accelerator does not change: imports, loading, BM25, metrics.
        file_bytes: of the files that it leaves.
        memory: most bytes at once: of the accelerator where there is one, else of the process.
        accelerator_seconds: on another accelerator.
    """

    stage: str
    lm_tokens: float | None = 0.0
    flops: float | None = 0.0
    seconds: float | None = 0.0
    other_seconds: float = 0.0
    file_bytes: float = 0.0
    memory: float | None = None
    accelerator_seconds: float | None = None

    def on_accelerator(self, speed: float) -> StagePlan:
        """The same with the seconds on an accelerator that sustains so many FLOPs a second."""
        seconds = None if self.flops is None else self.other_seconds + self.flops / speed
        return dataclasses.replace(self, accelerator_seconds=seconds)


@dataclass(frozen=True)
class LLM:
    """The frozen LLM or, where it has no weights here, one that stands in for it.

    Args:
        lm: what is timed.
        probed: its shape.
        shape: that of the recipe's LLM.
        seconds: of loading it.
    """

    lm: FrozenLM
    probed: ModelShape
    shape: ModelShape
    seconds: float


@dataclass(frozen=True)
class Encoder:
    """The same of the encoder; a table of token embeddings, whose work is no multiplication, has no shape."""

    model: SentenceTransformer
    probed: ModelShape | None
    shape: ModelShape | None
    seconds: float

    @property
    def scale(self) -> float:
        """Layers of the recipe's encoder over those of what is timed."""
        return self.shape.layers / self.probed.layers if self.shape and self.probed else 1.0

    @property
    def weight_bytes(self) -> float:
        if self.shape is not None:
            return self.shape.weight_bytes
        return sum(p.numel() * p.element_size() for p in self.model.parameters())


class PlanContext:
    """What is read, loaded and timed for several stages, when the first of them asks for it.

    Args:
        model: the recipe's block; its models are replaced where others stand in for them.
        data: its block.
        args: its block.
        folder: an empty one, for models that stand in and for what the probes write.
        start: seconds that training and evaluation take to import what they need, and to take it down in the end.
    """

    def __init__(
        self, model: ModelArguments, data: DataArguments, args: NLTTrainingArguments, folder: Path, start: float
    ) -> None:
        self.model, self.data, self.args, self.folder, self.start = model, data, args, folder, start
        self.notes: list[str] = []
        """What the reader of a plan should know of it."""

    @cached_property
    def loaded(self) -> tuple[Collection, float]:
        """The collection and the seconds of reading it."""
        return timed(load_training_collection, self.data)

    @property
    def collection(self) -> Collection:
        return self.loaded[0]

    @property
    def begin(self) -> float:
        """Seconds from the start of a stage before training to a loaded collection."""
        return EARLIER * self.start + self.loaded[1]

    @cached_property
    def base(self) -> float:
        """Memory of a process that has loaded the collection and no model."""
        _ = self.collection
        return peak_memory()

    @cached_property
    def queries(self) -> list[Query]:
        return chosen_queries(self.collection, self.data, seed=self.args.seed)

    @cached_property
    def bm25(self) -> BM25Rate:
        return probe_bm25(self.collection, self.queries, seed=self.args.seed)

    @property
    def candidates(self) -> list[QueryCandidates]:
        return self._candidates[0]

    @property
    def factor(self) -> float:
        """How many queries of the recipe each of the candidates' stands for."""
        return self._candidates[1]

    @property
    def whole_corpus(self) -> bool:
        """Whether the candidates come from all documents, so that judged ones are among them as they will be."""
        return self._candidates[2]

    @cached_property
    def _candidates(self) -> tuple[list[QueryCandidates], float, bool]:
        data, seed = self.data, self.args.seed
        if Path(data.candidates).is_file():
            self.notes.append(f"LLM tokens are counted on the candidates of {data.candidates}")
            return load_candidates(data, self.collection), 1.0, True
        queries, corpus = self.queries, self.collection.corpus
        share = min(1.0, MINED_DOCUMENTS / len(corpus), MINED_QUERIES / len(queries))
        documents = drawn(list(corpus), max(data.num_candidates, round(share * len(corpus))), seed=seed)
        some = drawn(queries, max(LEAST_QUERIES, math.ceil(share * len(queries))), seed=seed)
        part = dataclasses.replace(self.collection, corpus={d: corpus[d] for d in documents})
        found = mine_candidates(part, some, num_candidates=data.num_candidates, seed=seed)
        sample = f"{len(some):,} of {len(queries):,} queries and {len(documents):,} of {len(corpus):,} documents"
        how = "LLM tokens are counted on those that mine will find" if share == 1 else f"estimated from {sample}"
        how = how if data.miner == "bm25" else f"LLM tokens are estimated from what BM25 finds in {sample}"
        self.notes.append(f"{data.candidates} is not there yet: {how}")
        return found, len(queries) / len(some), len(documents) == len(corpus)

    @cached_property
    def llm(self) -> LLM | None:
        """The LLM, or what stands in for it; `None` where not even its configuration can be had."""
        try:
            lm, seconds = timed(self._load_llm)
        except NLTError as error:
            return self._llm_stand_in(str(error))
        shape = ModelShape.of(lm.model, bytes_per_number=lm.model.dtype.itemsize)
        return LLM(lm, shape, shape, seconds)

    def _load_llm(self) -> FrozenLM:
        try:
            return load_llm(self.model)
        except NLTError as error:
            if self.model.adapter is None:
                raise
            self.model = dataclasses.replace(self.model, adapter=None)
            lm = load_llm(self.model)
            self.notes.append(f"the LLM is timed without its adapter, which costs the same merged: {error}")
            return lm

    def _llm_stand_in(self, reason: str) -> LLM | None:
        model, folder = self.model, self.folder / "llm"
        try:
            shape = write_stand_in(
                model.llm,
                folder,
                revision=model.llm_revision,
                dtype=resolved_dtype(model.llm_dtype, model.llm_device),
                causal=True,
            )
        except (OSError, ValueError, NLTError):
            self.notes.append(f"not known: LLM tokens, FLOPs and time, because {reason}")
            return None
        encoder, at = (str(folder), None) if model.shared_backbone else (model.encoder, model.encoder_revision)
        self.model = dataclasses.replace(
            model, llm=str(folder), llm_revision=None, adapter=None, encoder=encoder, encoder_revision=at
        )
        lm = load_llm(self.model)
        probed = ModelShape.of(lm.model, bytes_per_number=shape.bytes_per_number)
        self.notes.append(
            f"{model.llm} has no weights here: its speed is that of {probed.layers} of its {shape.layers} layers at "
            "random weights, and loading it is not counted"
        )
        return LLM(lm, probed, shape, 0.0)

    @cached_property
    def encoder(self) -> Encoder | None:
        """The encoder as training starts from it, or what stands in for it."""
        backbone = self.llm.lm if self.model.shared_backbone and self.llm else None
        try:
            encoder, seconds = timed(load_start, self.model, backbone)
        except NLTError as error:
            return self._encoder_stand_in(str(error))
        shape = self._encoder_shape(encoder)
        return Encoder(encoder, shape, shape, seconds)

    def _encoder_stand_in(self, reason: str) -> Encoder | None:
        model, folder = self.model, self.folder / "encoder"
        try:
            if model.pooling is None:
                raise ValueError("a folder of Sentence Transformers, whose modules are not known")
            shape = write_stand_in(
                model.encoder, folder, revision=model.encoder_revision, dtype=model.encoder_dtype, causal=False
            )
        except (OSError, ValueError, NLTError):
            self.notes.append(f"not known: train and evaluate, because {reason}")
            return None
        self.model = dataclasses.replace(model, encoder=str(folder), encoder_revision=None)
        encoder = load_start(self.model)
        self.notes.append(f"{model.encoder} has no weights here: some of its layers at random weights are timed")
        return Encoder(encoder, self._encoder_shape(encoder), shape, 0.0)

    def _encoder_shape(self, encoder: SentenceTransformer) -> ModelShape | None:
        size = 4 if self.model.encoder_dtype == "float32" else 2
        transformer = encoder.transformers_model
        return None if transformer is None else ModelShape.of(transformer, bytes_per_number=size)
