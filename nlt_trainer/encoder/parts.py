"""Split a batch into parts whose texts have similar lengths, which an encoder embeds one after another."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nlt_trainer.errors import NLTError

PART_TOKENS = 1024
"""Tokens that an encoder embeds at once on a CPU, padding included."""

Part = tuple[Tensor, dict[str, Any]]
"""Indices of some rows of a batch, `(n,)`, and the encoder's inputs for these rows."""


@dataclass(frozen=True)
class EncoderInParts:
    """Takes the place of an encoder and embeds up to 1024 tokens at a time on a CPU, all texts at once elsewhere.

    Every text of a batch is padded to the longest one. A CPU is also slower with large batches, because the tensors of
    a layer then need more freed memory than the C library keeps. Accelerators want large batches. Embeddings and
    gradients are those of smaller batches; dropout draws other random numbers. An encoder that is a table of token
    embeddings has no padding, so its batches stay whole.

    Args:
        model: the encoder, wrapped or not.
    """

    model: Callable[[dict[str, Any]], dict[str, Tensor]]

    def __call__(self, features: dict[str, Any]) -> dict[str, Tensor]:
        mask = _mask(features)
        if mask is None or mask.device.type != "cpu" or mask.numel() <= PART_TOKENS or len(_counts(features)) > 1:
            return self.model(features)
        parts = parts_by_length(features, tokens=PART_TOKENS)
        return join(parts, [self.model(part)["sentence_embedding"] for _, part in parts])


def parts_by_length(features: dict[str, Any], *, texts: int | None = None, tokens: int | None = None) -> list[Part]:
    """Split the tensors of a batch of N texts into parts, longest texts first. Columns of mere padding are cut off.

    Args:
        features: the encoder's inputs; a value that is no tensor goes into every part.
        texts: the most texts of a part.
        tokens: the most tokens of a part, padding included; a single text may have more.

    Raises:
        NLTError: the tensors are not `(N, ...)`, as with an encoder that takes all texts in one row.
    """
    counts = _counts(features)
    if len(counts) != 1:
        raise NLTError(
            "the encoder's inputs are packed and cannot be cut into parts; leave encoder_micro_batch_size out"
        )
    mask = _mask(features)
    lengths = torch.ones(counts.pop(), dtype=torch.int64) if mask is None else mask.sum(1)  # (N,)
    ordered, order = lengths.sort(descending=True, stable=True)
    return [(rows, _part(features, rows)) for rows in order.split(part_sizes(ordered.tolist(), texts, tokens))]


def part_sizes(lengths: Sequence[int], texts: int | None, tokens: int | None) -> list[int]:
    """Number of texts in each part, longest texts first; see `parts_by_length`."""
    sizes: list[int] = []
    longest = 0
    for length in lengths:
        if sizes and sizes[-1] < (texts or math.inf) and (sizes[-1] + 1) * longest <= (tokens or math.inf):
            sizes[-1] += 1
        else:
            sizes.append(1)
            longest = length
    return sizes


def join(parts: Sequence[Part], embeddings: Sequence[Tensor]) -> dict[str, Tensor]:
    """Put the embeddings of parts back into the order of the batch: `(N, D)`."""
    order = torch.cat([rows for rows, _ in parts])
    return {"sentence_embedding": torch.cat(list(embeddings))[order.argsort()]}


def _counts(features: dict[str, Any]) -> set[int]:
    """The numbers of rows that the tensors have. It is one number if each text has a row."""
    return {len(value) for value in features.values() if isinstance(value, Tensor)}


def _mask(features: dict[str, Any]) -> Tensor | None:
    """Mask of the tokens that are no padding, `(N, L)`; `None` where there is no such mask."""
    mask = features.get("attention_mask")
    return mask if isinstance(mask, Tensor) and mask.ndim == 2 else None


def _part(features: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    """Some rows of all tensors. Tensors over tokens keep the columns from the first to the last that has a token."""
    mask = _mask(features)
    part = {name: value[rows] if isinstance(value, Tensor) else value for name, value in features.items()}
    if mask is None:
        return part
    used = part["attention_mask"].any(0).nonzero()[:, 0].tolist() or [0]
    over_tokens = {
        name for name, value in part.items() if isinstance(value, Tensor) and value.shape[1:2] == mask.shape[1:]
    }
    return part | {name: part[name][:, used[0] : used[-1] + 1] for name in over_tokens}
