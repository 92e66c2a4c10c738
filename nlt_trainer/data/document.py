"""A document of a corpus, and what the two ways of reading a corpus share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from nlt_trainer.errors import DataError

CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a corpus."""

    id: str
    title: str
    text: str

    @property
    def content(self) -> str:
        """The text that encoder, LLM and BM25 read: title, newline, text, or one of the two if the other is empty."""
        return f"{self.title}\n{self.text}" if self.title and self.text else self.title or self.text


@dataclass(frozen=True)
class Contents(Iterable[str]):
    """The contents of a corpus in its order, one after another, as often as they are asked for.

    Args:
        corpus: document id -> document.
    """

    corpus: Mapping[str, Document]

    def __iter__(self) -> Iterator[str]:
        return (document.content for document in self.corpus.values())


def check_id(value: str, *, path: Path, line: int) -> None:
    """Refuse an id with a control character: trec_eval ends it at a zero, and no file of judgements can hold others.

    Raises:
        DataError: there is one.
    """
    if CONTROL.search(value):
        raise DataError(path, f"id {value!r} has a control character; take it out", line=line)


def doubled_id(path: Path, value: str, *, line: int) -> DataError:
    """The error for an id that an earlier line of a file has, too."""
    return DataError(path, f"_id {value!r} was used before; make ids unique", line=line)
