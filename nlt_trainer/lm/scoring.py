"""Score how likely a frozen LLM finds a target text, with a document before it and without one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from nlt_trainer.choices import TargetKind
from nlt_trainer.errors import NLTError
from nlt_trainer.lm.candidate_pairs import CandidatePairs, Pair, document_major
from nlt_trainer.lm.cpu import give_back_freed_memory, packed_weights
from nlt_trainer.lm.forward_check import FORWARD_ERRORS
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.lm.last_feed_forward import computed_only_at, last_feed_forward
from nlt_trainer.lm.prompt_tokens import PromptTokens, Suffix
from nlt_trainer.lm.rows import Row, collate, token_batches
from nlt_trainer.lm.score_cache import KEY, SCORE, SCORE_COLUMNS, ScoreCache, key_bytes
from nlt_trainer.prompts import PromptTemplate

ROW_TOKENS = 512
"""A row takes suffixes of one document up to this length, or up to twice the document's length if that is more. Longer
rows would waste attention on masked pairs."""

WINDOW_BATCHES = 64
"""Batches whose rows are sorted by length together. Padding is small, and memory does not grow with the pairs."""

KEPT_TEXTS = 4096
"""Documents and queries whose tokens are kept. A query comes again for each of its candidates, mostly soon."""

PACKING_PAIRS = 128
"""Number of pairs from which on weights are packed. Packing takes as long as scoring two or three pairs of a hundred
tokens each."""


@dataclass(frozen=True)
class Likelihoods:
    """Log-likelihoods of N targets, in input order.

    Args:
        log_likelihood: `(N,)` float64, nats, summed over the target's tokens.
        target_tokens: `(N,)` int64.
        truncated: `(N,)` bool, whether the document was cut.
    """

    log_likelihood: np.ndarray
    target_tokens: np.ndarray
    truncated: np.ndarray


def likelihood_gain(with_document: Likelihoods, without: Likelihoods) -> np.ndarray:
    """Gain in nats per target token, `(B, K)`, from likelihoods with candidates, `(B * K,)`, and without, `(B,)`."""
    queries = len(without.log_likelihood)
    log_likelihood = with_document.log_likelihood
    log_likelihood = log_likelihood.reshape(queries, len(log_likelihood) // max(queries, 1))  # (B * K,) -> (B, K)
    return (log_likelihood - without.log_likelihood[:, None]) / without.target_tokens[:, None]


class LikelihoodScorer:
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
        self.lm = lm
        self.target = target
        self.tokens = PromptTokens(
            lm.tokenizer,
            template or PromptTemplate(),
            max_document_tokens=max_document_tokens,
            kept_texts=KEPT_TEXTS,
        )
        self.batch_tokens = batch_tokens
        self._rope_limit = lm.rope_limit
        self._context_length = lm.context_length  # every pair needs it, and a look into a configuration is slow
        self.lm_tokens = 0
        """Tokens that the LLM has read so far, without padding."""
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
    def description(self) -> dict[str, object]:
        """Everything besides the texts that a score depends on."""
        return {
            "llm": self.lm.fingerprint,
            "template": self.tokens.template.as_dict(),
            "target": self.target,
            "max_document_tokens": self.tokens.max_document_tokens,
        }

    def gain(
        self, queries: Sequence[str], candidates: Sequence[Sequence[str]], answers: Sequence[str | None] | None = None
    ) -> np.ndarray:
        """Likelihood gain of each candidate, nats per target token.

        Args:
            queries: B texts.
            candidates: B lists of K documents.
            answers: B texts; needed for the targets `answer` and `joint`.

        Returns:
            `(B, K)` float64: `(log p(target | document) - log p(target)) / target tokens`.
        """
        return likelihood_gain(*self.candidate_likelihoods(queries, candidates, answers))

    def candidate_likelihoods(
        self, queries: Sequence[str], candidates: Sequence[Sequence[str]], answers: Sequence[str | None] | None = None
    ) -> tuple[Likelihoods, Likelihoods]:
        """Likelihoods with each candidate, `(B * K,)` query-major (row `b * K + k`), and without one, `(B,)`."""
        pairs = CandidatePairs(queries, candidates, answers)
        without = self.log_likelihood(CandidatePairs(queries, [[None]] * len(queries), answers))
        return self.log_likelihood(pairs), without

    def log_likelihood(self, pairs: Sequence[Pair]) -> Likelihoods:
        """Log-likelihood of each pair's target; equal pairs are computed once, cached ones not at all.

        Memory grows by 150 to 200 bytes a pair, for its key, its place in the order and its result. Texts, tokens and
        rows exist for some batches at a time.

        Raises:
            NLTError: a target does not fit the LLM's context, an answer is missing, or a likelihood is not finite.
        """
        keys, first, inverse = self._distinct(pairs)
        if self.cache is None:
            scores, known = np.zeros(len(keys), SCORE), np.zeros(len(keys), bool)
        else:
            scores, known = self.cache.get(keys)
        for at, found, _ in self._compute(pairs, keys=keys, first=first, known=known):
            scores[at] = found
        scores = scores[inverse]
        return Likelihoods(*(scores[name].copy() for name in SCORE_COLUMNS))

    def token_log_likelihoods(self, pairs: Sequence[Pair]) -> list[np.ndarray]:
        """Log-likelihood of each token of each pair's target given all tokens before it: float32, nats.

        The cache gives them too, unless an older version wrote it without them.

        Raises:
            NLTError: as `log_likelihood`.
        """
        keys, first, inverse = self._distinct(pairs)
        values = {} if self.cache is None else self.cache.get_tokens(keys)
        known = np.zeros(len(keys), bool)
        known[list(values)] = True
        for at, _, tokens in self._compute(pairs, keys=keys, first=first, known=known):
            values |= dict(zip(at.tolist(), tokens, strict=True))
        return [values[at] for at in inverse.tolist()]

    def fill_cache(self, pairs: Sequence[Pair], *, tokens: bool = False) -> None:
        """Compute the pairs that the cache lacks or, with `tokens`, those for which it lacks scores of single tokens.

        Raises:
            NLTError: as `log_likelihood`, or there is no cache.
        """
        if self.cache is None:
            raise NLTError("the scorer has no cache to fill; give it a cache_folder")
        keys, first, _ = self._distinct(pairs)
        known = self.cache.stored(keys, tokens=tokens)
        for _ in self._compute(pairs, keys=keys, first=first, known=known):
            pass

    def count_tokens(self, pairs: Sequence[Pair]) -> int:
        """Tokens that the LLM reads to score these pairs when nothing is cached, without padding."""
        _, first, _ = self._distinct(pairs)
        return sum(row.length for rows in self._windows(pairs, np.sort(first)) for row in rows)

    def _distinct(self, pairs: Sequence[Pair]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sorted distinct keys `(D,)`, the index of each key's first pair `(D,)` and of each pair's key `(N,)`."""
        keys = (ScoreCache.key(d, q, a if self.target != "query" else None) for d, q, a in pairs)
        return np.unique(np.fromiter(keys, KEY, len(pairs)), return_index=True, return_inverse=True)

    def _compute(
        self, pairs: Sequence[Pair], *, keys: np.ndarray, first: np.ndarray, known: np.ndarray
    ) -> Iterator[tuple[np.ndarray, list[tuple[float, int, bool]], list[np.ndarray]]]:
        """Score and store pairs with unknown keys, and yield each batch's key indices, scores and token scores."""
        missing = np.flatnonzero(~known)
        missing = missing[np.argsort(first[missing])]  # in the order of their first pairs
        packing = packed_weights(self.lm.model) if len(missing) >= PACKING_PAIRS else nullcontext()
        with packing, tqdm(total=len(missing), unit="pair", desc="scoring", disable=len(missing) < 64) as bar:
            for rows in self._windows(pairs, first[missing]):
                for batch in token_batches(rows, self.batch_tokens, span_limit=self._rope_limit):
                    at = missing[[position for row in batch for position in row.pairs]]
                    cut = [row.truncated for row in batch for _ in row.pairs]
                    tokens = self._score(batch)
                    if self.lm.device.type == "cpu":
                        give_back_freed_memory()
                    scores = [(float(t.sum(dtype=np.float64)), len(t), c) for t, c in zip(tokens, cut, strict=True)]
                    for index, (value, *_) in zip(at, scores, strict=True):
                        if not np.isfinite(value):
                            self._refuse(pairs[first[index]], value)
                    if self.cache is not None:
                        stored = key_bytes(keys[at])
                        self.cache.put(dict(zip(stored, scores, strict=True)), dict(zip(stored, tokens, strict=True)))
                    self.lm_tokens += sum(row.length for row in batch)
                    bar.update(len(at))
                    yield at, scores, tokens

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

    def _refuse(self, pair: Pair, value: float) -> None:
        document, query, _ = pair
        raise NLTError(
            f"LLM {self.lm.name!r} gives the log-likelihood {value} for query {query[:60]!r} with document "
            f"{(document or 'none')[:60]!r}; use dtype float32 or bfloat16 (float16 overflows), or check the weights"
        )

    def _prefix(self, document: str | None, suffix: Suffix, query: str) -> tuple[tuple[int, ...], bool]:
        """Ids in front of a suffix, with the document cut to fit the context, and whether the document was cut."""
        start, (before, after) = self.tokens.start, self.tokens.document_frame
        frame = len(start) + (0 if document is None else len(before) + len(after) + 1)
        if frame + len(suffix.ids) > self._context_length:
            raise NLTError(
                f"query {query[:60]!r} and its target have {len(suffix.ids)} tokens and do not fit the "
                f"{self._context_length} tokens of LLM {self.lm.name!r}; shorten them or choose a longer context"
            )
        if document is None:
            return start, False
        ids, truncated = self.tokens.document(document)
        room = self._context_length - frame - len(suffix.ids) + 1
        return (*start, *before, *ids[:room], *after), truncated or len(ids) > room

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
