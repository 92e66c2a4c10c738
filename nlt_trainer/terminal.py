"""Output for a person at the terminal while a stage works: lines, and one progress bar at a time."""

from __future__ import annotations

import sys
from typing import Any

from tqdm.auto import tqdm

SECONDS = 3.0
"""Seconds after which a late bar appears. Work that takes less time shows no bar."""


def say(text: str = "") -> None:
    """Write a line to standard output at once, above the progress bar where there is one."""
    with tqdm.external_write_mode(sys.stdout):
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()


def late_bar(make: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Make a bar that appears after some seconds and is gone when it is done; for transformers' `set_tqdm_hook`.

    Loading a small model takes milliseconds, and its bars would stand between the lines of a stage.
    """
    return make(*args, **{**kwargs, "delay": SECONDS, "leave": False})
