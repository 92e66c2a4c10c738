"""Mix prior knowledge of the candidates into the LLM's gains: BM25's scores, or the miner's order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nlt_trainer.choices import Prior
from nlt_trainer.data.candidates import QueryCandidates


def with_prior(gain: np.ndarray, candidates: Sequence[QueryCandidates], *, prior: Prior, weight: float) -> np.ndarray:
    """Gains with a weighted prior: `gain + weight * deviation(gain) * standardised(prior)`, for each query by itself.

    The prior is standardised over a query's candidates and scaled to the spread of their gains. The weight therefore
    has no unit, and the teacher's temperature keeps its meaning. Small LLMs profit most. With SmolLM2-135M-Instruct
    and BM25, the mean reciprocal rank of the right document among eight fused candidates was highest at weight 0.5 of
    0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1 and 2. It rose there from 0.763 to 0.791 on 460 training queries of the standard
    library, and from 0.808 to 0.835 on 408 of COVID-QA.

    Args:
        gain: `(B, K)`, nats per target token.
        candidates: B queries with K candidates each, in the miner's order.
        prior: `bm25`: BM25's scores; `order`: the places that the miner gave the candidates.
        weight: weight of the prior; 0 changes nothing.

    Returns:
        `(B, K)`, nats per target token.
    """
    if prior == "bm25":
        evidence = np.array([c.bm25 for c in candidates], dtype=np.float64)
    else:
        evidence = -np.broadcast_to(np.arange(gain.shape[1], dtype=np.float64), gain.shape)
    deviation = evidence.std(1, keepdims=True)
    centred = evidence - evidence.mean(1, keepdims=True)
    standardised = np.divide(centred, deviation, out=np.zeros_like(centred), where=deviation > 0)
    return gain + weight * gain.std(1, keepdims=True) * standardised
