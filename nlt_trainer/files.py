"""Files that are either whole or absent: written beside their final name, then renamed."""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import json
import logging
import os
import re
import shutil
import uuid
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal, TextIO

from nlt_trainer.errors import DataError, NLTError

logger = logging.getLogger(__name__)

CORPUS_FILE = "corpus.jsonl"
QUERIES_FILE = "queries.jsonl"
QRELS_FOLDER = "qrels"
"""What a collection, a BEIR folder, consists of."""
FOLDER_MARK = ".nlt_trainer"
"""File in a folder that this package has written, which names the stage. Earlier versions named only pulls."""
FolderStage = Literal[
    "nlt adapt_scorer",
    "nlt build_collection",
    "nlt build_corpus",
    "nlt build_stdlib",
    "nlt export",
    "nlt make_encoder",
    "nlt make_queries",
    "nlt pull",
    "nlt train",
    "conversion of a GGUF file",
    "index of a corpus",
]
"""What writes whole folders, as `FOLDER_MARK` names it. `nlt adapt` runs some of these stages."""
FILLING: tuple[FolderStage, ...] = ("nlt build_corpus",)
"""Stages that write into a folder that is there; the others write a new one, which takes its place."""
RECORD_FILE = "record.json"
"""File in a model's folder with hashes of its files. In an encoder's folder the card is made from it, and each
evaluation rewrites it. It is no part of the model."""
TRAINED_QUERIES_FILE = "trained_queries.json"
"""File in the folder of a run and in that of an encoder with the keys of the queries that were trained on."""
CHECKSUMS_FILE = "checkpoint_files.json"
"""File in a checkpoint that lists its other files with a hash of each, so that a damaged checkpoint is known."""
LEFT = re.compile(r"\.(.+)\.[0-9a-f]{8}\.(partial|previous)")
"""Name of a file or folder that is being written, or of a folder that is being replaced."""
CHECKSUM = "checksum"
"""Entry of a JSON object with a hash of all others; `read_json` refuses a file of which one has changed since."""
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # half of a character, which is valid only if the other half follows


def cache_folder() -> Path:
    """Folder of files kept between calls: `$NLT_CACHE`, else `nlt_trainer` in `$XDG_CACHE_HOME` or `~/.cache`."""
    if os.environ.get("NLT_CACHE"):
        return Path(os.environ["NLT_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "nlt_trainer"


def atomic_write(path: str | Path) -> AbstractContextManager[TextIO]:
    """Open a text file for writing that takes its final name only when the block ends without an exception.

    Where the name is a link, the file that it leads to is written.

    Raises:
        NLTError: `path` is a folder.
    """
    return _atomic(Path(path), "w", encoding="utf-8")


def atomic_write_bytes(path: str | Path) -> AbstractContextManager[BinaryIO]:
    """Open a file of bytes for writing; otherwise like `atomic_write`."""
    return _atomic(Path(path), "wb", encoding=None)


@contextmanager
def _atomic(path: Path, mode: str, *, encoding: str | None) -> Iterator[Any]:
    if path.is_dir():
        raise NLTError(f"{path} is a folder, and a file is to be written there; name a file")
    path = linked_place(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _held_beside(path, make=Path.touch) as partial:
        try:
            handle: IO[Any]
            with partial.open(mode, encoding=encoding) as handle:
                yield handle
                handle.flush()
                os.fsync(handle.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def linked_place(path: Path) -> Path:
    """Where a link leads, also one that leads to nothing yet; a path that is no link is returned as it is.

    What is written beside this place is on the same disk as what it replaces, and the link stays.
    """
    return path.resolve() if path.is_symlink() else path


@contextmanager
def _held_beside(path: Path, *, make: Callable[[Path], None]) -> Iterator[Path]:
    """Make a file or folder beside `path` and hold it, so that no other process sweeps it away."""
    while True:
        partial = _beside(path, "partial")
        make(partial)
        with ExitStack() as stack:
            with suppress(FileNotFoundError):  # another process has swept it in the moment before it was held
                stack.enter_context(_held(partial, wait=True))
            if partial.exists():
                yield partial
                return


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.{ending}")


@contextmanager
def _held(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Lock a file or folder, under whatever name, until the block or the process ends; yields whether that went.

    With `wait` a process that holds it is waited for.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        held = True
    except OSError:  # another process holds it, or the file system has no locks
        held = False
    try:
        yield held
    finally:
        os.close(handle)


_TAKEN: set[Path] = set()
"""Folders that `alone_in` holds for this process."""


@contextmanager
def alone_in(folder: str | Path) -> Iterator[None]:
    """Let no other process work in a folder until the block ends; a process that has died holds nothing.

    The folder is made if it is missing, and removed if nothing was written into it. Within a block, further blocks of
    the same process are let in. A file system without locks lets everybody in.

    Raises:
        NLTError: another process is in such a block for the same folder.
    """
    path = Path(folder).resolve()
    if path in _TAKEN:
        yield
        return
    _refuse_files(path)
    made = not path.exists()
    path.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise NLTError(f"another process is working in {folder}; wait until it has ended, or name another") from error
    except OSError as error:
        logger.debug("%s cannot be locked: %s", folder, error)
    _TAKEN.add(path)
    try:
        yield
    finally:
        _TAKEN.remove(path)
        os.close(handle)
        if made:
            with suppress(OSError):
                path.rmdir()


def file_hash(path: Path) -> str:
    """Hash of a file's content (16 hex digits)."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "blake2b").hexdigest()[:16]


def sweep(folder: str | Path, *, below: bool = False) -> None:
    """Remove what killed processes have left in a folder, and with `below` in all folders below it.

    Files and folders that a live process writes stay. A folder that was moved aside and never replaced gets its name
    back.
    """
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            if left := LEFT.fullmatch(name):
                remove_left(Path(place, name), final=Path(place, left[1]))
        if not below:
            return


def remove_left(path: Path, *, final: Path) -> None:
    """Remove what a killed process has left, unless it is held; `final` is the name that it has or had before.

    A folder that was moved aside gets its name back where nothing has it.
    """
    try:
        with _held(path) as held:
            if not held:
                return
            if path.suffix == ".previous" and not final.exists():
                path.replace(final)
            elif path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
    except OSError as error:  # another process was faster, or this one may not
        logger.debug("%s stays: %s", path, error)


def check_folder(path: Path, *, stage: FolderStage) -> None:
    """Refuse a path that `atomic_folder` does not replace. A stage that runs long checks this before it begins.

    Args:
        path: the folder to write.
        stage: what writes it.

    Raises:
        NLTError: `path` or one of its parents is a file, `path` is a folder with content that the stage has not
            written, or `path` has no name of its own, such as `.`. What `sweep` removes is no content. Also where
            another disk is mounted at `path` and the stage writes the folder anew, which takes its place.
    """
    if not path.name:
        raise NLTError(f"{path} is no name for a folder that is to be written; give it one, e.g. {path / 'encoder'}")
    _refuse_files(path)
    if stage not in FILLING and linked_place(path).is_mount():
        raise NLTError(f"{path} is where a disk is mounted, which no folder can replace; name a folder in it")
    if not path.is_dir() or all(LEFT.fullmatch(inside.name) for inside in path.iterdir()):
        return
    if not (path / FOLDER_MARK).is_file():
        why = f"was not written by nlt (it has no {FOLDER_MARK})"
    elif not _may_replace(path, stage):
        why = f"was written by {_writer(path) or 'another stage of an earlier version'}, not by {stage}"
    else:
        return
    raise NLTError(f"{path} is there already and {why}; name another folder, or move this one away")


def mark_folder(path: Path, *, stage: FolderStage) -> None:
    """Name the stage that writes a folder in `FOLDER_MARK`."""
    (path / FOLDER_MARK).write_text(f"{stage}\n", encoding="utf-8")


def _writer(folder: Path) -> str:
    """The stage that a folder's mark names; empty where an earlier version has written it."""
    return (folder / FOLDER_MARK).read_text(encoding="utf-8", errors="replace").strip()


def _may_replace(folder: Path, stage: FolderStage) -> bool:
    """Whether a stage may replace a folder that has a mark.

    A folder whose mark names nobody is of an earlier version, and may be that of the stage. Two things are known of
    it: it was not pulled, and if it has a record, it is what training or an export has left.
    """
    if writer := _writer(folder):
        return writer == stage
    return stage in ("nlt train", "nlt export") or (stage != "nlt pull" and not (folder / RECORD_FILE).is_file())


def _refuse_files(path: Path) -> None:
    """Raise `NLTError` if a folder's path or one of its parents is a file."""
    if files := [place for place in (path, *path.parents) if place.is_file()]:
        raise NLTError(f"{files[0]} is a file, and a folder is to be written there; name a folder")


@contextmanager
def atomic_folder(path: str | Path, *, stage: FolderStage) -> Iterator[Path]:
    """Yield an empty folder beside `path`; it replaces `path` only when the block ends without an exception.

    The folder gets a file `FOLDER_MARK`. A folder with content that the stage has not written is never replaced.
    Where `path` is a link, the folder that it leads to is replaced.

    Args:
        path: the folder to write.
        stage: what writes it.

    Raises:
        NLTError: as `check_folder`.
    """
    path = Path(path)
    check_folder(path, stage=stage)
    path = linked_place(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _held_beside(path, make=Path.mkdir) as partial:
        try:
            yield partial
            mark_folder(partial, stage=stage)
            if path.exists():
                previous = _beside(path, "previous")
                with _held(path):
                    path.replace(previous)
                    partial.replace(path)
                    shutil.rmtree(previous)
            else:
                partial.replace(path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def saved_hashes(folder: Path) -> dict[str, str]:
    """Hashes of a model's files as they were saved, by their path in its folder; empty where its record has none.

    Raises:
        DataError: the record is malformed.
    """
    record = folder / RECORD_FILE
    entries = read_json(record) if record.is_file() else {}
    hashes = entries.get("files") or entries.get("weights") or {}  # version 0.1 has kept those of weights alone
    if not isinstance(hashes, dict) or not all(isinstance(value, str) for value in hashes.values()):
        raise DataError(record, f"has {hashes!r} where hashes of files belong; fetch or save the model again")
    return hashes


def changed_file(folder: Path, hashes: Mapping[str, str]) -> Path | None:
    """The first file in a folder that is missing or has another hash than the one that was kept for it."""
    files = {folder / name: kept for name, kept in hashes.items()}
    return next((file for file, kept in files.items() if not file.is_file() or file_hash(file) != kept), None)


def write_json(path: str | Path, value: Any, *, checksum: bool = False) -> None:
    """Write one JSON document, indented, atomically; with `checksum` an object gets an entry `CHECKSUM`."""
    if checksum:
        value = {**value, CHECKSUM: _checksum(json.loads(json.dumps(value)))}
    with atomic_write(path) as handle:
        json.dump(value, handle, indent=2, ensure_ascii=False)
        handle.write("\n")


def read_json(path: str | Path, *, stage: str | None = None, kind: type = dict, remedy: str | None = None) -> Any:
    """Read one JSON document; an entry `CHECKSUM` of an object is compared and left out.

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
    if isinstance(value, dict) and CHECKSUM in value and value.pop(CHECKSUM) != _checksum(value):
        raise DataError(
            path,
            "is not as it was written, a disk or a copy has changed a value"
            + (ending or "; write or copy it again")
            + f", or remove its entry {CHECKSUM} if you have changed the file yourself",
        )
    return value


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


def write_jsonl(path: str | Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write each row as a JSON object on a line, atomically; returns the number of lines."""
    count = 0
    with atomic_write(path) as handle:
        for row in rows:
            handle.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def read_jsonl(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield `(line number from 1, object)` for each line that is not blank; a `.gz` file is unpacked on the way.

    Raises:
        DataError: the file is missing, or a line is not UTF-8 or not a JSON object; names file and line.
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
