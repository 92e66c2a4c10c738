"""Groups of chunks for Revela: one query and its K candidates, each of which the LLM reads as a text of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from transformers import DynamicCache

from nlt_trainer.choices import TargetKind
from nlt_trainer.encoder.similarity import label_of
from nlt_trainer.errors import NLTError
from nlt_trainer.injection.chunk_attention import ChunkAttention
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.lm.prompt_tokens import PromptTokens


@dataclass(frozen=True)
class ChunkGroups:
    """B groups of C = K + 1 chunks: first the query, then its K candidates, all padded on the right to T tokens.

    Args:
        chunk_ids: `(B, C, T)` int64.
        chunk_mask: `(B, C, T)` bool, True at tokens.
        chunk_target: `(B, C, T)` bool, True at tokens that are predicted; the first token of a chunk never is.
    """

    chunk_ids: Tensor
    chunk_mask: Tensor
    chunk_target: Tensor

    def __len__(self) -> int:
        return len(self.chunk_ids)

    def as_dict(self) -> dict[str, Tensor]:
        """Tensors by name, as a collator returns them."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_dict(cls, tensors: Mapping[str, Tensor]) -> ChunkGroups:
        """The groups among a batch's tensors, by name.

        Raises:
            NLTError: the batch has none.
        """
        remedy = "pass data_collator=loss.collator(...), which builds the LLM's chunks"
        return cls(**{f.name: label_of(tensors, f.name, remedy=remedy) for f in fields(cls)})

    def rows(self, part: slice) -> ChunkGroups:
        """Some of the groups, for micro-batches."""
        return ChunkGroups(**{name: tensor[part] for name, tensor in self.as_dict().items()})

    def to(self, device: torch.device) -> ChunkGroups:
        return ChunkGroups(**{name: tensor.to(device) for name, tensor in self.as_dict().items()})

    @property
    def num_tokens(self) -> int:
        return int(self.chunk_mask.sum())


def build_chunks(
    tokens: PromptTokens,
    queries: Sequence[str],
    documents: Sequence[Sequence[str]],
    *,
    target: TargetKind,
    context_length: int,
    answers: Sequence[str | None] | None = None,
) -> ChunkGroups:
    """Tokenise B queries with K documents each: the query as at the end of a prompt, a document without its frame.

    The predicted tokens are the target's in the query's chunk, and all but the first in a document's chunk.

    Raises:
        NLTError: a chunk does not fit the context.
    """
    given = answers or [None] * len(queries)
    start = list(tokens.start)
    groups: list[list[tuple[list[int], list[bool]]]] = []  # ids of each chunk and which of them are predicted
    for query, answer, texts in zip(queries, given, documents, strict=True):
        suffix = tokens.suffix(query, answer, target)
        own = [start + list(tokens.document(text)[0]) for text in texts]
        group = [(start + list(suffix.ids), [False] * len(start) + list(suffix.target))]
        groups.append(group + [(ids, [False] + [True] * (len(ids) - 1)) for ids in own])
        longest = max(len(ids) for ids, _ in groups[-1])
        if longest > context_length:
            raise NLTError(
                f"query {query[:60]!r} or one of its documents has {longest} tokens and the LLM's context "
                f"{context_length}; use max_document_tokens {context_length - len(start)} at most or a shorter query"
            )
    return _pad(groups)


def _pad(groups: list[list[tuple[list[int], list[bool]]]]) -> ChunkGroups:
    length = max(len(ids) for group in groups for ids, _ in group)
    ids = torch.zeros(len(groups), len(groups[0]), length, dtype=torch.long)
    mask, target = torch.zeros_like(ids, dtype=torch.bool), torch.zeros_like(ids, dtype=torch.bool)
    for b, group in enumerate(groups):
        for c, (row, marks) in enumerate(group):
            ids[b, c, : len(row)] = torch.tensor(row)
            mask[b, c, : len(row)] = True
            target[b, c, : len(row)] = torch.tensor(marks)
    return ChunkGroups(ids, mask, target)


class ChunkReader:
    """Reads groups of chunks twice: first each chunk alone, for the keys and values that others see, then together.

    Because of the first reading, a chunk cannot see its own later tokens through the keys of another chunk.

    Args:
        lm: an LLM, switched to document attention by `enable_document_attention`.
        trained: whether parameters of the LLM are trained, so that keys and values need a graph.
    """

    def __init__(self, lm: FrozenLM, *, trained: bool) -> None:
        self.lm = lm
        self.trained = trained
        self.lm_tokens = 0
        """Tokens that the LLM has read so far, without padding."""

    def losses(self, weights: Tensor, groups: ChunkGroups) -> Tensor:
        """Mean negative log-likelihood of each group's predicted tokens, nats, `(B,)`, given shares `(B, C, C)`."""
        inputs = {  # (B * C, T), row b * C + c
            "input_ids": groups.chunk_ids.flatten(0, 1),
            "attention_mask": groups.chunk_mask.flatten(0, 1),
        }
        self.lm_tokens += 2 * groups.num_tokens
        cache = DynamicCache()
        with torch.set_grad_enabled(self.trained and torch.is_grad_enabled()):
            self.lm.model.base_model(**inputs, past_key_values=cache, use_cache=True)
        attention = ChunkAttention(weights, groups.chunk_mask, cache)
        output = self.lm.model.base_model(**inputs, use_cache=False, document_attention=attention)
        hidden = output.last_hidden_state.unflatten(0, groups.chunk_ids.shape[:2])  # (B, C, T, hidden)
        b, c, t = groups.chunk_target.nonzero(as_tuple=True)
        loss = self.lm.target_loss(hidden[b, c, t - 1], groups.chunk_ids[b, c, t])
        return loss.new_zeros(len(groups)).index_add(0, b, loss) / groups.chunk_target.sum((1, 2))
