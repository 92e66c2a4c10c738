from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nlt_trainer.adapt.collection import (
    DEV,
    HELD_OUT,
    TRAIN,
    check_made,
    judge_held_out,
    judged_queries,
    write_dev,
    write_query_collection,
)
from nlt_trainer.arguments.data import DataArguments
from nlt_trainer.arguments.model import ModelArguments
from nlt_trainer.data.beir import Document, Query, load_collection, write_collection
from nlt_trainer.data.candidates import QueryCandidates, write_candidates
from nlt_trainer.data.gains import write_gains
from nlt_trainer.errors import NLTError
from nlt_trainer.text_files import write_json

CORPUS = [Document(f"d{i}", "", f"text {i}") for i in range(4)]
QUERIES = [Query(f"q{i}", f"query {i}") for i in range(160)]


def test_queries_are_divided_once_and_nothing_is_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_query_collection(tmp_path / "c", CORPUS, QUERIES, held_out=24, most=120, seed=1)
    assert capsys.readouterr().out == "120 of 160 queries drawn; --num_queries takes more\n"
    found = load_collection(tmp_path / "c")
    train, held_out = ({query.id for query in found.split_queries(split)} for split in (TRAIN, HELD_OUT))
    assert (len(train), len(held_out), len(found.queries)) == (96, 24, 120)
    assert train.isdisjoint(held_out)
    assert {grade for split in found.qrels.values() for row in split.values() for grade in row.values()} == {0}
    write_query_collection(tmp_path / "again", CORPUS, QUERIES[::-1], held_out=100, most=None, seed=1)
    assert len(load_collection(tmp_path / "again").split_queries(HELD_OUT)) == 40, "at most a quarter"
    assert capsys.readouterr().out == "", "nothing was left out"


@pytest.mark.parametrize("without", [0, 1])
def test_answers_are_written_if_every_query_has_one(
    without: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One query without an answer, which lies in one split, decides what the LLM predicts in both."""
    queries = [Query(q.id, q.text, "yes" if i >= without else None) for i, q in enumerate(QUERIES)]
    write_query_collection(tmp_path / "c", CORPUS, queries, held_out=24, most=None, seed=1)
    found = load_collection(tmp_path / "c").queries.values()
    assert {query.answer for query in found} == {None if without else "yes"}
    assert ("1 of 160 queries have no answer" in capsys.readouterr().out) == bool(without)


def test_the_division_follows_a_querys_id_and_not_its_place(tmp_path: Path) -> None:
    for name, queries in (("a", QUERIES), ("b", QUERIES[::-1])):
        write_query_collection(tmp_path / name, CORPUS, queries, held_out=24, most=None, seed=1)
    one, other = (load_collection(tmp_path / name).split_qrels(HELD_OUT).keys() for name in ("a", "b"))
    assert one == other


def test_too_few_queries_are_refused(tmp_path: Path) -> None:
    """A quarter of 79 is fewer than the 20 that can decide; of made queries the number held out counts."""
    with pytest.raises(NLTError, match=r"79 queries are too few.*at least 80"):
        write_query_collection(tmp_path / "c", CORPUS, QUERIES[:79], held_out=24, most=None, seed=1)
    qrels = {HELD_OUT: {query.id: {"d0": 1} for query in QUERIES[:19]}}
    write_collection(tmp_path / "c", corpus=CORPUS, queries=QUERIES, qrels=qrels, stage="nlt build_collection")
    with pytest.raises(NLTError, match=r"19 made queries could be held out, and fewer than 20 decide nothing; give"):
        check_made(tmp_path / "c")


def test_the_candidate_of_the_highest_gain_is_judged_relevant(tmp_path: Path) -> None:
    """Against gains written by hand: clear ones, one that BM25 contradicts, one without any positive gain."""
    write_query_collection(tmp_path / "c", CORPUS, QUERIES, held_out=21, most=None, seed=1)
    held_out = load_collection(tmp_path / "c").split_queries(HELD_OUT)
    ids, bm25 = ("d2", "d0", "d1"), [(0.0, 0.0, 0.0)] * 19 + [(0.0, 9.0, 0.0), (0.0, 0.0, 0.0)]
    rows = [QueryCandidates(q.id, q.text, None, ids, b) for q, b in zip(held_out, bm25, strict=True)]
    gain = np.array([[0.1, 0.2, 0.9]] * 19 + [[0.51, 0.5, 0.1], [-0.1, -0.2, -0.3]])
    corpus = {document.id: document for document in CORPUS}
    write_candidates(tmp_path / "candidates.jsonl", rows, corpus=corpus)
    write_gains(tmp_path / "gains.jsonl", rows, gain, corpus=corpus)
    model = ModelArguments()
    candidates, gains = str(tmp_path / "candidates.jsonl"), str(tmp_path / "gains.jsonl")
    data = DataArguments(collection=str(tmp_path / "c"), candidates=candidates, gains=gains)
    judge_held_out(model, data)
    judged = load_collection(tmp_path / "c").split_qrels(HELD_OUT)
    clear = {row.query_id: {"d1": 1} for row in rows[:19]}
    assert judged == {**clear, rows[19].query_id: {"d2": 1}, rows[20].query_id: {"d2": 0}}
    gain[0] -= 1
    write_gains(tmp_path / "gains.jsonl", rows, gain, corpus=corpus)
    with pytest.raises(NLTError, match=r"judge 19 of 21 held-out queries, .* fewer than 20 decide nothing; give more"):
        judge_held_out(model, data)
    write_json(tmp_path / "gains.audit.json", {"scorer": {"model": {"llm": "org/other"}}})
    with pytest.raises(NLTError, match=r"gains.jsonl was scored with llm 'org/other' and not "):
        judge_held_out(model, data)


def test_queries_that_choose_do_not_decide(tmp_path: Path) -> None:
    """Against every second judged query; queries without a relevant passage are in neither half."""
    judged = {q.id: {"d0": int(i % 4 > 0)} for i, q in enumerate(QUERIES)}
    qrels = {TRAIN: {QUERIES[0].id: {"d0": 0}}, HELD_OUT: judged}
    write_collection(tmp_path / "c", corpus=CORPUS, queries=QUERIES, qrels=qrels, stage="nlt build_collection")
    write_dev(tmp_path / "c")
    usable = [query for query, grades in judged.items() if grades["d0"]]
    assert [*judged_queries(tmp_path / "c", DEV)] == usable[::2]
    assert [*judged_queries(tmp_path / "c", HELD_OUT)] == usable
    few = {query: judged[query] for query in usable[:39]}
    write_collection(
        tmp_path / "few",
        corpus=CORPUS,
        queries=QUERIES,
        qrels={TRAIN: qrels[TRAIN], HELD_OUT: few},
        stage="nlt build_collection",
    )
    with pytest.raises(NLTError, match=r"39 held-out queries are judged, .* 40 are needed: raise held_out"):
        write_dev(tmp_path / "few")
