"""Folders in the user's cache that are made of a corpus once, and made again where a file in them is damaged."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from nlt_trainer.errors import DataError
from nlt_trainer.file_hashes import changed_file, file_hash, saved_hashes
from nlt_trainer.files import RECORD_FILE, atomic_folder, cache_folder, sweep
from nlt_trainer.text_files import write_json

UNUSED_DAYS = 30
"""Folders that nobody has used for so long are removed when another one is made."""

logger = logging.getLogger(__name__)


def kept_folder(kind: str, content: str, make: Callable[[Path], object]) -> Path:
    """The folder `<cache>/<kind>/<content>`, which is made if it is missing or one of its files has changed.

    Of several processes one makes it, and the others wait. A folder can be removed at any time. A process that has
    mapped its files goes on with them. When one is made, those of its kind that nobody used for a month are removed.

    Args:
        kind: what the folder holds, e.g. `corpora`.
        content: names everything that the folder is made of, so that it is never out of date.
        make: writes the files into the empty folder that it is given.
    """
    folder = cache_folder() / kind / content
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        sweep(folder.parent)
        if folder.is_dir():
            if _is_whole(folder):
                os.utime(folder)  # says when it was used
                return folder
            logger.warning("%s is damaged, and is made again", folder)
        with atomic_folder(folder, stage="index of a corpus") as partial:
            make(partial)
            write_json(partial / RECORD_FILE, {"files": {file.name: file_hash(file) for file in partial.iterdir()}})
        _remove_unused(folder.parent)
    return folder


def _remove_unused(parent: Path) -> None:
    before = time.time() - UNUSED_DAYS * 24 * 3600
    for folder in parent.glob("[!.]*/"):
        with suppress(Timeout, FileNotFoundError), _lock(folder).acquire(timeout=0):  # one that is held is in use
            if folder.stat().st_mtime < before:
                shutil.rmtree(folder, ignore_errors=True)


def _lock(folder: Path) -> FileLock:
    return FileLock(folder.with_name(f".{folder.name}.lock"))


def _is_whole(folder: Path) -> bool:
    try:
        hashes = saved_hashes(folder)
    except DataError:
        return False
    return bool(hashes) and changed_file(folder, hashes) is None
