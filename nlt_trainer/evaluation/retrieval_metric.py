"""nDCG@10, MRR@10 and Recall@100 of trec_eval as an `evaluate.Metric`.

Import the class, or load this file: `evaluate.load("nlt_trainer/evaluation/retrieval_metric.py")`. The file is copied
when it is loaded, so it imports nothing of the package. Scores come from pytrec_eval, the binding of trec_eval that
mteb uses: ties are ordered by document id, last first, and scores are compared in float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import evaluate
import pytrec_eval

_CITATION = """\
@inproceedings{VanGysel2018pytreceval,
    title = {Pytrec\\_eval: An Extremely Fast Python Interface to trec\\_eval},
    author = {Van Gysel, Christophe and de Rijke, Maarten},
    booktitle = {SIGIR},
    year = {2018},
}
"""
_DESCRIPTION = "Ranking metrics of trec_eval, averaged over queries: nDCG, reciprocal rank and recall at cut-offs."
_INPUTS = """
Args:
    predictions: one row a query, `{"document_ids": [str, ...], "scores": [float, ...]}`: what was retrieved, in any
        order; higher scores rank higher. A row without documents counts 0.
    references: one row a query in the same order, `{"document_ids": [str, ...], "grades": [int, ...]}`: the judged
        documents; a grade above 0 is relevant.
    ndcg: cut-offs of nDCG; default (10,).
    mrr: cut-offs of the reciprocal rank; default (10,).
    recall: cut-offs of recall; default (100,).

Returns:
    `ndcg_at_K`, `mrr_at_K` and `recall_at_K` for each cut-off: means over the queries, between 0 and 1.

Raises:
    ValueError: no query, lists of different lengths, a document twice in a row, a score that is not finite.

Examples:
    >>> metric = RetrievalMetric()
    >>> predictions = [{"document_ids": ["a", "b"], "scores": [0.2, 0.9]}]
    >>> references = [{"document_ids": ["a"], "grades": [1]}]
    >>> metric.compute(predictions=predictions, references=references)["mrr_at_10"]
    0.5
"""


class RetrievalMetric(evaluate.Metric):
    """nDCG, MRR and recall of ranked documents against graded judgements; see `inputs_description`."""

    def _info(self) -> evaluate.MetricInfo:
        ids = datasets.List(datasets.Value("string"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "predictions": {"document_ids": ids, "scores": datasets.List(datasets.Value("float64"))},
                    "references": {"document_ids": ids, "grades": datasets.List(datasets.Value("int64"))},
                }
            ),
            reference_urls=["https://github.com/cvangysel/pytrec_eval"],
        )

    def _compute(
        self,
        *,
        predictions: Sequence[Mapping[str, Any]],
        references: Sequence[Mapping[str, Any]],
        ndcg: Sequence[int] = (10,),
        mrr: Sequence[int] = (10,),
        recall: Sequence[int] = (100,),
    ) -> dict[str, float]:
        run = {str(i): _as_mapping(row, "scores", query=i) for i, row in enumerate(predictions)}
        qrels = {str(i): _as_mapping(row, "grades", query=i) for i, row in enumerate(references)}
        if not qrels:
            raise ValueError("no query to score; pass at least one row of predictions and references")
        values = query_values(run, qrels, ndcg=ndcg, mrr=mrr, recall=recall)
        return {name: math.fsum(numbers) / len(qrels) for name, numbers in values.items()}


def query_values(
    run: Mapping[str, Mapping[str, float]],
    qrels: Mapping[str, Mapping[str, int]],
    *,
    ndcg: Sequence[int] = (10,),
    mrr: Sequence[int] = (10,),
    recall: Sequence[int] = (100,),
) -> dict[str, list[float]]:
    """Return the values that trec_eval gives each query.

    Args:
        run: query id -> document id -> score. A query that is missing counts 0, as with trec_eval's option -c.
        qrels: query id -> document id -> grade; a grade above 0 is relevant.
        ndcg: cut-offs of nDCG.
        mrr: cut-offs of the reciprocal rank.
        recall: cut-offs of recall.

    Returns:
        `ndcg_at_K`, `mrr_at_K` and `recall_at_K` -> a value between 0 and 1 for each query, in the order of `qrels`.
    """
    measures = {"recip_rank"} | {f"ndcg_cut.{k}" for k in ndcg} | {f"recall.{k}" for k in recall}
    found = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate({q: dict(run.get(q, {})) for q in qrels})
    rows = [found[query_id] for query_id in qrels]
    values = {f"ndcg_at_{k}": [row[f"ndcg_cut_{k}"] for row in rows] for k in ndcg}
    # trec_eval has no cut-off for the reciprocal rank: 1/rank lies below 1/k exactly where the rank is beyond k.
    reciprocal_ranks = [row["recip_rank"] for row in rows]
    values |= {f"mrr_at_{k}": [value if value >= 1 / k else 0.0 for value in reciprocal_ranks] for k in mrr}
    return values | {f"recall_at_{k}": [row[f"recall_{k}"] for row in rows] for k in recall}


def _as_mapping(row: Mapping[str, Any], values: str, *, query: int) -> dict[str, Any]:
    """Return document id -> score or grade of one row."""
    document_ids, numbers = row["document_ids"], row[values]
    if len(document_ids) != len(numbers):
        raise ValueError(f"row {query}: {len(document_ids)} document_ids but {len(numbers)} {values}; match them")
    if len(set(document_ids)) != len(document_ids):
        raise ValueError(f"row {query}: a document stands twice; list each document once")
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"row {query}: {values} are not finite; check the encoder for NaN")
    return dict(zip(document_ids, numbers, strict=True))
