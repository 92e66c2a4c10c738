"""Short runs of a recipe's real parts, timed, for `nlt plan` to scale up."""

from __future__ import annotations

import dataclasses
import itertools
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from nlt_trainer.arguments.evaluation import EvaluationArguments
from nlt_trainer.assembly.losses import Parts, make_collator, make_loss
from nlt_trainer.assembly.parts import resident_peak
from nlt_trainer.assembly.training import make_trainer
from nlt_trainer.data.beir import Collection, Query
from nlt_trainer.data.candidates import QueryCandidates, bm25_rankings
from nlt_trainer.data.collator import NLTCollator
from nlt_trainer.data.training import training_dataset
from nlt_trainer.encoder.embedding_cache import EmbeddingCache
from nlt_trainer.evaluation.evaluator import RetrievalEvaluator
from nlt_trainer.evaluation.folder_task import BEIRFolderRetrieval
from nlt_trainer.evaluation.task_scores import rank_encoder, score
from nlt_trainer.evaluation.tasks import EvaluationTask, load_task
from nlt_trainer.injection.document_prompts import DocumentPrompts
from nlt_trainer.injection.document_reader import DocumentReader
from nlt_trainer.injection.heads import HeadSet
from nlt_trainer.lm.candidate_pairs import Pair
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.lm.scoring import LikelihoodScorer
from nlt_trainer.locations import resolve_model
from nlt_trainer.plan.flops import ModelShape
from nlt_trainer.plan.readings import Reading

P = ParamSpec("P")
T = TypeVar("T")

PROBE_DOCUMENTS, SEARCHES = 1000, 512
"""Documents of which BM25 makes an index to be timed, and how often it is searched."""

ENCODED_DOCUMENTS = 2048
"""Documents among which those are chosen that are encoded to be timed."""

EVALUATED_QUERIES = 256
"""Queries that are evaluated with mteb to be timed."""

STAND_IN_PARAMETERS = 50_000_000
"""Weights in the layers of a model that stands in for one without weights: as many layers as fit, at least 1."""


def peak_memory() -> float:
    """Most memory that this process has held, bytes: of the accelerator, else the resident set with all imports."""
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated())
    return float(resident_peak())


def timed(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> tuple[T, float]:
    """What a call returns, and its seconds; an accelerator has finished its work by then."""
    begin = time.monotonic()
    result = call(*args, **kwargs)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.monotonic() - begin


def matmul_speed(device: torch.device) -> float:
    """FLOPs a second of multiplying two float32 matrices."""
    a = torch.rand(1024, 1024, device=device)
    return max(2 * 1024**3 / timed(lambda: a @ a)[1] for _ in range(3))


def drawn(items: Sequence[Any], count: int, *, seed: int) -> list[Any]:
    """At most `count` of the items, in their order."""
    chosen = sorted(random.Random(seed).sample(range(len(items)), min(count, len(items))))
    return [items[i] for i in chosen]


def write_stand_in(name: str, folder: Path, *, revision: str | None, dtype: str, causal: bool) -> ModelShape:
    """Write a model of the same configuration with random weights and fewer layers; returns the shape of the whole.

    Raises:
        OSError: the configuration or the tokenizer cannot be found.
    """
    location = resolve_model(name)
    config = AutoConfig.from_pretrained(location, revision=revision, trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(location, revision=revision, trust_remote_code=False)
    kind = AutoModelForCausalLM if causal else AutoModel
    text = config.get_text_config()
    with torch.device("meta"):
        shape = ModelShape.of(kind.from_config(config), bytes_per_number=getattr(torch, dtype).itemsize)
    layers = max(1, min(shape.layers, STAND_IN_PARAMETERS * shape.layers // shape.parameters))
    keep_layers(text, layers)
    kind.from_config(config, dtype=getattr(torch, dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return shape


def keep_layers(config: PreTrainedConfig, layers: int) -> None:
    """Let a decoder's configuration have its first layers only, in its lists of a setting a layer too."""
    for key, value in vars(config).items():
        if isinstance(value, list) and len(value) == config.num_hidden_layers:
            setattr(config, key, value[:layers])
    config.num_hidden_layers = layers


@dataclass(frozen=True)
class BM25Rate:
    """Seconds of indexing a document, and of searching the whole corpus for a query."""

    document: float
    query: float


def probe_bm25(collection: Collection, queries: Sequence[Query], *, seed: int) -> BM25Rate:
    """Time an index of some documents and searches of it."""
    documents = drawn(list(collection.corpus.values()), PROBE_DOCUMENTS, seed=seed)
    part = dataclasses.replace(collection, corpus={d.id: d for d in documents})
    some = drawn(queries, SEARCHES, seed=seed)
    many = list(itertools.islice(itertools.cycle(some), SEARCHES + 1))
    bm25_rankings(part, some[:1])  # warms up
    _, index = timed(bm25_rankings, part, some[:1])
    _, both = timed(bm25_rankings, part, many)
    each = max(both - index, 0.0) / SEARCHES
    return BM25Rate(index / len(documents), each * len(collection.corpus) / len(documents))


def scored(scorer: LikelihoodScorer, pairs: Sequence[Pair]) -> Reading:
    """What is read to score the pairs of one document, which is read once."""
    document, tokens = pairs[0][0], scorer.tokens
    prefix = len(tokens.start)
    if document is not None:
        prefix += len(tokens.document(document)[0]) + sum(map(len, tokens.document_frame))
    reading = Reading.text(prefix)
    for _, query, answer in dict.fromkeys(pairs):
        suffix = tokens.suffix(query, answer, scorer.target)
        reading += Reading.text(len(suffix.read), after=prefix, targets=suffix.target_tokens)
    return reading


def probe_scoring(
    scorer: LikelihoodScorer, documents: Sequence[Sequence[Pair]], *, seconds: float
) -> tuple[Reading, float]:
    """Score documents of three lengths, each with all its pairs; returns what was read, and its seconds.

    Documents of about equal length go together, as they do when all are scored.
    """
    readings = sorted(((scored(scorer, pairs), i) for i, pairs in enumerate(documents)), key=lambda r: r[0].tokens)
    ends = np.cumsum([reading.tokens for reading, _ in readings])
    middle = list(documents[readings[int(np.searchsorted(ends, ends[-1] / 2))][1]])
    scorer.log_likelihood(middle)  # warms up
    _, once = timed(scorer.log_likelihood, middle)
    budget = min(scorer.batch_tokens, seconds / 3 / once * scored(scorer, middle).tokens)
    total, spent = Reading(), 0.0
    for share in (1 / 6, 3 / 6, 5 / 6):
        at = int(np.searchsorted(ends, ends[-1] * share))
        first = int(np.searchsorted(ends, ends[at] - budget))
        chosen = readings[min(first + 1, at) : at + 1]
        pairs = [pair for _, i in chosen for pair in documents[i]]
        _, took = timed(scorer.log_likelihood, pairs)
        spent += took
        for reading, _ in chosen:
            total += reading
    return total, spent


class StepClock(TrainerCallback):
    """When each event of training took place: lists of seconds by name."""

    def __init__(self) -> None:
        self.begin: list[float] = []
        self.gradient: list[float] = []
        self.optimizer: list[float] = []
        self.end: list[float] = []
        self.saved: list[float] = []

    def _note(self, times: list[float]) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.monotonic())

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._note(self.begin)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._note(self.gradient)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._note(self.optimizer)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._note(self.end)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._note(self.saved)


@dataclass(frozen=True)
class TrainingRate:
    """Seconds of training's parts, but for the LLM's.

    Args:
        setup: of what comes before the first step.
        query: of one query with its candidates: collating, forward and backward.
        tokenising: of the same, the first time that it comes.
        step: of the optimizer.
        save: of a checkpoint.
    """

    setup: float
    query: float
    tokenising: float
    step: float
    save: float


def probe_rows(
    parts: Parts, rows: Sequence[QueryCandidates], *, collection: Collection, objective: str, folder: Path
) -> tuple[Parts, Dataset]:
    """The recipe's parts with another objective and the size of a probe, and rows of which the gains are made up."""
    args = dataclasses.replace(
        parts.args,
        objective=objective,
        temperatures=None,
        output_dir=str(folder / "run"),
        per_device_train_batch_size=len(rows),
        gradient_accumulation_steps=1,
        max_steps=3,
        eval_strategy="no",
        save_strategy="steps",
        save_steps=3,
        load_best_model_at_end=False,
        push_to_hub=False,
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
    )
    parts = dataclasses.replace(parts, args=args, data=dataclasses.replace(parts.data, dev_split=None))
    gain = np.random.default_rng(0).normal(size=(len(rows), len(rows[0].document_ids)))
    made_up: dict[str, list[Any]] = {
        "target_tokens": [8] * len(rows),
        "log_likelihood": (gain * 8).tolist(),
        "token_log_likelihoods": np.repeat(gain[:, :, None], 8, axis=-1).tolist(),
    }
    return parts, training_dataset(
        collection,
        rows,
        gain=gain,
        likelihoods={name: made_up[name] for name in args.reads_likelihoods},
        qrels={row.query_id: {row.document_ids[0]: 1} for row in rows},
    )


def probe_training(
    parts: Parts, rows: Sequence[QueryCandidates], *, collection: Collection, folder: Path
) -> TrainingRate:
    """Take three steps of the recipe's trainer on the same rows, without an LLM, and save; the last two count."""
    begin = time.monotonic()
    parts, dataset = probe_rows(parts, rows, collection=collection, objective="likelihood_gain", folder=folder)
    trainer, _ = make_trainer(parts, dataset)
    clock = StepClock()
    trainer.add_callback(clock)
    with redirect_stdout(StringIO()):  # the trainer prints its sums
        trainer.train()
    step = float(np.median(np.subtract(clock.optimizer, clock.gradient)[1:]))
    whole = float(np.median(np.diff(clock.end)))
    query = max(whole - step, 0.0) / len(rows)
    collator = NLTCollator(parts.encoder, max_length=parts.model.train_max_length)
    first, again = (timed(collator, list(dataset))[1] for _ in range(2))
    tokenising = max(first - again, 0.0) / len(rows)
    return TrainingRate(clock.begin[0] - begin, query, tokenising, step, clock.saved[0] - clock.end[-1])


def probe_reading(parts: Parts, rows: Sequence[QueryCandidates], *, collection: Collection, folder: Path) -> float:
    """Seconds of what the recipe's objective does with the LLM for these rows, forward and backward.

    It is timed the second time, when documents that are kept are there.
    """
    parts, dataset = probe_rows(parts, rows, collection=collection, objective=parts.args.objective, folder=folder)
    parts = dataclasses.replace(parts, args=dataclasses.replace(parts.args, encoder_micro_batch_size=None))
    loss = make_loss(parts)
    labels = make_collator(parts, loss)([dataset[i] for i in range(len(dataset))])
    labels = {n: v.to(parts.encoder.device) if isinstance(v, torch.Tensor) else v for n, v in labels.items()}
    shape = (len(rows), 1 + len(rows[0].document_ids), 16)
    texts = torch.nn.functional.normalize(torch.randn(shape, device=parts.encoder.device), dim=-1).requires_grad_()
    _, seconds = [timed(lambda: loss.compute_loss_from_embeddings(texts[:, 0], texts[:, 1:], labels)) for _ in "12"][1]
    return seconds


def random_heads(lm: FrozenLM, count: int, folder: Path) -> str:
    """A head file with heads of an LLM that were drawn, to be timed."""
    scores = ((0.0,) * lm.num_heads,) * lm.num_layers
    path = folder / "heads.json"
    HeadSet((), scores, lm.name, lm.fingerprint, {}).select(count, "random").save(path)
    return str(path)


def probe_documents(lm: FrozenLM, prompts: DocumentPrompts) -> tuple[int, float]:
    """Tokens and seconds of reading the documents of prompts into keys and values."""
    reader = DocumentReader(lm)
    _, seconds = timed(reader.read_documents, prompts.to(lm.device))
    return reader.lm_tokens, seconds


def probe_documents_encoded(
    encoder: SentenceTransformer, collection: Collection, *, seconds: float, seed: int
) -> float:
    """Seconds of encoding a document: of ever more short, middling and long ones, until it takes long enough.

    Documents of about equal length go together, as they do when all are encoded.
    """
    some = drawn(list(collection.corpus.values()), ENCODED_DOCUMENTS, seed=seed)
    texts = sorted((document.content for document in some), key=len)
    encode = partial(encoder.encode_document, convert_to_tensor=True, show_progress_bar=False)
    count = 1
    while True:
        starts = (max(0, int(share * len(texts)) - count // 2) for share in (1 / 6, 3 / 6, 5 / 6))
        parts = [texts[start : start + count] for start in starts]
        took, read = sum(timed(encode, part)[1] for part in parts), sum(map(len, parts))
        if took >= seconds or read >= len(texts):
            return took / read
        count *= 2 if took > seconds / 4 else 4


def probe_dev_evaluation(
    encoder: SentenceTransformer, collection: Collection, split: str, *, each: float, seconds: float, seed: int
) -> float:
    """Seconds of evaluating a query during training, on a part of the collection; `each` is what a document takes."""
    few = drawn(list(collection.corpus.values()), max(1, int(seconds / each)), seed=seed)
    queries = drawn(collection.split_queries(split), 64, seed=seed)
    _, took = timed(RetrievalEvaluator(_part(collection, few, queries, split), split=split), encoder)
    return max(0.0, took - each * len(few)) / len(queries)


def probe_evaluation(
    encoder: SentenceTransformer, collection: Collection, split: str, *, each: float, seconds: float, seed: int
) -> tuple[float, float]:
    """Seconds of ranking and scoring with mteb as `evaluate` does: of each query, and of what comes once.

    A part of the collection is evaluated; `each` is what a document takes to be encoded, which is left out.
    """
    few = drawn(list(collection.corpus.values()), max(1, int(seconds / each)), seed=seed)
    queries = drawn(collection.split_queries(split), EVALUATED_QUERIES, seed=seed)

    def spent(count: int) -> float:
        entry = EvaluationTask.of(BEIRFolderRetrieval(_part(collection, few, queries[:count], split), split=split))
        with tempfile.TemporaryDirectory() as folder:

            def evaluate() -> None:
                load_task(entry)
                embeddings = EmbeddingCache(encoder, folder, progress=None)
                score(entry, rank_encoder(entry, embeddings, batch_size=EvaluationArguments.encode_batch_size))

            return max(0.0, timed(evaluate)[1] - each * len(few))

    small = max(1, len(queries) // 8)
    spent(1)  # warms up
    fixed, whole = spent(small), spent(len(queries))
    query = max(0.0, whole - fixed) / max(1, len(queries) - small)
    return query, max(0.0, whole - query * len(queries))


def _part(collection: Collection, documents: Sequence[Any], queries: Sequence[Query], split: str) -> Collection:
    """A part of a collection in which every query has one document that counts as relevant."""
    first = documents[0].id
    return dataclasses.replace(
        collection,
        corpus={d.id: d for d in documents},
        queries={q.id: q for q in queries},
        qrels={split: {q.id: {first: 1} for q in queries}},
    )
