"""Rows of tables against those that were written."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nlt_trainer.documents import tables
from nlt_trainer.documents.sections import Source
from nlt_trainer.documents.tables import BrokenLine, csv_rows, jsonl_rows, parquet_rows
from nlt_trainer.errors import NLTError


def plain(rows: Any) -> list[tuple[int | None, str, str]]:
    """Number, title and text of each row."""
    return [(row.row, row.title, row.sections[0].text) for row in rows if isinstance(row, Source)]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_a_csv_file_with_each_delimiter(delimiter: str, tmp_path: Path) -> None:
    """Reference: the cells, with a line break and a quotation mark in one; empty rows are no rows."""
    with (tmp_path / "a.csv").open("w", newline="") as handle:
        writer = csv.writer(handle, delimiter=delimiter)
        writer.writerows(
            [["id", "Title", "Body"], ["1", "One", 'a "first"\ntext'], ["", "", ""], [], ["2", "Two", "b"]]
        )
    assert plain(csv_rows(tmp_path / "a.csv")) == [(1, "One", 'a "first"\ntext'), (4, "Two", "b")]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("kind,price\nbolt,3\nnut,\n", [(1, "", "kind: bolt\nprice: 3"), (2, "", "kind: nut")]),
        ("name,kind\nM4,bolt\n", [(1, "M4", "kind: bolt")]),
        ("name\nM4\n", [(1, "", "M4")]),
        ("abstract,body\na,b\n", [(1, "", "a\nb")]),
        (",text\n0,a\n", [(1, "", "a")]),  # as pandas writes an index
        ("a long line that is no name of anything,7\nb,8\n", [(1, "", "a long line that is no name of anything\n7"),
                                                             (2, "", "b\n8")]),
        ("text\none\ntwo\n", [(1, "", "one"), (2, "", "two")]),
        ("text\nhalf\0way through a line of text\n", [(1, "", "halfway through a line of text")]),
        ("text,text2\nonly one cell\n", [(1, "", "only one cell")]),
        ("", []),
        ("\n\ntitle;text\nM4;a bolt, of steel\n", [(1, "M4", "a bolt, of steel")]),
        ("sep=;\ntitle;text\nM4;a bolt, of steel\n", [(1, "M4", "a bolt, of steel")]),
        ('"sep=|"\r\ntitle|text\r\nM4|a\r\n', [(1, "M4", "a")]),
    ],
)  # fmt: skip
def test_which_columns_are_text(content: str, expected: list[tuple[int, str, str]], tmp_path: Path) -> None:
    """Reference: rows by hand."""
    (tmp_path / "a.csv").write_text(content)
    assert plain(csv_rows(tmp_path / "a.csv")) == expected


def test_a_csv_file_in_another_encoding(tmp_path: Path) -> None:
    """Reference: the text that was written."""
    text = "L'été à Genève, où les élèves étudient la géométrie avec un professeur très sévère."
    (tmp_path / "a.csv").write_bytes(f'text\n"{text}"\n'.encode("cp1252"))
    assert plain(csv_rows(tmp_path / "a.csv")) == [(1, "", text)]


def test_a_field_beyond_the_modules_limit_is_read_and_an_unclosed_quotation_mark_ends_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: the module's own limit of 131,072 characters, which holds again afterwards."""
    limit = csv.field_size_limit()
    long = "word " * 40_000
    (tmp_path / "a.csv").write_text(f"id,text\n1,first\n2,{long}\n")
    assert plain(csv_rows(tmp_path / "a.csv")) == [(1, "", "first"), (2, "", long.strip())]
    monkeypatch.setattr(tables, "MAX_FIELD", 1000)
    (tmp_path / "a.csv").write_text(f'id,text\n1,first\n2,"{long}\n')
    rows = csv_rows(tmp_path / "a.csv")
    assert plain([next(rows)]) == [(1, "", "first")]
    with pytest.raises(csv.Error, match="field larger than field limit"):
        next(rows)
    assert csv.field_size_limit() == limit


def test_a_row_with_more_text_than_columns_is_told(tmp_path: Path) -> None:
    """Reference: the lines by hand. A spreadsheet may leave empty cells at the end of its rows."""
    (tmp_path / "a.csv").write_text('title,text\nOne,"a\nb"\nTwo,c, and d\nThree,e,,\n')
    rows = list(csv_rows(tmp_path / "a.csv"))
    assert plain(rows) == [(1, "One", "a\nb"), (3, "Three", "e")]
    (broken,) = (row for row in rows if isinstance(row, BrokenLine))
    assert broken.line == 4 and broken.reason.startswith("has 3 cells, and the first line names 2 columns; put cells")


def test_a_csv_file_that_is_binary_is_refused(tmp_path: Path) -> None:
    """Reference: the message."""
    (tmp_path / "a.csv").write_bytes(b"\0\1\2\3" * 500)
    with pytest.raises(NLTError, match="a binary file"):
        list(csv_rows(tmp_path / "a.csv"))


def test_broken_lines_of_jsonl_are_told_and_the_rest_is_read(tmp_path: Path) -> None:
    """Reference: the numbers of the lines by hand."""
    lines = [
        b'\xef\xbb\xbf{"title": "One", "text": "a"}',
        b'{"text": "cut',
        b"",
        b'["no", "object"]',
        b'{"text": "\xff"}',
        b"[" * 100_000,
        b'{"text": ["b", "c"], "n": 3}',
        b'{"text": "half \\ud800 character"}',
        b'{"text": "  "}',
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    rows = list(jsonl_rows(tmp_path / "a.jsonl"))
    assert plain(rows) == [(1, "One", "a"), (7, "", "b\nc"), (8, "", "half \ud800 character")]
    broken = [row for row in rows if isinstance(row, BrokenLine)]
    assert [row.line for row in broken] == [2, 4, 5, 6, 9]
    assert broken[1].reason == "expected a JSON object, found list"
    assert broken[-1].reason == "has no value with text"


def test_columns_of_parquet_that_are_no_strings_are_not_read(tmp_path: Path) -> None:
    """Reference: the rows as JSON Lines give them; rows are numbered across batches."""
    rows = [{"title": f"t{n}", "text": f"text {n}", "vector": [0.5, 1.0], "tags": ["x"]} for n in range(2000)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = plain(parquet_rows(tmp_path / "a.parquet"))
    assert found == plain(jsonl_rows(tmp_path / "a.jsonl"))
    assert found[-1] == (2000, "t1999", "text 1999")


def test_parquet_columns_with_a_dictionary(tmp_path: Path) -> None:
    """Reference: the values; a column of numbers alone gives no row."""
    table = pa.table({"kind": pa.array(["bolt", "nut", "bolt"]).dictionary_encode(), "n": [1, 2, 3]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert plain(parquet_rows(tmp_path / "a.parquet")) == [(1, "", "kind: bolt"), (2, "", "kind: nut"),
                                                            (3, "", "kind: bolt")]  # fmt: skip
    pq.write_table(table.select(["n"]), tmp_path / "a.parquet")
    assert plain(parquet_rows(tmp_path / "a.parquet")) == []
