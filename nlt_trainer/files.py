"""Files that are either whole or absent: written beside their final name, then renamed."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal, TextIO

from nlt_trainer.errors import NLTError

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
