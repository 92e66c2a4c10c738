"""What one or two encoders find for a query, side by side: scores, and how far documents moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import rankdata
from sentence_transformers import SentenceTransformer

from nlt_trainer.data.beir import Document
from nlt_trainer.encoder.embedding_cache import EmbeddingCache
from nlt_trainer.encoder.search import PART, similarities


@dataclass(frozen=True)
class Hit:
    """A document that an encoder found.

    Args:
        document: the document.
        rank: from 1, in the whole corpus.
        score: similarity of its embedding with the query's.
        other_rank: its rank, in the whole corpus too, by the other encoder; `None` where there is no other.
    """

    document: Document
    rank: int
    score: float
    other_rank: int | None = None

    @property
    def moved(self) -> int:
        """Places above its rank by the other encoder; below it where negative, 0 without another encoder."""
        return 0 if self.other_rank is None else self.other_rank - self.rank

    @property
    def move(self) -> str:
        """The same in a few characters: `▲ 12`, `▼ 3`, `=`; empty without another encoder."""
        if self.other_rank is None:
            return ""
        return f"{'▲' if self.moved > 0 else '▼'} {abs(self.moved):,}" if self.moved else "="


class SearchIndex:
    """A corpus as one encoder embeds it; the whole of it is compared with each query.

    Args:
        name: of the encoder, as people know it.
        encoder: the encoder; its own similarity function (cosine unless it says otherwise) ranks the documents.
        corpus: document id -> document.
        cache: folder of the embeddings on disk; `None` means the user's cache.
    """

    def __init__(
        self,
        name: str,
        encoder: SentenceTransformer,
        corpus: Mapping[str, Document],
        *,
        cache: str | Path | None = None,
    ) -> None:
        self.name = name
        self.encoder = encoder
        self.documents = list(corpus.values())
        contents = [document.content for document in self.documents]
        self.embeddings = torch.from_numpy(EmbeddingCache(encoder, cache).encode_document(contents))  # (N, H)

    def scores(self, queries: Sequence[str]) -> np.ndarray:
        """Similarity of each query with each document, as `nearest` has it: `(B, N)` float32."""
        with torch.inference_mode():
            embedded = self.encoder.encode_query(list(queries), convert_to_tensor=True, show_progress_bar=False)
        parts, compare = self.embeddings.split(PART), self.encoder.similarity
        return torch.cat([similarities(embedded.cpu(), part, compare) for part in parts], 1).numpy()


def ranks(scores: np.ndarray) -> np.ndarray:
    """Ranks from 1 of `(N,)` scores, the highest first; of equal ones the first in the corpus."""
    return rankdata(-scores, method="ordinal")


def side_by_side(query: str, indexes: Sequence[SearchIndex], *, top_k: int = 10) -> list[list[Hit]]:
    """The `top_k` best documents of each index, best first.

    Args:
        query: what to search for.
        indexes: one, or two over the same corpus.
        top_k: documents for each.
    """
    scores = [index.scores([query])[0] for index in indexes]  # (N,) each
    places = [ranks(row) for row in scores]
    others = reversed(places) if len(places) == 2 else [None]
    return [
        [
            Hit(index.documents[i], int(own[i]), float(row[i]), None if other is None else int(other[i]))
            for i in np.argsort(own)[:top_k]
        ]
        for index, row, own, other in zip(indexes, scores, places, others, strict=True)
    ]
