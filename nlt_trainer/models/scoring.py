"""How likely a frozen LLM finds a target text with a document before it, and without."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from nlt_trainer.errors import NLTError
from nlt_trainer.models.frozen_lm import FORWARD_ERRORS, FrozenLM
from nlt_trainer.models.packed_weights import packed_weights
from nlt_trainer.models.prompt_tokens import PromptTokens, Suffix
from nlt_trainer.models.score_cache import ScoreCache
from nlt_trainer.prompts import PromptTemplate, TargetKind

logger = logging.getLogger(__name__)

ROW_TOKENS = 512
"""A row takes several suffixes of one document up to this length, or until they are as long as the document: more of
them would waste attention on masked pairs."""

MAX_PADDING = 0.05
"""Share of a batch's tokens; a batch that would have more ends before."""

WINDOW_PAIRS = 16_384
"""Pairs that are tokenised and sorted by length at once; bounds the memory that token ids take."""

PACKING_PAIRS = 128
"""Pairs for which weights are packed: that takes as long as scoring two or three of a hundred tokens each."""

Pair = tuple[str | None, str, str | None]
"""(document or None for no document, query, answer or None)"""


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
    """Nats per target token, `(B, K)`, from likelihoods with each candidate, `(B * K,)`, and without one, `(B,)`."""
    log_likelihood = with_document.log_likelihood.reshape(len(without.log_likelihood), -1)  # (B * K,) -> (B, K)
    return (log_likelihood - without.log_likelihood[:, None]) / without.target_tokens[:, None]


@dataclass
class _Row:
    """One sequence: a document's prefix, then the suffixes of its pairs, which do not see each other."""

    prefix: tuple[int, ...]
    suffixes: list[Suffix] = field(default_factory=list)
    pairs: list[int] = field(default_factory=list)  # index of each suffix's pair in the call
    truncated: bool = False

    @property
    def length(self) -> int:
        return len(self.prefix) + sum(len(s.ids) for s in self.suffixes)


class LikelihoodScorer:
    """Log-likelihood of targets under a frozen LLM, with and without a document; `gain` is their difference a token.

    A document is read once for many of its pairs of a call: their queries and targets follow it in one row, of up to
    512 tokens or twice the document's, under a mask that hides them from each other and with positions that all
    continue the document. Rows are sorted by length and batched by a budget of tokens; the vocabulary projection runs
    at target positions only. From 128 pairs of a call on, weights are packed meanwhile (`packed_weights`).

    Args:
        lm: the frozen LLM.
        target: `answer`: log p(answer | document, query); `query`: log p(query | document);
            `joint`: log p(query, answer | document).
        template: text around document, query and answer.
        max_document_tokens: a longer document is cut; query and target never are.
        batch_tokens: tokens in one forward pass, padding included. On a CPU more than 2048 are slower, because a layer
            of a small LLM then needs more than `keep_freed_memory` keeps.
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
        self.tokens = PromptTokens(lm.tokenizer, template or PromptTemplate(), max_document_tokens=max_document_tokens)
        self.batch_tokens = batch_tokens
        self.lm_tokens = 0
        """Tokens that the LLM has read so far, without padding."""
        # A window counts columns, which shared rows stretch, so such models get one suffix a row.
        self._shares_rows = lm.sliding_window is None and self._takes_masks()
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
        given: Sequence[str | None] = [None] * len(queries) if answers is None else answers
        if len({len(c) for c in candidates}) > 1:
            raise NLTError("queries have different numbers of candidates; mine them again with one num_candidates")
        without = self.log_likelihood([(None, q, a) for q, a in zip(queries, given, strict=True)])
        pairs = [(d, q, a) for q, a, ds in zip(queries, given, candidates, strict=True) for d in ds]
        return self.log_likelihood(pairs), without

    def log_likelihood(self, pairs: Sequence[Pair]) -> Likelihoods:
        """Log-likelihood of each pair's target; equal pairs are computed once, cached ones not at all.

        Raises:
            NLTError: a target does not fit the LLM's context, an answer is missing, or a likelihood is not finite.
        """
        keys = self._keys(pairs)
        values = {} if self.cache is None else self.cache.get(keys)
        for scores, _ in self._compute({k: p for k, p in zip(keys, pairs, strict=True) if k not in values}):
            values.update(scores)
        table = np.array([values[key] for key in keys], np.float64).reshape(-1, 3)  # exact: no target has 2**53 tokens
        return Likelihoods(table[:, 0].copy(), table[:, 1].astype(np.int64), table[:, 2].astype(bool))

    def token_log_likelihoods(self, pairs: Sequence[Pair]) -> list[np.ndarray]:
        """Log-likelihood of each token of each pair's target given all tokens before it: float32, nats.

        They come out of the cache too, unless it was written before it held them.

        Raises:
            NLTError: as `log_likelihood`.
        """
        keys = self._keys(pairs)
        values = {} if self.cache is None else self.cache.get_tokens(keys)
        for _, tokens in self._compute({k: p for k, p in zip(keys, pairs, strict=True) if k not in values}):
            values.update(tokens)
        return [values[key] for key in keys]

    def _keys(self, pairs: Sequence[Pair]) -> list[bytes]:
        return [ScoreCache.key(d, q, a if self.target != "query" else None) for d, q, a in pairs]

    def count_tokens(self, pairs: Sequence[Pair]) -> int:
        """Tokens that the LLM reads to score these pairs when nothing is cached, without padding."""
        unique = dict.fromkeys((d, q, a if self.target != "query" else None) for d, q, a in pairs)
        return sum(row.length for _, rows in self._windows(list(unique)) for row in rows)

    def _windows(self, pairs: Sequence[Pair]) -> Iterator[tuple[list[int], list[_Row]]]:
        """Rows of `WINDOW_PAIRS` pairs at a time, those of a document together; with indices of the window's pairs."""
        first: dict[str | None, int] = {}
        for document, *_ in pairs:
            first.setdefault(document, len(first))
        ordered = sorted(range(len(pairs)), key=lambda i: first[pairs[i][0]])
        for begin in range(0, len(ordered), WINDOW_PAIRS):
            window = ordered[begin : begin + WINDOW_PAIRS]
            yield window, self._rows([pairs[i] for i in window])

    def _compute(
        self, missing: dict[bytes, Pair]
    ) -> Iterator[tuple[dict[bytes, tuple[float, int, bool]], dict[bytes, np.ndarray]]]:
        """Score and store pairs batch by batch; yields each batch's values as `ScoreCache.put` takes them."""
        every = list(missing)
        packing = packed_weights(self.lm) if len(every) >= PACKING_PAIRS else nullcontext()
        with packing, tqdm(total=len(every), unit="pair", desc="scoring", disable=len(every) < 64) as bar:
            for window, rows in self._windows(list(missing.values())):
                keys = [every[i] for i in window]
                for batch in token_batches(rows, self.batch_tokens):
                    cut = {keys[index]: row.truncated for row in batch for index in row.pairs}
                    tokens = dict(zip(cut, self._score(batch), strict=True))
                    scores = {k: (float(t.sum(dtype=np.float64)), len(t), cut[k]) for k, t in tokens.items()}
                    for key, (value, *_) in scores.items():
                        if not np.isfinite(value):
                            self._refuse(missing[key], value)
                    if self.cache is not None:
                        self.cache.put(scores, tokens)
                    self.lm_tokens += sum(row.length for row in batch)
                    bar.update(len(cut))
                    yield scores, tokens

    def _refuse(self, pair: Pair, value: float) -> None:
        document, query, _ = pair
        raise NLTError(
            f"LLM {self.lm.name!r} gives the log-likelihood {value} for query {query[:60]!r} with document "
            f"{(document or 'none')[:60]!r}; use dtype float32 or bfloat16 (float16 overflows), or check the weights"
        )

    def _rows(self, pairs: list[Pair]) -> list[_Row]:
        """Put pairs of the same document into shared rows; longest row first."""
        open_rows: dict[tuple[tuple[int, ...], bool], _Row] = {}
        rows: list[_Row] = []
        for index, (document, query, answer) in enumerate(pairs):
            suffix = self.tokens.suffix(query, answer, self.target)
            prefix, truncated = self._prefix(document, suffix, query)
            key = (prefix, truncated)  # a document cut short and one that ends there have the same ids
            row = open_rows.get(key)
            longest = max(ROW_TOKENS, min(2 * len(prefix), self.batch_tokens))
            if row is None or not self._shares_rows or row.length + len(suffix.ids) > longest:
                row = open_rows[key] = _Row(prefix, truncated=truncated)
                rows.append(row)
            row.suffixes.append(suffix)
            row.pairs.append(index)
        return sorted(rows, key=lambda row: -row.length)

    def _prefix(self, document: str | None, suffix: Suffix, query: str) -> tuple[tuple[int, ...], bool]:
        """Ids in front of a suffix; the document is cut to what the context leaves."""
        start, (before, after) = self.tokens.start, self.tokens.document_frame
        frame = len(start) + (0 if document is None else len(before) + len(after) + 1)
        if frame + len(suffix.ids) > self.lm.context_length:
            raise NLTError(
                f"query {query[:60]!r} and its target have {len(suffix.ids)} tokens and do not fit the "
                f"{self.lm.context_length} tokens of LLM {self.lm.name!r}; shorten them or choose a longer context"
            )
        if document is None:
            return start, False
        ids, truncated = self.tokens.document(document)
        room = self.lm.context_length - frame - len(suffix.ids) + 1
        return (*start, *before, *ids[:room], *after), truncated or len(ids) > room

    def _takes_masks(self) -> bool:
        """Whether two suffixes in one row score as they do apart; recurrent models and ALiBi take no mask of ours."""
        document, suffixes = (0, 1, 2), [Suffix((3, 4, 5), (False, True, True)), Suffix((6, 7), (False, True))]
        apart = self._score([_Row(document, [suffix]) for suffix in suffixes])
        try:
            together = self._score([_Row(document, suffixes)])
        except FORWARD_ERRORS:
            return False
        half = self.lm.model.dtype in (torch.bfloat16, torch.float16)
        return np.allclose(np.concatenate(together), np.concatenate(apart), rtol=2e-2 if half else 1e-4)

    @torch.inference_mode()
    def _score(self, rows: list[_Row]) -> list[np.ndarray]:
        """Log-likelihoods of the target tokens of every suffix of the rows, in order: float32."""
        batch = _collate(rows, self.lm)
        hidden = self.lm.model.base_model(**batch.inputs, use_cache=False).last_hidden_state  # (R, L, hidden)
        labels = batch.inputs["input_ids"][batch.rows, batch.columns]
        loss = self.lm.target_loss(hidden[batch.rows, batch.columns - 1], labels)  # (T,), suffix by suffix
        ends = np.cumsum([suffix.target_tokens for row in rows for suffix in row.suffixes])
        return np.split(-loss.cpu().numpy(), ends[:-1])


@dataclass
class _Batch:
    inputs: dict[str, Tensor]
    rows: Tensor  # (T,) row of each target token, suffix by suffix
    columns: Tensor  # (T,) its column


def _collate(rows: list[_Row], lm: FrozenLM) -> _Batch:
    length = max(row.length for row in rows)
    ids = np.zeros((len(rows), length), np.int64)
    positions = np.zeros_like(ids)
    segments = np.full_like(ids, -1)  # 0: prefix, 1, 2, ...: suffixes, -1: padding
    targets: list[tuple[int, int]] = []
    for r, row in enumerate(rows):
        start = len(row.prefix)
        ids[r, :start], positions[r, :start], segments[r, :start] = row.prefix, np.arange(start), 0
        at = start
        for number, suffix in enumerate(row.suffixes, start=1):
            end = at + len(suffix.ids)
            ids[r, at:end], segments[r, at:end] = suffix.ids, number
            positions[r, at:end] = np.arange(start, start + len(suffix.ids))
            targets += [(r, at + i) for i, marked in enumerate(suffix.target) if marked]
            at = end
    inputs = {"input_ids": torch.from_numpy(ids)}
    if any(len(row.suffixes) > 1 for row in rows):  # else causality alone is right: padding comes last
        inputs["position_ids"] = torch.from_numpy(positions)
        inputs["attention_mask"] = _row_mask(torch.from_numpy(segments), lm)
    index = torch.tensor(targets).T.to(lm.device)
    return _Batch({k: v.to(lm.device) for k, v in inputs.items()}, index[0], index[1])


def _row_mask(segments: Tensor, lm: FrozenLM) -> Tensor:
    """`(R, 1, L, L)`: a token sees what stands before it in its row's prefix and in its own suffix."""
    length = segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    visible = causal & ((segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None]))
    if lm.model.config._attn_implementation == "eager":  # adds its mask, where sdpa takes a boolean one
        return torch.where(visible, 0.0, torch.finfo(lm.model.dtype).min)[:, None].to(lm.model.dtype)
    return visible[:, None]


def token_batches(rows: list[_Row], batch_tokens: int) -> Iterator[list[_Row]]:
    """Split rows, sorted by descending length, into batches of at most `batch_tokens` tokens with padding.

    At most `MAX_PADDING` of a batch's tokens are padding.
    """
    batch: list[_Row] = []
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
