"""Errors that a user can act on. Every message names the place, the value and the remedy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path


class NLTError(ValueError):
    """Wrong input or settings; the message says what to change."""


class DataError(NLTError):
    """A malformed file.

    Args:
        path: the file.
        reason: what is wrong and what to do about it.
        line: line number in the file, counted from 1; `None` where the file as a whole is meant.
    """

    def __init__(self, path: str | Path, reason: str, *, line: int | None = None):
        place = f"{path}" if line is None else f"{path}:{line}"
        super().__init__(f"{place}: {reason}")
        self.path = Path(path)
        self.reason = reason
        self.line = line

    def __reduce__(self) -> tuple[Callable[[], DataError], tuple[()]]:
        """How a copy is made in another process."""
        return partial(type(self), self.path, self.reason, line=self.line), ()
