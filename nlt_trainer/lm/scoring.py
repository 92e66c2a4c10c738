"""Score how likely a frozen LLM finds a target text, with a document before it and without one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from torch import nn

from nlt_trainer.choices import TargetKind
from nlt_trainer.lm.candidate_pairs import Pair, document_major
from nlt_trainer.lm.cpu import give_back_freed_memory, packed_weights
from nlt_trainer.lm.forward_check import FORWARD_ERRORS
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.lm.last_feed_forward import computed_only_at, last_feed_forward
from nlt_trainer.lm.prompt_tokens import PromptTokens, Suffix
from nlt_trainer.lm.rows import Row, collate, token_batches
from nlt_trainer.lm.score_cache import ScoreCache
from nlt_trainer.lm.scorer import KEPT_TEXTS, Scored, Scorer, scored, scoring_bar
from nlt_trainer.prompts import PromptTemplate

ROW_TOKENS = 512
"""A row takes suffixes of one document up to this length, or up to twice the document's length if that is more. Longer
rows would waste attention on masked pairs."""

WINDOW_BATCHES = 64
"""Batches whose rows are sorted by length together. Padding is small, and memory does not grow with the pairs."""

PACKING_PAIRS = 128
"""Number of pairs from which on weights are packed. Packing takes as long as scoring two or three pairs of a hundred
tokens each."""


class LikelihoodScorer(Scorer):
    """Log-likelihood of targets under a frozen LLM, with and without a document; `gain` is the difference per token.

    A call reads a document once for many of its pairs. Their queries and targets follow the document in one row of up
    to 512 tokens, or twice the document's length. A mask hides them from each other, and the positions of each
    continue those of the document. Rows are sorted by length and batched by a budget of tokens. The vocabulary
    projection runs at target positions only. A call with 128 pairs or more packs the weights while it runs
    (`packed_weights`).

    Args:
        lm: the frozen LLM.
        target: `answer`: log p(answer | document, query); `query`: log p(query | document);
            `joint`: log p(query, answer | document).
        template: text around document, query and answer.
        max_document_tokens: a longer document is cut; query and target never are.
        batch_tokens: tokens in one forward pass, padding included. More than 2048 are slower on a CPU, because a layer
            of a small LLM then needs more memory than `keep_freed_memory` keeps.
        cache_folder: where a `ScoreCache` keeps what was computed; `None` keeps nothing.

    Example:
        ```python
        scorer = LikelihoodScorer(FrozenLM.from_pretrained("HuggingFaceTB/SmolLM2-135M-Instruct"), target="query")
        gain = scorer.gain(["capital of France"], [["Paris is the capital of France.", "Cats sleep a lot."]])
        ```
    """

    def __init__(
        self,
        lm: FrozenLM,
        *,
        target: TargetKind,
        template: PromptTemplate | None = None,
        max_document_tokens: int = 192,
        batch_tokens: int = 2048,
        cache_folder: str | None = None,
    ) -> None:
        tokens = PromptTokens(
            lm.tokenizer,
            template or PromptTemplate(),
            max_document_tokens=max_document_tokens,
            kept_texts=KEPT_TEXTS,
        )
        super().__init__(lm.name, target=target, tokens=tokens, context_length=lm.context_length)
        self.lm = lm
        self.batch_tokens = batch_tokens
        self._rope_limit = lm.rope_limit
        self._last_feed_forward: nn.Module | None = None
        document, suffixes = (
            (0, 1, 2),
            [Suffix((3, 4, 5), (False, True, True)), Suffix((6, 7, 8), (False, False, True))],
        )
        apart = [Row(document, [suffix]) for suffix in suffixes]
        expected = self._score(apart)
        # A sliding window counts columns, and a shared row puts other suffixes between a suffix and its document.
        # Models with a window therefore get one suffix a row.
        self._shares_rows = lm.sliding_window is None and self._reads([Row(document, suffixes)], expected)
        self._last_feed_forward = last_feed_forward(lm.model.base_model)
        if not self._reads(apart, expected):
            self._last_feed_forward = None
        self.cache = None if cache_folder is None else ScoreCache(cache_folder, self.description)

    @property
    def fingerprint(self) -> dict[str, str | None]:
        """Weights, adapter, tokenizer and dtype of the LLM."""
        return self.lm.fingerprint

    def count_tokens(self, pairs: Sequence[Pair]) -> int:
        """Tokens that the LLM reads to score these pairs when nothing is cached, without padding."""
        _, first, _ = self._distinct(pairs)
        return sum(row.length for rows in self._windows(pairs, np.sort(first)) for row in rows)

    def score_pairs(self, pairs: Sequence[Pair], chosen: np.ndarray) -> Iterator[Scored]:
        """Score the chosen pairs batch by batch; see `Scorer`."""
        packing = packed_weights(self.lm.model) if len(chosen) >= PACKING_PAIRS else nullcontext()
        with packing, scoring_bar(len(chosen)) as bar:
            for rows in self._windows(pairs, chosen):
                for batch in token_batches(rows, self.batch_tokens, span_limit=self._rope_limit):
                    places = np.array([position for row in batch for position in row.pairs])
                    cut = [row.truncated for row in batch for _ in row.pairs]
                    tokens = self._score(batch)
                    if self.lm.device.type == "cpu":
                        give_back_freed_memory()
                    self.lm_tokens += sum(row.length for row in batch)
                    bar.update(len(places))
                    yield places, scored(tokens, cut), tokens

    def _windows(self, pairs: Sequence[Pair], chosen: np.ndarray) -> Iterator[list[Row]]:
        """Yield the rows of chosen pairs for `WINDOW_BATCHES` batches at a time; a document's pairs stand together."""
        order = document_major(pairs, chosen)
        ordered = ((int(position), pairs[chosen[position]]) for position in order)
        while rows := self._rows(ordered):
            yield rows

    def _rows(self, pairs: Iterator[tuple[int, Pair]]) -> list[Row]:
        """Take the pairs of one window and put those of a document into shared rows. The longest row comes first."""
        open_rows: dict[tuple[tuple[int, ...], bool, bool], Row] = {}
        rows: list[Row] = []
        tokens = 0
        for position, (document, query, answer) in pairs:
            suffix = self.tokens.suffix(query, answer, self.target)
            prefix, truncated = self._prefix(document, suffix, query)
            beyond = self._rope_limit is not None and len(prefix) + len(suffix.read) > self._rope_limit
            key = (prefix, truncated, beyond)  # a document that was cut and one that ends there have the same ids
            row = open_rows.get(key)
            longest = max(ROW_TOKENS, min(2 * len(prefix), self.batch_tokens))
            if row is None or not self._shares_rows or row.length + len(suffix.read) > longest:
                row = open_rows[key] = Row(prefix, truncated=truncated)
                rows.append(row)
                tokens += len(prefix)
            row.suffixes.append(suffix)
            row.pairs.append(position)
            tokens += len(suffix.read)
            if tokens >= WINDOW_BATCHES * self.batch_tokens:
                break
        return sorted(rows, key=lambda row: -row.length)

    def _reads(self, rows: list[Row], expected: list[np.ndarray]) -> bool:
        """Whether rows get the expected scores. Recurrent models and ALiBi, for example, do not accept our mask."""
        try:
            found = self._score(rows)
        except FORWARD_ERRORS:
            return False
        half = self.lm.model.dtype in (torch.bfloat16, torch.float16)
        return np.allclose(np.concatenate(found), np.concatenate(expected), rtol=2e-2 if half else 1e-4)

    @torch.inference_mode()
    def _score(self, rows: list[Row]) -> list[np.ndarray]:
        """Log-likelihoods of the target tokens of every suffix of the rows, in order: float32."""
        batch = collate(rows, self.lm)
        with computed_only_at(self._last_feed_forward, batch.rows, batch.columns):
            hidden = self.lm.model.base_model(**batch.inputs, use_cache=False).last_hidden_state  # (R, L, hidden)
        loss = self.lm.target_loss(hidden[batch.rows, batch.columns], batch.labels)  # (T,)
        ends = np.cumsum([suffix.target_tokens for row in rows for suffix in row.suffixes])
        return np.split(-loss.cpu().numpy(), ends[:-1])
