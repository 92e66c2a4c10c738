"""Read tables row by row: CSV, JSON Lines and Parquet."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlt_trainer.documents.encodings import encoding_of
from nlt_trainer.documents.sections import Section, Source
from nlt_trainer.documents.words import count_words

TEXT_COLUMNS = ("text", "content", "contents", "body", "passage", "document", "abstract")
TITLE_COLUMNS = ("title", "name", "heading", "subject")
DELIMITERS = ",;\t|"
SEPARATOR = re.compile(rf"\"?sep=([{DELIMITERS}])\"?\r?\n", flags=re.IGNORECASE)
"""A first line in which a spreadsheet program names the delimiter."""
SAMPLE = 1 << 16
"""Characters from which the delimiter of a CSV file is found."""
MAX_FIELD = min(1 << 24, sys.maxsize)
"""The most characters of a CSV field; beyond, a quotation mark is taken to be unclosed."""
MAX_NAME_WORDS = 6
"""A first line in which a cell has more words than this does not name columns."""


@dataclass(frozen=True, slots=True)
class BrokenLine:
    """A line that is left out, while the rest of its file is read."""

    line: int
    reason: str


def csv_rows(path: Path) -> Iterator[Source | BrokenLine]:
    """Yield the rows of a CSV file, whose delimiter is found and whose first line names the columns, if it can.

    A row with text beyond the named columns has a delimiter that is not in quotation marks, and is left out.

    Raises:
        csv.Error: a field is longer than `MAX_FIELD`.
        NLTError: the file is binary.
    """
    before = csv.field_size_limit(MAX_FIELD)
    try:
        with path.open(encoding=encoding_of(path), errors="replace", newline="") as handle:
            delimiter = _delimiter(handle.read(SAMPLE))
            handle.seek(0)
            rows = csv.reader((line.replace("\0", "") for line in handle), delimiter=delimiter)
            first = next(filter(_is_content, rows), [])
            names = first if _names_columns(first) else None
            if names is None and (source := _row(dict(enumerate(first)), 1)):
                yield source
            for number, cells in enumerate(rows, start=1 if names else 2):
                keys: Sequence[Any] = names or range(len(cells))
                if any(cell.strip() for cell in cells[len(keys) :]):
                    reason = f"has {len(cells)} cells, and the first line names {len(keys)} columns"
                    yield BrokenLine(rows.line_num, f"{reason}; put cells with {delimiter!r} in quotation marks")
                elif source := _row(dict(zip(keys, cells, strict=False)), number):
                    yield source
    finally:
        csv.field_size_limit(before)


def jsonl_rows(path: Path) -> Iterator[Source | BrokenLine]:
    """Yield the objects of a JSON Lines file; the number of a row is that of its line."""
    with path.open("rb") as handle:
        for number, line in enumerate(handle, start=1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield BrokenLine(number, f"not valid JSON ({error})")
                continue
            if not isinstance(value, dict):
                yield BrokenLine(number, f"expected a JSON object, found {type(value).__name__}")
            else:
                yield _row(value, number) or BrokenLine(number, "has no value with text")


def parquet_rows(path: Path) -> Iterator[Source]:
    """Yield the rows of a Parquet file; columns that are no strings are not read.

    Raises:
        pyarrow.ArrowException: the file is damaged.
    """
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        columns = [field.name for field in file.schema_arrow if _holds_text(field.type, pa.types)]
        number = 0
        for batch in file.iter_batches(batch_size=1024, columns=columns):
            for values in batch.to_pylist():
                number += 1
                if source := _row(values, number):
                    yield source


def _holds_text(kind: Any, types: Any) -> bool:
    """Whether a column has strings or lists of strings."""
    if types.is_list(kind) or types.is_large_list(kind) or types.is_dictionary(kind):
        kind = kind.value_type
    return types.is_string(kind) or types.is_large_string(kind)


def _row(values: Mapping[Any, Any], number: int) -> Source | None:
    """The title and the text of a row; `None` where it has no text.

    Columns of `TEXT_COLUMNS` are the text. If there are none, all others are, as `name: value`. Columns without names
    have numbers for keys, and their values stand alone.
    """
    strings = {key: text for key, value in values.items() if (text := _string(value))}
    plain = {key: str(key).strip().casefold() for key in strings}
    title_key = next((key for name in TITLE_COLUMNS for key in strings if plain[key] == name), None)
    texts = [strings[key] for key in strings if plain[key] in TEXT_COLUMNS]
    others = {key: text for key, text in strings.items() if key != title_key}
    text = "\n".join(texts or (value if isinstance(key, int) else f"{key}: {value}" for key, value in others.items()))
    title = strings.get(title_key, "")
    return Source(title if text else "", [Section((), text or title)], number) if text or title else None


def _string(value: Any) -> str:
    """A string, or strings of a list on lines of their own; empty for everything else."""
    if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        value = "\n".join(value)
    return value.strip() if isinstance(value, str) else ""


def _is_content(cells: Sequence[str]) -> bool:
    """Whether a row has text, and is not the line in which a spreadsheet program names the delimiter."""
    text = "".join(cells).strip()
    return bool(text) and text.casefold().rstrip(DELIMITERS) != "sep="


def _delimiter(sample: str) -> str:
    if named := SEPARATOR.match(sample):
        return named[1]
    first = sample.lstrip("\r\n").partition("\n")[0]
    try:
        found = csv.Sniffer().sniff(sample, delimiters=DELIMITERS).delimiter
    except csv.Error:
        found = max(DELIMITERS, key=first.count)
    return found if found in first else ","


def _names_columns(cells: Sequence[str]) -> bool:
    """Whether a first line names columns: its cells differ and are short, and none is a number."""
    plain = [cell.strip() for cell in cells]
    short = all(count_words(cell) <= MAX_NAME_WORDS for cell in plain)
    return short and len(set(plain)) == len(plain) and not any(cell.isnumeric() for cell in plain)
