"""Folders in the user's cache: which of them stay."""

from __future__ import annotations

import os
import time
from pathlib import Path

from filelock import FileLock

from nlt_trainer.data.kept_folder import UNUSED_DAYS, kept_folder
from nlt_trainer.files import cache_folder


def make(folder: Path) -> None:
    (folder / "file").write_text("content")


def used(content: str, *, days_ago: float) -> None:
    then = time.time() - days_ago * 24 * 3600
    os.utime(cache_folder() / "corpora" / content, (then, then))


def test_what_nobody_has_used_for_long_goes_when_another_one_is_made() -> None:
    """Reference: folders whose last use is set by hand. A use counts as much as the making, and so does a lock."""
    for content in ("long ago", "lately", "used again", "held"):
        kept_folder("corpora", content, make)
    kept_folder("bm25", "long ago", make)
    used("long ago", days_ago=UNUSED_DAYS + 1)
    used("lately", days_ago=UNUSED_DAYS - 1)
    for content in ("used again", "held"):
        used(content, days_ago=UNUSED_DAYS + 1)
    kept_folder("corpora", "used again", make)
    with FileLock(cache_folder() / "corpora" / ".held.lock"):
        kept_folder("corpora", "new", make)
    assert {path.name for path in (cache_folder() / "corpora").glob("[!.]*/")} == {
        "lately", "used again", "held", "new"
    }  # fmt: skip
    assert (cache_folder() / "bm25" / "long ago" / "file").read_text() == "content"
