"""Read question, answer and passages from a row of a question-answer set, whatever its columns are called."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nlt_trainer.data.beir import Document
from nlt_trainer.errors import NLTError


@dataclass(frozen=True)
class Columns:
    """Names of a row's columns. `a.b` is the part `b` of column `a`, or of each item of `a` if that is a list.

    Args:
        question: a text.
        answer: a text or a list of texts, of which the first that is not empty counts.
        passage: a text, a list of texts, or a list of lists of sentences.
        title: of the passage, or of each of them.
        gold: which passages answer the question: their titles, or a number each, 0 for no; `None` means all of them.
        id: of the question; `None` means a hash of its text.
    """

    question: str = "question"
    answer: str | None = None
    passage: str | None = None
    title: str | None = None
    gold: str | None = None
    id: str | None = None


@dataclass(frozen=True)
class Question:
    """A question with its passages, as a row has it. Its text or its answer may be missing.

    Args:
        id: of the question.
        text: empty where there is none.
        answer: `None` where there is none.
        passages: those that are not empty; a passage's id is a hash of its title and text.
        gold: for each passage whether it answers the question.
    """

    id: str
    text: str
    answer: str | None
    passages: tuple[Document, ...]
    gold: tuple[bool, ...]


def read_question(row: Mapping[str, Any], columns: Columns) -> Question:
    """Read the question of a row.

    Raises:
        NLTError: a column is missing, or passages, titles and gold do not fit together.
    """
    text = _first_text(value_at(row, columns.question)) or ""
    answer = None if columns.answer is None else _first_text(value_at(row, columns.answer))
    question_id = f"q{hash_of(text):016x}" if columns.id is None else str(value_at(row, columns.id))
    passages = [] if columns.passage is None else _passages(row, columns)
    gold = _gold(row, columns, [passage.title for passage in passages])
    kept = [(p, g) for p, g in zip(passages, gold, strict=True) if p.content]
    return Question(question_id, text, answer, tuple(p for p, _ in kept), tuple(g for _, g in kept))


def _passages(row: Mapping[str, Any], columns: Columns) -> list[Document]:
    """All passages of a row, empty ones included."""
    value = value_at(row, str(columns.passage))
    texts = [text_of(text) for text in (value if isinstance(value, list) else [value])]
    title = "" if columns.title is None else value_at(row, columns.title)
    titles = [text_of(t) for t in title] if isinstance(title, list) else [text_of(title)] * len(texts)
    if len(titles) != len(texts):
        raise NLTError(f"a row has {len(texts)} passages in {columns.passage!r} and {len(titles)} titles")
    pairs = (Document("", *pair) for pair in zip(titles, texts, strict=True))
    return [Document(f"p{hash_of(pair.content):016x}", pair.title, pair.text) for pair in pairs]


def _gold(row: Mapping[str, Any], columns: Columns, titles: list[str]) -> list[bool]:
    """Whether each passage of a row answers its question."""
    if columns.gold is None or columns.passage is None:
        return [True] * len(titles)
    value = value_at(row, columns.gold)
    marks = value if isinstance(value, list) else [value]
    if all(isinstance(mark, str) for mark in marks):
        names = {text_of(mark) for mark in marks}
        return [title in names for title in titles]
    if len(marks) != len(titles):
        raise NLTError(f"a row has {len(titles)} passages and {len(marks)} marks in {columns.gold!r}")
    return [bool(mark) for mark in marks]


def value_at(row: Mapping[str, Any], path: str) -> Any:
    """The value of a column, or of a part of it.

    Raises:
        NLTError: the column is missing; names those that exist.
    """
    value: Any = row
    for name in [path] if path in row else path.split("."):
        value = _part(value, name, path)
    return value


def _part(value: Any, name: str, path: str) -> Any:
    if isinstance(value, list):
        return [_part(item, name, path) for item in value]
    if not isinstance(value, Mapping) or name not in value:
        there = ", ".join(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
        raise NLTError(f"no column {path!r} in a row: {name!r} is not among {there}; correct the recipe's columns")
    return value[name]


def _first_text(value: Any) -> str | None:
    """The first text that is not empty, from a text or a list of texts."""
    texts = (text_of(item) for item in (value if isinstance(value, list) else [value]))
    return next((text for text in texts if text), None)


def text_of(value: Any) -> str:
    """A text or a number as text, or a list of them joined, without space around it; empty for null and NaN.

    Raises:
        NLTError: it is an object.
    """
    if isinstance(value, list):
        return " ".join(filter(None, map(text_of, value)))
    if isinstance(value, Mapping):
        raise NLTError(f"found an object where a text belongs: {str(value)[:80]}; name the part that is the text")
    return "" if value is None or value != value else str(value).strip()  # only NaN differs from itself


def hash_of(text: str) -> int:
    """A 64-bit hash of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


NO_KEY = -1
"""A number that no text has as its key, with which rows of keys are padded."""


def text_key(text: str) -> int:
    """A 63-bit hash of a text, which a tensor can hold: equal for equal texts."""
    return hash_of(text) >> 1
