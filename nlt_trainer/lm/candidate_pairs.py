"""Pairs of a document and a query (with its answer, if it has one), and the order in which a scorer reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np

from nlt_trainer.errors import NLTError

Pair = tuple[str | None, str, str | None]
"""A document (`None` for no document), a query, and its answer (`None` where it has none)."""


class CandidatePairs(Sequence[Pair]):
    """All pairs of a query and one of its K candidates, query-major (pair `b * K + k`), each built when it is read.

    Args:
        queries: B texts.
        candidates: B lists of K documents; `None` stands for no document.
        answers: B texts; `None` where no query has an answer.

    Raises:
        NLTError: the lists differ in length.
    """

    def __init__(
        self,
        queries: Sequence[str],
        candidates: Sequence[Sequence[str | None]],
        answers: Sequence[str | None] | None = None,
    ) -> None:
        if len({len(c) for c in candidates}) > 1:
            raise NLTError("queries have different numbers of candidates; mine them again with one num_candidates")
        if len(candidates) != len(queries) or (answers is not None and len(answers) != len(queries)):
            given = "no" if answers is None else len(answers)
            raise NLTError(
                f"{len(queries)} queries have {len(candidates)} lists of candidates and {given} answers; give one each"
            )
        self._queries, self._candidates, self._answers = queries, candidates, answers
        self._k = len(candidates[0]) if len(candidates) else 0

    def __len__(self) -> int:
        return len(self._queries) * self._k

    @overload
    def __getitem__(self, index: int) -> Pair: ...

    @overload
    def __getitem__(self, index: slice) -> list[Pair]: ...

    def __getitem__(self, index: int | slice) -> Pair | list[Pair]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        b, k = divmod(range(len(self))[index], self._k)
        return self._candidates[b][k], self._queries[b], None if self._answers is None else self._answers[b]


def document_major(pairs: Sequence[Pair], chosen: np.ndarray) -> np.ndarray:
    """Find an order in which the pairs of one document stand together; documents keep the order of their first pairs.

    Args:
        pairs: any number.
        chosen: `(N,)` indices of the pairs to put in order, ascending.

    Returns:
        `(N,)` positions in `chosen`.
    """
    # Two documents with the same hash are treated as one. Their pairs may alternate, which is slower but not wrong.
    hashes = np.fromiter((hash(pairs[i][0]) for i in chosen), np.int64, len(chosen))
    _, first, document = np.unique(hashes, return_index=True, return_inverse=True)
    return np.argsort(first[document], kind="stable")
