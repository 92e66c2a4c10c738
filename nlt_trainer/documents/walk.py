"""Find the files below a folder, always in the same order."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

LEFT_OUT = {"CVS", "__pycache__", "node_modules"}
"""Folders of tools, which hold no documents of the user. Hidden folders are left out, too."""
LOCK = "~$"
"""Start of the names under which office programs mark an open file."""

Refuse = Callable[[Path, str], None]
"""Takes a file or folder that is not read, and why."""


def find_files(documents: Path, *, without: Collection[Path], refuse: Refuse) -> Iterator[Path]:
    """Yield each file below a folder: sorted by name, a folder's files before its folders.

    Hidden files and folders are left out. Links to folders are not followed, so that no circle can arise.

    Args:
        documents: a folder, or one file, which is yielded itself.
        without: folders and files that are left out, also where a link names them.
        refuse: called for what cannot be read.
    """
    excluded = {path.resolve() for path in without}
    if documents.is_file():
        if documents.resolve() not in excluded:
            yield documents
        return

    def unreadable(error: OSError) -> None:
        refuse(Path(error.filename), f"cannot be read ({error.strerror})")

    for place, folders, names in os.walk(documents, onerror=unreadable):
        folder = Path(place)
        inside = [folder / name for name in sorted(folders) if not _hidden(name) and name not in LEFT_OUT]
        for link in (path for path in inside if path.is_symlink()):
            refuse(link, "a link to a folder, which is not followed; give the folder that it names")
        folders[:] = [path.name for path in inside if path.resolve() not in excluded]
        for path in (folder / name for name in sorted(names) if not _hidden(name)):
            try:
                mode = path.stat().st_mode
            except OSError as error:
                refuse(path, f"cannot be read ({error.strerror})")
                continue
            if not stat.S_ISREG(mode):
                refuse(path, "not a regular file")
            elif path.resolve() not in excluded:
                yield path


def _hidden(name: str) -> bool:
    return name.startswith((".", LOCK))
