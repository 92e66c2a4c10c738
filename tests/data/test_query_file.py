from __future__ import annotations

from pathlib import Path

import pytest

from nlt_trainer.data.beir import Query
from nlt_trainer.data.query_file import read_query_file
from nlt_trainer.errors import DataError


def written(tmp_path: Path, name: str, text: str) -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_lines_are_queries_once_each_and_ids_follow_the_text(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Against the file's own lines; a line keeps its id where it moves."""
    found = read_query_file(written(tmp_path, "a.txt", "how to  sort\n\n   \nopen a file\nhow to sort\n"))
    moved = read_query_file(written(tmp_path, "b.txt", "open a file\nhow to sort\n"))
    assert [query.text for query in found] == ["how to sort", "open a file"]
    assert {query.text: query.id for query in found} == {query.text: query.id for query in moved}
    assert "2 lines without words and 1 queries that repeat another" in caplog.text


def test_queries_that_differ_in_capitals_and_punctuation_are_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Against the first of them; a twin in the other split would be known from training."""
    text = "How do I reset it?\nhow do i reset it\nHow do I  reset it ?\nHow do I reset them?\n?!\n"
    found = read_query_file(written(tmp_path, "q.txt", text))
    assert [query.text for query in found] == ["How do I reset it?", "How do I reset them?"]
    assert "1 lines without words and 2 queries that repeat another" in caplog.text


def test_jsonl_takes_beir_rows_and_other_names_of_the_text(tmp_path: Path) -> None:
    rows = '{"_id": "q7", "text": "a b", "answer": "c"}\n{"question": "d e"}\n{"query": "f g", "answer": ""}\n'
    found = read_query_file(written(tmp_path, "q.JSONL", rows))
    assert found[0] == Query("q7", "a b", "c")
    assert [(query.text, query.answer) for query in found[1:]] == [("d e", None), ("f g", None)]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("q.txt", "\n \n", "q.txt: holds no query"),
        ("q.jsonl", '{"text": "a"}\n{"title": "b"}\n', r"q.jsonl:2: has no text, query or question"),
        ("q.jsonl", '{"text": 3}\n', r"q.jsonl:1: text must be a string, found 3"),
        ("q.jsonl", '{"text": "a", "_id": 3}\n', r"q.jsonl:1: _id must be a string, found 3"),
        ("q.jsonl", '{"text": "a", "_id": "1"}\n{"text": "b", "_id": "1"}\n', r"q.jsonl:2: _id '1' was used before"),
        ("q.jsonl", '{"text": "a", "Answer": "b"}\n', r"q.jsonl:1: has a key 'Answer', and 'answer' is read"),
        ("q.jsonl", "{", r"q.jsonl:1: not valid JSON"),
        ("q.jsonl", '{"text": "a", "_id": "1\\t2"}\n', r"q.jsonl:1: _id '1\\t2' has white space; write one word"),
        ("q.jsonl", '{"text": "a", "_id": " 1"}\n', r"q.jsonl:1: _id ' 1' has white space; write one word"),
        ("q.tsv", "1\tHow do I reset it?\n", r"q.tsv: is a .tsv file; write the queries into a .txt file"),
        ("q.JSON", '{"text": "a"}\n', r"q.JSON: is a .json file; write .* or a .jsonl file"),
        ("q.jsonl.gz", "a b", r"q.jsonl.gz: is a .gz file"),
        ("q.txt", 'a {b}\n{a} b\n{"text": "a"}\n', r"q.txt:3: is JSON, .* end in .jsonl"),
    ],
)
def test_a_wrong_file_is_named_with_its_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_query_file(written(tmp_path, name, text))


def test_a_folder_or_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder"):
        read_query_file(tmp_path)
    with pytest.raises(DataError, match="not found"):
        read_query_file(tmp_path / "none.txt")


def test_brackets_without_end_are_a_text(tmp_path: Path) -> None:
    """Reference: the line itself; as JSON it would be nested deeper than Python reads."""
    path = tmp_path / "queries.txt"
    path.write_text('{"a":' * 3000 + "\nwhat is tea\n")
    assert [query.text for query in read_query_file(path)] == ['{"a":' * 3000, "what is tea"]
