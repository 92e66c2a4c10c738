"""What a person at the terminal reads while a stage works: lines, and one progress bar at a time."""

from __future__ import annotations

import sys

from tqdm.auto import tqdm


def say(text: str = "") -> None:
    """Write a line to standard output at once, above the progress bar where there is one."""
    with tqdm.external_write_mode(sys.stdout):
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
