"""What LLM and encoder read of training rows, counted on the rows themselves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from nlt_trainer.arguments.trainer import PROMPT_OBJECTIVES
from nlt_trainer.assembly.losses import Parts
from nlt_trainer.data.candidates import QueryCandidates
from nlt_trainer.data.collator import ChunkBuilder, PromptBuilder
from nlt_trainer.data.training import relevance
from nlt_trainer.errors import NLTError
from nlt_trainer.injection.heads import HeadSet
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.lm.prompt_tokens import PromptTokens
from nlt_trainer.plan.context import Encoder, PlanContext
from nlt_trainer.plan.flops import ModelShape, Schedule
from nlt_trainer.plan.probes import drawn, random_heads, timed
from nlt_trainer.plan.readings import (
    Reading,
    chunk_reading,
    document_reading,
    micro_batches,
    suffix_reading,
    tokens_read,
)

COUNTED_ROWS = 1_000
"""Training rows whose prompts are built to be counted; of more a sample stands for all."""


@dataclass(frozen=True)
class Row:
    """What LLM and encoder read of a training row, once.

    Args:
        documents: the LLM, of prompts of documents.
        rest: the LLM besides, each with the share of the layers through which it has a gradient.
        keys: of documents that are read once each, what decides their keys and values, with the number of tokens.
        texts: tokens of the query and of each document as the encoder has them; none for a table of embeddings.
    """

    documents: Reading
    rest: tuple[tuple[Reading, float], ...]
    keys: tuple[tuple[Hashable, int], ...]
    texts: tuple[int, ...]

    @property
    def rest_tokens(self) -> float:
        return sum(reading.tokens for reading, _ in self.rest)

    def rest_flops(self, shape: ModelShape) -> float:
        return sum(shape.flops(reading, graph=graph) for reading, graph in self.rest)


class TrainingRows:
    """The rows of a recipe's training, of many a sample, and what is read of each.

    Args:
        context: of the recipe.
        encoder: its encoder.
    """

    def __init__(self, context: PlanContext, encoder: Encoder) -> None:
        self.context, self.encoder = context, encoder
        rows = labelled(context) if context.args.reads_labels(context.data) else context.candidates
        self.candidates: list[QueryCandidates] = drawn(rows, COUNTED_ROWS, seed=context.args.seed)
        """The rows that are counted."""
        self.count = round(len(rows) * context.factor)
        """All rows."""
        if context.args.reads_llm and len(self.candidates) < self.count:
            context.notes.append(
                f"train: LLM tokens are estimated from {len(self.candidates):,} of {self.count:,} rows"
            )

    @property
    def factor(self) -> float:
        """How many rows one that is counted stands for."""
        return self.count / len(self.candidates)

    @cached_property
    def parts(self) -> Parts:
        """What the recipe's objective is made of, to be timed; its heads are drawn where they are not there yet."""
        context, model = self.context, self.context.model
        lm = context.llm.lm if context.args.reads_llm and context.llm else None
        heads = model.heads
        if lm is not None and "dream" in context.args.objectives and not _fit(heads, lm, model.num_heads):
            context.notes.append(f"train: {heads} is not there yet or not this LLM's; heads drawn at random are timed")
            heads = random_heads(lm, model.num_heads, context.folder)
        model = dataclasses.replace(model, heads=heads, llm_process=False)
        return Parts(self.encoder.model, model, context.data, context.args, context.candidates, lm)

    @cached_property
    def prompts(self) -> tuple[PromptBuilder | None, ChunkBuilder | None]:
        """What builds the LLM's texts."""
        return self.parts.builders()

    @cached_property
    def counted(self) -> tuple[list[Row], float]:
        """The rows, and the seconds in which `train` builds the prompts of all of them before its first step."""
        rows, seconds = timed(lambda: [self._row(c) for c in self.candidates])
        return rows, seconds * self.factor if self.context.args.reads_llm else 0.0

    @property
    def rows(self) -> list[Row]:
        return self.counted[0]

    def typical(self, count: int, size: Callable[[Row], float]) -> list[int]:
        """Indices of `count` rows in the middle of their sizes."""
        order = sorted(range(len(self.rows)), key=lambda i: size(self.rows[i]))
        first = max(0, (len(order) - count) // 2)
        return order[first : first + count]

    def texts_of(self, c: QueryCandidates) -> dict[str, object]:
        """A row as the prompts' builders take it."""
        documents = [self.context.collection.corpus[d].content for d in c.document_ids]
        return {"query": c.query, "documents": documents, "answer": c.answer}

    def _row(self, c: QueryCandidates) -> Row:
        args, row = self.context.args, self.texts_of(c)
        documents = [self.context.collection.corpus[d].content for d in c.document_ids]
        build, build_chunks = self.prompts
        read = Reading()
        rest: list[tuple[Reading, float]] = []
        keys: tuple[tuple[Hashable, int], ...] = ()
        if build is not None:
            prompts = build([row])
            suffix, own = suffix_reading(prompts), document_reading(prompts)
            for name in PROMPT_OBJECTIVES & set(args.objectives):
                read += own
                times = len(documents) if name == "loop" else 1  # once without each document
                rest.append((suffix * times, self.graph if name == "dream" else 0.0))
            if build.layout == "independent":
                keys = tuple(_keys(build.tokens, documents))
        if build_chunks is not None:
            chunks, trained = chunk_reading(build_chunks([row])), self.context.model.llm_lora is not None
            rest += [(dataclasses.replace(chunks, targets=0.0), float(trained)), (chunks, 1.0)]
        return Row(read, tuple(rest), keys, self._encoder_tokens(c.query, documents))

    @cached_property
    def graph(self) -> float:
        """Share of the LLM's layers through which DREAM has a gradient: those from the first injected one on."""
        lm = self.parts.backbone
        if lm is None or "dream" not in self.context.args.objectives:
            return 0.0
        return 1.0 - min(layer for layer, _ in HeadSet.load(self.parts.model.heads).heads) / lm.num_layers

    def _encoder_tokens(self, query: str, documents: list[str]) -> tuple[int, ...]:
        """Tokens of the query and each document, cut as in training."""
        encoder, length = self.encoder.model, self.context.model.train_max_length
        if encoder.transformers_model is None:
            return ()
        counts: list[int] = []
        cut = {} if length is None else {"max_length": length}
        for kind, texts in (("query", [query]), ("document", documents)):
            features = encoder.preprocess(texts, prompt=encoder.prompts.get(kind) or None, task=kind, **cut)
            counts += features["attention_mask"].sum(-1).tolist()
        return tuple(counts)

    def documents_read(self, schedule: Schedule, shape: ModelShape) -> tuple[float, float]:
        """Tokens of documents that training reads, and tokens of which keys and values are kept at most."""
        rows, args = self.rows, self.context.args
        if not rows[0].keys:
            return sum(row.documents.tokens for row in rows) / len(rows) * schedule.queries, 0.0
        lengths = dict(key for row in rows for key in row.keys)
        read = most = 0.0
        for name in PROMPT_OBJECTIVES & set(args.objectives):
            dream = name == "dream"
            kept = args.document_cache_gib * 2**30 / shape.key_value_bytes if dream else 0.0
            calls = micro_batches(
                len(rows),
                epochs=schedule.queries / self.count,
                batch=args.train_batch_size,
                micro_batch=args.train_batch_size if dream and args.in_batch_candidates else args.lm_micro_batch_size,
                seed=args.seed,
            )
            documents = ([key for i in call for key, _ in rows[i].keys] for call in calls)
            own, held = tokens_read(documents, lengths, capacity=kept / self.factor)
            read, most = read + own * self.factor, max(most, held * self.factor)
            if sum(lengths.values()) * self.factor > kept:
                cache = f"document_cache_gib {args.document_cache_gib} does not hold all documents"
                self.context.notes.append(
                    f"train: {cache if kept else f'{name} keeps no documents'}; how often they are read again is "
                    "simulated for another order of the queries than the trainer's"
                )
        return read, most


def labelled(context: PlanContext) -> list[QueryCandidates]:
    """The candidates of queries that have a relevant one among them, as training takes them.

    Raises:
        NLTError: there is none.
    """
    candidates = context.candidates
    if not context.whole_corpus:
        context.notes.append("train: how many queries have a relevant candidate is not known; all of them are counted")
        return candidates
    judged = relevance(candidates, context.collection.split_qrels(str(context.data.train_split)))
    found = [c for c, grades in zip(candidates, judged, strict=True) if grades.any()]
    if not found:
        raise NLTError("no query has a relevant candidate; mine more candidates or train without labels")
    return found


def _fit(path: str, lm: FrozenLM, count: int) -> bool:
    """Whether a file has so many heads of this LLM."""
    try:
        heads = HeadSet.load(path)
        heads.check(lm)
    except NLTError:
        return False
    return len(heads.heads) == count


def _keys(tokens: PromptTokens, documents: Sequence[str]) -> Iterator[tuple[Hashable, int]]:
    """What decides the keys and values of a prompt's start and of documents that do not see each other."""
    start = (*tokens.start, *tokens.document_frame[0])
    if start:
        yield "start", len(start)
    for text in documents:
        ids, _ = tokens.document(text)
        yield ids, len(start) + len(ids) + len(tokens.document_frame[1])
