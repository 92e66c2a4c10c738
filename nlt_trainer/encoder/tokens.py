"""Tokenise each text only once, although an encoder reads it again and again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

KEPT_NUMBERS = 1 << 26
"""The most 4-byte numbers that one `EncoderTokens` keeps. Queries have one of these objects, and documents another."""

SAMPLES = ("a", "two words and more", "")
"""Texts of several lengths. A batch that is put together from them is compared with the one that the encoder makes."""

MASK, OFFSETS = "attention_mask", "offsets"


class EncoderTokens:
    """Gives the same inputs of a batch as an encoder's `preprocess`, and keeps those of each text.

    The token ids of a text (and similar numbers) are kept without padding, until 256 MiB are full. Texts beyond that
    are tokenised whenever they come. A batch is put together from its texts: padded under a mask, or one after another
    with offsets. An encoder that makes its batches in another way is asked for every batch.

    Args:
        encoder: its tokeniser, prompts and length must not change afterwards.
        kind: `query` or `document`; the encoder's prompt of that name stands before each text.
        max_length: the most tokens of a text that the encoder reads, where its `max_seq_length` is not smaller; `None`
            means the latter.
    """

    def __init__(self, encoder: SentenceTransformer, kind: str, *, max_length: int | None) -> None:
        self._encoder = encoder
        own = encoder.max_seq_length  # which the library would exceed for the sake of max_length
        cut = {} if max_length is None else {"max_length": min(max_length, own or max_length)}
        self._settings: dict[str, Any] = {"prompt": encoder.prompts.get(kind) or None, "task": kind, **cut}
        self._kept: dict[int, np.ndarray] = {}  # (names, tokens) int32 by key
        self._room = KEPT_NUMBERS
        features = self._preprocess(SAMPLES)
        tensors = {name: value for name, value in features.items() if isinstance(value, Tensor)}
        self._rest = {name: value for name, value in features.items() if name not in tensors}
        self._names = [name for name in tensors if name not in (MASK, OFFSETS)]
        self._padding: tuple[bool, np.ndarray] | None = None  # None: texts stand in one row
        self._keeps = self._is_put_together(tensors)

    def __call__(self, texts: Sequence[str], keys: Sequence[int]) -> dict[str, Any]:
        """The encoder's inputs of texts, as a new dict.

        Args:
            texts: N of them.
            keys: equal for equal texts, different for others.
        """
        if not self._keeps:
            return self._preprocess(texts)
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._kept}
        rows = dict(zip(new, self._rows(self._preprocess(list(new.values()))), strict=True)) if new else {}
        batch = self._batch([rows[key] if key in rows else self._kept[key] for key in keys])
        for key, row in rows.items():
            if row.size <= self._room:
                self._kept[key] = row.copy()  # a view would keep the whole batch in memory
                self._room -= row.size
        return batch

    def _preprocess(self, texts: Sequence[str]) -> dict[str, Any]:
        return dict(self._encoder.preprocess(list(texts), **self._settings))

    def _rows(self, features: dict[str, Any]) -> list[np.ndarray]:
        """What the encoder reads of each text: `(names, tokens)` int32."""
        numbers = np.stack([features[name].numpy() for name in self._names]).astype(np.int32)
        if self._padding is None:
            return np.split(numbers, features[OFFSETS].numpy()[1:], axis=1)  # (names, tokens of all)
        return [numbers[:, n, used] for n, used in enumerate(features[MASK].numpy() != 0)]  # (names, N, L)

    def _batch(self, rows: Sequence[np.ndarray]) -> dict[str, Any]:
        """Put rows together into a batch: padded, or one after another."""
        lengths = [row.shape[1] for row in rows]
        if self._padding is None:
            numbers = np.concatenate(rows, axis=1).astype(np.int64)
            further = {OFFSETS: np.cumsum([0, *lengths[:-1]])}
        else:
            left, fill = self._padding
            numbers = np.tile(fill[:, None, None], (1, len(rows), max(lengths)))  # (names, N, L)
            mask = np.zeros((len(rows), max(lengths)), np.int64)
            for n, row in enumerate(rows):
                at = slice(mask.shape[1] - lengths[n], None) if left else slice(lengths[n])
                numbers[:, n, at], mask[n, at] = row, 1
            further = {MASK: mask}
        arrays = dict(zip(self._names, numbers, strict=True)) | further
        return {name: torch.from_numpy(array) for name, array in arrays.items()} | self._rest

    def _is_put_together(self, tensors: dict[str, Tensor]) -> bool:
        """Find out how the encoder pads, and whether its batch of the samples equals their rows put together."""
        try:
            if MASK in tensors:
                padding = tensors[MASK] == 0  # (N, L)
                fill = np.array([int(tensors[name][padding][0]) for name in self._names])
                self._padding = bool(padding[0, 0]), fill
            found = self._batch(self._rows(tensors))
        except (LookupError, ValueError):
            return False
        types = all(found[name].dtype == value.dtype for name, value in tensors.items())
        equal = types and all(torch.equal(found[name], value) for name, value in tensors.items())
        return equal and set(found) == {*tensors, *self._rest}
