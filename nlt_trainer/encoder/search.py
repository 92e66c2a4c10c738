"""The documents of the highest cosine, exactly, from embeddings on disk: a block of them at a time is in memory."""

from __future__ import annotations

from collections.abc import Sequence

import faiss
import numpy as np
from faiss.contrib.exhaustive_search import knn_ground_truth

from nlt_trainer.errors import NLTError

BLOCK_PARTS = 32
"""Parts that are searched at once."""
COSINE_ERROR = 1e-5
"""Above what float32 makes of a cosine; cosines that are nearer are told apart in float64."""


def nearest(queries: np.ndarray, parts: Sequence[np.ndarray], *, top_k: int) -> list[list[int]]:
    """For each query the documents of the highest cosine.

    Args:
        queries: embeddings `(B, D)` float32.
        parts: embeddings of documents `(n, D)` float32 each, for example mapped from files; all but the last have as
            many rows as the first.
        top_k: documents a query, at most as many as there are.

    Returns:
        B lists of row numbers counted over all parts, best first, ties in their order. What float32 cannot tell apart
        is compared in float64, so that neither the other queries nor the parts change an order.

    Raises:
        NLTError: an embedding is not finite.
    """
    total = sum(map(len, parts))
    queries = _unit(queries)
    rankings: list[list[int]] = [[] for _ in queries]
    open_queries, width = np.arange(len(queries)), min(2 * top_k, total)
    while len(open_queries):
        blocks = (_unit(np.concatenate(parts[i : i + BLOCK_PARTS])) for i in range(0, len(parts), BLOCK_PARTS))
        cosines, found = knn_ground_truth(
            queries[open_queries], blocks, width, metric_type=faiss.METRIC_INNER_PRODUCT
        )  # (B, width) each
        # what ties with the last one that is wanted may lie outside: such queries are searched again, twice as wide
        whole = (cosines[:, -1] < cosines[:, top_k - 1] - COSINE_ERROR) | (width == total)
        for b, rows in zip(open_queries[whole], found[whole], strict=True):
            rankings[b] = _in_order(queries[b], np.sort(rows), parts)[:top_k]
        open_queries, width = open_queries[~whole], min(2 * width, total)
    return rankings


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows of unit length; those of length 0 stay."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.isfinite(length).all():
        raise NLTError("an embedding is infinite or NaN; train the encoder again with a lower learning rate")
    return rows / np.maximum(length, np.finfo(rows.dtype).tiny)


def _in_order(query: np.ndarray, rows: np.ndarray, parts: Sequence[np.ndarray]) -> list[int]:
    """Sorted row numbers by their cosine in float64, the highest first."""
    vectors = np.stack([parts[row // len(parts[0])][row % len(parts[0])] for row in rows])  # (width, D)
    cosines = (_unit(vectors.astype(np.float64)) * query).sum(1)  # no matrix product: equal rows get equal sums
    return rows[np.argsort(-cosines, kind="stable")].tolist()
