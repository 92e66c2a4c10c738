"""Read and write text: lines, JSON, and JSON Lines; what is wrong in a file is said with its line."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nlt_trainer.errors import DataError
from nlt_trainer.files import atomic_write

CHECKSUM = "checksum"
"""Entry of a JSON object with a hash of all others; a reader refuses a file in which one has changed since."""
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # half of a character, which is valid only if the other half follows


def write_json(path: str | Path, value: Any, *, checksum: bool = False) -> None:
    """Write one JSON document, indented, atomically.

    Args:
        path: the file.
        value: an object or a list.
        checksum: whether the object, or each object of the list, gets an entry `CHECKSUM`.
    """
    if checksum:
        value = _with_checksum(value) if isinstance(value, dict) else [_with_checksum(row) for row in value]
    with atomic_write(path) as handle:
        json.dump(value, handle, indent=2, ensure_ascii=False)
        handle.write("\n")


def read_json(path: str | Path, *, stage: str | None = None, kind: type = dict, remedy: str | None = None) -> Any:
    """Read one JSON document; an entry `CHECKSUM` of an object, or of those in a list, is compared and left out.

    Args:
        path: the file.
        stage: what writes it, e.g. `nlt score`; named where the file is missing.
        kind: what it must hold: an object (`dict`), a `list`, or anything (`object`).
        remedy: what to do about a damaged file; said after what is wrong with it.

    Raises:
        DataError: the file is missing, is not JSON, holds something of another kind, or has values that are not those
            of its checksum.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(path, "file not found" + (f"; run `{stage}` first, which writes it" if stage else ""))
    text = "\n".join(line for _, line in read_lines(path))
    ending = f"; {remedy}" if remedy else ""
    try:
        value = _parsed(text)
    except ValueError as error:
        raise DataError(path, f"not valid JSON ({error}){ending}") from error
    if not isinstance(value, kind):
        raise DataError(path, f"expected a JSON {kind.__name__}, found {type(value).__name__}{ending}")
    for row in value if isinstance(value, list) else [value]:
        _check_checksum(row, path=path, remedy=remedy)
    return value


def _with_checksum(value: dict[str, Any]) -> dict[str, Any]:
    """The object with an entry `CHECKSUM` of its values as JSON keeps them."""
    return {**value, CHECKSUM: _checksum(json.loads(json.dumps(value)))}


def _check_checksum(value: Any, *, path: Path, line: int | None = None, remedy: str | None = None) -> None:
    """Compare an object's entry `CHECKSUM`, where it has one, with its other values, and remove it."""
    if isinstance(value, dict) and CHECKSUM in value and value.pop(CHECKSUM) != _checksum(value):
        raise DataError(
            path,
            f"is not as it was written, a disk or a copy has changed a value; {remedy or 'write or copy it again'}, "
            f"or remove its entry {CHECKSUM} if you have changed the file yourself",
            line=line,
        )


def _checksum(value: dict[str, Any]) -> str:
    """Hash of a JSON object (32 hex digits)."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


def _parsed(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: the text is not JSON, is nested too deeply, or has half a character, which UTF-8 cannot encode.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if SURROGATE.search(text):
        json.dumps(value, ensure_ascii=False).encode()
    return value


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield `(line number from 1, line without its end)` of a UTF-8 file; a `.gz` file is unpacked on the way.

    A byte order mark at the start, as some editors write it, is no part of the text.

    Raises:
        DataError: the file is missing or cannot be unpacked, or a line is not UTF-8; names file and line.
    """
    for number, raw in enumerate(raw_lines(path), start=1):
        try:
            yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise DataError(path, f"not UTF-8 ({error}); save the file as UTF-8", line=number) from error


def raw_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file with their ends, whatever their encoding; a `.gz` file is unpacked on the way.

    Raises:
        DataError: the file is missing or cannot be unpacked.
    """
    if not path.is_file():
        raise DataError(path, "file not found")
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as handle:
        try:
            yield from handle
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataError(path, f"cannot be unpacked ({error}); fetch or pack it again") from error


def write_jsonl(path: str | Path, rows: Iterable[dict[str, Any]], *, checksum: bool = False) -> int:
    """Write each row as a JSON object on a line, atomically; returns the number of lines.

    Args:
        path: the file.
        rows: the objects.
        checksum: whether each gets an entry `CHECKSUM`.
    """
    count = 0
    with atomic_write(path) as handle:
        for row in rows:
            handle.write(json.dumps(_with_checksum(row) if checksum else row, ensure_ascii=False) + "\n")
            count += 1
    return count


def read_jsonl(
    path: str | Path, *, checksum: bool = False, remedy: str | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield `(line number from 1, object)` for each line that is not blank; a `.gz` file is unpacked on the way.

    Args:
        path: the file.
        checksum: whether an entry `CHECKSUM` of an object is compared and left out; it is a value like others in files
            that this package has not written.
        remedy: what to do about an object that has another checksum.

    Raises:
        DataError: the file is missing, a line is not UTF-8 or not a JSON object, or an object has values that are not
            those of its checksum; names file and line.
    """
    path = Path(path)
    for number, line in read_lines(path):
        if not line.strip():
            continue
        try:
            row = _parsed(line)
        except ValueError as error:
            raise DataError(path, f"not valid JSON ({error})", line=number) from error
        if not isinstance(row, dict):
            raise DataError(path, f"expected a JSON object, found {type(row).__name__}", line=number)
        if checksum:
            _check_checksum(row, path=path, line=number, remedy=remedy)
        yield number, row


def check_header(path: Path, names: Sequence[str]) -> None:
    """Refuse a first line that names a column twice, of which one would be lost. Columns without a name are no loss.

    Raises:
        DataError: names the file and the column.
    """
    if doubled := [name for name, count in Counter(names).items() if name and count > 1]:
        raise DataError(path, f"column {doubled[0]!r} stands twice in the first line; rename or remove one", line=1)


def check_keys(path: Path, row: Mapping[str, Any], known: Iterable[str], *, line: int) -> None:
    """Refuse a row with a key that differs from a known one in capitals alone, and whose value would be lost.

    Raises:
        DataError: names the file, the line and the key.
    """
    for key in row:
        if (plain := key.casefold()) in known and plain not in row:
            raise DataError(path, f"has a key {key!r}, and {plain!r} is read; write it so", line=line)
