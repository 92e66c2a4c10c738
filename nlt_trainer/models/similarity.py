"""Scores of candidates: temperature-scaled cosines, the one thing that every objective takes from the encoder."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

Features = Iterable[dict[str, Tensor]]
"""Tokenised queries (B texts), then tokenised candidates (B * K texts, query-major: row `b * K + k`)."""


def embed(model: nn.Module, features: Features) -> tuple[Tensor, Tensor]:
    """Unit-length embeddings in float32: queries `(B, D)` and candidates `(B, K, D)`."""
    queries, documents = (
        nn.functional.normalize(model(dict(f))["sentence_embedding"].float(), dim=-1) for f in features
    )
    return queries, documents.unflatten(0, (len(queries), -1))  # (B * K, D) -> (B, K, D)


def candidate_scores(model: nn.Module, features: Features, temperature: float) -> Tensor:
    """Cosine of each query with its own candidates over the temperature, float32: `(B, K)`."""
    queries, documents = embed(model, features)
    return torch.einsum("bd,bkd->bk", queries, documents) / temperature
