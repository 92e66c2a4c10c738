"""How sure a difference is: bootstrap intervals and a paired randomisation test over queries.

Values come in groups. There is a group for each part of what is averaged: one split of one collection, each language
of a task, or each task of a benchmark. The figure is the weighted mean of the groups' means. With one group that is
the plain mean over queries.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

SAMPLES = 9_999
CONFIDENCE = 0.95
BATCH_NUMBERS = 4_000_000
"""Numbers that a batch of resamples holds at once."""

Groups = Sequence[np.ndarray]
"""Values of the queries of each group, `(n,)` each."""


def weighted_mean(groups: Groups, weights: Sequence[float]) -> float:
    """The figure itself, `sum_g weight_g * mean(group_g)`; weights sum to 1."""
    return float(sum(w * group.mean() for group, w in zip(groups, weights, strict=True)))


def bootstrap_interval(
    groups: Groups, weights: Sequence[float], *, samples: int = SAMPLES, seed: int = 0
) -> tuple[float, float] | None:
    """95 % percentile bootstrap interval of the weighted mean. Each group's queries are drawn with replacement.

    Args:
        groups: see `Groups`.
        weights: of the groups, summing to 1.
        samples: number of resamples.
        seed: of the draws.

    Returns:
        Lower and upper bound; `None` where a group has a single query, from which nothing can be drawn.
    """
    if min(map(len, groups)) < 2:
        return None
    batch = max(1, BATCH_NUMBERS // sum(map(len, groups)))
    interval = stats.bootstrap(
        groups,
        lambda *drawn, axis: sum(w * x.mean(axis) for x, w in zip(drawn, weights, strict=True)),
        n_resamples=samples,
        batch=batch,
        vectorized=True,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=seed,
    ).confidence_interval
    return float(interval.low), float(interval.high)


def randomisation_test(
    differences: Groups, weights: Sequence[float], *, samples: int = SAMPLES, seed: int = 0
) -> float:
    """Two-sided p-value of a paired randomisation test (Fisher's; Smucker et al., CIKM 2007).

    Under the null hypothesis the two systems are exchangeable within each query, so the sign of each difference is
    tossed at random. p is the share of tosses whose weighted mean is at least as far from 0 as the observed one. The
    observed one counts as a toss.

    Args:
        differences: value of one system minus that of the other, for each query of each group.
        weights: of the groups, summing to 1.
        samples: number of tosses; p is never below `1 / (samples + 1)`.
        seed: of the tosses.
    """
    terms = np.concatenate([w / len(group) * group for group, w in zip(differences, weights, strict=True)])
    observed = abs(terms.sum())
    rng, extreme, batch = np.random.default_rng(seed), 0, max(1, BATCH_NUMBERS // len(terms))
    for start in range(0, samples, batch):
        signs = rng.integers(0, 2, size=(min(batch, samples - start), len(terms)), dtype=np.int8) * 2 - 1
        extreme += int((np.abs(signs @ terms) >= observed - 1e-12).sum())  # rounding must not break a tie
    return (extreme + 1) / (samples + 1)
