"""The prompts of DREAM, LOOP and ADist as tensors: K documents, a query and its target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import get_args

import torch
from torch import Tensor

from nlt_trainer.choices import DocumentLayout, TargetKind
from nlt_trainer.encoder.similarity import label_of
from nlt_trainer.errors import NLTError
from nlt_trainer.lm.prompt_tokens import PromptTokens, Suffix


def check_layout(layout: str) -> None:
    """Raise `NLTError` unless `layout` is one of the document layouts."""
    if layout not in get_args(DocumentLayout):
        raise NLTError(f"layout {layout!r} is unknown; choose one of {', '.join(get_args(DocumentLayout))}")


@dataclass(frozen=True)
class DocumentPrompts:
    """B prompts in two parts: documents (P columns, padded on the left), then query and target (S, on the right).

    Padding at both ends keeps every prompt contiguous, as sliding windows require.

    Args:
        prompt_ids: `(B, P)` int64.
        prompt_mask: `(B, P)` bool, True at tokens.
        prompt_positions: `(B, P)` int64, the position at which a token is read; suffixes follow the highest position.
        prompt_segments: `(B, P)` int64, 0 for tokens that every later token sees; documents that do not see each other
            have 1 to K.
        documents: `(B, P)` int64, each token's document from 0 to K - 1; K if it belongs to none.
        suffix_ids: `(B, S)` int64.
        suffix_mask: `(B, S)` bool.
        suffix_target: `(B, S)` bool, True at tokens of the target.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    prompt_positions: Tensor
    prompt_segments: Tensor
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
        """The prompts among a batch's tensors, by name.

        Raises:
            NLTError: the batch has none.
        """
        remedy = "pass data_collator=loss.collator(...), which builds the LLM's prompts"
        return cls(**{f.name: label_of(tensors, f.name, remedy=remedy) for f in fields(cls)})

    def rows(self, part: slice | Tensor) -> DocumentPrompts:
        """Some of the prompts, for micro-batches."""
        return DocumentPrompts(**{name: tensor[part] for name, tensor in self.as_dict().items()})

    def without_padding(self, *, prompt: bool = True) -> DocumentPrompts:
        """The prompts without the columns in which no prompt has a token.

        Args:
            prompt: whether columns of the documents' part are removed too. Do this only before its keys and values
                have been read.
        """
        length = int(self.prompt_mask.sum(1).max()) if prompt else self.prompt_mask.shape[1]
        first = self.prompt_mask.shape[1] - length  # padded on the left
        end = int(self.suffix_mask.sum(1).max())  # padded on the right
        return DocumentPrompts(
            **{n: t[:, :end] if n.startswith("suffix_") else t[:, first:] for n, t in self.as_dict().items()}
        )

    @property
    def by_cost(self) -> Tensor:
        """Order `(B,)` of the prompts by what they cost the LLM, so that neighbours need little padding.

        The cost is the number of tokens that are read with padding; suffix tokens count twice. Documents that do not
        see each other are read alone, without padding, and do not count.
        """
        tokens = 2 * self.suffix_mask.sum(1)
        return (tokens if self.prompt_segments.any() else tokens + self.prompt_mask.sum(1)).argsort(stable=True)

    def repeat(self, times: int) -> DocumentPrompts:
        """Repeat every prompt `times` times; copy i of prompt b is row `b * times + i`."""
        return DocumentPrompts(**{name: t.repeat_interleave(times, dim=0) for name, t in self.as_dict().items()})

    def to(self, device: torch.device) -> DocumentPrompts:
        return DocumentPrompts(**{name: tensor.to(device) for name, tensor in self.as_dict().items()})

    @property
    def num_tokens(self) -> int:
        return int(self.prompt_mask.sum() + self.suffix_mask.sum())

    @property
    def suffix_predicts(self) -> Tensor:
        """`(B, S)` bool, True at tokens whose next token belongs to the target."""
        return self.suffix_target.roll(-1, dims=1)  # no suffix begins with its target

    def key_documents(self, num_documents: int) -> Tensor:
        """The document of every key of both parts, `(B, P + S)`; keys of the suffix belong to none."""
        return torch.cat([self.documents, torch.full_like(self.suffix_ids, num_documents)], dim=1)

    def outside_documents(self, num_documents: int) -> Tensor:
        """`(B, P + S)` bool, True at the tokens that belong to no document."""
        around = self.prompt_mask & (self.documents == num_documents)
        return torch.cat([around, self.suffix_mask], dim=1)

    def document_parts(self, num_documents: int) -> Tensor:
        """`(B, P)` int64: the document of each prompt token.

        Tokens between two documents belong to the earlier one. Tokens before the first document have -1.
        """
        return torch.where(self.documents < num_documents, self.documents, -1).cummax(1).values


def build_prompts(
    tokens: PromptTokens,
    queries: Sequence[str],
    documents: Sequence[Sequence[str]],
    *,
    target: TargetKind,
    context_length: int,
    layout: DocumentLayout = "sequential",
    answers: Sequence[str | None] | None = None,
) -> DocumentPrompts:
    """Tokenise B queries with K documents each.

    Args:
        tokens: tokeniser of the prompt's segments.
        queries: B texts.
        documents: B lists of K texts.
        target: what the LLM has to predict.
        context_length: context length of the LLM, tokens.
        layout: whether documents see each other.
        answers: B texts; needed for the targets `answer` and `joint`.

    Raises:
        NLTError: a prompt does not fit the context; the message names the largest `max_document_tokens` that would.
    """
    given = answers or [None] * len(queries)
    suffixes = [tokens.suffix(q, a, target) for q, a in zip(queries, given, strict=True)]
    prompts = [_prompt(tokens, texts, layout) for texts in documents]
    lengths = [p.length + len(s.ids) for p, s in zip(prompts, suffixes, strict=True)]
    longest = max(range(len(queries)), key=lengths.__getitem__)
    if lengths[longest] > context_length:
        fits = _fitting_document_tokens(prompts, [length - context_length for length in lengths], len(documents[0]))
        remedy = f"max_document_tokens {fits} at most" if fits else "a shorter query and target"
        raise NLTError(
            f"the prompt of query {queries[longest][:60]!r} has {lengths[longest]} tokens and the LLM's context "
            f"{context_length}; use fewer candidates or {remedy}"
        )
    return DocumentPrompts(*_pad_left(prompts, len(documents[0])), *_pad_right(suffixes))


def _fitting_document_tokens(prompts: list[_Prompt], excess: list[int], num_documents: int) -> int:
    """The largest `max_document_tokens` at which every prompt loses its excess tokens; 0 if no number does."""
    lengths = [[p.documents.count(k) for k in range(num_documents)] for p in prompts]
    longest = [max if any(p.segments) else sum for p in prompts]  # documents side by side, or one after the other
    fits = max(map(max, lengths))
    while fits and any(
        length_of(row) - length_of([min(length, fits) for length in row]) < over
        for length_of, row, over in zip(longest, lengths, excess, strict=True)
    ):
        fits -= 1
    return fits


@dataclass(frozen=True)
class _Prompt:
    """The columns of the documents' part of one prompt; see `DocumentPrompts`."""

    ids: list[int]
    positions: list[int]
    segments: list[int]
    documents: list[int]

    @property
    def length(self) -> int:
        """Number of positions that the part takes."""
        return max(self.positions, default=-1) + 1


def _prompt(tokens: PromptTokens, texts: Sequence[str], layout: DocumentLayout) -> _Prompt:
    """Put documents into their frames; documents that do not see each other share the beginning of one frame."""
    before, after = tokens.document_frame
    none, independent = len(texts), layout == "independent"
    start = [*tokens.start, *(before if independent else ())]
    begin = len(start)
    prompt = _Prompt(start, list(range(begin)), [0] * begin, [none] * begin)
    for k, text in enumerate(texts):
        own, _ = tokens.document(text)
        front = () if independent else before
        at = begin if independent else len(prompt.ids)
        ids = [*front, *own, *after]
        prompt.ids.extend(ids)
        prompt.positions.extend(range(at, at + len(ids)))
        prompt.segments.extend([k + 1 if independent else 0] * len(ids))
        prompt.documents.extend([none] * len(front) + [k] * len(own) + [none] * len(after))
    return prompt


def _pad_left(prompts: list[_Prompt], none: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    shape = len(prompts), max(len(p.ids) for p in prompts)
    mask = torch.zeros(shape, dtype=torch.bool)
    ids, positions, segments = (torch.zeros(shape, dtype=torch.long) for _ in range(3))
    documents = torch.full(shape, none)
    for b, p in enumerate(prompts):
        own = slice(shape[1] - len(p.ids), None)
        mask[b, own] = True
        columns = (ids, p.ids), (positions, p.positions), (segments, p.segments), (documents, p.documents)
        for tensor, values in columns:
            tensor[b, own] = torch.tensor(values, dtype=torch.long)
    return ids, mask, positions, segments, documents


def _pad_right(suffixes: Sequence[Suffix]) -> tuple[Tensor, Tensor, Tensor]:
    shape = len(suffixes), max(len(s.ids) for s in suffixes)
    ids = torch.zeros(shape, dtype=torch.long)
    mask, target = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    for b, suffix in enumerate(suffixes):
        own = slice(0, len(suffix.ids))
        ids[b, own], mask[b, own], target[b, own] = torch.tensor(suffix.ids), True, torch.tensor(suffix.target)
    return ids, mask, target
