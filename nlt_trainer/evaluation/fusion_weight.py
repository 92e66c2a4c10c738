"""Choose the weight with which BM25 is added to an encoder, by judged queries that no result is reported on."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from nlt_trainer.data.fusion import weighted_fusion
from nlt_trainer.errors import NLTError
from nlt_trainer.evaluation.retrieval_metric import query_values

WEIGHTS = tuple(tenth / 10 for tenth in range(11))


def fit_weight(
    encoder: Mapping[str, Mapping[str, float]],
    bm25: Mapping[str, Mapping[str, float]],
    qrels: Mapping[str, Mapping[str, int]],
) -> float:
    """Return a weight of 0, 0.1 ... 1 with which `weighted_fusion` has the highest mean nDCG@10, or as good as that.

    As good are the weights whose mean is below the highest by at most one standard error of the difference over the
    queries. The result is the middle one of them, or the lower of the two in the middle: nDCG@10 often changes little
    over a range of weights and falls beyond both ends, where the highest value of few queries may lie by chance.

    Args:
        encoder: query id -> document id -> similarity; a query that is missing retrieves nothing.
        bm25: query id -> document id -> BM25's score, likewise.
        qrels: query id -> document id -> grade, for the queries that decide.

    Raises:
        NLTError: there is no judged query.
    """
    if not qrels:
        raise NLTError("a weight of BM25 cannot be fitted without a judged query; give it instead")
    values = np.array([query_values(_fused(encoder, bm25, qrels, weight), qrels)["ndcg_at_10"] for weight in WEIGHTS])
    behind = values[values.mean(1).argmax()] - values  # (weights, queries)
    error = behind.std(1) / math.sqrt(len(qrels))
    good = [weight for weight, mean, se in zip(WEIGHTS, behind.mean(1), error, strict=True) if mean <= se + 1e-9]
    return good[(len(good) - 1) // 2]


def _fused(
    encoder: Mapping[str, Mapping[str, float]],
    bm25: Mapping[str, Mapping[str, float]],
    qrels: Mapping[str, Mapping[str, int]],
    weight: float,
) -> dict[str, dict[str, float]]:
    return {query: weighted_fusion(encoder.get(query, {}), bm25.get(query, {}), weight=weight) for query in qrels}
