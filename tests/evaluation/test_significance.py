"""Intervals and tests against scipy, closed cases and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from nlt_trainer.evaluation.significance import bootstrap_interval, randomisation_test, weighted_mean


def test_the_randomisation_test_is_that_of_scipy() -> None:
    """Reference: scipy's permutation test of paired samples, which enumerates all tosses of so few queries."""
    rng = np.random.default_rng(0)
    for shift in (0.0, 0.05, 0.2):
        ours, theirs = rng.random(12) + shift, rng.random(12)
        exact = stats.permutation_test(
            (ours, theirs), lambda a, b, axis: (a - b).mean(axis), permutation_type="samples", n_resamples=np.inf,
            vectorized=True,
        )  # fmt: skip
        assert randomisation_test([ours - theirs], [1.0]) == pytest.approx(exact.pvalue, abs=0.015)


def test_equal_systems_and_systems_that_always_differ() -> None:
    """Reference: p is 1 where nothing differs, and 2 / 2^n (here: the least possible) where all differ alike."""
    assert randomisation_test([np.zeros(50)], [1.0]) == 1
    assert randomisation_test([np.full(50, 0.1)], [1.0]) == 1 / 10_000
    assert randomisation_test([np.full(2, 0.1)], [1.0]) == pytest.approx(0.5, abs=0.02)


def test_groups_count_by_their_weights() -> None:
    """Reference: a group without weight changes nothing; a large group does not outvote a small one."""
    rng = np.random.default_rng(1)
    small, large = rng.normal(0.1, 0.1, 20), rng.normal(-0.1, 0.1, 2000)
    assert weighted_mean([small, large], [0.5, 0.5]) == pytest.approx((small.mean() + large.mean()) / 2)
    assert randomisation_test([small, large], [1.0, 0.0]) == pytest.approx(
        randomisation_test([small], [1.0]), abs=2e-3
    )


def test_p_is_uniform_under_the_null_hypothesis() -> None:
    """Reference: a share of about 10 % of true null hypotheses has p below 0.1, also with unequal groups."""
    rng = np.random.default_rng(2)
    p = [
        randomisation_test([rng.normal(0, 1, 30), rng.normal(0, 0.2, 5)], [0.5, 0.5], samples=199, seed=i)
        for i in range(400)
    ]
    assert np.mean(np.array(p) < 0.1) == pytest.approx(0.1, abs=0.04)


def test_the_interval_is_that_of_the_standard_error() -> None:
    """Reference: mean +- 1.96 standard errors, to which the bootstrap of many queries comes near; strata apart."""
    rng = np.random.default_rng(3)
    groups, weights = [rng.random(400), rng.random(900) + 1], [0.25, 0.75]
    error = np.sqrt(sum(w**2 * g.var() / len(g) for g, w in zip(groups, weights, strict=True)))
    mean = weighted_mean(groups, weights)
    found = bootstrap_interval(groups, weights)
    assert found == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=0.1 * error)


def test_the_interval_is_the_same_every_time_and_absent_where_nothing_can_be_drawn() -> None:
    """Reference: a second call; a single query."""
    values = np.random.default_rng(4).random(30)
    assert bootstrap_interval([values], [1.0]) == bootstrap_interval([values], [1.0])
    assert bootstrap_interval([values], [1.0], seed=1) != bootstrap_interval([values], [1.0])
    assert bootstrap_interval([np.ones(5)], [1.0]) == (1, 1)
    assert bootstrap_interval([values, np.ones(1)], [0.5, 0.5]) is None
