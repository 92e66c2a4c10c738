"""What every scorer of likelihoods does: keys of pairs, a cache, and gains. How a pair is scored is its own matter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm.auto import tqdm

from nlt_trainer.choices import TargetKind
from nlt_trainer.errors import NLTError
from nlt_trainer.lm.candidate_pairs import CandidatePairs, Pair
from nlt_trainer.lm.prompt_tokens import PromptTokens, Suffix
from nlt_trainer.lm.score_cache import KEY, SCORE, SCORE_COLUMNS, ScoreCache, key_bytes

Score = tuple[float, int, bool]
"""A pair's log-likelihood in nats, summed over the target's tokens, their number, and whether the document was cut."""
Scored = tuple[np.ndarray, list[Score], list[np.ndarray]]
"""Scores of some pairs: indices of their keys, scores, and the log-likelihood of each target token, `(T,)` float32."""


KEPT_TEXTS = 4096
"""Documents and queries whose tokens are kept. A query comes again for each of its candidates, mostly soon."""


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


def scored(tokens: Sequence[np.ndarray], truncated: Sequence[bool]) -> list[Score]:
    """Scores of pairs from the log-likelihoods of their target tokens, `(T,)` each, and whether documents were cut."""
    return [(float(t.sum(dtype=np.float64)), len(t), c) for t, c in zip(tokens, truncated, strict=True)]


def scoring_bar(pairs: int) -> tqdm:
    """The progress bar of scoring, which is not shown for a few pairs."""
    return tqdm(total=pairs, unit="pair", desc="scoring", disable=pairs < 64)


class Scorer(ABC):
    """Log-likelihoods of targets, with and without a document; `gain` is the difference per token.

    Equal pairs are scored once, and those in the cache not at all.

    Args:
        name: of the LLM, for messages.
        target: `answer`: log p(answer | document, query); `query`: log p(query | document);
            `joint`: log p(query, answer | document).
        tokens: makes tokens of texts.
        context_length: tokens that the LLM reads at most.
    """

    cache: ScoreCache | None

    def __init__(self, name: str, *, target: TargetKind, tokens: PromptTokens, context_length: int) -> None:
        self.name, self.target, self.tokens = name, target, tokens
        self.context_length = context_length  # every pair needs it, and a look into a configuration is slow
        self.cache = None
        self.lm_tokens = 0
        """Tokens that the LLM has read so far, without padding."""
        self.workers = 1
        """Number of LLMs that have read them side by side."""

    @property
    @abstractmethod
    def fingerprint(self) -> dict[str, str | None]:
        """Everything about the LLM that a score depends on."""

    @abstractmethod
    def count_tokens(self, pairs: Sequence[Pair]) -> int:
        """Tokens that the LLM reads to score these pairs when nothing is cached, without padding."""

    @abstractmethod
    def score_pairs(self, pairs: Sequence[Pair], chosen: np.ndarray) -> Iterator[Scored]:
        """Score the pairs with the indices `chosen`, `(M,)`, and yield some at a time; a `Scored` has places in it."""

    @property
    def description(self) -> dict[str, object]:
        """Everything besides the texts that a score depends on."""
        return {
            "llm": self.fingerprint,
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

    def _distinct(self, pairs: Sequence[Pair]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sorted distinct keys `(D,)`, the index of each key's first pair `(D,)` and of each pair's key `(N,)`."""
        keys = (ScoreCache.key(d, q, a if self.target != "query" else None) for d, q, a in pairs)
        return np.unique(np.fromiter(keys, KEY, len(pairs)), return_index=True, return_inverse=True)

    def _compute(
        self, pairs: Sequence[Pair], *, keys: np.ndarray, first: np.ndarray, known: np.ndarray
    ) -> Iterator[Scored]:
        """Score and store pairs with unknown keys, and yield indices of keys, scores and token scores."""
        missing = np.flatnonzero(~known)
        missing = missing[np.argsort(first[missing])]  # in the order of their first pairs
        for places, scores, tokens in self.score_pairs(pairs, first[missing]):
            at = missing[places]
            for index, (value, *_) in zip(at, scores, strict=True):
                if not np.isfinite(value):
                    self._refuse(pairs[first[index]], value)
            if self.cache is not None:
                stored = key_bytes(keys[at])
                self.cache.put(dict(zip(stored, scores, strict=True)), dict(zip(stored, tokens, strict=True)))
            yield at, scores, tokens

    def _refuse(self, pair: Pair, value: float) -> None:
        document, query, _ = pair
        raise NLTError(
            f"LLM {self.name!r} gives the log-likelihood {value} for query {query[:60]!r} with document "
            f"{(document or 'none')[:60]!r}; use dtype float32 or bfloat16 (float16 overflows), or check the weights"
        )

    def _prefix(self, document: str | None, suffix: Suffix, query: str) -> tuple[tuple[int, ...], bool]:
        """Ids in front of a suffix, with the document cut to fit the context, and whether the document was cut."""
        start, (before, after) = self.tokens.start, self.tokens.document_frame
        frame = len(start) + (0 if document is None else len(before) + len(after) + 1)
        if frame + len(suffix.ids) > self.context_length:
            raise NLTError(
                f"query {query[:60]!r} and its target have {len(suffix.ids)} tokens and do not fit the "
                f"{self.context_length} tokens of LLM {self.name!r}; shorten them or choose a longer context"
            )
        if document is None:
            return start, False
        ids, truncated = self.tokens.document(document)
        room = self.context_length - frame - len(suffix.ids) + 1
        return (*start, *before, *ids[:room], *after), truncated or len(ids) > room
