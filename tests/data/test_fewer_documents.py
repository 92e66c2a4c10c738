"""A collection with fewer documents, against the rule by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nlt_trainer.data.beir import Collection, Document, Query
from nlt_trainer.data.fewer_documents import with_fewer_documents
from nlt_trainer.errors import NLTError


@pytest.fixture
def whole() -> Collection:
    """Documents of which BM25 finds d3, d4 and d5 for the first query and d6 for the second, in this order."""
    texts = ["moon", "bread", "owl owl owl", "owl owl stone", "owl river lamp", "silk silk", "glass", "tea", "honey"]
    corpus = {f"d{i}": Document(f"d{i}", "", text) for i, text in enumerate(texts, start=1)}
    queries = {"q1": Query("q1", "owl"), "q2": Query("q2", "silk"), "q3": Query("q3", "bread")}
    qrels = {"dev": {"q1": {"d9": 1}, "q2": {"d8": 1, "d1": 0}}, "test": {"q3": {"d2": 1}}}
    return Collection("whole", Path("whole"), corpus, queries, qrels)


def test_judged_documents_come_first_then_those_of_bm25(whole: Collection) -> None:
    """Reference: the order by hand: judged, then the first of each query before the second of any; the corpus's order
    stays."""
    order = ["d9", "d8", "d1", "d3", "d6", "d4", "d5"]
    for number in range(3, 8):
        found = with_fewer_documents(whole, split="dev", num_documents=number)
        assert list(found.corpus) == sorted(order[:number])
        assert (found.qrels, found.queries) == (whole.qrels, whole.queries)
    assert with_fewer_documents(whole, split="dev", num_documents=9) is whole


def test_judged_documents_that_the_corpus_lacks_take_no_place(whole: Collection) -> None:
    """Reference: the documents without that judgement."""
    judged = {"dev": {**whole.qrels["dev"], "q3": {"gone": 1}}, "test": {}}
    found, expected = (
        with_fewer_documents(replace(whole, qrels=qrels), split="dev", num_documents=5)
        for qrels in (judged, {"dev": {**whole.qrels["dev"], "q3": {"d9": 0}}})
    )
    assert found.corpus == expected.corpus


def test_the_seed_decides_the_rest(whole: Collection) -> None:
    """Reference: the two documents that are neither judged nor found, d2 and d7; a seed draws the same one again."""
    found = [set(with_fewer_documents(whole, split="dev", num_documents=8, seed=s).corpus) for s in (*range(9), 0)]
    assert {tuple({"d2", "d7"} & ids) for ids in found} == {("d2",), ("d7",)}
    assert found[0] == found[-1]


def test_fewer_documents_than_are_judged_are_refused(whole: Collection) -> None:
    """Reference: the numbers and the remedy in the message."""
    with pytest.raises(
        NLTError, match=r"dev_documents is 2, and 3 documents are judged .* 'dev'; set it to 3 at least"
    ):
        with_fewer_documents(whole, split="dev", num_documents=2)
