"""Which texts an objective's LLMs read at every step, and the builders that make these texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nlt_trainer.choices import DocumentLayout, TargetKind, check_choice
from nlt_trainer.data.collator import ChunkBuilder, PromptBuilder
from nlt_trainer.errors import NLTError
from nlt_trainer.lm.prompt_tokens import PromptFrame, PromptTokens
from nlt_trainer.prompts import PromptTemplate, default_target

TEMPLATE = PromptTemplate()


@dataclass(frozen=True)
class LLMTexts:
    """Which kinds of texts LLMs read of a batch, each with the `PromptFrame` of the LLM that reads it.

    Args:
        prompts: frame of the LLM that reads prompts of K documents, a query and its target; `None` if none does.
        chunks: frame of the LLM that reads a query and each document on its own; `None` if none does.
    """

    prompts: PromptFrame | None = None
    chunks: PromptFrame | None = None

    def __or__(self, other: LLMTexts) -> LLMTexts:
        """The texts that two objectives together read of the same batch.

        Raises:
            NLTError: both read texts of the same kind, and their LLMs would tokenise them differently.
        """
        return LLMTexts(_either(self.prompts, other.prompts), _either(self.chunks, other.chunks))

    @property
    def settings(self) -> tuple[str, ...]:
        """Names of the settings of `builders` that have an effect on these texts."""
        read = self.prompts is not None or self.chunks is not None
        return (
            *(("template", "target", "max_document_tokens") if read else ()),
            *(("layout",) if self.prompts is not None else ()),
        )

    def builders(
        self,
        rows: Sequence[Mapping[str, Any]] = (),
        *,
        template: PromptTemplate = TEMPLATE,
        target: TargetKind | None = None,
        max_document_tokens: int = 192,
        layout: DocumentLayout = "sequential",
    ) -> tuple[PromptBuilder | None, ChunkBuilder | None]:
        """Make the builder of the prompts and the builder of the chunks; `None` for texts that no LLM reads.

        The Args are those of `Objective.collator`.

        Raises:
            NLTError: a setting is wrong, or `rows` are needed but not given.
        """
        frames = [frame for frame in (self.prompts, self.chunks) if frame is not None]
        if not frames:
            return None, None
        if target is not None:
            check_choice("target", target, TargetKind)
        chosen = _target(rows) if target is None else target
        tokens = {  # prompts and chunks of one LLM share a tokeniser, which keeps the texts that it has read
            frame.tokenizer_id: PromptTokens(frame.tokenizer, template, max_document_tokens=max_document_tokens)
            for frame in frames
        }
        prompts = chunks = None
        if self.prompts is not None:
            prompts = PromptBuilder(
                tokens[self.prompts.tokenizer_id], chosen, self.prompts.context_length, layout=layout
            )
        if self.chunks is not None:
            chunks = ChunkBuilder(tokens[self.chunks.tokenizer_id], chosen, self.chunks.context_length)
        return prompts, chunks


def _either(ours: PromptFrame | None, theirs: PromptFrame | None) -> PromptFrame | None:
    """The frame that is given; if both are, that of the LLM with the shorter context."""
    if ours is None or theirs is None:
        return theirs if ours is None else ours
    if ours.tokenizer_id != theirs.tokenizer_id:
        raise NLTError(
            f"two objectives read texts of one kind with LLMs of different tokenizers, {ours.name!r} and "
            f"{theirs.name!r}; give both the same LLM"
        )
    return min(ours, theirs, key=lambda frame: frame.context_length)


def _target(rows: Sequence[Mapping[str, Any]]) -> TargetKind:
    """The default target: joint if every row has an answer, else query."""
    if not rows:
        raise NLTError(
            "the target depends on whether the queries have answers; give the training rows, loss.collator(rows), or "
            "target: query, answer or joint"
        )
    return default_target(has_answers=all(row.get("answer") for row in rows))
