"""Compare what one or two encoders find for a query: scores, and how far documents moved between the rankings."""

from __future__ import annotations

import copy
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import rankdata
from sentence_transformers import SentenceTransformer

from nlt_trainer.data.beir import Document
from nlt_trainer.data.bm25 import BM25Index, matching
from nlt_trainer.data.fusion import FUSION_DEPTH, weighted_fusion
from nlt_trainer.encoder.embedding_cache import EmbeddingCache
from nlt_trainer.encoder.search import PART, similarities

LEGEND = "▲ ▼ places above or below its rank in the other column, = the same rank"
"""What the signs of `Hit.move` mean."""


@dataclass(frozen=True)
class Hit:
    """A document that an encoder found, alone or with BM25.

    Args:
        document: the document.
        rank: rank of the document in the whole corpus, from 1.
        score: the index's score: similarity of its embedding with the query's, or see `HybridIndex`.
        other_rank: its rank in the whole corpus in the other index; `None` if there is no other index.
    """

    document: Document
    rank: int
    score: float
    other_rank: int | None = None

    @property
    def moved(self) -> int:
        """Places by which the document ranks higher than by the other encoder; negative if it ranks lower.

        It is 0 if there is no other encoder.
        """
        return 0 if self.other_rank is None else self.other_rank - self.rank

    @property
    def move(self) -> str:
        """The value of `moved` in a few characters: `▲ 12`, `▼ 3` or `=`; empty if there is no other encoder."""
        if self.other_rank is None:
            return ""
        return f"{'▲' if self.moved > 0 else '▼'} {abs(self.moved):,}" if self.moved else "="


class SearchIndex:
    """A corpus that one encoder has embedded. Each query is compared with all of its documents.

    Args:
        name: name of the encoder for readers.
        encoder: the encoder; its own similarity function (cosine unless it says otherwise) ranks the documents.
        corpus: document id -> document.
        cache: folder in which the embeddings are kept on disk; `None` means the user's cache.
        bf16: whether documents are embedded in bfloat16, see `EmbeddingCache`.
    """

    def __init__(
        self,
        name: str,
        encoder: SentenceTransformer,
        corpus: Mapping[str, Document],
        *,
        cache: str | Path | None = None,
        bf16: bool = False,
    ) -> None:
        self.name = name
        self.encoder = encoder
        self.documents = list(corpus.values())
        contents = [document.content for document in self.documents]
        embedder = EmbeddingCache(encoder, cache, bf16=bf16, progress=f"embedding with {name}", name=name)
        self.embeddings = torch.from_numpy(embedder.encode_document(contents))  # (N, H)

    def within(self, corpus: Container[str]) -> SearchIndex:
        """The same encoder with those of the documents alone whose ids are in `corpus`."""
        index, kept = copy.copy(self), [i for i, document in enumerate(self.documents) if document.id in corpus]
        index.documents, index.embeddings = [self.documents[i] for i in kept], self.embeddings[kept]
        return index

    def scores(self, queries: Sequence[str]) -> np.ndarray:
        """Similarity of each query with each document, computed as in `nearest`: `(B, N)` float32."""
        with torch.inference_mode():
            embedded = self.encoder.encode_query(list(queries), convert_to_tensor=True, show_progress_bar=False)
        parts, compare = self.embeddings.split(PART), self.encoder.similarity
        return torch.cat([similarities(embedded.cpu(), part, compare) for part in parts], 1).numpy()


class HybridIndex(SearchIndex):
    """A corpus that is searched by an encoder and by BM25 together.

    The documents that are among the first 100 of either have their score of `weighted_fusion`, between 0 and 1. All
    others rank behind them in the encoder's order and have scores below 0.

    Args:
        name: name of the encoder for readers.
        encoder: the encoder.
        corpus: document id -> document.
        bm25: BM25's index of the same corpus.
        weight: the share of BM25, from 0 to 1.
        cache: see `SearchIndex`.
    """

    def __init__(
        self,
        name: str,
        encoder: SentenceTransformer,
        corpus: Mapping[str, Document],
        *,
        bm25: BM25Index,
        weight: float,
        cache: str | Path | None = None,
    ) -> None:
        super().__init__(name, encoder, corpus, cache=cache)
        self.name = f"{name}, {weight:.0%} BM25"
        self.bm25, self.weight = bm25, weight

    def scores(self, queries: Sequence[str]) -> np.ndarray:
        """Score of each document for each query: `(B, N)` float32."""
        return np.stack([self._fused(*pair) for pair in zip(queries, super().scores(queries), strict=True)])

    def _fused(self, query: str, similarity: np.ndarray) -> np.ndarray:
        of_bm25, places = self.bm25.scores(query), ranks(similarity)  # (N,) each
        first = [np.argsort(places)[:FUSION_DEPTH].tolist(), matching(of_bm25, FUSION_DEPTH)]
        encoder, bm25 = (
            {i: float(row[i]) for i in chosen} for chosen, row in zip(first, (similarity, of_bm25), strict=True)
        )
        scores = (-places / len(places)).astype(np.float32)
        for i, score in weighted_fusion(encoder, bm25, weight=self.weight).items():
            scores[i] = score
        return scores


def ranks(scores: np.ndarray) -> np.ndarray:
    """Ranks of `(N,)` scores from 1; the highest score has rank 1, and equal scores rank in corpus order."""
    return rankdata(-scores, method="ordinal")


def side_by_side(query: str, indexes: Sequence[SearchIndex], *, top_k: int = 10) -> list[list[Hit]]:
    """The `top_k` best documents of each index, best first.

    Args:
        query: what to search for.
        indexes: one index, or two over the same corpus.
        top_k: number of documents for each index.
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
