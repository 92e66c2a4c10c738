"""Read a file of queries that people have typed: one on each line, or JSONL."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nlt_trainer.data.beir import Query
from nlt_trainer.data.folding import folded
from nlt_trainer.errors import DataError
from nlt_trainer.text_files import check_keys, read_jsonl, read_lines

logger = logging.getLogger(__name__)

TEXT_KEYS = ("text", "query", "question")
"""Keys under which a JSONL file may have the text of a query; the first one that a row has counts."""
NO_LINES = frozenset(
    ".json .csv .tsv .parquet .xls .xlsx .ods .xml .yaml .yml .html .pdf .docx .gz .bz2 .xz .zst .zip".split()
)
"""Endings of files whose lines are no queries."""


def read_query_file(path: str | Path) -> list[Query]:
    """Read queries, each different text once, in the order of the file.

    Of texts that differ in capitals, punctuation and white space alone, the first one is taken. Otherwise a query
    could train and its twin be held out.

    Args:
        path: a `.jsonl` file, whose rows have the query under `text`, `query` or `question` and may have an `_id` and
            an `answer`, or a text file, which has a query on each line. Empty lines are left out.

    Returns:
        The queries. One without an id has a hash of its text as id, so that it keeps its id when lines move.

    Raises:
        DataError: the file is missing, is of another kind, is not UTF-8, holds no query or a row without a text, or
            has an id twice or with white space in it.
    """
    path = Path(path)
    if path.is_dir():
        raise DataError(path, "is a folder; name a file with a query on each line, or JSONL")
    ending = path.suffix.lower()
    if ending in NO_LINES:
        raise DataError(
            path, f"is a {ending} file; write the queries into a .txt file, one on each line, or a .jsonl file"
        )
    rows = _jsonl_rows(path) if ending == ".jsonl" else _text_rows(path)
    found: dict[str, Query] = {}
    ids: set[str] = set()
    empty = doubled = 0
    for line, row in rows:
        text = " ".join(str(row["text"]).replace("\0", " ").split())
        if not (key := folded(text)):
            empty += 1
        elif key in found:
            doubled += 1
        else:
            query = Query(row.get("_id") or hashlib.blake2b(text.encode(), digest_size=8).hexdigest(), text)
            if query.id in ids:
                raise DataError(path, f"_id {query.id!r} was used before; make ids unique", line=line)
            ids.add(query.id)
            found[key] = Query(query.id, text, (row.get("answer") or "").strip() or None)
    if not found:
        raise DataError(path, "holds no query; write one on each line")
    if empty or doubled:
        logger.warning(
            "%s: left out are %d lines without words and %d queries that repeat another, whatever their capitals and "
            "punctuation",
            path, empty, doubled,
        )  # fmt: skip
    return list(found.values())


def _text_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each line as a text.

    Raises:
        DataError: a line is a JSON object.
    """
    for line, text in read_lines(path):
        if text.lstrip().startswith("{") and _is_json(text):
            raise DataError(path, "is JSON, and the file would be read as text; let its name end in .jsonl", line=line)
        yield line, {"text": text}


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _jsonl_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each row with its text under `text`.

    Raises:
        DataError: a row has no text, a value that is no string, or an id with white space in it.
    """
    for line, row in read_jsonl(path):
        check_keys(path, row, ("_id", "answer"), line=line)
        key = next((key for key in TEXT_KEYS if key in row), None)
        if key is None:
            raise DataError(path, f"has no {', '.join(TEXT_KEYS[:-1])} or {TEXT_KEYS[-1]}; add one", line=line)
        known = {"text": row[key], "_id": row.get("_id"), "answer": row.get("answer")}
        for name, value in known.items():
            if not isinstance(value, str) and (value is not None or name == "text"):
                raise DataError(path, f"{name} must be a string, found {value!r}; correct the line", line=line)
        if known["_id"] and known["_id"].split() != [known["_id"]]:
            raise DataError(path, f"_id {known['_id']!r} has white space; write one word", line=line)
        yield line, known
