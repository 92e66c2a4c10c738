"""Gain files and the teacher's audit against numpy."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from nlt_trainer.arguments.beside import audit_file
from nlt_trainer.data.beir import Document
from nlt_trainer.data.candidates import QueryCandidates
from nlt_trainer.data.gains import (
    AUDIT_TEMPERATURES,
    LIKELIHOODS,
    audit_teacher,
    read_gains,
    read_likelihoods,
    write_gains,
)
from nlt_trainer.errors import DataError, NLTError
from nlt_trainer.file_hashes import file_hash
from nlt_trainer.text_files import read_jsonl, write_jsonl

CANDIDATES = [
    QueryCandidates("q1", "one", None, ("d1", "d2", "d3"), (3.0, 2.0, 1.0)),
    QueryCandidates("q2", "two", None, ("d3", "d4", "d5"), (5.0, 0.5, 0.0)),
]
CORPUS = {f"d{i}": Document(f"d{i}", "", f"text {i}") for i in range(1, 6)}
GAIN = np.array([[0.25, -0.5, 1.125], [0.0, 0.5, -0.125]])


def test_gains_are_read_as_they_were_written(tmp_path: Path) -> None:
    """Reference: the array; rows are found by query id, and queries that nobody asks for are left out."""
    path = tmp_path / "gains.jsonl"
    assert write_gains(path, CANDIDATES, GAIN, corpus=CORPUS) == file_hash(path)
    np.testing.assert_array_equal(read_gains(path, CANDIDATES, corpus=CORPUS), GAIN)
    np.testing.assert_array_equal(read_gains(path, CANDIDATES[::-1], corpus=CORPUS), GAIN[::-1])
    np.testing.assert_array_equal(read_gains(path, CANDIDATES[1:], corpus=CORPUS), GAIN[1:])
    row = json.loads(path.read_text().splitlines()[0])
    assert len(row.pop("texts")) == 32
    assert row == {"query_id": "q1", "document_ids": ["d1", "d2", "d3"], "gain": [0.25, -0.5, 1.125]}


@pytest.mark.parametrize("changed", ["document", "title", "query", "answer"])
def test_gains_of_other_texts_are_refused(changed: str, tmp_path: Path) -> None:
    """Reference: file, line and remedy; other documents do not count, and an older version wrote no hash."""
    path, corpus, candidates = tmp_path / "gains.jsonl", dict(CORPUS), [*CANDIDATES]
    write_gains(path, CANDIDATES, GAIN, corpus=CORPUS, further=FURTHER)
    corpus["d6"] = Document("d6", "", "nobody's candidate")
    np.testing.assert_array_equal(read_gains(path, CANDIDATES, corpus=corpus), GAIN)
    if changed in ("document", "title"):
        corpus["d4"] = Document("d4", "title" if changed == "title" else "", "text 4" if changed == "title" else "new")
    else:
        changes: dict[str, Any] = {changed: "new"}
        candidates[1] = replace(CANDIDATES[1], **changes)
    np.testing.assert_array_equal(read_gains(path, candidates[:1], corpus=corpus), GAIN[:1])
    message = r"gains.jsonl:2: query 'q2', its answer or one .* run `nlt mine` and `nlt score` again"
    with pytest.raises(DataError, match=message):
        read_gains(path, candidates, corpus=corpus)
    with pytest.raises(DataError, match=message):
        read_likelihoods(path, candidates, ["target_tokens"], corpus=corpus)
    write_jsonl(path, [{k: v for k, v in row.items() if k != "texts"} for _, row in read_jsonl(path)])
    np.testing.assert_array_equal(read_gains(path, candidates, corpus=corpus), GAIN)


FURTHER: dict[str, Any] = {
    "target_tokens": np.array([2, 1]),
    "log_likelihood": np.array([[-3.0, -4.5, -1.1234567], [-2.0, -1.0, -9.0]]),
    "token_log_likelihoods": [
        [np.array([-1.0, -2.0], np.float32), np.array([-4.0, -0.5]), np.array([-1.0, -0.1234567])],
        [np.array([-2.0]), np.array([-1.0]), np.array([-9.0])],
    ],
}


def test_likelihoods_are_read_as_they_were_written(tmp_path: Path) -> None:
    """Reference: the arrays, at 6 decimals, in the order of the queries that are asked for; gains as without them."""
    path = tmp_path / "gains.jsonl"
    by_query = iter(FURTHER["token_log_likelihoods"])
    write_gains(path, CANDIDATES, GAIN, corpus=CORPUS, further={**FURTHER, "token_log_likelihoods": by_query})
    np.testing.assert_array_equal(read_gains(path, CANDIDATES, corpus=CORPUS), GAIN)
    found = read_likelihoods(path, CANDIDATES[::-1], LIKELIHOODS, corpus=CORPUS)
    assert found == {
        "target_tokens": [1, 2],
        "log_likelihood": [[-2.0, -1.0, -9.0], [-3.0, -4.5, -1.123457]],
        "token_log_likelihoods": [[[-2.0], [-1.0], [-9.0]], [[-1.0, -2.0], [-4.0, -0.5], [-1.0, -0.123457]]],
    }
    assert read_likelihoods(path, CANDIDATES, ["target_tokens"], corpus=CORPUS) == {"target_tokens": [2, 1]}


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_a_file_from_before_likelihoods_is_refused_where_they_are_read(tmp_path: Path, name: str) -> None:
    """Reference: the remedy in the message; its gains are still read."""
    path = tmp_path / "gains.jsonl"
    write_gains(path, CANDIDATES, GAIN, corpus=CORPUS)
    np.testing.assert_array_equal(read_gains(path, CANDIDATES, corpus=CORPUS), GAIN)
    option = " with token_likelihoods: true" if name == "token_log_likelihoods" else ""
    with pytest.raises(DataError, match=rf"gains.jsonl:1: the file has no {name}; run `nlt score` again{option}$"):
        read_likelihoods(path, CANDIDATES, [name], corpus=CORPUS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("target_tokens", 0),
        ("target_tokens", [2]),
        ("target_tokens", 10**400),
        ("log_likelihood", [-1.0, -(10**400), -2.0]),
        ("log_likelihood", [-1.0, -2.0]),
        ("log_likelihood", [-1.0, None, -2.0]),
        ("token_log_likelihoods", [[-1.0], [-2.0, -3.0], [-1.0]]),
        ("token_log_likelihoods", [-1.0, -2.0, -3.0]),
    ],
)
def test_malformed_likelihoods_are_refused(tmp_path: Path, name: str, value: Any) -> None:
    """Reference: file, line, query and remedy in the message."""
    path = tmp_path / "gains.jsonl"
    write_gains(path, CANDIDATES, GAIN, corpus=CORPUS, further=FURTHER)
    lines = path.read_text().splitlines()
    path.write_text(f"{lines[0]}\n{json.dumps({**json.loads(lines[1]), name: value})}\n")
    with pytest.raises(DataError, match=rf"gains.jsonl:2: {name} of query 'q2' is malformed; run `nlt score` again"):
        read_likelihoods(path, CANDIDATES, [name], corpus=CORPUS)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"document_ids": ["d3", "d5", "d4"]}, "query 'q2' has other candidates here; run `nlt score` again"),
        ({"gain": [0.1, float("nan"), 0.2]}, "query 'q2' needs 3 finite gains"),
        ({"gain": [0.1, 0.2]}, "query 'q2' needs 3 finite gains"),
        ({"gain": None}, "query 'q2' needs 3 finite gains"),
        ({"gain": ["a", 0, 0]}, "gain of query 'q2' is not a list of numbers"),
        ({"gain": [10**400, 0, 0]}, "gain of query 'q2' is not a list of numbers"),
        ({"query_id": ["q2"]}, r"query_id must be a string, found \['q2'\]; run `nlt score` again"),
    ],
)
def test_a_bad_line_is_refused_with_file_and_line(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    """Reference: the rule that each message names."""
    path = tmp_path / "gains.jsonl"
    write_gains(path, CANDIDATES, GAIN, corpus=CORPUS)
    lines = path.read_text().splitlines()
    path.write_text(f"{lines[0]}\n{json.dumps({**json.loads(lines[1]), **change})}\n")
    with pytest.raises(DataError, match=reason) as caught:
        read_gains(path, CANDIDATES, corpus=CORPUS)
    assert (caught.value.path, caught.value.line) == (path, 2)


def test_missing_gains_are_refused(tmp_path: Path) -> None:
    """Reference: the remedy in each message."""
    path = tmp_path / "gains.jsonl"
    with pytest.raises(DataError, match="file not found; run `nlt score` first, which writes it"):
        read_gains(path, CANDIDATES, corpus=CORPUS)
    write_gains(path, CANDIDATES[:1], GAIN[:1], corpus=CORPUS)
    with pytest.raises(DataError, match=r"no gains for 1 queries, e.g. 'q2'; run `nlt score` again"):
        read_gains(path, CANDIDATES, corpus=CORPUS)


def test_the_audit_is_the_arithmetic_it_names() -> None:
    """Reference: numpy, and Spearman's correlation as Pearson's of ranks, by hand."""
    audit = audit_teacher(GAIN, [c.bm25 for c in CANDIDATES])
    assert (audit["queries"], audit["candidates"]) == (2, 3)
    assert audit["share_of_queries_with_positive_gain"] == 1.0
    assert audit["same_best_as_bm25"] == 0.0
    # ranks of q1: gain (1, 0, 2) against (2, 1, 0): -0.5; of q2: (1, 2, 0) against (2, 1, 0): 0.5
    assert audit["spearman_with_bm25"] == pytest.approx(0.0, abs=1e-3)
    assert audit["gain_quantiles_5_25_50_75_95"] == pytest.approx(
        np.quantile(GAIN, [0.05, 0.25, 0.5, 0.75, 0.95]), abs=1e-4
    )
    assert [row["teacher_temperature"] for row in audit["temperatures"]] == list(AUDIT_TEMPERATURES)
    for row in audit["temperatures"]:
        p = np.exp(GAIN / row["teacher_temperature"])
        p /= p.sum(1, keepdims=True)
        entropy = -(p * np.log(p)).sum(1)
        assert row["effective_candidates"] == pytest.approx(np.exp(entropy).mean(), abs=1e-3)
        assert row["top_probability"] == pytest.approx(p.max(1).mean(), abs=1e-3)
    nearest = min(audit["temperatures"], key=lambda row: abs(row["effective_candidates"] - 1.0))
    assert audit["proposed_teacher_temperature"] == nearest["teacher_temperature"]


def test_the_audit_proposes_a_prior_and_says_where_the_best_stand() -> None:
    """Reference: two queries whose best stand at places 1 and 4 of five, with rank correlations 1 and -0.1."""
    gain = np.array([[5.0, 4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 5.0, 4.0]])
    bm25 = [[5.0, 4.0, 3.0, 2.0, 1.0], [3.0, 5.0, 1.0, 2.0, 4.0]]
    audit = audit_teacher(gain, bm25)
    assert audit["best_within"] == {"2": 0.5, "4": 1.0}
    expected = np.mean([stats.spearmanr(*pair).statistic for pair in zip(gain, bm25, strict=True)])
    assert audit["proposed_prior_weight"] == pytest.approx(expected, abs=0.051)
    assert audit_teacher(gain, (-np.array(bm25)).tolist())["proposed_prior_weight"] == 0.0  # never against BM25


def test_the_audit_of_extremes() -> None:
    """Reference: closed cases: equal gains are uniform, one huge gain is one candidate, equal scores have no rank."""
    equal = audit_teacher(np.zeros((2, 4)), np.zeros((2, 4)).tolist())
    assert all(row["effective_candidates"] == 4.0 for row in equal["temperatures"])
    assert equal["share_of_queries_with_positive_gain"] == 0.0
    assert equal["spearman_with_bm25"] == 0.0
    huge = audit_teacher(np.array([[1e6, 0.0, -1e6]]), [[3.0, 2.0, 1.0]])
    assert all(row["effective_candidates"] == 1.0 for row in huge["temperatures"])
    assert (huge["same_best_as_bm25"], huge["spearman_with_bm25"]) == (1.0, 1.0)
    with pytest.raises(NLTError, match=r"no gains to audit; mine candidates"):
        audit_teacher(np.zeros((0, 3)), [])


def test_equal_scores_do_not_agree_by_their_order() -> None:
    """Reference: Spearman's correlation with mean ranks of ties: (2, 1, 0) against (2, 0.5, 0.5) is 0.866."""
    scores = [[3.0, 0.0, 0.0], [0.0, 3.0, 0.0]]
    audit = audit_teacher(np.array([[0.3, 0.2, 0.1], [0.2, 0.3, 0.1]]), scores)
    assert audit["spearman_with_bm25"] == pytest.approx(0.866, abs=1e-3)


def test_the_audit_ranks_gold_where_there_are_judgements() -> None:
    """Reference: ranks by eye; q2's gold shares its gain with another candidate, which then stands before it."""
    gain = np.array([[0.25, -0.5, 1.125], [0.5, 0.5, -0.125], [0.1, 0.2, 0.3]])
    bm25 = [[3.0, 2.0, 1.0], [5.0, 0.5, 0.0], [3.0, 2.0, 1.0]]
    relevant = np.array([[True, True, False], [True, False, False], [False, False, False]])
    gold = audit_teacher(gain, bm25, relevant)["gold"]
    assert gold == {"queries": 2, "mrr_by_gain": (1 / 2 + 1 / 2) / 2, "mrr_by_bm25": (1 / 1 + 1 / 1) / 2}
    assert "gold" not in audit_teacher(gain, bm25)
    assert "gold" not in audit_teacher(gain, bm25, np.zeros_like(relevant))


def test_gains_whose_names_differ_have_audits_of_their_own() -> None:
    """Reference: names by hand."""
    assert audit_file("runs/gains.jsonl") == Path("runs/gains.audit.json")
    assert audit_file("runs/gains.t1") == Path("runs/gains.t1.audit.json")
