"""Find passages that say the same as an earlier one."""

from __future__ import annotations

from rensa import RMinHash, RMinHashDeduplicator

from nlt_trainer.documents.words import words

SIMILARITY = 0.9
"""Jaccard similarity of the shingles of two texts from which one stands for the other."""
SHINGLE = 5
"""Words of a shingle."""
HASHES, BANDS, SEED = 128, 16, 42
"""Of MinHash: a pair of similarity 0.9 meets in one of the 16 bands in 9,998 of 10,000 cases. The standard error of a
similarity of 0.9 that 128 hashes estimate is 0.027."""


class Duplicates:
    """Remembers passages. Upper and lower case, spaces and punctuation make no difference."""

    def __init__(self) -> None:
        self._known = RMinHashDeduplicator(SIMILARITY, HASHES, True, BANDS, SEED)
        self._ids: list[str] = []

    def stands_for(self, passage_id: str, text: str) -> str | None:
        """Return the id of the first passage that a text is a duplicate of; else remember it and return `None`."""
        found = words(text.casefold())
        shingles = [" ".join(found[i : i + SHINGLE]) for i in range(max(1, len(found) - SHINGLE + 1))]
        sketch = RMinHash(HASHES, SEED)
        sketch.update(shingles)
        if same := self._known.get_duplicates(sketch):
            return self._ids[min(map(int, same))]
        self._known.add(str(len(self._ids)), sketch)
        self._ids.append(passage_id)
        return None
