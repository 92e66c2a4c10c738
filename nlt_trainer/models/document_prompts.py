"""Prompts of K documents, a query and its target, and the frozen LLM's reading of them in two parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from transformers import DynamicCache

from nlt_trainer.errors import NLTError
from nlt_trainer.models.attention import AttentionMass, ScoreInjection
from nlt_trainer.models.frozen_lm import FrozenLM
from nlt_trainer.models.prompt_tokens import PromptTokens, Suffix
from nlt_trainer.prompts import TargetKind


@dataclass(frozen=True)
class DocumentPrompts:
    """B prompts in two parts: documents (P columns, padded on the left), then query and target (S, on the right).

    Padding at both ends keeps every prompt contiguous, as sliding windows want it.

    Args:
        prompt_ids: `(B, P)` int64.
        prompt_mask: `(B, P)` bool, True at tokens.
        documents: `(B, P)` int64, each token's document from 0 to K - 1, K where it belongs to none.
        suffix_ids: `(B, S)` int64.
        suffix_mask: `(B, S)` bool.
        suffix_target: `(B, S)` bool, True at tokens of the target.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    documents: Tensor
    suffix_ids: Tensor
    suffix_mask: Tensor
    suffix_target: Tensor

    def __len__(self) -> int:
        return len(self.prompt_ids)

    def as_dict(self) -> dict[str, Tensor]:
        """Tensors by name, as a collator returns them."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_dict(cls, tensors: Mapping[str, Tensor]) -> DocumentPrompts:
        """The prompts among a batch's tensors, by name."""
        return cls(**{f.name: tensors[f.name] for f in fields(cls)})

    def rows(self, part: slice) -> DocumentPrompts:
        """Some of the prompts, for micro-batches."""
        return DocumentPrompts(**{name: tensor[part] for name, tensor in self.as_dict().items()})

    def repeat(self, times: int) -> DocumentPrompts:
        """Every prompt `times` times in a row: row `b * times + i`."""
        return DocumentPrompts(**{name: t.repeat_interleave(times, dim=0) for name, t in self.as_dict().items()})

    def to(self, device: torch.device) -> DocumentPrompts:
        return DocumentPrompts(**{name: tensor.to(device) for name, tensor in self.as_dict().items()})

    @property
    def num_tokens(self) -> int:
        return int(self.prompt_mask.sum() + self.suffix_mask.sum())

    @property
    def suffix_predicts(self) -> Tensor:
        """`(B, S)` bool, True at the tokens whose successor belongs to the target."""
        return self.suffix_target.roll(-1, dims=1)  # a suffix never begins with its target

    def key_documents(self, num_documents: int) -> Tensor:
        """The document of every key of the two parts, `(B, P + S)`: the suffix belongs to none."""
        return torch.cat([self.documents, torch.full_like(self.suffix_ids, num_documents)], dim=1)

    def document_parts(self, num_documents: int) -> Tensor:
        """`(B, P)` int64: the document of each prompt token; what follows a document up to the next belongs to it.

        Tokens before the first document have -1.
        """
        return torch.where(self.documents < num_documents, self.documents, -1).cummax(1).values


def build_prompts(
    tokens: PromptTokens,
    queries: Sequence[str],
    documents: Sequence[Sequence[str]],
    *,
    target: TargetKind,
    context_length: int,
    answers: Sequence[str | None] | None = None,
) -> DocumentPrompts:
    """Tokenise B queries with K documents each.

    Raises:
        NLTError: a prompt does not fit the context; the message names the largest `max_document_tokens` that would.
    """
    given = answers or [None] * len(queries)
    suffixes = [tokens.suffix(q, a, target) for q, a in zip(queries, given, strict=True)]
    prompts = [_prompt(tokens, texts) for texts in documents]
    lengths = [len(ids) + len(suffix.ids) for (ids, _), suffix in zip(prompts, suffixes, strict=True)]
    longest = max(range(len(queries)), key=lengths.__getitem__)
    if lengths[longest] > context_length:
        fits = _fitting_document_tokens(prompts, [length - context_length for length in lengths], len(documents[0]))
        remedy = f"max_document_tokens {fits} at most" if fits else "a shorter query and target"
        raise NLTError(
            f"the prompt of query {queries[longest][:60]!r} has {lengths[longest]} tokens and the LLM's context "
            f"{context_length}; use fewer candidates or {remedy}"
        )
    return DocumentPrompts(*_pad_left(prompts, len(documents[0])), *_pad_right(suffixes))


def _fitting_document_tokens(prompts: list[tuple[list[int], list[int]]], excess: list[int], num_documents: int) -> int:
    """The largest `max_document_tokens` at which every prompt loses its excess tokens; 0 where none is."""
    lengths = [[owners.count(k) for k in range(num_documents)] for _, owners in prompts]
    fits = max(map(max, lengths))
    while fits and any(
        sum(max(length - fits, 0) for length in row) < over for row, over in zip(lengths, excess, strict=True)
    ):
        fits -= 1
    return fits


def _prompt(tokens: PromptTokens, texts: Sequence[str]) -> tuple[list[int], list[int]]:
    """Ids of K documents in their frames and, for each id, its document or K."""
    before, after = tokens.document_frame
    none = len(texts)
    ids, owners = list(tokens.start), [none] * len(tokens.start)
    for k, text in enumerate(texts):
        own, _ = tokens.document(text)
        ids += [*before, *own, *after]
        owners += [none] * len(before) + [k] * len(own) + [none] * len(after)
    return ids, owners


def _pad_left(prompts: list[tuple[list[int], list[int]]], none: int) -> tuple[Tensor, Tensor, Tensor]:
    length = max(len(ids) for ids, _ in prompts)
    ids = torch.zeros(len(prompts), length, dtype=torch.long)
    mask = torch.zeros(len(prompts), length, dtype=torch.bool)
    documents = torch.full((len(prompts), length), none)
    for b, (row, owners) in enumerate(prompts):
        ids[b, length - len(row) :] = torch.tensor(row)
        mask[b, length - len(row) :] = True
        documents[b, length - len(row) :] = torch.tensor(owners)
    return ids, mask, documents


def _pad_right(suffixes: Sequence[Suffix]) -> tuple[Tensor, Tensor, Tensor]:
    length = max(len(s.ids) for s in suffixes)
    ids = torch.zeros(len(suffixes), length, dtype=torch.long)
    mask = torch.zeros(len(suffixes), length, dtype=torch.bool)
    target = torch.zeros_like(mask)
    for b, suffix in enumerate(suffixes):
        ids[b, : len(suffix.ids)] = torch.tensor(suffix.ids)
        mask[b, : len(suffix.ids)] = True
        target[b, : len(suffix.ids)] = torch.tensor(suffix.target)
    return ids, mask, target


class DocumentReader:
    """Reads prompts in two parts: documents without a graph into a key/value cache, the rest with one.

    Injection touches only rows after the documents, so gradients equal those of a full graph.

    Args:
        lm: frozen LLM, switched to document attention by `enable_document_attention`.
    """

    def __init__(self, lm: FrozenLM) -> None:
        self.lm = lm
        self.lm_tokens = 0
        """Tokens that the LLM has read so far, without padding."""

    @torch.no_grad()
    def read_documents(self, prompts: DocumentPrompts) -> DynamicCache:
        """Keys and values of the documents' part."""
        cache = DynamicCache()
        if prompts.prompt_ids.shape[1]:
            self.lm.model.base_model(
                input_ids=prompts.prompt_ids,
                attention_mask=prompts.prompt_mask,
                position_ids=(prompts.prompt_mask.cumsum(1) - 1).clamp(min=0),
                past_key_values=cache,
                use_cache=True,
            )
        self.lm_tokens += int(prompts.prompt_mask.sum())
        return cache

    def read_suffix(
        self,
        prompts: DocumentPrompts,
        cache: DynamicCache,
        attention: ScoreInjection | AttentionMass | None = None,
        *,
        visible: Tensor | None = None,
    ) -> Tensor:
        """Final hidden states `(B, S, hidden)` of the suffix; the cache grows by S columns.

        Args:
            prompts: B prompts.
            cache: keys and values of their documents' part.
            attention: what the attention does with documents; `None`: nothing.
            visible: `(B, P)` bool, the prompt's tokens that the suffix sees, at unchanged positions; `None`: all.
        """
        self.lm_tokens += int(prompts.suffix_mask.sum())
        steps = torch.arange(prompts.suffix_ids.shape[1], device=prompts.suffix_ids.device)
        return self.lm.model.base_model(
            input_ids=prompts.suffix_ids,
            attention_mask=torch.cat(
                [prompts.prompt_mask if visible is None else visible, prompts.suffix_mask], dim=1
            ),
            position_ids=prompts.prompt_mask.sum(1, keepdim=True) + steps,
            past_key_values=cache,
            use_cache=True,
            document_attention=attention,
        ).last_hidden_state

    def target_loss(self, hidden: Tensor, prompts: DocumentPrompts) -> Tensor:
        """Mean negative log-likelihood of each prompt's target, nats per target token: `(B,)`."""
        b, column = prompts.suffix_target.nonzero(as_tuple=True)
        loss = self.lm.target_loss(hidden[b, column - 1], prompts.suffix_ids[b, column])
        total = loss.new_zeros(len(prompts)).index_add(0, b, loss)
        return total / prompts.suffix_target.sum(1)
