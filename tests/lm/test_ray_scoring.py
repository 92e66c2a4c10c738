"""Scoring by workers of Ray: the scores of one process, the tokens that are read, and errors."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from nlt_trainer.errors import NLTError
from nlt_trainer.lm import ray_scoring
from nlt_trainer.lm.candidate_pairs import CandidatePairs, Pair
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.lm.ray_scoring import RayScorer, document_blocks
from nlt_trainer.lm.scoring import LikelihoodScorer
from nlt_trainer.ray_workers import RayWorkers

ray = pytest.importorskip("ray")
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import it


def local_scorer(llm: str, *, max_document_tokens: int = 24) -> LikelihoodScorer:
    return LikelihoodScorer(
        FrozenLM.from_pretrained(llm), target="joint", max_document_tokens=max_document_tokens, batch_tokens=256
    )


@pytest.fixture
def workers(ray_workers: RayWorkers) -> RayWorkers:
    return ray_workers


@pytest.fixture
def pairs() -> CandidatePairs:
    """40 queries with 3 of 10 documents, one of which is too long for the prompt, and 40 without a document."""
    documents = [f"document {d} says {'many ' * d}words" for d in range(9)] + ["long " * 60]
    chosen = [[documents[(b + 3 * k) % 10] for k in range(3)] for b in range(40)]
    return CandidatePairs([f"query {b}" for b in range(40)], chosen, [f"answer {b % 7}" for b in range(40)])


def test_scores_are_those_of_one_process(
    workers: RayWorkers,
    pairs: CandidatePairs,
    tiny_llm_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Reference: `LikelihoodScorer`. A second call reads the cache, and so does that scorer."""
    monkeypatch.setattr(ray_scoring, "BLOCK_PAIRS", 16)
    local = local_scorer(str(tiny_llm_folder))
    found = RayScorer(
        partial(local_scorer, str(tiny_llm_folder)), workers=workers, cache_folder=str(tmp_path / "scores")
    )
    assert found.description == local.description
    expected = local.log_likelihood(pairs)
    for _ in range(2):
        scored = found.log_likelihood(pairs)
        np.testing.assert_allclose(scored.log_likelihood, expected.log_likelihood, atol=1e-4)
        np.testing.assert_array_equal(scored.target_tokens, expected.target_tokens)
        np.testing.assert_array_equal(scored.truncated, expected.truncated)
    assert expected.truncated.any()
    read = found.lm_tokens
    assert found.count_tokens(pairs) == read
    long = next(pair for pair in pairs if str(pair[0]).startswith("long"))
    assert found.count_tokens([*[long] * len(pairs), *pairs]) == pytest.approx(read, rel=0.1), "equal pairs count once"
    assert read == pytest.approx(local.lm_tokens, rel=0.1)
    tokens = local.token_log_likelihoods(pairs)
    for one, other in zip(found.token_log_likelihoods(pairs), tokens, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    assert found.lm_tokens == read


def test_blocks_keep_the_pairs_of_a_document_together(pairs: CandidatePairs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: every place once, by counting; the documents of each block; and the sizes by hand."""
    monkeypatch.setattr(ray_scoring, "BLOCK_PAIRS", 16)
    monkeypatch.setattr(ray_scoring, "LAST_PAIRS", 16)
    chosen = np.arange(5, len(pairs))
    blocks = [*document_blocks(pairs, chosen, workers=1)]
    assert sorted(np.concatenate(blocks).tolist()) == [*range(len(chosen))]
    documents = [{pairs[chosen[place]][0] for place in block} for block in blocks]
    assert not any(documents[i] & documents[i + 1] for i in range(len(blocks) - 1))
    assert all(len(block) < 32 for block in blocks)
    longest = [max(len(pairs[chosen[place]][0] or "") for place in block) for block in blocks]
    assert longest == sorted(longest, reverse=True)
    monkeypatch.setattr(ray_scoring, "LAST_PAIRS", 4)
    alone: list[Pair] = [(None, f"query {b}", None) for b in range(70)]
    assert [len(block) for block in document_blocks(alone, np.arange(70), workers=1)] == [32, 32, 6]
    assert [len(block) for block in document_blocks(alone, np.arange(70), workers=2)] == [32, 18, 10, 8, 2]
    assert [*document_blocks([], np.arange(0), workers=2)] == []


def test_errors_of_workers_are_those_of_one_process(
    workers: RayWorkers, tiny_llm_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(NLTError, match="missing"):
        RayScorer(partial(local_scorer, str(tmp_path / "missing")), workers=workers)
    found = RayScorer(partial(local_scorer, str(tiny_llm_folder)), workers=workers)
    long: list[Pair] = [("a document", "word " * 5000, "answer")]
    with pytest.raises(NLTError, match="do not fit the"):
        found.log_likelihood(long)


def test_a_worker_with_another_llm_is_refused(
    workers: RayWorkers, pairs: CandidatePairs, tiny_llm_folder: Path
) -> None:
    found = RayScorer(partial(local_scorer, str(tiny_llm_folder)), workers=workers)
    found._fingerprint = {**found._fingerprint, "dtype": "torch.float16"}
    with pytest.raises(NLTError, match="has loaded another LLM"):
        found.log_likelihood(pairs)
