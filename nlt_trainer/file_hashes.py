"""Hashes of files, and of a model's files as they were saved, so that a damaged or exchanged one is known."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from nlt_trainer.errors import DataError
from nlt_trainer.files import RECORD_FILE
from nlt_trainer.text_files import read_json


def file_hash(path: Path) -> str:
    """Hash of a file's content (16 hex digits)."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "blake2b").hexdigest()[:16]


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
