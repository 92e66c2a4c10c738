"""Exact search: the documents that an encoder's own similarity puts first, a part of them in memory at a time.

Similarities are computed in float64 and rounded to float32. So neither the other queries nor the parts change one, and
equal documents have equal ones. `sentence_transformers.util.semantic_search` gives no order to these, and its scores
depend on what else is compared at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from nlt_trainer.errors import NLTError

QUERIES = 256
"""Queries that are compared with a part at once."""
PART = 2048
"""Documents in a part where all embeddings are in memory."""

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
    """For each query the documents of the highest similarity.

    Args:
        queries: embeddings `(B, D)`.
        parts: embeddings of documents `(n, D)` each, for example read from files one after another.
        top_k: documents a query, fewer where there are fewer.
        similarity: the encoder's own.

    Returns:
        Similarities `(B, top_k)` float32 and numbers of the documents, counted over all parts, `(B, top_k)`; best
        first, equal ones in the order of the documents.

    Raises:
        NLTError: an embedding is not finite.
    """
    # other accelerators may have no float64
    chunks = queries.to(queries.device if queries.is_cuda else "cpu").double().split(QUERIES)
    found = [(chunk.new_empty(len(chunk), 0).float(), chunk.new_empty(len(chunk), 0).long()) for chunk in chunks]
    seen = 0
    for part in parts:
        part = part.to(chunks[0])
        rows = torch.arange(seen, seen + len(part), device=part.device)
        found = [
            _best(
                torch.cat([scores, similarities(chunk, part, similarity)], 1),  # (b, top_k + n)
                torch.cat([known, rows.expand(len(chunk), -1)], 1),
                top_k,
            )
            for chunk, (scores, known) in zip(chunks, found, strict=True)
        ]
        seen += len(part)
    return torch.cat([scores for scores, _ in found]), torch.cat([known for _, known in found])


def _best(scores: Tensor, rows: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The highest of float32 scores `(b, m)` and their rows, of equal ones the lowest rows."""
    bits = scores.view(torch.int32).long()  # sign and magnitude: of a score of 0 or more in the order of the scores
    order = torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits)
    chosen = ((order << 32) - rows).topk(min(top_k, scores.shape[1]), dim=1).indices  # no two keys are equal
    return scores.gather(1, chosen), rows.gather(1, chosen)
