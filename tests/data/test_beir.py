"""BEIR folders: what is read, what is written, and what is refused with file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from nlt_trainer.data.beir import Document, Query, load_collection, training_queries, write_collection
from nlt_trainer.errors import DataError

SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"

CORPUS = '{"_id": "d1", "title": "T", "text": "one"}\n{"_id": "d2", "title": "", "text": "two"}\n'
QUERIES = '{"_id": "q1", "text": "first"}\n{"_id": "q2", "text": "second"}\n'
HEADER = "query-id\tcorpus-id\tscore\n"


def _write(folder: Path, *, corpus: str = CORPUS, queries: str = QUERIES, qrels: str | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "corpus.jsonl").write_text(corpus, encoding="utf-8")
    (folder / "queries.jsonl").write_text(queries, encoding="utf-8")
    if qrels is not None:
        (folder / "qrels").mkdir(exist_ok=True)
        (folder / "qrels" / "train.tsv").write_text(qrels, encoding="utf-8")
    return folder


def test_content_joins_title_and_text() -> None:
    assert Document("d", "Title", "text").content == "Title\ntext"
    assert Document("d", "", "text").content == "text"
    assert Document("d", "Title", "").content == "Title"


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    corpus = [Document("d1", "Höhe", "größer\nals"), Document("d2", "", "zwei")]
    queries = [Query("q1", "wie hoch", "sehr"), Query("q2", "warum")]
    qrels = {"train": {"q1": {"d1": 2, "d2": 0}}, "test": {"q2": {"d2": 1}}}
    folder = write_collection(
        tmp_path / "set", corpus=corpus, queries=queries, qrels=qrels, stage="nlt build_collection"
    )
    collection = load_collection(folder)
    assert collection.name == "set"
    assert list(collection.corpus.values()) == corpus
    assert list(collection.queries.values()) == queries
    assert collection.qrels == qrels


def test_a_title_may_be_left_out(tmp_path: Path) -> None:
    collection = load_collection(_write(tmp_path, corpus='{"_id": "d1", "text": "one"}\n'))
    assert collection.corpus == {"d1": Document("d1", "", "one")}


def test_what_public_collections_have_is_read_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Reference: FiQA's empty documents, a text that is null, and ArguAna's judged documents outside the corpus."""
    corpus = CORPUS + '{"_id": "d3", "title": " ", "text": " "}\n{"_id": "d4", "title": "Four", "text": null}\n'
    folder = _write(tmp_path, corpus=corpus, qrels=HEADER + "q1\td1\t1\nq2\tgone\t1\n")
    collection = load_collection(folder)
    assert [document.content for document in collection.corpus.values()] == ["T\none", "two", "", "Four"]
    assert collection.qrels == {"train": {"q1": {"d1": 1}, "q2": {"gone": 1}}}
    empty, missing = caplog.messages
    assert empty == f"{folder / 'corpus.jsonl'} has 1 empty documents, e.g. d3; they are never candidates"
    assert missing.startswith(f"{folder / 'qrels' / 'train.tsv'} judges 1 documents that the corpus lacks, e.g. gone")


def test_a_corpus_without_text_is_refused(tmp_path: Path) -> None:
    folder = _write(tmp_path, corpus='{"_id": "d1", "text": ""}\n{"_id": "d2", "text": null}\n')
    with pytest.raises(DataError, match=r"corpus.jsonl: has no document with text; write one"):
        load_collection(folder)


def test_a_failed_write_leaves_the_earlier_folder(tmp_path: Path) -> None:
    folder = _write(tmp_path / "set")

    def broken() -> list[Document]:
        raise RuntimeError("no more documents")

    with pytest.raises(RuntimeError, match="no more"):
        write_collection(folder, corpus=(d for d in broken()), queries=[], qrels={}, stage="nlt build_collection")
    assert list(load_collection(folder).corpus) == ["d1", "d2"]
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_collection_without_qrels_trains_on_all_queries(tmp_path: Path) -> None:
    collection = load_collection(_write(tmp_path))
    assert collection.qrels == {}
    assert [query.id for query in training_queries(collection, None)] == ["q1", "q2"]
    with pytest.raises(
        DataError, match=r"qrels/train.tsv: not found.*'train'; .* the header query-id, corpus-id, .*document$"
    ):
        training_queries(collection, "train")
    with pytest.raises(DataError, match=r"qrels/test.tsv: not found.*a line for each relevant document$"):
        load_collection(collection.folder, splits=["test"])


def test_training_queries_are_those_of_the_split(tiny_collection_folder: Path) -> None:
    collection = load_collection(tiny_collection_folder)
    assert [query.id for query in training_queries(collection, "train")] == ["q1", "q2", "q3", "q4"]
    assert [query.id for query in collection.split_queries("test")] == ["q7", "q8"]
    assert collection.queries["q1"].answer == "the blue whale"


def test_only_the_named_splits_are_read(tiny_collection_folder: Path) -> None:
    assert set(load_collection(tiny_collection_folder).qrels) == {"train", "dev", "test"}
    assert set(load_collection(tiny_collection_folder, splits=["dev"]).qrels) == {"dev"}
    assert load_collection(tiny_collection_folder, splits=[]).qrels == {}
    with pytest.raises(DataError, match=r"qrels/valid.tsv: .* split that is there: dev, test, train"):
        load_collection(tiny_collection_folder, splits=["valid"])


def test_the_first_of_several_answers_is_taken(tmp_path: Path) -> None:
    queries = (
        '{"_id": "q1", "text": "a", "answers": [" ", "x", "y"]}\n{"_id": "q2", "text": "b", "answers": []}\n'
        '{"_id": "q3", "text": "c", "answer": " "}\n{"_id": "q4", "text": "d", "answer": "z"}\n'
    )
    collection = load_collection(_write(tmp_path, queries=queries))
    assert [query.answer for query in collection.queries.values()] == ["x", None, None, "z"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"_id": "d1", "text": "again"}', "'d1' was used before"),
        ('{"_id": "", "text": "x"}', "_id must be a string"),
        ('{"_id": "d\\u0000", "text": "x"}', r"id 'd\\x00' has a control character; take it out"),
        ('{"_id": 3, "text": "x"}', '_id must be a string, found the number 3; write "3"'),
        ('{"_id": true, "text": "x"}', "found True"),
        ('{"text": "x"}', "found None"),
        ('{"_id": "d3", "title": "x"}', "text must be a string"),
        ('{"_id": "d3", "title": ["x"], "text": "y"}', "title must be a string"),
        ('{"_id": "d3", "Title": "x", "text": "y"}', "has a key 'Title', and 'title' is read; write it so"),
        ('{"_id": "d3", "text": "x"', "not valid JSON"),
        ('["d3"]', "expected a JSON object"),
    ],
)
def test_a_bad_document_is_refused_with_file_and_line(tmp_path: Path, line: str, reason: str) -> None:
    folder = _write(tmp_path, corpus=CORPUS + line + "\n")
    with pytest.raises(DataError, match=reason) as caught:
        load_collection(folder)
    assert (caught.value.path, caught.value.line) == (folder / "corpus.jsonl", 3)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"_id": "q2", "text": "again"}', "'q2' was used before"),
        ('{"_id": "q3", "text": " "}', "query 'q3' is empty"),
        ('{"_id": "q3"}', "text must be a string"),
        ('{"_id": "q3", "text": "x", "answer": 7}', "an answer must be a string, found 7"),
        ('{"_id": "q3", "text": "x", "answers": "y"}', "answers must be a list"),
        ('{"_id": "q3", "text": "x", "ANSWER": "y"}', "has a key 'ANSWER', and 'answer' is read"),
    ],
)
def test_a_bad_query_is_refused_with_file_and_line(tmp_path: Path, line: str, reason: str) -> None:
    folder = _write(tmp_path, queries=QUERIES + line + "\n")
    with pytest.raises(DataError, match=reason) as caught:
        load_collection(folder)
    assert (caught.value.path, caught.value.line) == (folder / "queries.jsonl", 3)


@pytest.mark.parametrize(
    ("qrels", "line", "reason"),
    [
        ("q1\td1\t1\n", 1, "the first line must be query-id corpus-id score"),
        (HEADER + "q1\td1\t1\nq9\td1\t1\n", 3, "unknown query 'q9'"),
        (HEADER + "q1\td9\t1\nq2\td8\t0\n", None, "judges no document of the corpus, but e.g. 'd8'"),
        (HEADER + "q1\td1\t0.5\n", 2, "'0.5' is not an integer"),
        (HEADER + "q1\td1\t1_0\n", 2, "'1_0' is not an integer"),
        (HEADER + "q1\td1\t\u0663\n", 2, "is not an integer"),
        (HEADER + f"q1\td1\t{10**20}\n", 2, "is not an integer"),
        (HEADER + "q1\td1\t10000\n", 2, "'10000' is not an integer of at most four digits"),
        (HEADER + "q1\td\0a\t1\n", 2, r"id 'd\\x00a' has a control character"),
        (HEADER + "q1 d1 1\n", 2, "3 fields separated by tabs, found 1"),
        (HEADER + "q1\td1\t1\nq1\td1\t0\n", 3, "were judged before"),
        (HEADER, None, "holds no judgement"),
    ],
)
def test_bad_qrels_are_refused_with_file_and_line(tmp_path: Path, qrels: str, line: int | None, reason: str) -> None:
    folder = _write(tmp_path, qrels=qrels)
    with pytest.raises(DataError, match=reason) as caught:
        load_collection(folder)
    assert (caught.value.path, caught.value.line) == (folder / "qrels" / "train.tsv", line)
    assert load_collection(folder, splits=[]).qrels == {}


def test_the_header_of_qrels_may_have_capitals(tmp_path: Path) -> None:
    """Reference: the same judgements under BEIR's own header."""
    folder = _write(tmp_path, qrels="Query-Id\tCorpus-Id\tScore\nq1\td1\t1\n")
    assert load_collection(folder).qrels == {"train": {"q1": {"d1": 1}}}


def test_qrels_that_are_not_text_are_refused(tmp_path: Path) -> None:
    folder = _write(tmp_path, qrels=HEADER)
    (folder / "qrels" / "train.tsv").write_bytes(HEADER.encode() + b"q1\td\xff\t1\n")
    with pytest.raises(DataError, match=r"train.tsv:2: not UTF-8 .*; save the file as UTF-8"):
        load_collection(folder)


def test_a_byte_order_mark_and_line_ends_of_windows_are_read(tmp_path: Path) -> None:
    """Reference: the collection without them."""
    folder = _write(tmp_path, qrels=HEADER + "q1\td1\t1\n")
    expected = load_collection(folder)
    for path in folder.rglob("*.*"):
        path.write_bytes(path.read_text().replace("\n", "\r\n").encode("utf-8-sig"))
    assert load_collection(folder) == expected


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl"])
def test_missing_and_empty_files_are_refused(tmp_path: Path, name: str) -> None:
    folder = _write(tmp_path)
    (folder / name).write_text("\n")
    with pytest.raises(DataError, match=f"{name}: holds no"):
        load_collection(folder)
    (folder / name).unlink()
    with pytest.raises(DataError, match=f"{name}: file not found; a collection is a folder with"):
        load_collection(folder)


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="no real collections beside the repository")
def test_a_real_collection_has_the_published_sizes() -> None:
    collection = load_collection(SHARED_DATA / "scifact")
    assert len(collection.corpus) == 5183
    assert {split: len(queries) for split, queries in collection.qrels.items()} == {"test": 300, "train": 809}
