"""BEIR folders out of data sets with the Hub's layouts, read back by `load_collection`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hub_layouts import (
    corpus_rows,
    hotpotqa,
    hotpotqa_rows,
    mteb_lines,
    mteb_parquet,
    natural_questions,
    nq_open,
    plain_beir,
    query_rows,
    write_lines,
    write_parquet,
)
from tiny import DOCUMENTS, QUERIES

from nlt_trainer.data.beir import Collection, load_collection
from nlt_trainer.data.hub_collection import BEIRSource, QuestionSource, build_hub_collection, split_of
from nlt_trainer.data.questions import Columns
from nlt_trainer.errors import DataError, NLTError
from nlt_trainer.text_files import write_json

HOTPOT_COLUMNS = Columns(
    answer="answer", passage="context.sentences", title="context.title", gold="supporting_facts.title", id="id"
)
PAIRS = Columns(question="query", passage="answer")


def build(folder: Path, **sources: object) -> Collection:
    build_hub_collection(folder, **sources)  # type: ignore[arg-type]
    return load_collection(folder)


def ids_of(split: str) -> dict[str, dict[str, int]]:
    return {key: {gold: 1} for key, (_, _, gold, part) in QUERIES.items() if part == split}


@pytest.mark.parametrize("layout", ["mteb_lines", "mteb_parquet", "plain_beir"])
def test_every_layout_of_beir_gives_the_same_collection(tmp_path: Path, layout: str) -> None:
    """Reference: the documents, queries and judgements that were written; only judged queries are kept."""
    if layout == "plain_beir":
        source = BEIRSource(str(plain_beir(tmp_path / "hub", tmp_path / "qrels")), qrels=str(tmp_path / "qrels"))
    else:
        source = BEIRSource(str({"mteb_lines": mteb_lines, "mteb_parquet": mteb_parquet}[layout](tmp_path / "hub")))
    collection = build(tmp_path / "out", beir=source)
    assert {key: (d.title, d.text) for key, d in collection.corpus.items()} == DOCUMENTS
    assert list(collection.queries) == ["q7", "q8"]
    assert collection.qrels == {"test": ids_of("test")}


def test_splits_are_renamed(tmp_path: Path) -> None:
    """Reference: judgements of two splits under new names."""
    source = str(plain_beir(tmp_path / "hub", tmp_path / "qrels"))
    splits = {"dev": "validation", "train": "train"}
    collection = build(tmp_path / "out", beir=BEIRSource(source, qrels=str(tmp_path / "qrels"), splits=splits))
    assert collection.qrels == {"validation": ids_of("dev"), "train": ids_of("train")}


def test_questions_with_passages_and_gold(tmp_path: Path) -> None:
    """Reference: rows written by hand; each distinct paragraph is one document, however many questions show it."""
    source = QuestionSource(
        str(hotpotqa(tmp_path / "hub")),
        HOTPOT_COLUMNS,
        config="distractor",
        splits={"train": "train", "validation": "test"},
    )
    collection = build(tmp_path / "out", questions=source)
    shown = {title for row in hotpotqa_rows("train") + hotpotqa_rows("test") for title in row["context"]["title"]}
    assert sorted(d.title for d in collection.corpus.values()) == sorted(shown)
    whale = next(d for d in collection.corpus.values() if d.title == "Whale")
    assert whale.text == f"{DOCUMENTS['d01'][1]} It is so. Nobody doubts it."
    assert list(collection.queries) == [f"hotpot-q{i}" for i in (5, 6, 7, 8, 1, 2, 3, 4)]
    assert collection.queries["hotpot-q1"].answer == "the blue whale"
    assert collection.qrels["train"]["hotpot-q1"] == {whale.id: 1}
    assert list(collection.qrels["test"]) == ["hotpot-q5", "hotpot-q6", "hotpot-q7", "hotpot-q8"]


def test_questions_without_passages_take_a_corpus(tmp_path: Path) -> None:
    """Reference: the questions with their first answers, and the whole corpus."""
    collection = build(
        tmp_path / "out",
        beir=BEIRSource(str(mteb_lines(tmp_path / "beir")), splits={}),
        questions=QuestionSource(str(nq_open(tmp_path / "hub")), Columns(answer="answer")),
    )
    assert list(collection.corpus) == list(DOCUMENTS)
    assert [(q.text, q.answer) for q in collection.queries.values()] == [row[:2] for row in list(QUERIES.values())[:6]]
    assert collection.qrels == {}


def test_passages_join_a_corpus_without_repeats(tmp_path: Path) -> None:
    """Reference: a passage that the corpus has keeps its id there; a judged query is no train question as well."""
    beir = mteb_lines(tmp_path / "beir")
    lines = [{"_id": f"{row['_id']}", "title": "", "text": row["text"]} for row in corpus_rows()[:-1]]
    write_lines(beir / "corpus.jsonl", lines)
    report = build_hub_collection(
        tmp_path / "out",
        beir=BEIRSource(str(beir)),
        questions=QuestionSource(str(natural_questions(tmp_path / "hub")), PAIRS),
    )
    collection = load_collection(tmp_path / "out")
    assert list(collection.corpus) == list(DOCUMENTS)[:-1]
    assert report["left_out"] == {"repeated questions": 2}
    assert [list(grades) for grades in collection.qrels["train"].values()] == [
        [g] for _, _, g, _ in list(QUERIES.values())[:6]
    ]
    assert collection.qrels["test"] == ids_of("test")


def test_held_out_questions_depend_on_their_ids_alone(tmp_path: Path) -> None:
    """Reference: the share of 20,000 ids, and the same split in another order and in a part of the set."""
    held_out = {"dev": 0.1, "test": 0.3}
    splits = [split_of(f"q{i}", "train", held_out) for i in range(20_000)]
    assert splits.count("dev") / 20_000 == pytest.approx(0.1, abs=0.01)
    assert splits.count("test") / 20_000 == pytest.approx(0.3, abs=0.01)
    assert split_of("q3", "test", held_out) == "test"
    rows = [{"query": text, "answer": DOCUMENTS[gold][1]} for text, _, gold, _ in QUERIES.values()]
    found = []
    for name, part in (("a", rows), ("b", rows[::-1]), ("c", rows[2:])):
        write_parquet(tmp_path / name / "train.parquet", part)
        source = QuestionSource(str(tmp_path / name), PAIRS, held_out={"test": 0.5})
        qrels = build(tmp_path / f"out-{name}", questions=source).qrels
        found.append({query: (split, grades) for split, q in qrels.items() for query, grades in q.items()})
    assert found[0] == found[1]
    assert found[2] == {query: found[0][query] for query in found[2]}
    assert {split for split, _ in found[0].values()} == {"train", "test"}


def test_what_cannot_be_used_is_left_out_and_counted(tmp_path: Path) -> None:
    """Reference: one row of each kind; a repeated question adds its gold to the first."""
    passages = {"p": ["x", "y"], "gold": [1, 0]}
    rows: list[dict[str, object]] = [
        {"question": "Who?", "answer": "he", **passages},
        {"question": " who? ", "answer": "him", "p": ["x", "y"], "gold": [0, 1]},
        {"question": "", "answer": "he", **passages},
        {"question": "Why?", "answer": "", **passages},
        {"question": "How?", "answer": "so", "p": ["x", "y"], "gold": [0, 0]},
    ]
    write_lines(tmp_path / "hub" / "train.jsonl", rows)
    source = QuestionSource(str(tmp_path / "hub"), Columns(answer="answer", passage="p", gold="gold"))
    report = build_hub_collection(tmp_path / "out", questions=source)
    assert report == json.loads((tmp_path / "out" / "source.json").read_text())
    assert report["left_out"] == {
        "repeated questions": 1,
        "questions without text": 1,
        "questions without an answer": 1,
        "questions without a gold passage": 1,
    }
    collection = load_collection(tmp_path / "out")
    assert (report["documents"], report["judged_queries"]) == (2, {"train": 1})
    assert [sorted(grades) for grades in collection.qrels["train"].values()] == [sorted(collection.corpus)]


def test_missing_and_listed_texts_are_no_python(tmp_path: Path) -> None:
    """Reference: the texts by hand; NaN is no word, a list is its parts, and an object is named with its column."""
    folder = mteb_lines(tmp_path / "hub")
    corpus = corpus_rows()
    changed = [{**corpus[0], "title": float("nan")}, {**corpus[1], "text": ["one", "two"]}, *corpus[2:]]
    write_lines(folder / "corpus.jsonl", changed)
    found = build(tmp_path / "out", beir=BEIRSource(str(folder))).corpus
    assert (found["d01"].title, found["d02"].text) == ("", "one two")
    write_lines(folder / "corpus.jsonl", [{**corpus[0], "text": {"en": "tea"}}, *corpus[1:]])
    with pytest.raises(DataError, match=r"hub: text: found an object where a text belongs"):
        build_hub_collection(tmp_path / "other", beir=BEIRSource(str(folder)))


def test_empty_and_missing_documents_stay_judged_and_empty_queries_are_left_out(tmp_path: Path) -> None:
    """Reference: the judgements that were written; one document is empty, one is not there, one stands twice."""
    folder = mteb_lines(tmp_path / "hub")
    corpus = [row if row["_id"] != "d11" else {"_id": "d11", "title": None, "text": " "} for row in corpus_rows()]
    write_lines(folder / "corpus.jsonl", [*(row for row in corpus if row["_id"] != "d10"), corpus[0]])
    report = build_hub_collection(tmp_path / "out", beir=BEIRSource(str(folder)))
    assert (report["documents"], report["left_out"]) == (len(DOCUMENTS) - 1, {})
    built = load_collection(tmp_path / "out")
    assert (built.qrels, built.corpus["d11"].content) == ({"test": ids_of("test")}, "")
    write_lines(folder / "queries.jsonl", [{**row, "text": ""} for row in query_rows()])
    with pytest.raises(NLTError, match="no query is left; look at beir_splits"):
        build_hub_collection(tmp_path / "out", beir=BEIRSource(str(folder)))
    assert load_collection(tmp_path / "out") == built  # the build before still stands


@pytest.mark.parametrize(
    ("file", "row", "message"),
    [
        ("corpus.jsonl", {"_id": "d01", "text": "other"}, "document id 'd01' stands for two texts"),
        ("queries.jsonl", {"_id": "q7", "text": "other"}, "query id 'q7' stands for two texts"),
        ("corpus.jsonl", {"text": "no id"}, "a row has neither _id nor id: {'text': 'no id'}"),
        ("qrels/test.jsonl", {"query-id": "q7"}, "is no judgement: needs query-id, corpus-id and score"),
        *(
            (
                "qrels/test.jsonl",
                {"query-id": "q7", "corpus-id": document, "score": grade},
                "a whole number of at most",
            )
            for document, grade in (("d01", 0.5), ("d01", "inf"), ("d01", 10_000), (None, 1))
        ),
    ],
)
def test_rows_that_contradict_each_other_are_refused(
    tmp_path: Path, file: str, row: dict[str, Any], message: str
) -> None:
    """Reference: the value in each message; nothing is written."""
    path = mteb_lines(tmp_path / "hub") / file
    path.write_text(path.read_text() + json.dumps(row) + "\n")
    with pytest.raises(DataError, match=message):
        build_hub_collection(tmp_path / "out", beir=BEIRSource(str(tmp_path / "hub")))
    assert [path.name for path in tmp_path.iterdir()] == ["hub"]


def test_an_id_of_two_questions_is_refused(tmp_path: Path) -> None:
    rows = [{"id": "1", "question": text, "p": "x"} for text in ("Who?", "Why?")]
    write_lines(tmp_path / "hub" / "train.jsonl", rows)
    with pytest.raises(DataError, match="question id '1' stands for two questions; leave out id_column"):
        build(tmp_path / "out", questions=QuestionSource(str(tmp_path / "hub"), Columns(passage="p", id="id")))
    with pytest.raises(DataError, match=r"hub: no column 'context' in a row"):
        build(tmp_path / "out", questions=QuestionSource(str(tmp_path / "hub"), Columns(passage="context")))


def test_sources_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    """Reference: the remedy in each message."""
    questions, beir = QuestionSource("org/set", Columns()), BEIRSource("org/beir")
    cases: list[tuple[dict[str, object], str]] = [
        ({}, "needs beir with beir_splits, or questions"),
        ({"beir": BEIRSource("org/beir", splits={})}, "needs beir with beir_splits, or questions"),
        ({"questions": questions}, "questions without passages need a corpus; set passage_column"),
        ({"questions": questions, "beir": beir}, r"queries of org/beir; set beir_splits: \{\}"),
        (
            {"questions": QuestionSource("org/set", PAIRS, held_out={"dev": 1.0})},
            "held_out is {'dev': 1.0}; give shares",
        ),
        (
            {
                "questions": QuestionSource("org/set", Columns(), splits={"validation": "dev"}),
                "beir": BEIRSource("org/beir", splits={}),
            },
            "questions without passages cannot be judged",
        ),
    ]
    for sources, message in cases:
        with pytest.raises(NLTError, match=message):
            build(tmp_path / "out", **sources)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    """Reference: a user's own folder, and one that was built with other settings; the same settings build again."""
    source = BEIRSource(str(mteb_lines(tmp_path / "hub")))
    build(tmp_path / "out", beir=source)
    (tmp_path / "out" / "corpus.jsonl").unlink()
    assert len(build(tmp_path / "out", beir=source).corpus) == len(DOCUMENTS)
    with pytest.raises(NLTError, match="out exists and was not built with these settings; choose another folder"):
        build(tmp_path / "out", beir=BEIRSource(source.name, splits={"train": "train"}))
    (tmp_path / "own").mkdir()
    with pytest.raises(NLTError, match="own exists and was not built with these settings"):
        build(tmp_path / "own", beir=source)


def test_a_place_for_no_folder_is_refused_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: the file that stands where a folder belongs."""
    monkeypatch.setattr("nlt_trainer.data.hub_collection.fetch_dataset", lambda *_, **__: pytest.fail("fetched"))
    (tmp_path / "file").touch()
    with pytest.raises(NLTError, match=r"file is a file, and a folder is to be written there; name a folder"):
        build_hub_collection(tmp_path / "file" / "out", beir=BEIRSource("org/set"))


def test_a_build_from_the_hub_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: the commit in the report; the second call asks the Hub for nothing."""
    folder = mteb_lines(tmp_path / "0a1b2c")
    monkeypatch.setattr("nlt_trainer.data.hub.snapshot_download", lambda *_, **__: str(folder))
    first = build_hub_collection(tmp_path / "out", beir=BEIRSource("org/set", "main"))
    assert first["commits"] == {"org/set": "0a1b2c"}
    monkeypatch.setattr("nlt_trainer.data.hub.snapshot_download", None)
    assert build_hub_collection(tmp_path / "out", beir=BEIRSource("org/set", "main")) == first
    corpus = tmp_path / "out" / "corpus.jsonl"
    before = corpus.read_text()
    corpus.write_text(before.replace("t", "T", 1))
    with pytest.raises(
        DataError, match=r"corpus.jsonl: is not as it was built; put it back, remove .*out to build it"
    ):
        build_hub_collection(tmp_path / "out", beir=BEIRSource("org/set", "main"))
    older = {key: value for key, value in first.items() if key != "files"}
    write_json(tmp_path / "out" / "source.json", older)
    assert build_hub_collection(tmp_path / "out", beir=BEIRSource("org/set", "main")) == {**older, "files": {}}
    for key in ("commits", "documents"):
        write_json(tmp_path / "out" / "source.json", {name: value for name, value in first.items() if name != key})
        with pytest.raises(DataError, match=rf"source.json: {key} is None; remove .*out to build it again"):
            build_hub_collection(tmp_path / "out", beir=BEIRSource("org/set", "main"))
    write_json(tmp_path / "out" / "source.json", {"commits": {}})
    with pytest.raises(NLTError, match=r"out exists and was not built with these settings; choose another folder"):
        build_hub_collection(tmp_path / "out", beir=BEIRSource("org/set", "main"))
