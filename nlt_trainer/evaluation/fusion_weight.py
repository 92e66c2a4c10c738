"""Choose the weight with which BM25 is added to an encoder, by judged queries that no result is reported on."""

from __future__ import annotations

import math
from collections.abc import Mapping

from nlt_trainer.data.fusion import weighted_fusion
from nlt_trainer.errors import NLTError
from nlt_trainer.evaluation.retrieval_metric import query_values

WEIGHTS = tuple(tenth / 10 for tenth in range(11))


def fit_weight(
    encoder: Mapping[str, Mapping[str, float]],
    bm25: Mapping[str, Mapping[str, float]],
    qrels: Mapping[str, Mapping[str, int]],
) -> float:
    """Return the weight of 0, 0.1 ... 1 whose `weighted_fusion` has the highest mean nDCG@10.

    If several weights are equally good, it is the middle one of them, or the lower of the two in the middle. nDCG@10
    often stays the same over a range of weights, and falls beyond both ends.

    Args:
        encoder: query id -> document id -> similarity; a query that is missing retrieves nothing.
        bm25: query id -> document id -> BM25's score, likewise.
        qrels: query id -> document id -> grade, for the queries that decide.

    Raises:
        NLTError: there is no judged query.
    """
    if not qrels:
        raise NLTError("a weight of BM25 cannot be fitted without a judged query; give it instead")
    values = {}
    for weight in WEIGHTS:
        run = {query: weighted_fusion(encoder.get(query, {}), bm25.get(query, {}), weight=weight) for query in qrels}
        values[weight] = math.fsum(query_values(run, qrels)["ndcg_at_10"])
    best = [weight for weight, value in values.items() if math.isclose(value, max(values.values()), abs_tol=1e-9)]
    return best[(len(best) - 1) // 2]
