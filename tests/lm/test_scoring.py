"""Likelihoods against a plain loop: one pair at a time, all logits, log-softmax, sum over the target."""

from __future__ import annotations

import itertools
import sqlite3
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from nlt_trainer.choices import TargetKind
from nlt_trainer.errors import NLTError
from nlt_trainer.lm import scoring
from nlt_trainer.lm.candidate_pairs import Pair
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.lm.rows import Row, token_batches
from nlt_trainer.lm.scoring import LikelihoodScorer
from nlt_trainer.prompts import PromptTemplate

TEMPLATE = PromptTemplate()
DOCUMENTS = [
    "Green tea is made from leaves that were heated soon after the harvest.",
    "An owl hunts at night.",
    "The moon pulls the water of the sea and so makes the tides. " * 3,
]
QUERIES = ["how is tea made", "which bird hunts", "what makes the tides of the sea"]
ANSWERS = ["from leaves that were heated", "an owl", "the moon"]
PAIRS: list[Pair] = [
    *itertools.chain.from_iterable([(d, q, a) for q, a in zip(QUERIES, ANSWERS, strict=True)] for d in DOCUMENTS),
    *[(None, q, a) for q, a in zip(QUERIES, ANSWERS, strict=True)],
]
CANDIDATES = [DOCUMENTS, DOCUMENTS[::-1], DOCUMENTS]


def plain_log_likelihood(lm: FrozenLM, pair: Pair, target: TargetKind, *, start: list[int], limit: int = 256) -> Any:
    """The reference: `(log-likelihood, target tokens)` of one pair."""
    values = plain_token_log_likelihoods(lm, pair, target, start=start, limit=limit)
    return sum(values), len(values)


@torch.no_grad()
def plain_token_log_likelihoods(
    lm: FrozenLM, pair: Pair, target: TargetKind, *, start: list[int], limit: int = 256
) -> list[float]:
    """The reference: log-likelihood of each target token of one pair."""

    def ids(text: str) -> list[int]:
        return list(lm.tokenizer(text, add_special_tokens=False).input_ids)

    document, query, answer = pair
    segments = [(start, False)]
    if document is not None:
        segments += [(ids(TEMPLATE.document_prefix), False), (ids(document)[:limit], False)]
        segments += [(ids(TEMPLATE.document_suffix), False)]
    segments += [(ids(TEMPLATE.query_prefix), False), (ids(f" {query}"), target in ("query", "joint"))]
    if target != "query":
        segments += [(ids(TEMPLATE.answer_prefix), False), (ids(f" {answer}"), True)]
    tokens = [i for segment, _ in segments for i in segment]
    marked = [mark for segment, mark in segments for _ in segment]
    log_p = lm.model(input_ids=torch.tensor([tokens])).logits[0].double().log_softmax(-1)
    return [float(log_p[t - 1, tokens[t]]) for t in range(1, len(tokens)) if marked[t]]


def assert_equals_plain_loop(scorer: LikelihoodScorer, pairs: list[Pair], *, start: list[int]) -> None:
    """Compare with the reference within 1e-4 nats a token."""
    found = scorer.log_likelihood(pairs)
    limit = scorer.tokens.max_document_tokens
    expected = [plain_log_likelihood(scorer.lm, pair, scorer.target, start=start, limit=limit) for pair in pairs]
    assert found.target_tokens.tolist() == [tokens for _, tokens in expected]
    difference = (found.log_likelihood - [value for value, _ in expected]) / found.target_tokens
    assert np.abs(difference).max() < 1e-4


@pytest.mark.parametrize("target", ["answer", "query", "joint"])
@pytest.mark.parametrize("batch_tokens", [1, 4096])
@pytest.mark.parametrize("row_tokens", [1, 90, 4096])
def test_packed_batched_scores_equal_the_plain_loop(
    tiny_lm: FrozenLM, monkeypatch: pytest.MonkeyPatch, target: TargetKind, batch_tokens: int, row_tokens: int
) -> None:
    """Reference: the plain loop; rows of one pair (1), of some (90) and of all pairs of a document (4096)."""
    monkeypatch.setattr(scoring, "ROW_TOKENS", row_tokens)
    monkeypatch.setattr(scoring, "WINDOW_BATCHES", 4096)
    scorer = LikelihoodScorer(tiny_lm, target=target, batch_tokens=batch_tokens)
    assert_equals_plain_loop(scorer, PAIRS, start=[])
    rows = scorer._rows(enumerate(PAIRS))
    if batch_tokens == 1:
        assert {1: len(rows) == len(PAIRS), 90: 4 < len(rows) < len(PAIRS), 4096: len(rows) == 4}[row_tokens]


def test_a_long_document_is_read_once_for_as_many_tokens_behind_it(
    tiny_lm: FrozenLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: the plain loop, and the tokens of one row; a budget below that gets a row a pair."""
    monkeypatch.setattr(scoring, "ROW_TOKENS", 16)
    document = "The moon pulls the water of the sea and so makes the tides. " * 4
    pairs: list[Pair] = [(document, query, None) for query in QUERIES]
    scorer = LikelihoodScorer(tiny_lm, target="query")
    suffixes = sum(len(scorer.tokens.suffix(query, None, "query").read) for query in QUERIES)
    (row,) = scorer._rows(enumerate(pairs))
    assert suffixes < len(row.prefix)
    assert scorer.count_tokens(pairs) == len(row.prefix) + suffixes
    assert_equals_plain_loop(scorer, pairs, start=[])
    small = LikelihoodScorer(tiny_lm, target="query", batch_tokens=20)
    assert [len(row.pairs) for row in small._rows(enumerate(pairs))] == [1, 1, 1]
    more: list[Pair] = [(document, f"{query} {i}", None) for query in QUERIES for i in range(9)]
    assert all(row.length <= 2 * len(row.prefix) for row in scorer._rows(enumerate(more)))
    assert_equals_plain_loop(scorer, more, start=[])


@pytest.mark.parametrize("budget", [1, 500, 4096])
def test_batches_keep_to_their_budget_of_tokens_and_padding(budget: int) -> None:
    """Reference: counts of tokens with and without padding; lengths spread over two orders of magnitude."""
    lengths = np.sort(np.random.default_rng(0).lognormal(4, 1, 400).astype(int) + 1)[::-1]
    rows = [Row((0,) * int(length)) for length in lengths]
    batches = list(token_batches(rows, budget))
    assert [row for batch in batches for row in batch] == rows
    padded = [len(batch) * batch[0].length for batch in batches]
    assert all(size <= budget or len(batch) == 1 for size, batch in zip(padded, batches, strict=True))
    waste = [1 - sum(r.length for r in batch) / size for size, batch in zip(padded, batches, strict=True)]
    assert max(waste) <= 0.05 + 1e-9
    assert (max(map(len, batches)) > 1) == (budget > 1)


def test_a_tokenizer_that_adds_a_beginning(tiny_bos_lm: FrozenLM) -> None:
    """Reference: the plain loop with `<s>` in front."""
    assert_equals_plain_loop(LikelihoodScorer(tiny_bos_lm, target="joint"), PAIRS, start=[1])


@pytest.mark.parametrize("tokens", [1, 100, 10_000])
def test_order_means_nothing(tiny_lm: FrozenLM, monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    """Reference: the plain loop on a permutation with repetitions, in windows that split a document's pairs or not."""
    monkeypatch.setattr(scoring, "WINDOW_BATCHES", tokens / 300)
    order = np.random.default_rng(0).integers(0, len(PAIRS), 20)
    assert_equals_plain_loop(
        LikelihoodScorer(tiny_lm, target="query", batch_tokens=300), [PAIRS[i] for i in order], start=[]
    )


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_eager_and_fused_attention_agree(tiny_lm: FrozenLM, attention: str) -> None:
    """Reference: the plain loop under the same attention; their masks differ in kind."""
    tiny_lm.model.set_attn_implementation(attention)
    assert_equals_plain_loop(LikelihoodScorer(tiny_lm, target="joint"), PAIRS, start=[])


def test_a_sliding_window_gets_rows_of_one_pair(tiny_lm: FrozenLM) -> None:
    """Reference: the plain loop with a window shorter than the documents."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=512, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.2, sliding_window=7,
    )  # fmt: skip
    lm = FrozenLM(MistralForCausalLM(config), tiny_lm.tokenizer, "windowed", {})
    assert_equals_plain_loop(LikelihoodScorer(lm, target="query"), PAIRS, start=[])


def test_gain_is_the_difference_per_target_token(tiny_lm: FrozenLM) -> None:
    """Reference: the formula in numpy on the plain loop's likelihoods."""
    scorer = LikelihoodScorer(tiny_lm, target="joint")
    gain = scorer.gain(QUERIES, CANDIDATES, ANSWERS)
    expected = np.zeros((3, 3))
    for b, k in itertools.product(range(3), range(3)):
        value, tokens = plain_log_likelihood(tiny_lm, (CANDIDATES[b][k], QUERIES[b], ANSWERS[b]), "joint", start=[])
        base, _ = plain_log_likelihood(tiny_lm, (None, QUERIES[b], ANSWERS[b]), "joint", start=[])
        expected[b, k] = (value - base) / tokens
    np.testing.assert_allclose(gain, expected, atol=1e-4)


@pytest.mark.parametrize("window", [0.5, scoring.WINDOW_BATCHES])
def test_every_token_that_is_read_is_counted(
    tiny_lm: FrozenLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: float
) -> None:
    """Reference: the ids that the model receives, without padding, and `count_tokens` before."""
    monkeypatch.setattr(scoring, "WINDOW_BATCHES", window)
    scorer = LikelihoodScorer(tiny_lm, target="query", batch_tokens=200, cache_folder=str(tmp_path))
    expected = scorer.count_tokens([*PAIRS, *PAIRS])
    rows = [row for rows in scorer._windows(PAIRS, np.arange(len(PAIRS))) for row in rows]
    assert expected == sum(len(row.prefix) + sum(len(s.ids) - 1 for s in row.suffixes) for row in rows)
    scorer.log_likelihood([*PAIRS, *PAIRS])
    assert scorer.lm_tokens == expected > 0


def test_a_second_call_computes_nothing(tiny_lm: FrozenLM, tmp_path: Path) -> None:
    """Reference: the uncached scorer, and a scorer that may not touch the model."""
    plain = LikelihoodScorer(tiny_lm, target="joint").log_likelihood(PAIRS)
    first = LikelihoodScorer(tiny_lm, target="joint", cache_folder=str(tmp_path)).log_likelihood(PAIRS)
    scorer = LikelihoodScorer(tiny_lm, target="joint", cache_folder=str(tmp_path))
    second = scorer.log_likelihood(PAIRS)
    assert scorer.lm_tokens == 0
    for found in (first, second):
        np.testing.assert_array_equal(found.log_likelihood, plain.log_likelihood)
        np.testing.assert_array_equal(found.target_tokens, plain.target_tokens)
        np.testing.assert_array_equal(found.truncated, plain.truncated)
    other = LikelihoodScorer(tiny_lm, target="query", cache_folder=str(tmp_path))
    other.log_likelihood(PAIRS)
    assert other.lm_tokens > 0


@pytest.mark.parametrize("target", ["answer", "query", "joint"])
def test_single_tokens_equal_the_plain_loop_and_add_up(tiny_lm: FrozenLM, tmp_path: Path, target: TargetKind) -> None:
    """Reference: the plain loop's tokens; their sum is the log-likelihood; a second call reads both from the cache."""
    scorer = LikelihoodScorer(tiny_lm, target=target, cache_folder=str(tmp_path), batch_tokens=300)
    found = scorer.token_log_likelihoods([*PAIRS, PAIRS[0]])
    for pair, values in zip(PAIRS, found, strict=False):
        np.testing.assert_allclose(values, plain_token_log_likelihoods(tiny_lm, pair, target, start=[]), atol=1e-4)
    read = scorer.lm_tokens
    sums = scorer.log_likelihood(PAIRS)
    again = LikelihoodScorer(tiny_lm, target=target, cache_folder=str(tmp_path))
    for first, second in zip(found, again.token_log_likelihoods([*PAIRS, PAIRS[0]]), strict=True):
        np.testing.assert_array_equal(first, second)
    assert (scorer.lm_tokens, again.lm_tokens) == (read, 0)
    np.testing.assert_array_equal(sums.log_likelihood, [tokens.sum(dtype=np.float64) for tokens in found[:-1]])
    assert sums.target_tokens.tolist() == [len(tokens) for tokens in found[:-1]]


def test_single_tokens_are_there_after_sums_alone(tiny_lm: FrozenLM, tmp_path: Path) -> None:
    """Reference: a scorer without a cache; asking for sums first computes nothing twice."""
    scorer = LikelihoodScorer(tiny_lm, target="joint", cache_folder=str(tmp_path))
    scorer.log_likelihood(PAIRS)
    read = scorer.lm_tokens
    found = scorer.token_log_likelihoods(PAIRS)
    assert scorer.lm_tokens == read > 0
    expected = LikelihoodScorer(tiny_lm, target="joint").token_log_likelihoods(PAIRS)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_cache_from_before_single_tokens_keeps_its_sums(tiny_lm: FrozenLM, tmp_path: Path) -> None:
    """Reference: a file with the tables of old; sums are read from it, single tokens are computed, once."""
    scorer = LikelihoodScorer(tiny_lm, target="query", cache_folder=str(tmp_path))
    expected = scorer.log_likelihood(PAIRS)
    assert scorer.cache is not None
    with sqlite3.connect(scorer.cache.path) as connection:
        connection.execute("DROP TABLE tokens")
        connection.execute("ALTER TABLE scores DROP COLUMN checksum")
        connection.execute("PRAGMA user_version = 0")
    connection.close()
    old = LikelihoodScorer(tiny_lm, target="query", cache_folder=str(tmp_path))
    np.testing.assert_array_equal(old.log_likelihood(PAIRS).log_likelihood, expected.log_likelihood)
    assert old.lm_tokens == 0
    found = old.token_log_likelihoods(PAIRS)
    assert old.lm_tokens == scorer.lm_tokens
    np.testing.assert_allclose([tokens.sum() for tokens in found], expected.log_likelihood, rtol=1e-5)
    old.token_log_likelihoods(PAIRS)
    assert old.lm_tokens == scorer.lm_tokens


def test_a_cache_is_filled_with_what_it_lacks(tiny_lm: FrozenLM, tmp_path: Path) -> None:
    """Reference: a scorer without a cache; what is there is not computed again, for sums or for single tokens."""
    scorer = LikelihoodScorer(tiny_lm, target="joint", cache_folder=str(tmp_path))
    scorer.fill_cache(PAIRS[:4])
    scorer.fill_cache(PAIRS)
    read = scorer.lm_tokens
    assert read > 0
    scorer.fill_cache(PAIRS, tokens=True)
    plain = LikelihoodScorer(tiny_lm, target="joint")
    expected = plain.log_likelihood(PAIRS).log_likelihood
    np.testing.assert_allclose(scorer.log_likelihood(PAIRS).log_likelihood, expected, rtol=1e-5)
    assert scorer.lm_tokens == read
    assert scorer.cache is not None
    with sqlite3.connect(scorer.cache.path) as connection:
        connection.execute("DELETE FROM tokens")
    connection.close()
    scorer.fill_cache(PAIRS)
    assert scorer.lm_tokens == read
    scorer.fill_cache(PAIRS, tokens=True)
    assert scorer.lm_tokens == read + scorer.count_tokens(PAIRS)
    with pytest.raises(NLTError, match=r"no cache to fill; give it a cache_folder"):
        plain.fill_cache(PAIRS)


def test_memory_does_not_grow_with_pairs(tiny_lm: FrozenLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: what Python and numpy allocate for some pairs; four times as many get 200 bytes each on top."""
    monkeypatch.setattr(scoring, "WINDOW_BATCHES", 1)
    monkeypatch.setattr(scoring, "KEPT_TEXTS", 16)
    longer = " and the sea" * 8  # Python itself keeps up to 2,000 freed tuples of each length below 20
    peaks = []
    for number in (256, 1024):
        scorer = LikelihoodScorer(tiny_lm, target="query", batch_tokens=512, cache_folder=f"{tmp_path}/{number}")
        monkeypatch.setattr(
            scorer, "_score", lambda rows: [np.full(s.target_tokens, -1, np.float32) for r in rows for s in r.suffixes]
        )
        queries = [f"what is owl {b} of {number}{longer}" for b in range(number // 4)]
        candidates = [[f"tea {b} {k} of {number}{longer}" for k in range(4)] for b in range(number // 4)]
        scorer.candidate_likelihoods(queries[:8], [row[:3] for row in candidates[:8]])  # what comes once
        tracemalloc.start()
        found, _ = scorer.candidate_likelihoods(queries, candidates)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(found.log_likelihood) == number
    assert 0 < (peaks[1] - peaks[0]) / 768 < 200


def test_no_queries_and_no_candidates_have_no_gain(tiny_lm: FrozenLM) -> None:
    """Reference: the shape `(B, K)` with B or K zero."""
    scorer = LikelihoodScorer(tiny_lm, target="query")
    assert scorer.gain([], []).shape == (0, 0)
    assert scorer.gain(QUERIES, [[]] * 3).shape == (3, 0)


def test_the_answer_is_no_part_of_a_querys_key(tiny_lm: FrozenLM, tmp_path: Path) -> None:
    """Reference: log p(query | document) does not depend on the answer."""
    scorer = LikelihoodScorer(tiny_lm, target="query", cache_folder=str(tmp_path))
    scorer.log_likelihood(PAIRS)
    tokens = scorer.lm_tokens
    scorer.log_likelihood([(d, q, None) for d, q, _ in PAIRS])
    assert scorer.lm_tokens == tokens


def test_a_killed_call_goes_on_where_it_stopped(
    tiny_lm: FrozenLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: tokens and values of a call that was not interrupted."""
    monkeypatch.setattr(scoring, "WINDOW_BATCHES", 4096)
    whole = LikelihoodScorer(tiny_lm, target="query", batch_tokens=1)
    expected = whole.log_likelihood(PAIRS)
    killed = LikelihoodScorer(tiny_lm, target="query", batch_tokens=1, cache_folder=str(tmp_path))
    real, calls = killed._score, itertools.count()

    def score_once(rows: Any) -> list[np.ndarray]:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return real(rows)

    monkeypatch.setattr(killed, "_score", score_once)
    with pytest.raises(KeyboardInterrupt):
        killed.log_likelihood(PAIRS)
    resumed = LikelihoodScorer(tiny_lm, target="query", batch_tokens=1, cache_folder=str(tmp_path))
    found = resumed.log_likelihood(PAIRS)
    assert 0 < killed.lm_tokens < whole.lm_tokens
    assert killed.lm_tokens + resumed.lm_tokens == whole.lm_tokens
    np.testing.assert_allclose(found.log_likelihood, expected.log_likelihood, atol=1e-4)


def test_only_documents_are_cut_and_the_cut_is_reported(tiny_lm: FrozenLM) -> None:
    """Reference: the plain loop on documents cut by hand; a document that equals another's cut is not cut itself."""
    scorer = LikelihoodScorer(tiny_lm, target="joint", max_document_tokens=4)
    assert_equals_plain_loop(scorer, PAIRS, start=[])
    ids = tiny_lm.tokenizer(DOCUMENTS[0], add_special_tokens=False).input_ids
    short = str(tiny_lm.tokenizer.decode(ids[:4]))
    assert tiny_lm.tokenizer(short, add_special_tokens=False).input_ids == ids[:4]
    pairs: list[Pair] = [(DOCUMENTS[0], "a", "b"), (short, "a", "b"), (DOCUMENTS[0], "c", "d"), (None, "a", "b")]
    assert scorer.log_likelihood(pairs).truncated.tolist() == [True, False, True, False]


def test_a_document_is_cut_to_what_the_context_leaves(tiny_lm: FrozenLM) -> None:
    """Reference: the plain loop with the document cut by hand to the context's 256 tokens."""
    query, document = "which bird hunts " * 10, "the moon makes the tides of the sea " * 60
    scorer = LikelihoodScorer(tiny_lm, target="query", max_document_tokens=4000)
    found = scorer.log_likelihood([(document, query, None), (document, "which bird hunts", None)])
    assert found.truncated.tolist() == [True, True]
    (row, _) = scorer._rows(enumerate([(document, query, None), (document, "which bird hunts", None)]))
    assert row.length == 255  # the last token of the target is predicted, not read
    room = 256 - len(scorer.tokens.suffix(query, None, "query").ids) - sum(map(len, scorer.tokens.document_frame))
    expected, tokens = plain_log_likelihood(tiny_lm, (document, query, None), "query", start=[], limit=room)
    assert found.log_likelihood[0] == pytest.approx(expected, abs=1e-4 * tokens)


@pytest.mark.parametrize("document", [None, "An owl."])
def test_a_target_longer_than_the_context_is_refused(tiny_lm: FrozenLM, document: str | None) -> None:
    """Reference: the message names query, size and remedy."""
    scorer = LikelihoodScorer(tiny_lm, target="query")
    with pytest.raises(NLTError, match=r"query 'owl owl.*do not fit the 256 tokens of LLM.*shorten them"):
        scorer.log_likelihood([(document, "owl " * 300, None)])


def test_missing_answers_and_ragged_candidates_are_refused(tiny_lm: FrozenLM) -> None:
    """Reference: the remedy that each message names."""
    scorer = LikelihoodScorer(tiny_lm, target="joint")
    with pytest.raises(NLTError, match=r"query 'how is tea made' has none; give every query an answer"):
        scorer.gain(QUERIES, CANDIDATES)
    with pytest.raises(NLTError, match=r"different numbers of candidates"):
        scorer.gain(QUERIES[:2], [DOCUMENTS, DOCUMENTS[:2]], ANSWERS[:2])


def test_scores_that_are_not_numbers_are_refused(tiny_lm: FrozenLM, tmp_path: Path) -> None:
    """Reference: a NaN weight; the message names query and document, and nothing is stored."""
    scorer = LikelihoodScorer(tiny_lm, target="query", cache_folder=str(tmp_path))
    with torch.no_grad():
        tiny_lm.model.get_output_embeddings().weight[7] = float("nan")
    with pytest.raises(
        NLTError, match=r"log-likelihood nan for query 'which bird hunts' with document 'An owl hunts at"
    ):
        scorer.log_likelihood([(DOCUMENTS[1], QUERIES[1], None)])
    assert scorer.cache is not None
    assert len(scorer.cache) == 0


def test_nothing_to_score(tiny_lm: FrozenLM) -> None:
    """Reference: empty in, empty out, as a process without a share of the work needs it."""
    found = LikelihoodScorer(tiny_lm, target="query").log_likelihood([])
    assert found.log_likelihood.shape == found.target_tokens.shape == found.truncated.shape == (0,)
    assert LikelihoodScorer(tiny_lm, target="query").token_log_likelihoods([]) == []
