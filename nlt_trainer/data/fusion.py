"""Join rankings of one corpus: by reciprocal ranks, or by the weighted sum of their normalised scores."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

from nlt_trainer.errors import NLTError

Key = TypeVar("Key", bound=Hashable)
FUSION_CONSTANT = 60
"""The constant k of reciprocal rank fusion, Cormack et al. 2009."""
FUSION_DEPTH = 100
"""Number of documents of each ranking that are fused."""


def fuse(*rankings: Sequence[int]) -> list[int]:
    """Join rankings: all their indices, best first by `reciprocal_ranks`; equal scores stay in corpus order.

    Args:
        rankings: indices into the corpus, best first.
    """
    scores = reciprocal_ranks(*rankings)
    return sorted(scores, key=lambda index: (-scores[index], index))


def reciprocal_ranks(*rankings: Iterable[Key]) -> dict[Key, float]:
    """Reciprocal rank fusion: a document's score is the sum of 1 / (60 + rank) over the rankings that contain it.

    Args:
        rankings: rankings of documents, best first.
    """
    scores: dict[Key, float] = {}
    for ranking in rankings:
        for rank, document in enumerate(ranking, start=1):
            scores[document] = scores.get(document, 0) + 1 / (FUSION_CONSTANT + rank)
    return scores


def weighted_fusion(encoder: Mapping[Key, float], bm25: Mapping[Key, float], *, weight: float) -> dict[Key, float]:
    """Add the scores of two rankings, each scaled to 0 for the last and 1 for the best of its first 100 documents.

    A document's score is `(1 - weight) * encoder + weight * bm25`. A document that is not among the first 100 of a
    ranking gets 0 from it. If all of a ranking's 100 scores are equal, each is scaled to 1.

    Args:
        encoder: document -> similarity, of the whole corpus or of its best documents.
        bm25: document -> BM25's score, of the documents that share a word with the query.
        weight: the share of BM25, from 0 (the encoder alone orders its documents) to 1 (BM25 alone).

    Returns:
        document -> score between 0 and 1, best first, for the documents that are among the first 100 of either
        ranking; equal scores stay in the encoder's order, and documents of BM25 alone follow.

    Raises:
        NLTError: the weight is not between 0 and 1.
    """
    if not 0 <= weight <= 1:
        raise NLTError(f"weight is {weight}; it must be between 0 (the encoder alone) and 1 (BM25 alone)")
    of_encoder, of_bm25 = _scaled(encoder), _scaled(bm25)
    fused = {
        document: (1 - weight) * of_encoder.get(document, 0.0) + weight * of_bm25.get(document, 0.0)
        for document in of_encoder | of_bm25
    }
    return dict(sorted(fused.items(), key=lambda item: -item[1]))


def _scaled(ranking: Mapping[Key, float]) -> dict[Key, float]:
    """The first 100 documents, best first, and their scores on a line from 0 for the last to 1 for the best."""
    best = heapq.nlargest(FUSION_DEPTH, ranking.items(), key=lambda item: item[1])
    if not best:
        return {}
    high, low = best[0][1], best[-1][1]
    return {document: (score - low) / (high - low) if high > low else 1.0 for document, score in best}
