"""From a recipe to the cost of each of its stages, by counting its texts and timing its parts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer

from nlt_trainer.arguments import PROMPT_OBJECTIVES, DataArguments, ModelArguments, NLTTrainingArguments
from nlt_trainer.data.beir import Collection, load_collection
from nlt_trainer.data.candidates import QueryCandidates, mine_candidates
from nlt_trainer.data.collator import ChunkBuilder, PromptBuilder
from nlt_trainer.data.training import relevance
from nlt_trainer.errors import NLTError
from nlt_trainer.models.attention import enable_document_attention
from nlt_trainer.models.document_prompts import DocumentPrompts, build_prompts
from nlt_trainer.models.document_reader import DocumentReader
from nlt_trainer.models.frozen_lm import FrozenLM
from nlt_trainer.models.heads import NULL_QUERY, HeadSet, calibrated_mass
from nlt_trainer.models.prompt_tokens import PromptTokens
from nlt_trainer.models.scoring import Pair
from nlt_trainer.planning import (
    ADAM_COPIES,
    ModelShape,
    Schedule,
    gains_bytes,
    score_cache_bytes,
)
from nlt_trainer.readings import (
    Reading,
    chunk_reading,
    document_reading,
    micro_batches,
    padded,
    suffix_reading,
    tokens_read,
)
from nlt_trainer.scripts.common import (
    chosen_queries,
    load_candidates,
    load_llm,
    load_training_collection,
    make_scorer,
    prompt_tokens,
    target_of,
)
from nlt_trainer.scripts.evaluate import folder_and_split
from nlt_trainer.scripts.losses import Parts
from nlt_trainer.scripts.probes import (
    BM25Rate,
    EncodingRate,
    drawn,
    matmul_speed,
    peak_memory,
    probe_bm25,
    probe_documents,
    probe_encoding,
    probe_reading,
    probe_scoring,
    probe_training,
    random_heads,
    scored,
    timed,
    write_stand_in,
)
from nlt_trainer.scripts.train import load_start

SCORED_PAIRS = 20_000
"""Pairs whose tokens are counted; of more a sample of documents, with all their pairs, stands for all."""

TRAINED_ROWS = 1_000
"""Training rows whose prompts are built to be counted; of more a sample stands for all."""

MINED_DOCUMENTS = 5_000
"""Documents that candidates are mined from where there are none yet, with as large a part of the queries."""

SCORING_SECONDS, TRAINING_SECONDS, ENCODING_SECONDS = 3.0, 4.0, 1.5


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

    def on_accelerator(self, speed: float) -> float | None:
        """Seconds with an accelerator that sustains so many FLOPs a second."""
        return None if self.flops is None else self.other_seconds + self.flops / speed


@dataclass(frozen=True)
class Cost:
    """A part of a stage's cost: tokens that the LLM reads, FLOPs and their seconds, other seconds, memory and files."""

    tokens: float = 0.0
    flops: float = 0.0
    seconds: float = 0.0
    other: float = 0.0
    memory: float = 0.0
    files: float = 0.0

    def __add__(self, more: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(more), strict=True)))


@dataclass(frozen=True)
class Model:
    """An LLM or an encoder, or a smaller one that stands in for it.

    Args:
        shape: of the whole; `None` of a table of token embeddings, whose work is no multiplication.
        probed: of what is timed.
        seconds: of loading it.
    """

    shape: ModelShape | None
    probed: ModelShape | None
    seconds: float


@dataclass(frozen=True)
class Row:
    """What LLM and encoder read of a training row, once.

    Args:
        documents: the LLM, of prompts of documents.
        rest: the LLM besides, each with the share of the layers through which it has a gradient.
        keys: of documents that are read once each, what decides their keys and values, with the number of tokens.
        texts: tokens of the query and of each document as the encoder has them.
    """

    documents: Reading
    rest: tuple[tuple[Reading, float], ...]
    keys: tuple[tuple[Hashable, int], ...]
    texts: tuple[int, ...]

    @property
    def rest_tokens(self) -> float:
        return sum(reading.tokens for reading, _ in self.rest)


class Planner:
    """Counts and times what the stages of a recipe have in common, once each, when a stage asks for it.

    Args:
        model: the recipe's block; its models are replaced where others stand in for them.
        data: its block.
        args: its block.
        folder: an empty one, for models that stand in and for what the probes write.
        start: seconds that a stage takes to import what it needs.
    """

    def __init__(
        self, model: ModelArguments, data: DataArguments, args: NLTTrainingArguments, folder: Path, start: float
    ) -> None:
        self.model, self.data, self.args, self.folder, self.start = model, data, args, folder, start
        self.notes: list[str] = []

    def stages(self) -> list[StagePlan]:
        """The stages in their order, and their sum."""
        dream = "dream" in self.args.objectives
        detects = dream and self.model.head_scores is None
        scores = self.args.reads_gains(self.data) or (detects and self.data.head_method in ("gain", "correlation"))
        wanted = {
            "evaluate": self.evaluate if self.data.eval_split or self.data.eval_collections else None,
            "mine": self.mine,
            "score": self.score if scores else None,
            "detect_heads": self.detect_heads if detects else None,
            "train": self.train,
        }
        # The evaluation comes first: its memory is read off this process, which then has no LLM yet.
        found = {name: stage() for name, stage in wanted.items() if stage is not None}
        stages = [found[name] for name in ("mine", "score", "detect_heads", "train", "evaluate") if name in found]
        return [*stages, total(stages)]

    @cached_property
    def loaded(self) -> tuple[Collection, float]:
        return timed(lambda: load_training_collection(self.data))

    @property
    def collection(self) -> Collection:
        return self.loaded[0]

    @property
    def begin(self) -> float:
        """Seconds from the start of a process to a loaded collection."""
        return self.start + self.loaded[1]

    @cached_property
    def base(self) -> float:
        """Memory of a process that has loaded the collection and no model."""
        _ = self.collection
        return peak_memory()

    @cached_property
    def bm25(self) -> BM25Rate:
        queries = chosen_queries(self.collection, self.data, seed=self.args.seed)
        return probe_bm25(self.collection, queries, seed=self.args.seed)

    @cached_property
    def mined(self) -> tuple[list[QueryCandidates], float]:
        """Candidates, and how many queries each of theirs stands for."""
        if Path(self.data.candidates).is_file():
            self.notes.append(f"LLM tokens are counted on the candidates of {self.data.candidates}")
            return load_candidates(self.data, self.collection), 1.0
        queries, corpus = chosen_queries(self.collection, self.data, seed=self.args.seed), self.collection.corpus
        share = min(1.0, MINED_DOCUMENTS / len(corpus), TRAINED_ROWS / len(queries))
        documents = drawn(list(corpus), max(self.data.num_candidates, round(share * len(corpus))), seed=self.args.seed)
        some = drawn(queries, math.ceil(share * len(queries)), seed=self.args.seed)
        part = dataclasses.replace(self.collection, corpus={d: corpus[d] for d in documents})
        sample = "all" if share == 1 else f"{len(some):,} of {len(queries):,} queries and {len(documents):,} documents"
        self.notes.append(f"{self.data.candidates} is not there: candidates were mined here from {sample}")
        found = mine_candidates(
            part,
            some,
            num_candidates=self.data.num_candidates,
            num_random=self.data.num_random_candidates,
            seed=self.args.seed,
        )
        return found, len(queries) / len(some)

    @cached_property
    def llm(self) -> tuple[FrozenLM, Model] | None:
        """The LLM, or one that stands in for it; `None` where not even its configuration can be had."""
        try:
            lm, seconds = timed(lambda: load_llm(self.model))
            shape = ModelShape.of(lm.model, bytes_per_number=lm.model.dtype.itemsize)
            return lm, Model(shape, shape, seconds)
        except NLTError as error:
            reason = str(error)
        name, folder = self.model.llm, self.folder / "llm"
        try:
            shape = write_stand_in(
                name, folder, revision=self.model.llm_revision, dtype=self.model.llm_dtype, causal=True
            )
        except (OSError, ValueError, NLTError):
            self.notes.append(f"not known: LLM tokens, FLOPs and time, because {reason}")
            return None
        encoder = str(folder) if self.model.shared_backbone else self.model.encoder
        self.model = dataclasses.replace(self.model, llm=str(folder), llm_revision=None, adapter=None, encoder=encoder)
        lm = load_llm(self.model)
        probed = ModelShape.of(lm.model, bytes_per_number=shape.bytes_per_number)
        self.notes.append(
            f"{name} has no weights here: its speed is that of {probed.layers} of its {shape.layers} layers at random "
            "weights, and loading is not counted"
        )
        return lm, Model(shape, probed, 0.0)

    @cached_property
    def encoder(self) -> tuple[SentenceTransformer, Model] | None:
        """The encoder as training starts from it, or one that stands in for it."""
        backbone = self.llm[0] if self.model.shared_backbone and self.llm else None
        name = self.model.encoder
        try:
            encoder, seconds = timed(lambda: load_start(self.model, backbone))
            shape = self._encoder_shape(encoder)
            return encoder, Model(shape, shape, seconds)
        except NLTError as error:
            reason = str(error)
        try:
            if self.model.pooling is None:
                raise ValueError("what a folder of Sentence Transformers is made of is not known")
            folder = self.folder / "encoder"
            whole = write_stand_in(
                name, folder, revision=self.model.encoder_revision, dtype=self.model.encoder_dtype, causal=False
            )
        except (OSError, ValueError, NLTError):
            self.notes.append(f"not known: what the encoder takes in train and evaluate, because {reason}")
            return None
        self.model = dataclasses.replace(self.model, encoder=str(folder), encoder_revision=None)
        encoder = load_start(self.model)
        self.notes.append(f"{name} has no weights here: a part of its layers at random weights stands in")
        return encoder, Model(whole, self._encoder_shape(encoder), 0.0)

    def _encoder_shape(self, encoder: SentenceTransformer) -> ModelShape | None:
        transformer = encoder.transformers_model
        size = 4 if self.model.encoder_dtype == "float32" else 2
        return None if transformer is None else ModelShape.of(transformer, bytes_per_number=size)

    def mine(self) -> StagePlan:
        queries = len(self.mined[0]) * self.mined[1]
        seconds = self.begin + self.bm25.document * len(self.collection.corpus) + self.bm25.query * queries
        each = np.mean([len(str(dataclasses.asdict(c))) for c in self.mined[0]])
        return StagePlan("mine", 0.0, 0.0, seconds, seconds, float(each * queries), self.base)

    def score(self) -> StagePlan:
        candidates, factor = self.mined
        queries = len(candidates) * factor
        k = self.data.num_candidates
        files = gains_bytes([c.query_id for c in candidates], [c.document_ids for c in candidates]) * factor
        if self.llm is None:
            return StagePlan("score", None, None, None, file_bytes=files)
        reading, flops, rate, counting = self.score_parts
        llm = self.llm[1]
        tokens_of_target = reading.targets / (queries * (k + 1))
        if self.data.token_likelihoods:
            ids, documents = [c.query_id for c in candidates], [c.document_ids for c in candidates]
            files = gains_bytes(ids, documents, token_numbers=tokens_of_target) * factor
        files += score_cache_bytes(round(queries * (k + 1)), tokens_of_target)
        shape = llm.shape
        assert shape is not None
        other = self.begin + llm.seconds + counting
        batch = min(self.data.batch_tokens, reading.tokens)
        memory = self.base + shape.weight_bytes + shape.activation_bytes(batch) + shape.projection_bytes()
        return StagePlan("score", reading.tokens, flops, other + flops / rate, other, files, memory)

    @cached_property
    def score_parts(self) -> tuple[Reading, float, float, float]:
        """What `score` reads, its FLOPs, FLOPs a second, and seconds of counting tokens."""
        assert self.llm is not None
        (candidates, factor), (lm, llm) = self.mined, self.llm
        target = target_of(self.data, candidates)
        scorer = make_scorer(lm, dataclasses.replace(self.data, score_cache=str(self.folder)), target=target)
        scorer.cache = None
        groups: dict[str | None, list[Pair]] = {}
        for c in candidates:
            groups.setdefault(f"no document, {c.query}", []).append((None, c.query, c.answer))
            for text in (self.collection.corpus[d].content for d in c.document_ids):
                groups.setdefault(text, []).append((text, c.query, c.answer))
        pairs = sum(map(len, groups.values()))
        chosen = list(groups.values())
        if pairs > SCORED_PAIRS:
            chosen = drawn(chosen, math.ceil(len(chosen) * SCORED_PAIRS / pairs), seed=self.args.seed)
            self.notes.append(f"score: tokens are estimated from {len(chosen):,} of {len(groups):,} documents")
        factor *= pairs / sum(map(len, chosen))
        tokens, seconds = timed(lambda: scorer.count_tokens([pair for group in chosen for pair in group]))
        reading = sum((scored(scorer, group) for group in chosen), Reading())
        reading = dataclasses.replace(reading, tokens=tokens) * factor
        read, took = probe_scoring(scorer, chosen, seconds=SCORING_SECONDS)
        assert llm.shape is not None and llm.probed is not None
        return reading, llm.shape.flops(reading), llm.probed.flops(read) / took, seconds * factor

    @cached_property
    def rows(self) -> tuple[list[QueryCandidates], float]:
        """Training rows, and how many each of them stands for."""
        rows, factor = self.mined
        if self.args.reads_labels(self.data):
            judged = relevance(rows, self.collection.split_qrels(str(self.data.train_split))).any(1)
            rows = [row for row, is_judged in zip(rows, judged, strict=True) if is_judged]
        return rows, factor

    @cached_property
    def counted(self) -> tuple[list[Row], float]:
        """What is read of training rows, of a sample where there are many, and the seconds of building all prompts."""
        rows = self._candidates
        if self.args.reads_llm and len(rows) < len(self.rows[0]):
            self.notes.append(f"train: LLM tokens are estimated from {len(rows):,} of {len(self.rows[0]):,} rows")
        counted, seconds = timed(lambda: [self._count(row) for row in rows])
        reads = self.args.reads_llm and self.llm is not None
        return counted, seconds * self.rows[1] * len(self.rows[0]) / len(rows) if reads else 0.0

    @cached_property
    def parts(self) -> Parts:
        assert self.encoder is not None
        heads = self.model.heads
        lm = self.llm[0] if self.args.reads_llm and self.llm else None
        if lm is not None and "dream" in self.args.objectives and not self._has_heads(lm):
            heads = random_heads(lm, self.model.num_heads, self.folder)
            self.notes.append(
                f"train: {self.model.heads} is not there or not this LLM's; heads drawn at random are timed"
            )
        model = dataclasses.replace(self.model, heads=heads, llm_process=False)
        return Parts(self.encoder[0], model, self.data, self.args, self.rows[0], lm)

    def _has_heads(self, lm: FrozenLM) -> bool:
        try:
            heads = HeadSet.load(self.model.heads)
            heads.check(lm)
        except NLTError:
            return False
        return len(heads.heads) == self.model.num_heads

    @cached_property
    def prompts(self) -> tuple[PromptBuilder | None, ChunkBuilder | None]:
        reading = self.parts.reading()
        return reading.prompts, reading.chunks

    @cached_property
    def graph(self) -> float:
        """Share of the LLM's layers through which DREAM has a gradient: those from the first injected one on."""
        if "dream" not in self.args.objectives or self.parts.backbone is None:
            return 0.0
        lm = self.parts.backbone
        return 1.0 - min(layer for layer, _ in HeadSet.load(self.parts.model.heads).heads) / lm.num_layers

    def _count(self, c: QueryCandidates) -> Row:
        documents = [self.collection.corpus[d].content for d in c.document_ids]
        row = self._row(c)
        build, build_chunks = self.prompts
        read, rest, keys = Reading(), [], ()
        if build is not None:
            prompts = build([row])
            suffix = suffix_reading(prompts)
            for name in PROMPT_OBJECTIVES & set(self.args.objectives):
                read += document_reading(prompts)
                rest.append(
                    (suffix * (len(documents) if name == "loop" else 1), self.graph if name == "dream" else 0.0)
                )
            if self.data.document_layout == "independent":
                keys = tuple(_keys(build.tokens, documents))
        if build_chunks is not None:
            chunks = chunk_reading(build_chunks([row]))
            trained = self.model.llm_lora is not None
            rest += [(dataclasses.replace(chunks, targets=0.0), float(trained)), (chunks, 1.0)]
        return Row(read, tuple(rest), keys, self._encoder_tokens(c.query, documents))

    def _encoder_tokens(self, query: str, documents: list[str]) -> tuple[int, ...]:
        """Tokens of the query and each document, cut as in training; of a table of embeddings none are counted."""
        encoder, counts = self.parts.encoder, []
        if encoder.transformers_model is None:
            return ()
        cut = {} if self.model.train_max_length is None else {"max_length": self.model.train_max_length}
        for kind, texts in (("query", [query]), ("document", documents)):
            features = encoder.preprocess(texts, prompt=encoder.prompts.get(kind) or None, task=kind, **cut)
            counts += features["attention_mask"].sum(-1).tolist()
        return tuple(counts)

    def train(self) -> StagePlan:
        if self.encoder is None or (self.args.reads_llm and self.llm is None):
            return StagePlan("train", None if self.args.reads_llm else 0.0, None, None)
        rows, count = self.counted[0], len(self.rows[0]) * self.rows[1]
        args = self.args
        schedule = Schedule.of(
            round(count),
            batch=args.train_batch_size * args.world_size,
            accumulation=args.gradient_accumulation_steps,
            epochs=args.num_train_epochs,
            max_steps=args.max_steps,
            drop_last=args.dataloader_drop_last,
        )
        cost = self._encoder_cost(schedule) + self._dev_cost(schedule)
        if args.reads_llm:
            cost += self._llm_cost(schedule)
        other = self.begin + self.encoder[1].seconds + self.counted[1] + cost.other
        memory = self.base + cost.memory
        return StagePlan("train", cost.tokens, cost.flops, other + cost.seconds, other, cost.files, memory)

    @cached_property
    def speed(self) -> float:
        """FLOPs a second that a model is taken to reach where nothing but the size of a probe depends on it."""
        return matmul_speed(self.parts.encoder.device) / 2

    def _encoder_cost(self, schedule: Schedule) -> Cost:
        """The encoder's forward and backward passes, the optimizer, and saving."""
        assert self.encoder is not None
        (encoder, kind), args = self.encoder, self.args
        rows, k = self.counted[0], self.data.num_candidates
        trained = [p.numel() for p in encoder.parameters() if p.requires_grad]
        recomputed = args.gradient_checkpointing or args.encoder_micro_batch_size is not None

        def flops(shape: ModelShape | None, reading: Reading) -> float:
            if shape is None:
                return 0.0
            again = shape.flops(reading) if recomputed else 0.0
            return again + shape.flops(reading, graph=1.0, trained=not self.model.lora)

        def batches(rows: list[Row], size: int) -> Reading:
            if kind.shape is None:
                return Reading()
            texts = padded([t for row in rows for t in row.texts[1:]], size * k)
            return texts + padded([row.texts[0] for row in rows], size)

        def useful(row: Row) -> Reading:
            return sum(map(Reading.text, row.texts), Reading())

        whole = batches(rows, args.train_batch_size) * (1 / len(rows))
        each = flops(kind.probed, whole)
        count = args.train_batch_size
        if each:
            count = min(count, max(1, int(TRAINING_SECONDS / 3 * self.speed / each)))
        typical = self._typical(count, lambda row: sum(row.texts))
        rate = probe_training(
            self.parts, [self._candidates[i] for i in typical], collection=self.collection, folder=self.folder
        )
        probed = flops(kind.probed, batches([rows[i] for i in typical], len(typical)) * (1 / len(typical)))
        scale = flops(kind.shape, whole) / probed if probed else 1.0
        saves = schedule.times(args.save_strategy, args.save_steps)
        layers = kind.shape.layers / kind.probed.layers if kind.shape and kind.probed else 1.0
        states = 4 * sum(trained) * layers
        weights = kind.shape.weight_bytes if kind.shape else sum(4 * p.numel() for p in encoder.parameters())
        kept = saves if args.save_total_limit is None else min(saves, args.save_total_limit)
        memory = (0 if self.model.shared_backbone else weights) + ADAM_COPIES * states
        if kind.shape is not None:
            tokens = whole.tokens * (args.train_batch_size if args.encoder_micro_batch_size is None else 0)
            tokens = tokens or whole.tokens / (k + 1) * (args.encoder_micro_batch_size or 0)
            memory += kind.shape.graph_bytes(tokens, layers=1 if args.gradient_checkpointing else None)
        return Cost(
            flops=schedule.queries * sum(flops(kind.shape, useful(row)) for row in rows) / len(rows),
            seconds=schedule.queries * rate.query * scale,
            other=rate.setup + schedule.steps * rate.step + (saves + 1) * rate.save,
            memory=memory,
            files=weights + kept * (weights + 2 * states),
        )

    @cached_property
    def _candidates(self) -> list[QueryCandidates]:
        """Those of the rows that are counted."""
        return drawn(self.rows[0], TRAINED_ROWS, seed=self.args.seed)

    def _typical(self, count: int, size: Callable[[Row], float]) -> list[int]:
        """Indices of the counted rows in the middle of their sizes."""
        order = sorted(range(len(self.counted[0])), key=lambda i: size(self.counted[0][i]))
        first = max(0, (len(order) - count) // 2)
        return order[first : first + count]

    def _llm_cost(self, schedule: Schedule) -> Cost:
        """What the objectives that read the LLM do with it at every step."""
        assert self.llm is not None
        (lm, kind), args, rows = self.llm, self.args, self.counted[0]
        assert kind.shape is not None and kind.probed is not None
        trained = self.model.llm_lora is not None and "revela" in args.objectives

        def rest_flops(shape: ModelShape, row: Row) -> float:
            return sum(shape.flops(reading, graph=graph) for reading, graph in row.rest)

        def mean(values: Iterable[float]) -> float:
            return float(np.mean(list(values)))

        tokens, kept = self._documents_read(schedule, kind.shape)
        documents = mean(row.documents.tokens for row in rows)
        once = mean(kind.shape.flops(row.documents) for row in rows)
        read = tokens / documents * once if documents else 0.0
        micro = args.lm_micro_batch_size
        keeps = bool(kept)
        size = mean(rest_flops(kind.probed, row) for row in rows) + (0 if keeps else once)
        count = min(args.train_batch_size, max(1, int(TRAINING_SECONDS / 2 * self.speed / (size + once / 2))))
        typical = self._typical(count, lambda row: row.documents.tokens + row.rest_tokens)
        chosen = [self._candidates[i] for i in typical]
        seconds = probe_reading(self.parts, chosen, collection=self.collection, folder=self.folder)
        probed = sum(rest_flops(kind.probed, rows[i]) for i in typical)
        timed_documents = 0.0 if keeps else sum(kind.probed.flops(rows[i].documents) for i in typical)
        rest = mean(rest_flops(kind.shape, row) for row in rows) * schedule.queries
        rate = (probed + timed_documents) / seconds
        reading = read / rate
        if keeps:
            one = self.prompts[0]
            assert one is not None
            found, took = probe_documents(lm, one([self._row(chosen[0])]))
            reading = tokens * took / found * kind.shape.parameters / kind.probed.parameters
        lengths = [row.rest_tokens for row in rows]
        wider = padded(lengths, micro).tokens / sum(lengths)
        those = [lengths[i] for i in typical]
        wider /= padded(those, min(micro, len(those))).tokens / sum(those)
        return Cost(
            tokens=tokens + mean(lengths) * schedule.queries,
            flops=read + rest,
            seconds=reading + rest / rate * wider,
            memory=self._llm_memory(kind.shape, kept, trained=trained),
            other=kind.seconds,
        )

    def _documents_read(self, schedule: Schedule, shape: ModelShape) -> tuple[float, float]:
        """Tokens of documents that training reads, and tokens of which keys and values are kept at most."""
        rows = self.counted[0]
        each = len(self.rows[0]) * self.rows[1] / len(rows)  # rows that one of them stands for
        if not rows[0].keys:
            return sum(row.documents.tokens for row in rows) / len(rows) * schedule.queries, 0.0
        read = most = 0.0
        lengths = dict(key for row in rows for key in row.keys)
        args = self.args
        for name in PROMPT_OBJECTIVES & set(args.objectives):
            kept = args.document_cache_gib * 2**30 / shape.key_value_bytes if name == "dream" else 0.0
            whole = name == "dream" and args.in_batch_candidates
            calls = micro_batches(
                len(rows),
                epochs=schedule.queries / (each * len(rows)),
                batch=args.train_batch_size,
                micro_batch=args.train_batch_size if whole else args.lm_micro_batch_size,
                seed=args.seed,
            )
            documents = ([key for i in call for key, _ in rows[i].keys] for call in calls)
            own, held = tokens_read(documents, lengths, capacity=kept / each)
            read, most = read + own * each, max(most, held * each)
            if kept and held >= 0.95 * kept / each:
                self.notes.append(
                    f"train: document_cache_gib {args.document_cache_gib} does not hold all documents; how many are "
                    "read again is simulated for another order of the queries than the trainer's"
                )
        return read, most

    def _llm_memory(self, shape: ModelShape, kept: float, *, trained: bool) -> float:
        """The LLM, the documents that are kept, and one micro-batch with its graph."""
        rows, micro = self.counted[0], self.args.lm_micro_batch_size
        prompt = max(sum(n for _, n in row.keys) or row.documents.tokens for row in rows) * micro
        rest = max(row.rest_tokens for row in rows) * micro
        targets = max(sum(reading.targets for reading, graph in row.rest if graph) for row in rows) * micro
        graph = max(graph for _, graph in rows[0].rest) * shape.layers
        memory = shape.weight_bytes + (kept + 2 * (prompt + rest)) * shape.key_value_bytes
        memory += shape.activation_bytes(min(4096, prompt) if rows[0].keys else prompt)
        memory += shape.graph_bytes(rest, layers=graph) + shape.projection_bytes(targets)
        # keys and values as the attention's backward pass keeps them: one for each query head
        return memory + 2 * graph * shape.attention * (prompt + rest) * shape.bytes_per_number * (2 if trained else 1)

    def _row(self, c: QueryCandidates) -> dict[str, object]:
        documents = [self.collection.corpus[d].content for d in c.document_ids]
        return {"query": c.query, "documents": documents, "answer": c.answer}

    def _encoding(self, collection: Collection, split: str) -> tuple[EncodingRate, float]:
        """What evaluation takes on a collection, and FLOPs of the encoder for one of its documents."""
        assert self.encoder is not None
        encoder, kind = self.encoder
        rate = probe_encoding(encoder, collection, split, seconds=ENCODING_SECONDS, seed=self.args.seed)
        if kind.shape is None or kind.probed is None:
            return rate, 0.0
        texts = [d.content for d in drawn(list(collection.corpus.values()), 64, seed=self.args.seed)]
        lengths = encoder.preprocess(texts, task="document")["attention_mask"].sum(-1).tolist()
        reading = sum(map(Reading.text, lengths), Reading()) * (1 / len(lengths))
        scale = kind.shape.flops(reading) / kind.probed.flops(reading)
        return dataclasses.replace(rate, document=rate.document * scale), kind.shape.flops(reading)

    @cached_property
    def encoding(self) -> tuple[EncodingRate, float]:
        """The same on the first collection and split that are evaluated at all."""
        folder, split = self.evaluated[0] if self.evaluated else (self.data.collection, str(self.data.dev_split))
        return self._encoding(load_collection(folder, splits=[split]), split)

    @property
    def evaluated(self) -> list[tuple[str, str]]:
        """Collections and splits that `evaluate` reports on."""
        own = [(self.data.collection, self.data.eval_split)] if self.data.eval_split else []
        return [*own, *map(folder_and_split, self.data.eval_collections)]

    def _dev_cost(self, schedule: Schedule) -> Cost:
        """Evaluations during training."""
        args = self.args
        if args.eval_strategy == "no" or self.data.dev_split is None:
            return Cost()
        rate, flops = self.encoding
        dev = load_collection(self.data.collection, splits=[self.data.dev_split])
        times = schedule.times(args.eval_strategy, args.eval_steps or args.logging_steps) + bool(args.eval_on_start)
        documents, queries = len(dev.corpus), len(dev.split_queries(self.data.dev_split))
        return Cost(
            flops=times * documents * flops,
            seconds=times * documents * rate.document,
            other=self.loaded[1] + times * queries * rate.light,
        )

    def evaluate(self) -> StagePlan:
        if self.encoder is None:
            return StagePlan("evaluate", 0.0, None, None)
        encoder, kind = self.encoder
        flops, seconds, other = 0.0, 0.0, self.start
        _ = self.base
        for folder, split in self.evaluated:
            try:
                collection, loading = timed(lambda at=folder, of=split: load_collection(at, splits=[of]))
            except NLTError as error:
                self.notes.append(f"not known: evaluate on {folder}, because {error}")
                continue
            rate, each = self._encoding(collection, split)
            documents, queries = len(collection.corpus), len(collection.split_queries(split))
            index = documents * self.bm25.document
            search = queries * self.bm25.query * documents / len(self.collection.corpus)
            other += loading + index + search + 3 * (rate.fixed + queries * rate.full) + 2 * kind.seconds
            seconds += 2 * documents * rate.document
            flops += 2 * documents * each
        weights = sum(p.numel() * p.element_size() for p in encoder.parameters())
        return StagePlan("evaluate", 0.0, flops, other + seconds, other, 0.0, peak_memory() + weights)

    def detect_heads(self) -> StagePlan:
        if self.llm is None:
            return StagePlan("detect_heads", None, None, None)
        (lm, kind), (candidates, _) = self.llm, self.mined
        assert kind.shape is not None and kind.probed is not None
        data, tokens = self.data, prompt_tokens(lm, self.data)
        layout = data.head_layout or data.document_layout
        some = drawn(candidates, min(data.head_queries, 64), seed=self.args.seed)
        null = tokens.suffix(NULL_QUERY, None, "query")
        readings = []
        for c in some:
            prompts = self._head_prompts(lm, tokens, c, layout)
            asked = suffix_reading(prompts)
            after = int(prompts.prompt_mask.sum())
            readings.append(document_reading(prompts) + asked + Reading.text(len(null.ids), after=after))
        readings = [dataclasses.replace(reading, targets=0.0) for reading in readings]
        middle = sorted(range(len(some)), key=lambda i: readings[i].tokens)[len(some) // 2]
        enable_document_attention(lm)
        texts = [self.collection.corpus[d].content for d in some[middle].document_ids]
        _, took = timed(
            lambda: calibrated_mass(
                DocumentReader(lm), [some[middle].query], documents=[texts], tokens=tokens, layout=layout
            )
        )
        count = min(data.head_queries, round(len(candidates) * self.mined[1]))
        self.notes.append("detect_heads: tokens are estimated, because it draws its queries by their gains")
        total_reading = sum(readings, Reading()) * (count / len(some))
        flops = kind.shape.flops(total_reading)
        other = self.begin + kind.seconds
        seconds = flops / kind.probed.flops(readings[middle]) * took
        longest = 2 * max(reading.tokens for reading in readings)
        memory = self.base + kind.shape.weight_bytes + kind.shape.activation_bytes(longest)
        memory += 2 * longest * kind.shape.key_value_bytes
        return StagePlan("detect_heads", total_reading.tokens, flops, other + seconds, other, 0.0, memory)

    def _head_prompts(self, lm: FrozenLM, tokens: PromptTokens, c: QueryCandidates, layout: str) -> DocumentPrompts:
        documents = [[self.collection.corpus[d].content for d in c.document_ids]]
        length = lm.context_length
        return build_prompts(tokens, [c.query], documents, target="query", context_length=length, layout=layout)  # type: ignore[arg-type]  # checked by DataArguments


def _keys(tokens: PromptTokens, documents: Sequence[str]) -> Iterator[tuple[Hashable, int]]:
    """What decides the keys and values of a prompt's start and of documents that do not see each other."""
    start = (*tokens.start, *tokens.document_frame[0])
    if start:
        yield "start", len(start)
    for text in documents:
        ids, _ = tokens.document(text)
        yield ids, len(start) + len(ids) + len(tokens.document_frame[1])


def total(stages: Sequence[StagePlan]) -> StagePlan:
    """The sum of stages; memory is that of the hungriest."""

    def of(values: Sequence[float | None]) -> float | None:
        return None if None in values else sum(v for v in values if v is not None)

    memory = [s.memory for s in stages]
    return StagePlan(
        "total",
        of([s.lm_tokens for s in stages]),
        of([s.flops for s in stages]),
        of([s.seconds for s in stages]),
        sum(s.other_seconds for s in stages),
        sum(s.file_bytes for s in stages),
        None if None in memory else max(m for m in memory if m is not None),
    )
