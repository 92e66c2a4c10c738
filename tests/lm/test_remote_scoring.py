"""Scores from a server against those of the same LLM in this process, and what a server may do wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from completions import Completions, running_completions
from test_scoring import CANDIDATES, PAIRS, QUERIES, TEMPLATE

from nlt_trainer.choices import TargetKind
from nlt_trainer.errors import NLTError
from nlt_trainer.lm import completion_server
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


def test_a_busy_server_is_asked_again(tiny_lm: FrozenLM, tiny_llm_folder: Path) -> None:
    """Reference: the scores of a server that always answers."""
    with running_completions(tiny_lm) as server:
        scorer = remote(server, tiny_llm_folder, requests=2)
        expected = scorer.log_likelihood(PAIRS).log_likelihood
        server.faults = [429, 503, 0, 500]
        assert scorer.log_likelihood(PAIRS).log_likelihood.tolist() == expected.tolist()
        assert not server.faults


def test_what_is_scored_is_kept_when_the_server_ends(
    tiny_lm: FrozenLM, tiny_llm_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: all distinct pairs, of which the second call asks for those alone that the first one lacks."""
    monkeypatch.setattr(completion_server, "RETRIES", 1)
    with running_completions(tiny_lm) as server:
        scorer = remote(server, tiny_llm_folder, requests=1, cache_folder=str(tmp_path))
        server.prompts.clear()
        choice, calls = server.choice, iter(range(100))
        monkeypatch.setattr(
            server, "choice", lambda request: choice(request) if next(calls) < 5 else server.faults.extend([500] * 9)
        )
        with pytest.raises(NLTError, match=r"did not understand|fails \(500\), also after 1 more requests; run again"):
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


def test_a_server_with_another_tokenizer_is_refused(tiny_lm: FrozenLM, tiny_llm_folder: Path, tmp_path: Path) -> None:
    """Reference: the first token that differs, by hand: the tokenizer here has no merges and so begins with T."""
    tokenizer = json.loads((tiny_llm_folder / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = []
    for name in ("tokenizer.json", "tokenizer_config.json"):
        content = (tiny_llm_folder / name).read_text() if name != "tokenizer.json" else json.dumps(tokenizer)
        (tmp_path / name).write_text(content)
    with running_completions(tiny_lm, form="echo of text") as server:
        with pytest.raises(
            NLTError, match=r"has 'Th\w*' as token 0 of a prompt, after '', where tokenizer .* has 'T'"
        ):
            remote(server, tmp_path)


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
    tiny_lm: FrozenLM, tiny_llm_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret-of-the-test")
    with running_completions(tiny_lm, key="secret-of-the-test") as server:
        scorer = remote(server, tiny_llm_folder, cache_folder=str(tmp_path))
        scorer.log_likelihood(PAIRS[:2])
        assert "secret" not in json.dumps(scorer.description)
        server.key = "another"
        with pytest.raises(NLTError) as caught:
            scorer.log_likelihood(PAIRS[2:4])
    assert "secret" not in str(caught.value)


def test_what_is_not_there_is_one_line(
    tiny_lm: FrozenLM, tiny_llm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completion_server, "RETRIES", 0)
    with pytest.raises(NLTError, match=r"cannot be reached .*; start it or correct the address"):
        CompletionServer("http://127.0.0.1:9/v1", model=None)
    with running_completions(tiny_lm) as server:
        with pytest.raises(NLTError, match=r"no model 'larger'; set llm_model to one of \['tiny', 'other'\]"):
            CompletionServer(server.url, model="larger")
        with pytest.raises(NLTError, match=r"set llm_tokenizer to the tokenizer of 'tiny'"):
            RemoteScorer(CompletionServer(server.url, model=None), tokenizer=None, target="query")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NLTError, match=r"pip install 'nlt_trainer\[remote\]'"):
        CompletionServer("http://127.0.0.1:9/v1", model=None)
