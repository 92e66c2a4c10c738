"""Decide on held-out queries whether an adapted encoder replaces the one that it started from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nlt_trainer.choices import TargetKind
from nlt_trainer.data.beir import Qrels
from nlt_trainer.data.fusion import reciprocal_ranks, weighted_fusion
from nlt_trainer.evaluation.evaluator import best
from nlt_trainer.evaluation.folder_task import METRICS, TOP_K
from nlt_trainer.evaluation.fusion_weight import fit_weight
from nlt_trainer.evaluation.retrieval_metric import query_values
from nlt_trainer.evaluation.significance import bootstrap_interval, randomisation_test
from nlt_trainer.run.results import Result

Rankings = Mapping[str, Mapping[str, float]]
"""Query id -> document id -> score."""

ENOUGH = 0.005
"""The least gain in nDCG@10 for which an encoder is replaced, where it is known what is relevant."""
ENOUGH_BY_LLM = 0.025
"""The least gain where the LLM that taught the encoder also judges.

An encoder that has learnt the LLM's mistakes gains by its judgements and not by people's: on questions of Natural
Questions, on which all-MiniLM-L6-v2 was trained with labels, 0.013 by the LLM and -0.012 by people.
"""
SURE = 0.05
"""The largest p-value with which a gain counts as one."""


@dataclass(frozen=True)
class Decision:
    """What the held-out queries say.

    Args:
        rows: results of `bm25`, `start`, `adapted`, and of both encoders with BM25: `start+bm25` by weighted sums and
            `start+bm25 (rrf)` by reciprocal ranks.
        kept: `adapted` or `start`.
        sentence: the verdict in plain words.
        bm25_weight: the weight of BM25 with which to search beside the kept encoder, see `chosen_weight`.
    """

    rows: list[Result]
    kept: str
    sentence: str
    bm25_weight: float


def decide(
    rankings: Mapping[str, Rankings],
    qrels: Qrels,
    *,
    collection: str,
    split: str,
    cost: Mapping[str, Any],
    judged_by_llm: bool,
    asked: str,
    advice: str,
    lengths: tuple[int, int] | None = None,
) -> Decision:
    """Compare the systems on held-out queries.

    The adapted encoder is kept if its nDCG@10 is higher by at least `ENOUGH`, or `ENOUGH_BY_LLM`, with a p-value of at
    most `SURE` in a paired randomisation test. Otherwise the start is kept. Both encoders also stand fused with BM25,
    by reciprocal ranks and by weighted sums. The weight is fitted on one half of the queries and used on the other, so
    that no query has a say in its own weight.

    Args:
        rankings: of `bm25`, `start`, `adapted` and what else is to stand in the table, each with at least the 100 best
            documents of each query.
        qrels: judgements of the queries.
        collection: name of the collection, for the rows.
        split: name of the split, for the rows.
        cost: `train_seconds`, `lm_tokens` and `seed` of the adapted encoder, for its rows.
        judged_by_llm: whether the judgements are those of the LLM that has taught the encoder.
        asked: what the held-out queries are, see `of_kind`.
        advice: what to do if the start is kept, see `advice_where_nothing_is_gained`.
        lengths: how many tokens of a passage start and adapted encoder read, and how many the start read as it was;
            the rankings then also have it `as_it_was`. `None` where that is the same.
    """
    systems: dict[str, Rankings] = dict(rankings)
    for name in ("start", "adapted"):
        systems[f"{name}+bm25"] = cross_fitted(rankings[name], rankings["bm25"], qrels)
        systems[f"{name}+bm25 (rrf)"] = {
            query: reciprocal_ranks(best(found, TOP_K), best(rankings["bm25"].get(query, {}), TOP_K))
            for query, found in rankings[name].items()
        }
    values = {name: query_values(run, qrels) for name, run in systems.items()}
    start = np.array(values["start"][METRICS[0]])
    difference = np.array(values["adapted"][METRICS[0]]) - start
    p = randomisation_test([difference], [1.0])
    enough = ENOUGH_BY_LLM if judged_by_llm else ENOUGH
    kept = "adapted" if difference.mean() >= enough and p <= SURE else "start"
    rows = []
    for name, found in values.items():
        ndcg = np.array(found[METRICS[0]])
        low, high = bootstrap_interval([ndcg], [1.0]) or (None, None)
        mean_ndcg, mean_mrr, mean_recall = (float(np.mean(found[metric])) for metric in METRICS)
        is_trained = name == "adapted"
        row = Result(
            name,
            mean_ndcg,
            mean_mrr,
            mean_recall,
            train_seconds=cost["train_seconds"] if is_trained else 0.0,
            lm_tokens=cost["lm_tokens"] if is_trained else 0,
            seed=cost["seed"] if is_trained else None,
            collection=collection,
            split=split,
            ndcg_at_10_low=low,
            ndcg_at_10_high=high,
            p_against_start=None if name == "start" else randomisation_test([ndcg - start], [1.0]),
            kept=name == kept,
        )
        rows.append(row)
    weight = chosen_weight(rankings, qrels, kept=kept)
    verdict = sentence(
        rows, kept, p=p, judged_by_llm=judged_by_llm, asked=asked, bm25_weight=weight, advice=advice, lengths=lengths
    )
    return Decision(rows, kept, verdict, weight)


def chosen_weight(rankings: Mapping[str, Rankings], qrels: Qrels, *, kept: str) -> float:
    """The weight of BM25 with which to search beside the kept encoder, in tenths.

    Held-out queries give BM25 too little. The LLM finds the encoder that it has taught better than people do, and made
    queries are like those that it was trained on: on COVID-QA 0.4 is fitted to queries that the LLM has judged and on
    FairytaleQA 0.5, and 0.4 to sentences that are cut out of FairytaleQA, where people's judgements want 0.6 and 0.7.
    The start was not taught, but needs more of BM25 than the better encoder. The weight is therefore the mean of those
    that are fitted to both, rounded up.
    """
    weight = fit_weight(rankings[kept], rankings["bm25"], qrels)
    if kept == "start":
        return weight
    of_start = fit_weight(rankings["start"], rankings["bm25"], qrels)
    return max(weight, math.ceil(round(5 * (weight + of_start), 6)) / 10)


def cross_fitted(encoder: Rankings, bm25: Rankings, qrels: Qrels) -> dict[str, dict[str, float]]:
    """An encoder's rankings fused with BM25's, each half of the queries with the weight that is best on the other."""
    halves: Sequence[Qrels] = [dict(list(qrels.items())[i::2]) for i in range(2)]
    fused = {}
    for half, other in (halves, halves[::-1]):
        weight = fit_weight(encoder, bm25, other)
        for query in half:
            fused[query] = weighted_fusion(encoder.get(query, {}), bm25.get(query, {}), weight=weight)
    return fused


def as_it_was(tokens: int) -> str:
    """The name of the start with its own number of tokens, where start and adapted encoder read another number."""
    return f"start ({tokens} tokens)"


def of_kind(queries: str) -> str:
    """What held-out queries are, in words.

    Args:
        queries: the option: how they were made, or the file that they come from.
    """
    return {
        "crop": "held-out sentences and headings that were cut out of the documents",
        "llm": "held-out queries that the LLM has written",
        "both": "held-out queries that were cut out of the documents or written by the LLM",
    }.get(queries, "your held-out queries, which the LLM has judged,")


def advice_where_nothing_is_gained(*, made: bool, target: TargetKind | None, answered: bool) -> str:
    """What to do where the start is kept.

    Args:
        made: whether the queries were made of the documents.
        target: the text whose likelihood counted; `None` means both query and answer where there are answers.
        answered: whether the queries have answers.
    """
    if made:
        return "queries that people have typed help more than made ones"
    other = "joint" if target == "query" else "query"
    return f"try more queries, or --target {other}" if answered else "more queries help most"


def sentence(
    rows: Sequence[Result],
    kept: str,
    *,
    p: float,
    judged_by_llm: bool,
    asked: str,
    bm25_weight: float,
    advice: str,
    lengths: tuple[int, int] | None = None,
) -> str:
    """The verdict: whether the encoder has gained, and what to do where BM25 is ahead."""
    by_name = {row.name: row.ndcg_at_10 for row in rows}
    start, adapted, bm25 = (by_name[name] for name in ("start", "adapted", "bm25"))
    change = f"nDCG@10 on {asked} was {start:.3f} before and is {adapted:.3f} adapted (p = {p:.2g})"
    parts = [f"WIN: {change}" if kept == "adapted" else f"NO GAIN: {change}; the encoder that you had is kept"]
    if kept == "start" and adapted - start >= ENOUGH and p > SURE:
        parts[0] += ", because so few queries cannot tell whether the difference is chance"
    if lengths is not None:
        now, own = lengths
        found = by_name[as_it_was(own)]
        parts.append(f"both read {now} tokens of a passage, and with its own {own} the start has {found:.3f}")
    if kept == "start" and p <= SURE and adapted > start and judged_by_llm:
        parts.append(f"a gain below {ENOUGH_BY_LLM} does not count, because the LLM judges what it has taught")
    alone, fused = by_name[kept], by_name[f"{kept}+bm25"]
    if bm25 > max(alone, fused):
        parts.append(f"BM25 alone is ahead with {bm25:.3f}: search with BM25, or give more queries")
    elif bm25_weight and (bm25 > alone or fused - alone >= ENOUGH):
        ahead = f"BM25 alone has {bm25:.3f}, and " if bm25 > alone else ""
        parts.append(f"{ahead}with {bm25_weight:.1f} of BM25 mixed in it has {fused:.3f}")
    if kept == "start":
        parts.append(advice)
    return "; ".join(parts) + "."
