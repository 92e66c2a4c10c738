"""Tell whether queries are among others, such as those that were trained on, without keeping their texts."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from nlt_trainer.data.folding import folded
from nlt_trainer.data.questions import hash_of
from nlt_trainer.errors import DataError
from nlt_trainer.text_files import read_json, write_json


def query_keys(texts: Iterable[str]) -> list[int]:
    """A 64-bit hash of the words of each query: equal whatever the capitals, the punctuation and the white space."""
    return [hash_of(folded(text)) for text in texts]


def count_known(texts: Iterable[str], known: Collection[int]) -> int:
    """How many of the queries are among those with the keys `known`."""
    return sum(key in known for key in query_keys(texts))


def write_query_keys(path: Path, keys: Iterable[int]) -> None:
    """Write keys as a JSON list, each once and in ascending order."""
    write_json(path, sorted(set(keys)))


def read_query_keys(path: Path) -> frozenset[int]:
    """Read what `write_query_keys` has written.

    Raises:
        DataError: the file is missing or malformed.
    """
    keys = read_json(path, kind=list)
    if not all(isinstance(key, int) for key in keys):
        raise DataError(path, "is no list of keys of queries; train again, or move it away to go without them")
    return frozenset(keys)
