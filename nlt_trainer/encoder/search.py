"""Exact search: find the documents that are most similar to a query, with only a part of the corpus in memory.

Similarities are computed in float64 and rounded to float32. A similarity therefore does not depend on the other
queries or on the parts, and equal documents have equal similarities. `sentence_transformers.util.semantic_search`
does not define the order of equal documents, and its scores depend on what else is compared at the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from nlt_trainer.errors import NLTError

QUERIES = 256
"""Number of queries that are compared with a part at once."""
PART = 2048
"""Number of documents in a part, for callers that hold all embeddings in memory."""

Similarity = Callable[[Tensor, Tensor], Tensor]
"""Embeddings `(B, D)` and `(n, D)` -> similarities `(B, n)`, as `SentenceTransformer.similarity`."""


def similarities(queries: Tensor, documents: Tensor, similarity: Similarity) -> Tensor:
    """Similarity of each query `(B, D)` with each document `(n, D)`: `(B, n)` float32.

    Raises:
        NLTError: an embedding is not finite.
    """
    scores = similarity(queries.double(), documents.double()).float()
    if not scores.isfinite().all():
        raise NLTError("an embedding is infinite or NaN; train the encoder again with a lower learning rate")
    return scores


def nearest(queries: Tensor, parts: Iterable[Tensor], *, top_k: int, similarity: Similarity) -> tuple[Tensor, Tensor]:
    """Find the documents with the highest similarity to each query.

    Args:
        queries: embeddings `(B, D)`.
        parts: embeddings of documents, `(n, D)` in each part, for example read from files one after another.
        top_k: documents for each query; fewer if the corpus has fewer.
        similarity: the encoder's own similarity function.

    Returns:
        Similarities `(B, top_k)` float32, and the documents' numbers `(B, top_k)`, which count over all parts. The
        best document comes first; documents with equal similarities stay in their order.

    Raises:
        NLTError: an embedding is not finite.
    """
    # Accelerators other than CUDA may have no float64.
    chunks = queries.to(queries.device if queries.is_cuda else "cpu").double().split(QUERIES)
    found = [(chunk.new_empty(len(chunk), 0).float(), chunk.new_empty(len(chunk), 0).long()) for chunk in chunks]
    seen = 0
    for part in parts:
        part = part.to(chunks[0])
        rows = torch.arange(seen, seen + len(part), device=part.device)
        found = [
            best(
                torch.cat([scores, similarities(chunk, part, similarity)], 1),  # (b, top_k + n)
                torch.cat([known, rows.expand(len(chunk), -1)], 1),
                top_k,
            )
            for chunk, (scores, known) in zip(chunks, found, strict=True)
        ]
        seen += len(part)
    return torch.cat([scores for scores, _ in found]), torch.cat([known for _, known in found])


def best(scores: Tensor, rows: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The highest of the float32 scores `(b, m)` and their rows; among equal scores the lowest rows win."""
    bits = scores.view(torch.int32).long()  # sign and magnitude: bits of scores from 0 up have the scores' order
    order = torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits)
    chosen = ((order << 32) - rows).topk(min(top_k, scores.shape[1]), dim=1).indices  # no two keys are equal
    return scores.gather(1, chosen), rows.gather(1, chosen)
