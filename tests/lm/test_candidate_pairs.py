"""Pairs that are put together when they are asked for, against lists; and their order."""

from __future__ import annotations

import numpy as np
import pytest

from nlt_trainer.errors import NLTError
from nlt_trainer.lm.candidate_pairs import CandidatePairs, Pair, document_major

QUERIES, ANSWERS = ["one", "two"], ["first", None]
CANDIDATES = [["a", "b", "c"], ["c", "d", "a"]]


@pytest.mark.parametrize("answers", [ANSWERS, None])
def test_pairs_are_those_of_a_list(answers: list[str | None] | None) -> None:
    """Reference: nested loops over queries and their candidates."""
    pairs = CandidatePairs(QUERIES, CANDIDATES, answers)
    expected = [
        (document, query, None if answers is None else answers[b])
        for b, query in enumerate(QUERIES)
        for document in CANDIDATES[b]
    ]
    assert list(pairs) == expected
    assert (len(pairs), pairs[4], pairs[-1], pairs[1:5:2]) == (6, expected[4], expected[-1], expected[1:5:2])
    with pytest.raises(IndexError):
        pairs[6]


def test_no_queries_and_no_documents() -> None:
    """Reference: an empty list, and a pair without a document for each query."""
    assert list(CandidatePairs([], [])) == []
    assert list(CandidatePairs(QUERIES, [[], []])) == []
    assert list(CandidatePairs(QUERIES, [[None]] * 2)) == [(None, "one", None), (None, "two", None)]


def test_lists_of_other_lengths_are_refused() -> None:
    """Reference: the message names the counts."""
    with pytest.raises(NLTError, match=r"different numbers of candidates; mine them again"):
        CandidatePairs(QUERIES, [["a"], ["a", "b"]])
    with pytest.raises(NLTError, match=r"2 queries have 1 lists of candidates and no answers; give one each"):
        CandidatePairs(QUERIES, [["a"]])
    with pytest.raises(NLTError, match=r"2 queries have 2 lists of candidates and 1 answers"):
        CandidatePairs(QUERIES, CANDIDATES, ["first"])


def test_pairs_of_a_document_follow_each_other() -> None:
    """Reference: a stable sort by the place where each document first comes."""
    draw = np.random.default_rng(0)
    pairs: list[Pair] = [([None, "a", "b", "c"][i], f"query {n}", None) for n, i in enumerate(draw.integers(0, 4, 60))]
    chosen = np.flatnonzero(draw.random(60) < 0.7)
    documents = [pairs[i][0] for i in chosen]
    expected = sorted(range(len(chosen)), key=lambda at: documents.index(documents[at]))
    assert document_major(pairs, chosen).tolist() == expected
    assert document_major(pairs, chosen[:0]).tolist() == []
