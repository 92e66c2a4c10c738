"""The fitted weight against a search by hand, and its rule for weights that are equally good."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from nlt_trainer.errors import NLTError
from nlt_trainer.evaluation.fusion_weight import fit_weight

Ranking = Mapping[str, float]
SAME = {"a": 3.0, "b": 2.0, "c": 1.0}


@pytest.mark.parametrize(
    ("encoder", "bm25", "relevant", "weight"),
    [
        # a scores 1 - w and b scores w; where both are equal, trec_eval puts the last id first
        ({"a": 1.0, "c": 0.5, "b": 0.0}, {"b": 2.0, "c": 1.2, "a": 1.0}, "b", 0.7),  # b leads from 0.5 to 1
        ({"a": 1.0, "c": 0.5, "b": 0.0}, {"b": 2.0, "c": 1.2, "a": 1.0}, "a", 0.2),  # a leads from 0 to 0.4
        (SAME, SAME, "a", 0.5),  # all weights are equally good
        (SAME, {}, "a", 0.4),  # all but 1, which scores every document 0 and leaves the order to the ids
        ({}, SAME, "b", 0.5),
    ],
)
def test_the_best_weight_is_found(encoder: Ranking, bm25: Ranking, relevant: str, weight: float) -> None:
    """Reference: the order of three documents by hand."""
    assert fit_weight({"q": encoder}, {"q": bm25}, {"q": {relevant: 1}}) == weight


@pytest.mark.parametrize(("served", "weight"), [(20, 0.7), (2, 0.5)])
def test_all_queries_decide_together(served: int, weight: float) -> None:
    """Reference: queries that BM25 serves against one that the encoder serves, and one without any ranking.

    The weights from 0.5 on are better for 20 queries to 1. For 2 to 1 no weight is better by a standard error.
    """
    forth, back = {"a": 1.0, "b": 0.0}, {"b": 1.0, "a": 0.0}
    queries = [f"q{i}" for i in range(served)]
    encoder, bm25 = dict.fromkeys([*queries, "other"], forth), dict.fromkeys([*queries, "other"], back)
    qrels = {**{key: {"b": 1} for key in queries}, "other": {"a": 1}, "none": {"a": 1}}
    assert fit_weight(encoder, bm25, qrels) == weight


def test_without_judgements_no_weight_is_fitted() -> None:
    """Reference: the message."""
    with pytest.raises(NLTError, match="without a judged query; give it instead"):
        fit_weight({}, {}, {})
