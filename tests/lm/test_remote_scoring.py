"""Scores from a server against those of the same LLM in this process, and what a server may do wrong."""

from __future__ import annotations

import gc
import json
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from completions import Completions, running_completions
from test_scoring import ANSWERS, CANDIDATES, PAIRS, QUERIES, TEMPLATE
from transformers import AutoTokenizer

from nlt_trainer.choices import TargetKind
from nlt_trainer.errors import NLTError
from nlt_trainer.lm import completion_server, remote_scoring
from nlt_trainer.lm.candidate_pairs import Pair
from nlt_trainer.lm.completion_server import CompletionServer
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.lm.remote_scoring import RemoteScorer
from nlt_trainer.lm.scoring import LikelihoodScorer


def remote(server: Completions, tokenizer: str | Path, target: TargetKind = "joint", **options: Any) -> RemoteScorer:
    return RemoteScorer(CompletionServer(server.url, model=None), tokenizer=str(tokenizer), target=target, **options)


@pytest.mark.parametrize("target", ["answer", "query", "joint"])
@pytest.mark.parametrize("form", ["prompt_logprobs", "echo of ids"])
def test_a_server_that_reads_ids_gives_the_local_scores(
    form: Any, target: TargetKind, tiny_lm: FrozenLM, tiny_llm_folder: Path
) -> None:
    """Reference: `LikelihoodScorer` with the same LLM, for each token of the target."""
    with running_completions(tiny_lm, form=form) as server:
        scorer = remote(server, tiny_llm_folder, target, max_document_tokens=20)
        found, tokens = scorer.log_likelihood(PAIRS), scorer.token_log_likelihoods(PAIRS)
    local = LikelihoodScorer(tiny_lm, target=target, max_document_tokens=20)
    expected = local.log_likelihood(PAIRS)
    np.testing.assert_allclose(found.log_likelihood, expected.log_likelihood, atol=1e-3)
    np.testing.assert_array_equal(found.target_tokens, expected.target_tokens)
    np.testing.assert_array_equal(found.truncated, expected.truncated)
    for own, other in zip(tokens, local.token_log_likelihoods(PAIRS), strict=True):
        np.testing.assert_allclose(own, other, atol=1e-4)
    assert found.truncated.any() and not found.truncated.all()


@pytest.mark.parametrize("target", ["answer", "query", "joint"])
def test_a_server_that_reads_text_scores_the_targets_of_the_whole_text(
    target: TargetKind, tiny_lm: FrozenLM, tiny_llm_folder: Path
) -> None:
    """Reference: one forward pass over the tokens of the joined text; the target's begin where its text does."""
    with running_completions(tiny_lm, form="echo of text") as server:
        scorer = remote(server, tiny_llm_folder, target)
        found = scorer.log_likelihood(PAIRS)
        for value, count, (document, query, answer) in zip(
            found.log_likelihood, found.target_tokens, PAIRS, strict=True
        ):
            parts = [TEMPLATE.document_prefix, document, TEMPLATE.document_suffix] if document else []
            parts += [TEMPLATE.query_prefix, f" {query}"]
            if target != "query":
                parts += [TEMPLATE.answer_prefix, f" {answer}"]
            text = "".join(map(str, parts))
            encoded = tiny_lm.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            values = server.log_probabilities(list(encoded.input_ids))
            behind_query = len(text) - (0 if target == "query" else len(f"{TEMPLATE.answer_prefix} {answer}"))
            spans = [(behind_query - len(f" {query}"), behind_query)] if target != "answer" else []
            spans += [(len(text) - len(f" {answer}"), len(text))] if target != "query" else []
            chosen = [
                v for v, (_, last) in zip(values, encoded.offset_mapping[1:], strict=True)
                if any(first < last <= behind for first, behind in spans)
            ]  # fmt: skip
            assert count == len(chosen)
            assert value == pytest.approx(sum(chosen), abs=1e-3)


def test_a_text_is_cut_where_its_tokens_end(tiny_lm: FrozenLM, tiny_llm_folder: Path) -> None:
    """Reference: the first five tokens of the document, decoded, in the prompt that arrives."""
    document = PAIRS[0][0]
    assert document is not None
    with running_completions(tiny_lm, form="echo of text") as server:
        scorer = remote(server, tiny_llm_folder, max_document_tokens=5)
        found = scorer.log_likelihood(PAIRS[:1])
        sent = server.prompts[-1]
    kept = tiny_lm.tokenizer.decode(tiny_lm.tokenizer(document, add_special_tokens=False).input_ids[:5])
    assert sent.startswith(f"{TEMPLATE.document_prefix}{kept}{TEMPLATE.document_suffix}{TEMPLATE.query_prefix}")
    assert found.truncated.tolist() == [True]


def test_a_tokenizer_that_begins_every_text_scores_as_the_local_one(tiny_bos_lm: FrozenLM, tmp_path: Path) -> None:
    """Reference: `LikelihoodScorer`, whose prompts begin with `<s>` too."""
    tiny_bos_lm.tokenizer.save_pretrained(tmp_path)
    with running_completions(tiny_bos_lm) as server:
        found = remote(server, tmp_path).gain(QUERIES, CANDIDATES, ["a", "b", "c"])
    expected = LikelihoodScorer(tiny_bos_lm, target="joint").gain(QUERIES, CANDIDATES, ["a", "b", "c"])
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_requests_are_in_flight_together_and_not_more_than_allowed(tiny_lm: FrozenLM, tiny_llm_folder: Path) -> None:
    """Reference: what the server counts."""
    with running_completions(tiny_lm, seconds=0.05) as server:
        scorer = remote(server, tiny_llm_folder, requests=4)
        scorer.log_likelihood(PAIRS)
        assert server.most_in_flight == 4


@pytest.mark.parametrize("form", ["prompt_logprobs", "echo of ids", "echo of text"])
def test_several_prompts_in_one_request_give_the_same_scores(
    form: Any, tiny_lm: FrozenLM, tiny_llm_folder: Path
) -> None:
    """Reference: a server that answers one prompt of a request alone; the other one answers in another order."""
    with running_completions(tiny_lm, form=form) as server:
        single = remote(server, tiny_llm_folder)
        expected = single.log_likelihood(PAIRS).log_likelihood
        assert single.server.prompts == 1
    with running_completions(tiny_lm, form=form, most_prompts=100) as server:
        scorer = remote(server, tiny_llm_folder, requests=16)
        server.prompts.clear()
        assert scorer.log_likelihood(PAIRS).log_likelihood.tolist() == expected.tolist()
        assert scorer.server.prompts == completion_server.PROMPTS
        held = [len(prompt) for prompt in server.prompts]
    assert sum(held[:-1]) + 2 >= len(PAIRS) and max(held) == 2 == 16 // remote_scoring.SHARES


def test_a_busy_server_is_asked_again(tiny_lm: FrozenLM, tiny_llm_folder: Path) -> None:
    """Reference: the scores of a server that always answers."""
    with running_completions(tiny_lm) as server:
        scorer = remote(server, tiny_llm_folder, requests=2)
        expected = scorer.log_likelihood(PAIRS).log_likelihood
        server.faults = [429, 503, 0, 500]
        assert scorer.log_likelihood(PAIRS).log_likelihood.tolist() == expected.tolist()
        assert not server.faults


@pytest.mark.parametrize("form", ["prompt_logprobs", "echo of ids"])
def test_a_server_that_is_busy_at_first_is_asked_in_its_best_form(
    form: Any, tiny_lm: FrozenLM, tiny_llm_folder: Path
) -> None:
    """Reference: the form of the server; what is busy says nothing about a form, and text gives other gains."""
    with running_completions(tiny_lm, form=form) as server:
        connected = CompletionServer(server.url, model=None)
        server.faults = [503, 429, 502, 504]
        scorer = RemoteScorer(connected, tokenizer=str(tiny_llm_folder), target="joint")
        assert not server.faults
    assert scorer.fingerprint["prompt"] == "ids"
    assert (connected._ask == connected._prompt_logprobs) == (form == "prompt_logprobs")


def test_a_server_that_stays_busy_is_one_line(
    tiny_lm: FrozenLM, tiny_llm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completion_server, "RETRIES", 1)
    with running_completions(tiny_lm) as server:
        connected = CompletionServer(server.url, model=None)
        server.faults = [503] * 9
        with pytest.raises(NLTError, match=r"^LLM server http\S+ is busy \(status 503\); run again later, what is"):
            RemoteScorer(connected, tokenizer=str(tiny_llm_folder), target="joint")


def test_a_server_that_answers_too_late_is_one_line(
    tiny_lm: FrozenLM, tiny_llm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: a server that reads one prompt at a time, so that of eight in flight the last one waits too long."""
    with running_completions(tiny_lm, at_once=1) as server:
        scorer = remote(server, tiny_llm_folder, requests=8)
        monkeypatch.setattr(completion_server, "RETRIES", 0)
        monkeypatch.setattr(completion_server, "TIMEOUT", 1)
        server.seconds = 0.4
        with pytest.raises(NLTError, match=r"has not answered within 1 seconds; set llm_requests to a smaller number"):
            scorer.log_likelihood(PAIRS)


def test_what_is_scored_is_kept_when_the_server_ends(
    tiny_lm: FrozenLM, tiny_llm_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: all distinct pairs, of which the second call asks for those alone that the first one lacks."""
    monkeypatch.setattr(completion_server, "RETRIES", 1)
    with running_completions(tiny_lm) as server:
        scorer = remote(server, tiny_llm_folder, requests=1, cache_folder=str(tmp_path))
        server.prompts.clear()
        choice, calls = server.choice, iter(range(100))

        def fails_after_five(request: dict[str, Any]) -> dict[str, Any] | None:
            server.faults = [500] * 9 if next(calls) == 4 else []
            return choice(request)

        monkeypatch.setattr(server, "choice", fails_after_five)
        with pytest.raises(NLTError, match=r"it fails with status 500; run again later"):
            scorer.fill_cache(PAIRS)
        assert scorer.cache is not None
        kept = len(scorer.cache)
        assert 0 < kept <= 5
        server.faults.clear()
        server.prompts.clear()
        monkeypatch.setattr(server, "choice", choice)
        scorer.fill_cache(PAIRS)
        assert len(server.prompts) == len(PAIRS) - kept


def test_another_model_or_revision_has_a_cache_of_its_own(
    tiny_lm: FrozenLM, tiny_llm_folder: Path, tmp_path: Path
) -> None:
    """Reference: the names of the files, one for each description."""
    with running_completions(tiny_lm) as server:
        for model, revision in ((None, None), ("other", None), (None, "abc"), ("tiny", None)):
            RemoteScorer(
                CompletionServer(server.url, model=model), tokenizer=str(tiny_llm_folder), target="joint",
                revision=revision, cache_folder=str(tmp_path),
            )  # fmt: skip
    assert len([*tmp_path.glob("*.sqlite")]) == 3


@pytest.mark.parametrize("form", ["prompt_logprobs", "echo of ids", "echo of text"])
def test_a_server_with_another_tokenizer_is_refused(
    form: Any, tiny_lm: FrozenLM, tiny_llm_folder: Path, tmp_path: Path
) -> None:
    """Reference: the first token that differs, by hand: the tokenizer here has the ids of its merges reversed."""
    tokenizer = json.loads((tiny_llm_folder / "tokenizer.json").read_text())
    words = [word for word in tokenizer["model"]["vocab"] if len(word) > 1 and not word.startswith("<")]
    ids = [tokenizer["model"]["vocab"][word] for word in words]
    tokenizer["model"]["vocab"] |= dict(zip(words, reversed(ids), strict=True))
    if form == "echo of text":
        tokenizer["model"]["merges"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    (tmp_path / "tokenizer_config.json").write_text((tiny_llm_folder / "tokenizer_config.json").read_text())
    with running_completions(tiny_lm, form=form) as server:
        with pytest.raises(NLTError, match=r"has '.+' as token \d+ of a prompt, after '.*', where tokenizer .+ has"):
            remote(server, tmp_path)


def test_values_that_belong_to_other_tokens_are_refused(tiny_lm: FrozenLM, tiny_llm_folder: Path) -> None:
    """Reference: an echo as llama-cpp-python gives it, without a value for the token that was generated."""
    with running_completions(tiny_lm, form="echo of text", shifted=True) as server:
        with pytest.raises(
            NLTError,
            match=r"its log-probability one place too late, as llama-cpp-python .* serve 'tiny' with vLLM, or",
        ):
            remote(server, tiny_llm_folder)


def test_an_echo_may_leave_out_the_token_that_begins_every_text(tiny_bos_lm: FrozenLM, tmp_path: Path) -> None:
    """Reference: the same LLM behind a server that reads ids; both read the same whole texts without a document."""
    tiny_bos_lm.tokenizer.save_pretrained(tmp_path)
    pairs: list[Pair] = [(None, query, None) for query in QUERIES]
    with running_completions(tiny_bos_lm, form="echo of text", shifted=True) as server:
        found = remote(server, tmp_path, "query").log_likelihood(pairs).log_likelihood
    with running_completions(tiny_bos_lm) as server:
        expected = remote(server, tmp_path, "query").log_likelihood(pairs).log_likelihood
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_connections_are_closed_with_the_loop_that_they_belong_to(
    tiny_lm: FrozenLM, tiny_llm_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Reference: asyncio's log, which names what fails unseen; a later call collects what an earlier one has left."""
    choices = CompletionServer._choices

    async def collecting(self: CompletionServer, prompts: Sequence[Any], **request: Any) -> list[dict[str, Any]]:
        gc.collect()
        return await choices(self, prompts, **request)

    monkeypatch.setattr(CompletionServer, "_choices", collecting)
    with running_completions(tiny_lm) as server:
        for _ in range(2):
            remote(server, tiny_llm_folder, requests=4).log_likelihood(PAIRS[:6])
    assert [record.message for record in caplog.records if record.name == "asyncio"] == []


def test_a_control_token_in_a_text_is_named(tiny_lm: FrozenLM, tiny_llm_folder: Path) -> None:
    """Reference: a server that reads `</s>` as a control token, as those do that read text."""
    with running_completions(tiny_lm, form="echo of text") as server:
        scorer = remote(server, tiny_llm_folder, "query")
        with pytest.raises(NLTError, match=r"take '</s>' out of the text"):
            scorer.log_likelihood([("the end </s> of it", "why", None)])


def test_an_added_token_in_a_text_is_named(tiny_lm: FrozenLM, tiny_llm_folder: Path, tmp_path: Path) -> None:
    """Reference: a token that tokenizer and server both make of the text; a server that reads ids is sent others."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_llm_folder)
    tokenizer.add_tokens(["<think>"])
    tokenizer.save_pretrained(tmp_path)
    pairs: list[Any] = [("the end <think> of it", "why", None)]
    with running_completions(tiny_lm, form="echo of text") as server:
        scorer = remote(server, tmp_path, "query")
        with pytest.raises(NLTError, match=r"would read '<think>' in 'the end .* as a control token; take it out"):
            scorer.log_likelihood(pairs)
    with running_completions(tiny_lm) as server:
        assert np.isfinite(remote(server, tmp_path, "query").log_likelihood(pairs).log_likelihood).all()


def test_a_document_that_fills_the_context_is_cut(tiny_lm: FrozenLM, tiny_llm_folder: Path) -> None:
    """Reference: the context length of the LLM, of which one token is left for what the server generates."""
    with running_completions(tiny_lm) as server:
        scorer = remote(server, tiny_llm_folder, max_document_tokens=10_000)
        found = scorer.log_likelihood([("word " * 400, QUERIES[0], ANSWERS[0])])
        assert len(server.prompts[-1]) == tiny_lm.context_length - 1
    assert found.truncated.tolist() == [True]


def test_an_impossible_token_is_refused(
    tiny_lm: FrozenLM, tiny_llm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: the number that vLLM has in place of minus infinity."""
    with running_completions(tiny_lm) as server:
        scorer = remote(server, tiny_llm_folder)
        monkeypatch.setattr(server, "log_probabilities", lambda ids: [-9999.0] * (len(ids) - 1))
        with pytest.raises(NLTError, match="gives the log-likelihood -inf"):
            scorer.log_likelihood(PAIRS[:1])


def test_who_ends_early_does_not_wait_for_answers(
    tiny_lm: FrozenLM, tiny_llm_folder: Path, request: pytest.FixtureRequest
) -> None:
    """Reference: the clock, against answers of half a minute; a program's handler of SIGTERM raises like this one."""
    before = signal.signal(signal.SIGUSR1, lambda number, frame: sys.exit(number))
    request.addfinalizer(lambda: signal.signal(signal.SIGUSR1, before))
    with running_completions(tiny_lm) as server:
        scorer = remote(server, tiny_llm_folder, requests=2)
        server.seconds = 30
        begin = time.monotonic()
        threading.Timer(0.5, signal.pthread_kill, [threading.get_ident(), signal.SIGUSR1]).start()
        with pytest.raises(SystemExit):
            scorer.log_likelihood(PAIRS)
        assert time.monotonic() - begin < 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "none"}, "gives no log-probabilities of a prompt"),
        ({"key": "secret-of-the-test"}, "does not accept the key; set OPENAI_API_KEY"),
    ],
)
def test_a_server_that_cannot_be_used_is_one_line(
    options: dict[str, Any], message: str, tiny_lm: FrozenLM, tiny_llm_folder: Path
) -> None:
    with running_completions(tiny_lm, **options) as server, pytest.raises(NLTError, match=message) as caught:
        remote(server, tiny_llm_folder)
    assert "\n" not in str(caught.value)


def test_the_key_is_sent_and_not_said(
    tiny_lm: FrozenLM,
    tiny_llm_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Reference: the key, the line that is raised, and asyncio's log, which names a request that nobody looked at."""
    monkeypatch.setenv("OPENAI_API_KEY", "secret-of-the-test")
    with running_completions(tiny_lm, key="secret-of-the-test") as server:
        scorer = remote(server, tiny_llm_folder, cache_folder=str(tmp_path))
        scorer.log_likelihood(PAIRS[:2])
        assert "secret" not in json.dumps(scorer.description)
        server.key = "another"
        with pytest.raises(NLTError) as caught:
            scorer.log_likelihood(PAIRS[2:8])
    assert "secret" not in str(caught.value)
    gc.collect()
    assert [record.message for record in caplog.records if record.name == "asyncio"] == []


def test_what_is_not_there_is_one_line(
    tiny_lm: FrozenLM, tiny_llm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completion_server, "RETRIES", 0)
    with pytest.raises(NLTError, match=r"cannot be reached \(ConnectError\); start it or correct the address"):
        CompletionServer("http://127.0.0.1:9/v1", model=None)
    with running_completions(tiny_lm) as server:
        with pytest.raises(NLTError, match=r"no model 'larger'; set llm_model to one of \['tiny', 'other'\]"):
            CompletionServer(server.url, model="larger")
        with pytest.raises(NLTError, match=r"set llm_tokenizer to the tokenizer of 'tiny'"):
            RemoteScorer(CompletionServer(server.url, model=None), tokenizer=None, target="query")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NLTError, match=r"pip install 'nlt_trainer\[remote\]'"):
        CompletionServer("http://127.0.0.1:9/v1", model=None)
