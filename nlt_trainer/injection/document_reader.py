"""Read prompts with the frozen LLM in two parts: the documents without a graph, then query and target with one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from nlt_trainer.errors import NLTError
from nlt_trainer.injection.attention import ScoreInjection
from nlt_trainer.injection.attention_mass import AttentionMass
from nlt_trainer.injection.document_prompts import DocumentPrompts
from nlt_trainer.lm.frozen_lm import FrozenLM

KeysValues = tuple[tuple[Tensor, Tensor], ...]
"""A text's keys and values of every layer, each `(key-value heads, tokens, head size)`."""

Place = tuple[int, slice, tuple[int, ...]]
"""Index of a prompt, some of its columns, and the ids that determine the keys and values in these columns."""

READ_TOKENS = 4096
"""Tokens of documents, padding included, that are read in one forward pass."""


class DocumentReader:
    """Reads prompts in two parts: documents into a key/value cache without a graph, the rest with a graph.

    Injection changes only rows after the documents, so gradients equal those of a full graph. A call reads documents
    that do not see each other once each, however many of its prompts have them. Their keys and values are kept for
    later calls within a bound of memory; the least recently used are dropped first.

    Args:
        lm: frozen LLM, switched to document attention by `enable_document_attention`.
        cache_bytes: memory for keys and values that are kept from call to call.
    """

    def __init__(self, lm: FrozenLM, *, cache_bytes: int = 0) -> None:
        self.lm = lm
        self.lm_tokens = 0
        """Tokens that the LLM has read so far, without padding."""
        self._kept = _LeastRecentlyUsed(cache_bytes)

    @torch.no_grad()
    def read_documents(self, prompts: DocumentPrompts) -> DynamicCache:
        """Keys and values of the documents' part, `(B, key-value heads, P, head size)` a layer, in the LLM's dtype."""
        with torch.autocast(self.lm.device.type, enabled=False):
            return self._read_documents(prompts)

    def _read_documents(self, prompts: DocumentPrompts) -> DynamicCache:
        if prompts.prompt_segments.any():
            return self._read_independent(prompts)
        cache = DynamicCache()
        if prompts.prompt_ids.shape[1]:
            self.lm.model.base_model(
                input_ids=prompts.prompt_ids,
                attention_mask=prompts.prompt_mask,
                position_ids=prompts.prompt_positions,
                past_key_values=cache,
                use_cache=True,
            )
        self.lm_tokens += int(prompts.prompt_mask.sum())
        return cache

    def _read_independent(self, prompts: DocumentPrompts) -> DynamicCache:
        places: list[Place] = []
        for b in range(len(prompts)):
            start = prompts.prompt_mask[b] & (prompts.prompt_segments[b] == 0)
            start_ids = prompts.prompt_ids[b, start].tolist()
            if start_ids:
                places.append((b, _span(start), tuple(start_ids)))
            for segment in range(1, int(prompts.prompt_segments[b].max()) + 1):
                columns = _span(prompts.prompt_segments[b] == segment)
                places.append((b, columns, (*start_ids, *prompts.prompt_ids[b, columns].tolist())))
        known = {ids: kept for _, _, ids in places if (kept := self._kept.get(ids)) is not None}
        for ids, keys_values in self._read_alone(sorted({ids for *_, ids in places} - known.keys(), key=len)):
            known[ids] = keys_values
            self._kept.put(ids, keys_values)
        return _join(prompts, places, known)

    def _read_alone(self, texts: Sequence[tuple[int, ...]]) -> list[tuple[tuple[int, ...], KeysValues]]:
        """Keys and values of texts, each read by itself; in batches of similar length, padded on the right."""
        read = []
        at = len(texts)  # longest first, so that the first pass needs the most memory
        while at:
            count = min(at, max(1, READ_TOKENS // len(texts[at - 1])))
            batch, at = texts[at - count : at], at - count
            ids = torch.zeros(count, len(batch[-1]), dtype=torch.long, device=self.lm.device)
            for row, text in enumerate(batch):
                ids[row, : len(text)] = torch.tensor(text)
            cache = DynamicCache()
            self.lm.model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
            self.lm_tokens += sum(map(len, batch))
            for row, text in enumerate(batch):
                own = (row, slice(None), slice(0, len(text)))
                # clones, so that a short text does not hold the memory of its whole batch
                pairs: list[Any] = [(layer.keys, layer.values) for layer in cache.layers]  # type: ignore[union-attr]
                read.append((text, tuple((keys[own].clone(), values[own].clone()) for keys, values in pairs)))
        return read

    def read_suffix(
        self,
        prompts: DocumentPrompts,
        cache: DynamicCache,
        attention: ScoreInjection | AttentionMass | None = None,
        *,
        visible: Tensor | None = None,
        begin: int | None = None,
    ) -> Tensor:
        """Final hidden states `(B, S, hidden)` of the suffix; the cache grows by S columns.

        Args:
            prompts: B prompts.
            cache: keys and values of their documents' part.
            attention: what the attention does with documents; `None` means nothing.
            visible: `(B, P)` bool, the prompt's tokens that the suffix sees, at unchanged positions; `None` means all.
            begin: the position at which suffixes begin; `None` means behind each prompt's documents.

        Raises:
            NLTError: a suffix would end beyond the LLM's context.
        """
        self.lm_tokens += int(prompts.suffix_mask.sum())
        mask, positions = self._suffix_mask(prompts, prompts.prompt_mask if visible is None else visible, begin)
        return self.lm.model.base_model(
            input_ids=prompts.suffix_ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            document_attention=attention,
        ).last_hidden_state

    def target_losses(self, hidden: Tensor, prompts: DocumentPrompts) -> Tensor:
        """Mean negative log-likelihood of each prompt's target, nats per token: `(B,)`."""
        b, column = prompts.suffix_target.nonzero(as_tuple=True)
        loss = self.lm.target_loss(hidden[b, column - 1], prompts.suffix_ids[b, column])
        return loss.new_zeros(len(prompts)).index_add(0, b, loss) / b.bincount(minlength=len(prompts))

    def _suffix_mask(
        self, prompts: DocumentPrompts, visible: Tensor, first: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Attention mask of a suffix over both parts, and its tokens' positions `(B, S)`.

        Where columns and positions advance together, the mask is `(B, P + S)`, and the model itself takes care of
        causality and sliding windows. Otherwise the mask is `(B, 1, S, P + S)`.

        Raises:
            NLTError: columns and positions differ, and the LLM has a sliding window that ends within the prompt.
        """
        steps = torch.arange(prompts.suffix_ids.shape[1], device=prompts.suffix_ids.device)
        begin = torch.where(prompts.prompt_mask, prompts.prompt_positions, -1).amax(1, keepdim=True) + 1  # (B, 1)
        if first is not None:
            begin = begin.clamp(min=first)
        positions = begin + steps
        if not prompts.prompt_segments.any():
            return torch.cat([visible, prompts.suffix_mask], dim=1), positions
        own = (steps[:, None] >= steps) & prompts.suffix_mask[:, None, :]  # (B, S, S)
        documents = visible[:, None, :].expand(-1, len(steps), -1)  # (B, S, P)
        last, window = int(positions.max()), self.lm.sliding_window
        if last >= self.lm.context_length:
            raise NLTError(
                f"behind the longest document of a batch a query and its target end at {last + 1} tokens, and the "
                f"context of LLM {self.lm.name!r} is {self.lm.context_length}; lower max_document_tokens"
            )
        if window is not None and last >= window:
            raise NLTError(
                f"LLM {self.lm.name!r} sees {window} tokens back, and a prompt has {last + 1}: "
                "documents that do not see each other need a window over the whole prompt; lower max_document_tokens "
                "or use document_layout sequential"
            )
        return torch.cat([documents, own], dim=-1)[:, None], positions


def _span(columns: Tensor) -> slice:
    """The columns that are True in `(P,)`, as a slice; they stand together."""
    first = int(columns.int().argmax())
    return slice(first, first + int(columns.sum()))


def _join(
    prompts: DocumentPrompts,
    places: Sequence[Place],
    known: dict[tuple[int, ...], KeysValues],
) -> DynamicCache:
    """Put each text's keys and values into its columns.

    A document was read behind the prompt's start, so only the last of its keys and values go into its columns.
    """
    cache = DynamicCache()
    for layer, example in enumerate(next(iter(known.values()))):
        keys, values = (
            x.new_zeros(len(prompts), x.shape[0], prompts.prompt_ids.shape[1], x.shape[2]) for x in example
        )
        for b, columns, ids in places:
            key, value = known[ids][layer]
            length = columns.stop - columns.start
            keys[b, :, columns], values[b, :, columns] = key[:, -length:], value[:, -length:]
        cache.update(keys, values, layer)
    return cache


class _LeastRecentlyUsed:
    """Keeps keys and values of texts by their token ids, within a bound of memory."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._entries: OrderedDict[tuple[int, ...], KeysValues] = OrderedDict()

    def get(self, ids: tuple[int, ...]) -> KeysValues | None:
        if ids in self._entries:
            self._entries.move_to_end(ids)
        return self._entries.get(ids)

    def put(self, ids: tuple[int, ...], keys_values: KeysValues) -> None:
        if self.max_bytes == 0:
            return
        self._entries[ids] = keys_values
        self.bytes += _size(keys_values)
        while self.bytes > self.max_bytes:
            self.bytes -= _size(self._entries.popitem(last=False)[1])


def _size(keys_values: KeysValues) -> int:
    return sum(tensor.nbytes for pair in keys_values for tensor in pair)
