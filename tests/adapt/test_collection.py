from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nlt_trainer.adapt.collection import HELD_OUT, TRAIN, judge_held_out, write_query_collection
from nlt_trainer.data.beir import Document, Query, load_collection
from nlt_trainer.data.candidates import QueryCandidates, write_candidates
from nlt_trainer.data.gains import write_gains
from nlt_trainer.errors import NLTError

CORPUS = [Document(f"d{i}", "", f"text {i}") for i in range(4)]
QUERIES = [Query(f"q{i}", f"query {i}") for i in range(40)]


def test_queries_are_divided_once_and_nothing_is_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_query_collection(tmp_path / "c", CORPUS, QUERIES, held_out=6, most=30, seed=1)
    assert capsys.readouterr().out == "30 of 40 queries drawn; --num_queries takes more\n"
    found = load_collection(tmp_path / "c")
    train, held_out = ({query.id for query in found.split_queries(split)} for split in (TRAIN, HELD_OUT))
    assert (len(train), len(held_out), len(found.queries)) == (24, 6, 30)
    assert train.isdisjoint(held_out)
    assert {grade for split in found.qrels.values() for row in split.values() for grade in row.values()} == {0}
    write_query_collection(tmp_path / "again", CORPUS, QUERIES[::-1], held_out=40, most=None, seed=1)
    assert len(load_collection(tmp_path / "again").split_queries(HELD_OUT)) == 10, "at most a quarter"
    assert capsys.readouterr().out == "", "nothing was left out"


@pytest.mark.parametrize("without", [0, 1])
def test_answers_are_written_if_every_query_has_one(
    without: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One query without an answer, which lies in one split, decides what the LLM predicts in both."""
    queries = [Query(q.id, q.text, "yes" if i >= without else None) for i, q in enumerate(QUERIES)]
    write_query_collection(tmp_path / "c", CORPUS, queries, held_out=6, most=None, seed=1)
    found = load_collection(tmp_path / "c").queries.values()
    assert {query.answer for query in found} == {None if without else "yes"}
    assert ("1 of 40 queries have no answer" in capsys.readouterr().out) == bool(without)


def test_the_division_follows_a_querys_id_and_not_its_place(tmp_path: Path) -> None:
    for name, queries in (("a", QUERIES), ("b", QUERIES[::-1])):
        write_query_collection(tmp_path / name, CORPUS, queries, held_out=6, most=None, seed=1)
    one, other = (load_collection(tmp_path / name).split_qrels(HELD_OUT).keys() for name in ("a", "b"))
    assert one == other


def test_too_few_queries_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NLTError, match=r"7 queries are too few.*at least 8"):
        write_query_collection(tmp_path / "c", CORPUS, QUERIES[:7], held_out=6, most=None, seed=1)


def test_the_candidate_of_the_highest_gain_is_judged_relevant(tmp_path: Path) -> None:
    """Against gains written by hand: one clear, one turned around by BM25, one without any positive gain."""
    write_query_collection(tmp_path / "c", CORPUS, QUERIES, held_out=3, most=None, seed=1)
    held_out = load_collection(tmp_path / "c").split_queries(HELD_OUT)
    ids, bm25 = ("d2", "d0", "d1"), [(0.0, 0.0, 0.0), (0.0, 9.0, 0.0), (0.0, 0.0, 0.0)]
    rows = [QueryCandidates(q.id, q.text, None, ids, b) for q, b in zip(held_out, bm25, strict=True)]
    gain = np.array([[0.1, 0.2, 0.9], [0.51, 0.5, 0.1], [-0.1, -0.2, -0.3]])
    write_candidates(tmp_path / "candidates.jsonl", rows)
    write_gains(tmp_path / "gains.jsonl", rows, gain)
    files = {"candidates": tmp_path / "candidates.jsonl", "gains": tmp_path / "gains.jsonl"}
    judge_held_out(tmp_path / "c", **files, prior="bm25", prior_weight=0.2)
    judged = load_collection(tmp_path / "c").split_qrels(HELD_OUT)
    assert judged == {rows[0].query_id: {"d1": 1}, rows[1].query_id: {"d0": 1}, rows[2].query_id: {"d2": 0}}
    write_gains(tmp_path / "gains.jsonl", rows, gain - 1)
    with pytest.raises(NLTError, match="cannot judge"):
        judge_held_out(tmp_path / "c", **files, prior="bm25", prior_weight=0.2)
