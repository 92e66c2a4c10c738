"""Scores of candidates: temperature-scaled cosines, the one thing that every objective takes from the encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nlt_trainer.errors import NLTError

Features = Iterable[dict[str, Tensor]]
"""Tokenised queries (B texts), then tokenised candidates (B * K texts, query-major: row `b * K + k`)."""


LENGTH_GROUPS = 4
"""Forward passes that a batch's texts, sorted by length, are divided among on a CPU."""


def embed(model: Callable[[dict[str, Any]], Any], features: Features) -> tuple[Tensor, Tensor]:
    """Unit-length embeddings in float32: queries `(B, D)` and candidates `(B, K, D)`."""
    queries, documents = (nn.functional.normalize(_in_groups(model, f).float(), dim=-1) for f in features)
    return queries, documents.unflatten(0, (len(queries), -1))  # (B * K, D) -> (B, K, D)


def _in_groups(model: Callable[[dict[str, Any]], Any], features: dict[str, Tensor]) -> Tensor:
    """Embeddings of N texts, `(N, D)`; on a CPU in `LENGTH_GROUPS` groups of similar length, each padded for itself.

    Their number does not depend on the lengths, so that all processes make the same number of forward passes. An
    accelerator reads all texts at once: it spends less on padding than on starting more kernels.
    """
    mask = features.get("attention_mask")
    if mask is None or mask.device.type != "cpu":
        return model(dict(features))["sentence_embedding"]
    order = mask.sum(1).argsort(stable=True)
    embeddings = []
    for rows in order.chunk(LENGTH_GROUPS):
        columns = mask[rows].any(0).nonzero()[:, 0]
        seen = slice(int(columns[0]), int(columns[-1]) + 1)  # padding stands on the left or on the right
        group = {name: _cut(value, rows, seen, shape=mask.shape) for name, value in features.items()}
        embeddings.append(model(group)["sentence_embedding"])
    return torch.cat(embeddings)[order.argsort()]


def _cut(value: Any, rows: Tensor, columns: slice, *, shape: torch.Size) -> Any:
    """Some rows of an encoder input `(N, ...)` and, where it has a value for each token, `(N, L)`, some columns."""
    if not isinstance(value, Tensor):
        return value
    return value[rows, columns] if value.shape == shape else value[rows]


def own_cosines(queries: Tensor, documents: Tensor) -> Tensor:
    """Cosine of each query `(B, D)` with its own candidates `(B, K, D)`, float32 also under autocast: `(B, K)`."""
    with torch.autocast(queries.device.type, enabled=False):  # bfloat16 tells cosines near 1 apart by 0.004 only
        return torch.einsum("bd,bkd->bk", queries, documents)


def all_cosines(queries: Tensor, documents: Tensor) -> Tensor:
    """Cosine of each query `(B, D)` with every document `(N, D)`, float32 also under autocast: `(B, N)`."""
    with torch.autocast(queries.device.type, enabled=False):
        return queries @ documents.T


def pairwise_cosines(texts: Tensor) -> Tensor:
    """Cosine of each two of C texts `(B, C, D)`, float32 also under autocast: `(B, C, C)`."""
    with torch.autocast(texts.device.type, enabled=False):
        return texts @ texts.transpose(1, 2)


def gain_of(labels: Mapping[str, Tensor]) -> Tensor:
    """The batch's likelihood gains, `(B, K)`, nats per target token.

    Raises:
        NLTError: the batch has none.
    """
    return label_of(labels, "gain", remedy="run `nlt score` first or give NLTCollator a scorer")


def label_of(labels: Mapping[str, Tensor], name: str, *, remedy: str) -> Tensor:
    """An entry of the batch that is no encoder input.

    Raises:
        NLTError: the batch does not have it.
    """
    if name not in labels:
        raise NLTError(f"the batch has no {name}; {remedy}")
    return labels[name]
