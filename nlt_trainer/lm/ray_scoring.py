"""Score how likely an LLM finds a target text by workers of Ray, each of which holds the LLM."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from nlt_trainer.choices import TargetKind
from nlt_trainer.errors import NLTError
from nlt_trainer.lm.candidate_pairs import Pair, document_major
from nlt_trainer.lm.cpu import packed_weights
from nlt_trainer.lm.prompt_tokens import PromptTokens
from nlt_trainer.lm.score_cache import ScoreCache
from nlt_trainer.lm.scorer import Scored, Scorer, scoring_bar
from nlt_trainer.lm.scoring import LikelihoodScorer
from nlt_trainer.prompts import PromptTemplate
from nlt_trainer.ray_workers import RayTask, RayWorkers

BLOCK_PAIRS, LAST_PAIRS = 128, 32
"""The most pairs in a block, and the fewest: towards the end blocks become smaller, so that all workers end at about
the same time. A block has up to twice as many if its last document does. A lost worker costs at most one block."""

Block = tuple[Literal["describe", "count", "score"], Sequence[Pair]]
"""What a worker is asked about some pairs."""


class RayScorer(Scorer):
    """Log-likelihoods of targets under an LLM that workers of Ray hold; this process does not load it.

    The pairs of a document stand in one block, so that a worker reads it once for all of them, as `LikelihoodScorer`
    does. Blocks are batched one by one, and scores therefore differ from those of one process by rounding.

    Args:
        make: loads the LLM and makes its scorer, without a cache; called in each worker.
        workers: the workers.
        cache_folder: where a `ScoreCache` keeps what was computed; `None` keeps nothing.

    Raises:
        NLTError: the LLM cannot be loaded.
    """

    def __init__(
        self, make: Callable[[], LikelihoodScorer], *, workers: RayWorkers, cache_folder: str | None = None
    ) -> None:
        self._task: RayTask[Block, Any] = workers.task(partial(_ScorerInWorker, make))
        every: list[Block] = [("describe", [])] * workers.number  # so that all load the LLM at the same time
        facts, *others = (found for _, found in self._task.results(every))
        self._fingerprint = facts.fingerprint
        for other in others:
            self._check(other.fingerprint, facts.name)
        tokens = PromptTokens(facts.tokenizer, facts.template, max_document_tokens=facts.max_document_tokens)
        super().__init__(facts.name, target=facts.target, tokens=tokens, context_length=facts.context_length)
        self.workers = workers.number
        self.cache = None if cache_folder is None else ScoreCache(cache_folder, self.description)

    @property
    def fingerprint(self) -> dict[str, str | None]:
        """Weights, adapter, tokenizer and dtype of the LLM."""
        return self._fingerprint

    def count_tokens(self, pairs: Sequence[Pair]) -> int:
        """Tokens that the workers read to score these pairs when nothing is cached, without padding."""
        _, first, _ = self._distinct(pairs)
        chosen = np.sort(first)
        blocks: Iterator[Block] = (
            ("count", [pairs[chosen[place]] for place in places])
            for places in document_blocks(pairs, chosen, workers=self.workers)
        )
        return sum(count for _, count in self._task.results(blocks))

    def score_pairs(self, pairs: Sequence[Pair], chosen: np.ndarray) -> Iterator[Scored]:
        """Score the chosen pairs block by block; see `Scorer`."""
        sent: dict[int, np.ndarray] = {}

        def blocks() -> Iterator[Block]:
            for number, places in enumerate(document_blocks(pairs, chosen, workers=self.workers)):
                sent[number] = places
                yield "score", [pairs[chosen[place]] for place in places]

        with scoring_bar(len(chosen)) as bar:
            for number, (fingerprint, lm_tokens, (places, scores, tokens)) in self._task.results(blocks()):
                self._check(fingerprint, self.name)
                self.lm_tokens += lm_tokens
                bar.update(len(places))
                yield sent.pop(number)[places], scores, tokens

    def _check(self, fingerprint: dict[str, str | None], name: str) -> None:
        """Refuse the scores of a worker whose LLM, tokenizer or dtype is another one than that of the first."""
        if fingerprint != self._fingerprint:
            raise NLTError(
                f"a worker of Ray has loaded another LLM {name!r} than the first one; give all nodes the same files "
                "and the same kind of processor or GPU, or name llm_revision and llm_dtype"
            )


def document_blocks(pairs: Sequence[Pair], chosen: np.ndarray, *, workers: int) -> Iterator[np.ndarray]:
    """Places in `chosen`, some at a time; the pairs of a document stand together, if they are not too many.

    Blocks with long documents come first, and each has documents of about one length, which need little padding.
    """
    order = document_major(pairs, chosen)
    lengths = np.fromiter((len(pairs[chosen[place]][0] or "") for place in order), np.int64, len(order))
    order = order[np.argsort(-lengths, kind="stable")]
    begin, size = 0, _block_size(len(order), workers)
    for end in range(1, len(order) + 1):
        is_last = end == len(order) or pairs[chosen[order[end]]][0] != pairs[chosen[order[end - 1]]][0]
        if end == len(order) or end - begin >= (size if is_last else 2 * size):
            yield order[begin:end]
            begin, size = end, _block_size(len(order) - end, workers)


def _block_size(left: int, workers: int) -> int:
    """Pairs in the next block: half of what a worker would get if all that are left were divided evenly."""
    return max(LAST_PAIRS, min(BLOCK_PAIRS, left // (2 * workers)))


@dataclass(frozen=True)
class _Facts:
    """What a worker says about its LLM and the prompts that it makes."""

    name: str
    fingerprint: dict[str, str | None]
    target: TargetKind
    tokenizer: PreTrainedTokenizerBase
    template: PromptTemplate
    max_document_tokens: int
    context_length: int


class _ScorerInWorker:
    """What a worker computes of a block."""

    def __init__(self, make: Callable[[], LikelihoodScorer]) -> None:
        self.scorer = make()
        self.packed = packed_weights(self.scorer.lm.model)  # once, because a block alone may be too small for it
        self.packed.__enter__()

    def __call__(self, block: Block) -> Any:
        what, pairs = block
        scorer, tokens = self.scorer, self.scorer.tokens
        if what == "count":
            return scorer.count_tokens(pairs)
        if what == "score":
            return self.scores(pairs)
        return _Facts(
            scorer.name,
            scorer.fingerprint,
            scorer.target,
            scorer.lm.tokenizer,
            tokens.template,
            tokens.max_document_tokens,
            scorer.context_length,
        )

    def scores(self, pairs: Sequence[Pair]) -> tuple[dict[str, str | None], int, Scored]:
        """What the scores depend on, the tokens that the LLM has read for them, and the scores of all pairs."""
        before = self.scorer.lm_tokens
        places, scores, tokens = zip(*self.scorer.score_pairs(pairs, np.arange(len(pairs))), strict=True)
        found = np.concatenate(places), [*chain.from_iterable(scores)], [*chain.from_iterable(tokens)]
        return self.scorer.fingerprint, self.scorer.lm_tokens - before, found
