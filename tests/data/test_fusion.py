"""The weighted fusion against calculations by hand and numpy."""

from __future__ import annotations

import numpy as np
import pytest

from nlt_trainer.data.fusion import weighted_fusion
from nlt_trainer.errors import NLTError

ENCODER = {"a": 0.9, "b": 0.7, "c": 0.5}
BM25 = {"c": 12.0, "d": 6.0, "b": 2.0}


def test_scores_are_weighted_sums_of_scaled_scores() -> None:
    """Reference: by hand; the encoder's are 1, 0.5 and 0, BM25's are 1, 0.4 and 0."""
    found = weighted_fusion(ENCODER, BM25, weight=0.3)
    assert found == pytest.approx({"a": 0.7, "b": 0.35, "c": 0.3, "d": 0.12})
    assert list(found) == ["a", "b", "c", "d"]


@pytest.mark.parametrize(("weight", "order"), [(0.0, "abcd"), (1.0, "cdab")])
def test_one_ranking_alone_decides_at_the_ends(weight: float, order: str) -> None:
    """Reference: the rankings; what a ranking lacks follows in the encoder's order."""
    assert "".join(weighted_fusion(ENCODER, BM25, weight=weight)) == order


def test_an_empty_ranking_and_equal_scores_are_fused() -> None:
    """Reference: by hand; a single document is its ranking's best."""
    assert weighted_fusion({"a": 0.2}, {}, weight=0.25) == {"a": 0.75}
    assert weighted_fusion({}, {"a": 3.0, "b": 3.0}, weight=0.25) == {"a": 0.25, "b": 0.25}
    assert weighted_fusion({}, {}, weight=0.25) == {}


def test_each_ranking_is_scaled_by_its_first_hundred() -> None:
    """Reference: numpy; of 150 documents the last 50 are neither scaled nor found."""
    rng = np.random.default_rng(0)
    encoder, bm25 = rng.normal(size=150), rng.normal(size=150)
    found = weighted_fusion(dict(enumerate(encoder)), dict(enumerate(bm25)), weight=0.4)
    expected = np.zeros(150)
    for scores, share in ((encoder, 0.6), (bm25, 0.4)):
        first = np.sort(scores)[-100:]
        expected += share * np.clip((scores - first[0]) / (first[-1] - first[0]), 0, None)
    union = set(np.argsort(encoder)[-100:]) | set(np.argsort(bm25)[-100:])
    assert found == pytest.approx({document: expected[document] for document in union})
    assert list(found.values()) == sorted(found.values(), reverse=True)


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_a_weight_that_is_no_share_is_refused(weight: float) -> None:
    """Reference: the message."""
    with pytest.raises(NLTError, match=f"weight is {weight}; it must be between 0"):
        weighted_fusion(ENCODER, BM25, weight=weight)
