"""A prior mixed into gains, against the formula."""

from __future__ import annotations

import numpy as np
import pytest

from nlt_trainer.choices import Prior
from nlt_trainer.data.candidates import QueryCandidates
from nlt_trainer.data.prior import with_prior

CANDIDATES = [
    QueryCandidates("a", "a", None, ("d1", "d2", "d3"), (3.0, 2.0, 1.0)),
    QueryCandidates("b", "b", None, ("d1", "d2", "d3"), (0.0, 0.0, 0.0)),
]
GAIN = np.array([[0.1, 0.4, 0.1], [0.3, 0.2, 0.1]])


@pytest.mark.parametrize(("prior", "evidence"), [("bm25", [3.0, 2.0, 1.0]), ("order", [0.0, -1.0, -2.0])])
def test_the_mixture_is_the_formula(prior: Prior, evidence: list[float]) -> None:
    """Reference: standardised by hand for the first query."""
    found = with_prior(GAIN, CANDIDATES, prior=prior, weight=0.5)
    z = (np.array(evidence) - np.mean(evidence)) / np.std(evidence)
    np.testing.assert_allclose(found[0], GAIN[0] + 0.5 * np.std(GAIN[0]) * z)
    np.testing.assert_allclose(found.mean(1), GAIN.mean(1))


def test_without_a_weight_or_without_evidence_nothing_changes() -> None:
    """Reference: the gains; BM25 that says the same of all candidates says nothing."""
    np.testing.assert_array_equal(with_prior(GAIN, CANDIDATES, prior="bm25", weight=0.0), GAIN)
    np.testing.assert_array_equal(with_prior(GAIN, CANDIDATES, prior="bm25", weight=1.0)[1], GAIN[1])
