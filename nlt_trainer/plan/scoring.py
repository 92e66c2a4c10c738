"""The plans of the stages before training: mine, score, detect_heads."""

from __future__ import annotations

import dataclasses
import math
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np

from nlt_trainer.assembly.head_detection import head_task
from nlt_trainer.assembly.parts import make_scorer, prompt_tokens, target_of
from nlt_trainer.choices import DocumentLayout
from nlt_trainer.errors import NLTError
from nlt_trainer.injection.attention import enable_document_attention
from nlt_trainer.injection.document_prompts import build_prompts
from nlt_trainer.injection.document_reader import DocumentReader
from nlt_trainer.injection.heads import NULL_QUERY, calibrated_mass
from nlt_trainer.lm.candidate_pairs import Pair
from nlt_trainer.lm.cpu import is_packable, packed_weights
from nlt_trainer.lm.scoring import PACKING_PAIRS
from nlt_trainer.plan.context import LLM, PlanContext, StagePlan
from nlt_trainer.plan.evaluation import encoding
from nlt_trainer.plan.flops import Cost, gains_bytes, score_cache_bytes
from nlt_trainer.plan.probes import drawn, probe_scoring, scored, timed
from nlt_trainer.plan.readings import Reading, document_reading, suffix_reading

SCORED_PAIRS = 20_000
"""Pairs whose tokens are counted; of more a sample of documents, with all their pairs, stands for all."""

HEAD_PROMPTS = 256
"""Prompts of head detection that are counted; of more a sample stands for all."""

SCORING_SECONDS = 3.0


def plan_mine(context: PlanContext) -> StagePlan:
    """BM25 over the corpus and a search a query, and where the miner is an encoder, the corpus encoded."""
    queries, documents = len(context.queries), len(context.collection.corpus)
    line = np.mean([len(str(dataclasses.asdict(c))) for c in context.candidates])
    other = context.begin + context.bm25.document * documents + context.bm25.query * queries
    cost, memory = Cost(), context.base
    if context.data.miner != "bm25":
        if context.encoder is None:
            return StagePlan("mine", 0.0, None, None)
        cost = encoding(context, context.encoder, context.collection) * documents
        other += context.encoder.seconds + cost.other
        memory += context.encoder.weight_bytes
    return StagePlan("mine", 0.0, cost.flops, other + cost.seconds, other, float(line) * queries, memory)


@dataclass(frozen=True)
class Scoring:
    """What `score` reads, the FLOPs a second at which it does, and seconds of counting the tokens."""

    reading: Reading
    speed: float
    counting: float


def plan_score(context: PlanContext) -> StagePlan:
    """Each document once for all its pairs, each query once without a document."""
    candidates, data, llm = context.candidates, context.data, context.llm
    ids, documents = [c.query_id for c in candidates], [c.document_ids for c in candidates]
    if llm is None:
        files = gains_bytes(ids, documents) * context.factor
        return StagePlan("score", None, None, None, file_bytes=files)
    scoring = _scoring(context, llm)
    reading, pairs = scoring.reading, len(candidates) * context.factor * (data.num_candidates + 1)
    targets = reading.targets / pairs
    files = gains_bytes(ids, documents, token_numbers=targets if data.token_likelihoods else 0) * context.factor
    files += score_cache_bytes(round(pairs), targets)
    other = context.begin + llm.seconds + scoring.counting
    flops = llm.shape.flops(reading)
    memory = context.base + llm.shape.weight_bytes + llm.shape.projection_bytes()
    memory += llm.shape.activation_bytes(min(data.batch_tokens, reading.tokens))
    if is_packable(llm.lm.model.get_input_embeddings().weight):  # type: ignore[arg-type]  # a tensor
        memory += llm.shape.parameters * llm.shape.bytes_per_number  # beside the file's pages, until these are dropped
    return StagePlan("score", reading.tokens, flops, other + flops / scoring.speed, other, files, memory)


def _scoring(context: PlanContext, llm: LLM) -> Scoring:
    """Count what the real scorer reads and time it on a part."""
    groups: dict[str, list[Pair]] = {}  # by document; those without one each by itself
    for c in context.candidates:
        groups.setdefault(f"no document\n{c.query}", []).append((None, c.query, c.answer))
        for text in (context.collection.corpus[d].content for d in c.document_ids):
            groups.setdefault(text, []).append((text, c.query, c.answer))
    chosen, pairs = list(groups.values()), sum(map(len, groups.values()))
    if pairs > SCORED_PAIRS:
        chosen = drawn(chosen, math.ceil(len(chosen) * SCORED_PAIRS / pairs), seed=context.args.seed)
        context.notes.append(f"score: tokens are estimated from {len(chosen):,} of {len(groups):,} texts")
    factor = context.factor * pairs / sum(map(len, chosen))
    data = dataclasses.replace(context.data, score_cache=str(context.folder / "scores"))
    scorer = make_scorer(llm.lm, data, target=target_of(data, context.candidates))
    parts = [[pair for group in chosen for pair in group if (pair[0] is None) == alone] for alone in (False, True)]
    tokens, seconds = timed(lambda: sum(map(scorer.count_tokens, parts)))  # as score does
    reading = sum((scored(scorer, group) for group in chosen), Reading())
    reading = dataclasses.replace(reading, tokens=tokens) * factor
    scorer.cache = None  # what is timed is computed
    with packed_weights(llm.lm.model) if pairs * context.factor >= PACKING_PAIRS else nullcontext():
        read, took = probe_scoring(scorer, chosen, seconds=SCORING_SECONDS)
    return Scoring(reading, llm.probed.flops(read) / took, seconds * factor)


def plan_detect_heads(context: PlanContext) -> StagePlan:
    """Documents once a query, then the query and the null query behind them, with explicit weights in all heads."""
    llm, data = context.llm, context.data
    if llm is None:
        return StagePlan("detect_heads", None, None, None)
    tokens, lm = prompt_tokens(llm.lm, data), llm.lm
    layout: DocumentLayout = data.head_layout or data.document_layout
    asked, count = _head_queries(context)
    null, readings = tokens.suffix(NULL_QUERY, None, "query"), []
    for query, documents in asked:
        prompts = build_prompts(
            tokens, [query], [documents], target="query", context_length=lm.context_length, layout=layout
        )
        after = int(prompts.prompt_mask.sum())
        reading = document_reading(prompts) + suffix_reading(prompts) + Reading.text(len(null.ids), after=after)
        readings.append(dataclasses.replace(reading, targets=0.0))
    middle = sorted(range(len(asked)), key=lambda i: readings[i].tokens)[len(asked) // 2]
    query, documents = asked[middle]
    enable_document_attention(lm)
    reader = DocumentReader(lm)
    for _ in range(2):  # the first time warms up
        _, took = timed(calibrated_mass, reader, [query], documents=[documents], tokens=tokens, layout=layout)
    whole = sum(readings, Reading()) * (count / len(asked))
    flops, other = llm.shape.flops(whole), context.begin + llm.seconds
    seconds = other + flops / llm.probed.flops(readings[middle]) * took
    longest = 2 * max(reading.tokens for reading in readings)  # two queries at once
    memory = context.base + llm.shape.weight_bytes + llm.shape.activation_bytes(longest)
    memory += 2 * longest * llm.shape.key_value_bytes
    return StagePlan("detect_heads", whole.tokens, flops, seconds, other, 0.0, memory)


def _head_queries(context: PlanContext) -> tuple[list[tuple[str, list[str]]], int]:
    """Queries with their documents that heads are tried on, and how many there will be."""
    data, seed = context.data, context.args.seed
    try:
        task = head_task(context.collection, data, seed=seed)
        found = list(zip(task.queries, task.documents, strict=True))
    except NLTError:  # candidates or gains are not there yet
        context.notes.append("detect_heads: tokens are estimated, because it draws its queries by their gains")
        found = [(c.query, [context.collection.corpus[d].content for d in c.document_ids]) for c in context.candidates]
    count = min(data.head_queries, round(len(found) * context.factor))
    return drawn(found, min(count, HEAD_PROMPTS), seed=seed), count
