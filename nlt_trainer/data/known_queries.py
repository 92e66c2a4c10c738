"""Tell whether queries are among others, such as those that were trained on, without keeping their texts."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from nlt_trainer.data.folding import folded
from nlt_trainer.data.questions import hash_of


def query_keys(texts: Iterable[str]) -> list[int]:
    """A 64-bit hash of the words of each query: equal whatever the capitals, the punctuation and the white space."""
    return [hash_of(folded(text)) for text in texts]


def count_known(texts: Iterable[str], known: Collection[int]) -> int:
    """How many of the queries are among those with the keys `known`."""
    return sum(key in known for key in query_keys(texts))
