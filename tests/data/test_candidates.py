"""Candidates: those of BM25, random documents, and the file that holds them."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nlt_trainer.data.beir import Collection, Document, Query, load_collection, training_queries, write_collection
from nlt_trainer.data.bm25 import bm25_rankings
from nlt_trainer.data.candidates import mine_candidates, read_candidates, write_candidates
from nlt_trainer.errors import DataError, NLTError


@pytest.fixture
def collection(tiny_collection_folder: Path) -> Collection:
    """The twelve documents and eight queries of the tiny folder."""
    return load_collection(tiny_collection_folder)


def test_candidates_are_bm25s_best_and_then_random_ones(collection: Collection) -> None:
    queries = training_queries(collection, "train")
    rankings = bm25_rankings(collection, queries)
    for row in mine_candidates(collection, queries, num_candidates=9):
        best = list(rankings[row.query_id])[:9]
        assert 0 < len(best) < 9
        assert row.document_ids[: len(best)] == tuple(best)
        assert len(set(row.document_ids)) == len(row.bm25) == 9
        assert row.bm25 == pytest.approx([rankings[row.query_id].get(d, 0.0) for d in row.document_ids])
        assert (row.query, row.answer) == (
            collection.queries[row.query_id].text,
            collection.queries[row.query_id].answer,
        )


def test_a_query_without_a_common_token_gets_k_random_documents(collection: Collection) -> None:
    (row,) = mine_candidates(collection, [Query("strange", "zzz")], num_candidates=5)
    assert len(set(row.document_ids)) == 5
    assert row.bm25 == (0.0,) * 5
    (every,) = mine_candidates(collection, [Query("strange", "zzz")], num_candidates=12)
    assert sorted(every.document_ids) == sorted(collection.corpus)


def test_random_documents_depend_on_the_seed_and_the_query_alone(collection: Collection) -> None:
    queries = list(collection.queries.values())
    options: dict[str, Any] = {"num_candidates": 9}  # more than BM25 finds
    forward = {row.query_id: row for row in mine_candidates(collection, queries, **options)}
    backward = {row.query_id: row for row in mine_candidates(collection, queries[::-1], **options)}
    assert forward == backward
    assert mine_candidates(collection, queries[3:4], **options) == [forward["q4"]]
    assert forward != {row.query_id: row for row in mine_candidates(collection, queries, **options, seed=1)}


def test_random_documents_are_uniform_over_the_rest(collection: Collection) -> None:
    queries = [Query(f"q{number}", "the earth") for number in range(1000)]
    drawn = Counter[str]()
    for row in mine_candidates(collection, queries, num_candidates=5):
        drawn.update(row.document_ids[2:])
    assert set(drawn) == set(collection.corpus) - {"d01", "d11"}
    assert all(abs(count - 300) < 5 * math.sqrt(1000 * 0.3 * 0.7) for count in drawn.values())


def test_labels_are_not_read(collection: Collection) -> None:
    queries = training_queries(collection, "train")
    moved = {"train": {query.id: {"d12": 1} for query in queries}}
    unlabelled = replace(collection, qrels={})
    relabelled = replace(collection, qrels=moved)
    expected = mine_candidates(collection, queries, num_candidates=4)
    assert mine_candidates(unlabelled, queries, num_candidates=4) == expected
    assert mine_candidates(relabelled, queries, num_candidates=4) == expected


@pytest.mark.parametrize("miner", ["bm25", "encoder", "fused"])
def test_the_query_itself_is_no_candidate(collection: Collection, miner: str) -> None:
    """Reference: a corpus of questions, as Quora's. Each is the best of BM25 and of the rankings for itself."""
    queries = [Query(document.id, document.content) for document in collection.corpus.values()]
    rankings = None if miner == "bm25" else [[i, *(j for j in range(12) if j != i)] for i in range(12)]
    assert all(next(iter(found)) == i for i, found in bm25_rankings(collection, queries, keep_own=True).items())
    for k in (3, 11):  # few, and all that there are
        rows = mine_candidates(
            collection, queries, num_candidates=k, encoder_rankings=rankings, fused=miner == "fused"
        )
        assert [row.query_id in row.document_ids for row in rows] == [False] * 12
        assert [len(set(row.document_ids)) for row in rows] == [k] * 12
    with pytest.raises(NLTError, match="num_candidates=12 with 11 documents with text other than query 'd01' itself"):
        mine_candidates(collection, queries, num_candidates=12, encoder_rankings=rankings)


@pytest.mark.parametrize("miner", ["bm25", "encoder", "fused"])
def test_empty_documents_are_no_candidates(collection: Collection, miner: str) -> None:
    """Reference: rankings in which two empty documents are the first, and queries that match nothing."""
    corpus = {**collection.corpus, **{i: Document(i, "", "") for i in ("d01", "d02")}}
    rankings = None if miner == "bm25" else [list(range(12))]
    (row,) = mine_candidates(
        replace(collection, corpus=corpus),
        [Query("strange", "zzz")],
        num_candidates=10,
        encoder_rankings=rankings,
        fused=miner == "fused",
    )
    assert set(row.document_ids) == set(corpus) - {"d01", "d02"}
    with pytest.raises(NLTError, match="num_candidates=11 with 10 documents with text in"):
        mine_candidates(replace(collection, corpus=corpus), [Query("strange", "zzz")], num_candidates=11)


def test_a_document_with_a_query_s_id_that_is_judged_relevant_is_not_the_query(collection: Collection) -> None:
    """Reference: two numberings that begin at 1, in which the document of one query has the query's number."""
    corpus = {str(number): document for number, document in enumerate(collection.corpus.values(), start=1)}
    query = Query("1", corpus["1"].content)
    numbered = replace(collection, corpus=corpus, queries={"1": query}, qrels={"train": {"1": {"2": 1}}})
    (left_out,) = mine_candidates(numbered, [query], num_candidates=3)
    assert "1" not in left_out.document_ids
    (found,) = mine_candidates(replace(numbered, qrels={"train": {"1": {"1": 1}}}), [query], num_candidates=3)
    assert found.document_ids[0] == "1"


@pytest.mark.parametrize(
    ("num_candidates", "reason"),
    [
        (13, "num_candidates=13 with 12 documents.*choose at most the number"),
        (0, "num_candidates=0"),
    ],
)
def test_impossible_numbers_are_refused(collection: Collection, num_candidates: int, reason: str) -> None:
    with pytest.raises(NLTError, match=reason):
        mine_candidates(collection, training_queries(collection, None), num_candidates=num_candidates)


def test_candidates_are_read_as_they_were_written(collection: Collection, tmp_path: Path) -> None:
    mined = mine_candidates(collection, [*collection.queries.values(), Query("none", "zzz")], num_candidates=4)
    write_candidates(tmp_path / "candidates.jsonl", mined, corpus=collection.corpus)
    assert read_candidates(tmp_path / "candidates.jsonl", collection) == mined
    assert read_candidates(tmp_path / "candidates.jsonl", collection, num_candidates=4) == mined
    row = json.loads((tmp_path / "candidates.jsonl").read_text().splitlines()[-1])
    assert list(row) == ["query_id", "query", "answer", "document_ids", "bm25", "texts", "queries", "checksum"]
    assert row["answer"] is None


def without_checksum(line: str) -> dict[str, Any]:
    """A line of candidates as somebody has it who edits the file."""
    return {key: value for key, value in json.loads(line).items() if key != "checksum"}


def test_a_value_that_is_not_as_it_was_written_is_refused(collection: Collection, tmp_path: Path) -> None:
    """Reference: a BM25 score with another digit, with which nothing else of the line disagrees."""
    path, queries = tmp_path / "candidates.jsonl", [*collection.queries.values()]
    mined = mine_candidates(collection, queries, num_candidates=4)
    write_candidates(path, mined, corpus=collection.corpus)
    first, second, *others = path.read_text().splitlines()
    score = mined[1].bm25[0]
    changed = {**json.loads(second), "bm25": [score + 1, *mined[1].bm25[1:]]}
    path.write_text("\n".join([first, json.dumps(changed), *others]))
    with pytest.raises(DataError, match=r"is not as it was written.*; run `nlt mine` again, or remove its") as caught:
        read_candidates(path, collection)
    assert (caught.value.path, caught.value.line) == (path, 2)
    path.write_text("\n".join([first, json.dumps(without_checksum(json.dumps(changed))), *others]))
    assert read_candidates(path, collection)[1].bm25[0] == score + 1


@pytest.mark.parametrize("changed", ["document", "title", "query", "document_ids"])
def test_candidates_of_other_texts_are_refused(changed: str, collection: Collection, tmp_path: Path) -> None:
    """Reference: file, line and remedy; a document that is no candidate does not count, nor does anything where the
    hash is missing, as in the files of older versions.
    """
    path, queries = tmp_path / "candidates.jsonl", training_queries(collection, "train")
    mined = mine_candidates(collection, queries, num_candidates=4)
    write_candidates(path, mined, corpus=collection.corpus)
    first, second, *others = path.read_text().splitlines()
    row, corpus = without_checksum(second), dict(collection.corpus)
    alone = next(i for i in mined[1].document_ids if not any(i in c.document_ids for c in mined if c != mined[1]))
    unused = next(i for i in corpus if not any(i in c.document_ids for c in mined))
    corpus[unused] = Document(unused, "", "another text")
    assert read_candidates(path, replace(collection, corpus=corpus)) == mined
    if changed in ("document", "title"):
        text = corpus[alone].text
        corpus[alone] = Document(alone, "another", text) if changed == "title" else Document(alone, "", "another")
    else:
        row[changed] = "another" if changed == "query" else [unused, *row[changed][1:]]
    path.write_text("\n".join([first, json.dumps(row), *others]))
    with pytest.raises(
        DataError,
        match=r"query 'q2', its answer or .* when it was mined; run `nlt mine` again, or remove `texts` from",
    ) as caught:
        read_candidates(path, replace(collection, corpus=corpus))
    assert (caught.value.path, caught.value.line) == (path, 2)
    del row["texts"]
    path.write_text("\n".join([first, json.dumps(row), *others]))
    assert len(read_candidates(path, replace(collection, corpus=corpus))) == len(mined)


@pytest.mark.parametrize("lost", [0, -1])
def test_a_line_that_is_missing_is_noticed(lost: int, collection: Collection, tmp_path: Path) -> None:
    """Reference: the lines that are left, and a file of an older version, which did not say how many there were."""
    path = tmp_path / "candidates.jsonl"
    mined = mine_candidates(collection, training_queries(collection, "train"), num_candidates=4)
    write_candidates(path, mined, corpus=collection.corpus)
    lines = path.read_text().splitlines()
    del lines[lost], mined[lost]
    path.write_text("\n".join(lines))
    rows = [without_checksum(line) for line in lines]
    reason = rf"holds {len(rows)} queries, and {len(rows) + 1} were written; run `nlt mine` again, or remove `queries`"
    with pytest.raises(DataError, match=reason):
        read_candidates(path, collection)
    path.write_text("\n".join(json.dumps({**row, "queries": [len(rows)]}) for row in rows))
    with pytest.raises(DataError, match=rf"holds {len(rows)} queries, and \[{len(rows)}\] were written"):
        read_candidates(path, collection)
    path.write_text("\n".join(json.dumps({k: v for k, v in row.items() if k != "queries"}) for row in rows))
    assert read_candidates(path, collection) == mined


GOOD: dict[str, Any] = {
    "query_id": "q2", "query": "why", "answer": None, "document_ids": ["d01", "d02"], "bm25": [1.5, 0]
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"document_ids": ["d01", "d99"]}, "document 'd99' is not in the corpus"),
        ({"document_ids": ["d01"], "bm25": [1.0]}, "1 candidates where 2 are expected"),
        ({"document_ids": [], "bm25": []}, "no candidates"),
        ({"document_ids": ["d01", "d01"]}, "a document stands twice"),
        ({"bm25": [1.0]}, "1 BM25 scores for 2 candidates"),
        ({"bm25": ["high", "low"]}, "bm25 must be a list of numbers"),
        ({"bm25": [1.0, float("nan")]}, "bm25 must be a list of finite numbers"),
        ({"bm25": [10**400, 1.0]}, "bm25 must be a list of finite numbers"),
        ({"document_ids": "d01"}, "document_ids must be a list of strings"),
        ({"answer": 3}, "answer must be a string or null"),
        ({"query_id": "q1"}, "query 'q1' stands twice"),
        ({"query": " "}, "query_id and query must be strings and not empty"),
        ({"query_id": None}, "query_id and query must be strings and not empty"),
    ],
)
def test_a_bad_line_is_refused_with_file_and_line(
    collection: Collection, tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    path = tmp_path / "candidates.jsonl"
    path.write_text(json.dumps({**GOOD, "query_id": "q1"}) + "\n" + json.dumps(GOOD) + "\n")
    assert len(read_candidates(path, collection)) == 2
    path.write_text(json.dumps({**GOOD, "query_id": "q1"}) + "\n" + json.dumps({**GOOD, **change}) + "\n")
    with pytest.raises(DataError, match=f"{reason}.*run `nlt mine` again") as caught:
        read_candidates(path, collection)
    assert (caught.value.path, caught.value.line) == (path, 2)


def test_a_missing_an_empty_and_a_shorter_file_are_refused(collection: Collection, tmp_path: Path) -> None:
    path = tmp_path / "candidates.jsonl"
    with pytest.raises(DataError, match="file not found; run `nlt mine` first, which writes it"):
        read_candidates(path, collection)
    path.write_text("\n")
    with pytest.raises(DataError, match="holds no query"):
        read_candidates(path, collection)
    path.write_text(json.dumps(GOOD) + "\n")
    with pytest.raises(DataError, match="2 candidates where 8 are expected"):
        read_candidates(path, collection, num_candidates=8)


def test_an_unlabelled_folder_is_enough(collection: Collection, tmp_path: Path) -> None:
    folder = write_collection(
        tmp_path / "bare",
        corpus=collection.corpus.values(),
        queries=collection.queries.values(),
        qrels={},
        stage="nlt build_collection",
    )
    bare = load_collection(folder)
    assert len(mine_candidates(bare, training_queries(bare, None), num_candidates=3)) == 8
