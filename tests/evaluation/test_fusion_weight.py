"""The fitted weight against a search by hand, and its rule for weights that are equally good."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from nlt_trainer.data.fusion import weighted_fusion
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


def test_all_queries_decide_together() -> None:
    """Reference: two queries that BM25 serves and one that the encoder serves; one without any ranking."""
    forth, back = {"a": 1.0, "b": 0.0}, {"b": 1.0, "a": 0.0}
    encoder, bm25 = dict.fromkeys("xyz", forth), dict.fromkeys("xyz", back)
    qrels = {"x": {"b": 1}, "y": {"b": 1}, "z": {"a": 1}, "none": {"a": 1}}
    weight = fit_weight(encoder, bm25, qrels)
    assert next(iter(weighted_fusion(forth, back, weight=weight))) == "b"


def test_without_judgements_no_weight_is_fitted() -> None:
    """Reference: the message."""
    with pytest.raises(NLTError, match="without a judged query; give it instead"):
        fit_weight({}, {}, {})
