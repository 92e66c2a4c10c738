"""Rows and batches that the frozen LLM reads when it scores. A row holds a document and the queries that follow it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.lm.prompt_tokens import Suffix

MAX_PADDING = 0.05
"""Largest share of padding among a batch's tokens. A batch ends before a row that would exceed it."""


@dataclass
class Row:
    """One sequence: a document's prefix, then the suffixes of its pairs, which do not see each other."""

    prefix: tuple[int, ...]
    suffixes: list[Suffix] = field(default_factory=list)
    pairs: list[int] = field(default_factory=list)  # position of each suffix's pair among those that are scored
    truncated: bool = False

    @property
    def length(self) -> int:
        """Tokens of the row."""
        return len(self.prefix) + sum(len(s.read) for s in self.suffixes)

    @property
    def span(self) -> int:
        """Tokens of the row's longest pair."""
        return len(self.prefix) + max(len(s.read) for s in self.suffixes)


@dataclass
class Batch:
    """Rows as inputs of the LLM. Their T target tokens stand suffix by suffix, with the places that predict them."""

    inputs: dict[str, Tensor]
    labels: Tensor  # (T,) ids of the target tokens
    rows: Tensor  # (T,) row of the token before each target token
    columns: Tensor  # (T,) column of the token before each target token


def token_batches(rows: list[Row], batch_tokens: int, *, span_limit: int | None = None) -> Iterator[list[Row]]:
    """Split rows, sorted by descending length, into batches of at most `batch_tokens` tokens with padding.

    At most `MAX_PADDING` of a batch's tokens are padding. Rows with a span beyond `span_limit` get batches of their
    own.
    """
    if span_limit is not None:
        for beyond in (True, False):
            yield from token_batches([row for row in rows if (row.span > span_limit) == beyond], batch_tokens)
        return
    batch: list[Row] = []
    tokens = 0
    for row in rows:
        padded = (len(batch) + 1) * batch[0].length if batch else 0
        if padded > batch_tokens or tokens + row.length < (1 - MAX_PADDING) * padded:
            yield batch
            batch, tokens = [], 0
        batch.append(row)
        tokens += row.length
    if batch:
        yield batch


def collate(rows: list[Row], lm: FrozenLM) -> Batch:
    """Put rows into tensors on the LLM's device, padded on the right.

    If suffixes share a row, the inputs also have a mask and positions.
    """
    length = max(row.length for row in rows)
    ids = np.zeros((len(rows), length), np.int64)
    positions = np.zeros_like(ids)
    segments = np.full_like(ids, -1)  # 0: prefix, 1, 2, ...: suffixes, -1: padding
    targets: list[tuple[int, int, int]] = []
    for r, row in enumerate(rows):
        start = len(row.prefix)
        ids[r, :start], positions[r, :start], segments[r, :start] = row.prefix, np.arange(start), 0
        at = start
        for number, suffix in enumerate(row.suffixes, start=1):
            end = at + len(suffix.read)
            ids[r, at:end], segments[r, at:end] = suffix.read, number
            positions[r, at:end] = np.arange(start, start + end - at)
            marked = zip(suffix.ids, suffix.target, strict=True)
            targets += [(label, r, at + i - 1) for i, (label, is_target) in enumerate(marked) if is_target]
            at = end
    inputs = {"input_ids": torch.from_numpy(ids)}
    if any(len(row.suffixes) > 1 for row in rows):  # otherwise causal attention suffices, as padding comes last
        inputs["position_ids"] = torch.from_numpy(positions)
        inputs["attention_mask"] = _row_mask(torch.from_numpy(segments), lm)
    labels, *places = torch.tensor(targets).T.to(lm.device)
    return Batch({k: v.to(lm.device) for k, v in inputs.items()}, labels, *places)


def _row_mask(segments: Tensor, lm: FrozenLM) -> Tensor:
    """Mask `(R, 1, L, L)` under which a token sees what stands before it in its row's prefix and in its own suffix."""
    length = segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    visible = causal & ((segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None]))
    if lm.model.config._attn_implementation == "eager":  # eager attention adds its mask, and sdpa takes a boolean one
        return torch.where(visible, 0.0, torch.finfo(lm.model.dtype).min)[:, None].to(lm.model.dtype)
    return visible[:, None]
