"""The training dataset: rows as collection, candidates, gains and judgements have them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nlt_trainer.data.beir import Collection, load_collection
from nlt_trainer.data.candidates import QueryCandidates
from nlt_trainer.data.questions import text_key
from nlt_trainer.data.training import relevance, training_dataset
from nlt_trainer.errors import NLTError

CANDIDATES = [
    QueryCandidates("q1", "which animal is the largest of all", "the blue whale", ("d02", "d01"), (1.0, 0.0)),
    QueryCandidates("q2", "why does bread rise", None, ("d03", "d04"), (1.0, 0.0)),
]
QRELS = {"q1": {"d01": 1, "d05": 1}, "q2": {"d07": 1, "d03": 0}}


@pytest.fixture
def collection(tiny_collection_folder: Path) -> Collection:
    return load_collection(tiny_collection_folder)


def test_rows_hold_texts_and_gains(collection: Collection) -> None:
    """Reference: contents of the collection's documents, in the candidates' order; all queries stay."""
    gain = np.array([[0.5, -0.25], [0.0, 1.0]])
    dataset = training_dataset(collection, CANDIDATES, gain=gain)
    assert dataset.column_names == ["query", "documents", "gain"]
    for row, candidates, values in zip(dataset, CANDIDATES, gain, strict=True):
        assert row["query"] == candidates.query
        assert row["documents"] == [collection.corpus[d].content for d in candidates.document_ids]
        assert row["gain"] == values.tolist()


def test_answers_are_a_column_where_all_queries_have_one(collection: Collection) -> None:
    """Reference: the answers; the trainer's model card cannot read a column of which some values are missing."""
    assert training_dataset(collection, CANDIDATES).column_names == ["query", "documents"]
    answered = [CANDIDATES[0], dataclasses.replace(CANDIDATES[1], answer="yeast")]
    assert training_dataset(collection, answered)["answer"][:] == ["the blue whale", "yeast"]


def test_likelihoods_are_columns_of_their_own(collection: Collection) -> None:
    """Reference: the values, query by query, also where queries without a label are left out."""
    columns: dict[str, Any] = {"target_tokens": [3, 5], "token_log_likelihoods": [[[-1.0, -2.0]] * 2, [[-3.0]] * 2]}
    dataset = training_dataset(collection, CANDIDATES, likelihoods=columns)
    assert {name: dataset[name][:] for name in columns} == columns
    labelled = training_dataset(collection, CANDIDATES[::-1], likelihoods=columns, qrels=QRELS)
    assert labelled["target_tokens"][:] == [5]


def test_labels_name_the_best_judged_candidate(collection: Collection) -> None:
    """Reference: the judgements; a query whose candidates are all judged 0 or not at all is left out."""
    dataset = training_dataset(collection, CANDIDATES, qrels=QRELS)
    assert dataset["query"][:] == [CANDIDATES[0].query]
    assert dataset["positive"][:] == [1]
    graded = training_dataset(collection, CANDIDATES, qrels={"q1": {"d02": 1, "d01": 2}, "q2": {"d03": 1}})
    assert graded["positive"][:] == [1, 0]


def test_documents_judged_relevant_and_the_query_itself_are_no_negatives(collection: Collection) -> None:
    """Reference: the judgements; d05 is no candidate, `gone` no document of the corpus, and d03 is not relevant."""
    candidates = [dataclasses.replace(CANDIDATES[0], query_id="d04"), CANDIDATES[1]]
    judged = {"d04": {"d01": 1, "d05": 2, "d03": 0, "gone": 1}, "q2": {"d03": 1, "d04": 1}}
    found = training_dataset(collection=dataclasses.replace(collection, qrels={}), candidates=candidates, qrels=judged)
    texts = {"d04": ["d01", "d05", "d04"], "q2": ["d03", "d04"]}
    assert found["no_negatives"][:] == [
        [text_key(collection.corpus[i].content) for i in ids] for ids in texts.values()
    ]


def test_a_query_that_is_a_document_is_no_negative_of_its_own_without_labels(collection: Collection) -> None:
    """Reference: the key of that document alone; rows of a collection without such a query have no column."""
    candidates = [dataclasses.replace(CANDIDATES[0], query_id="d04"), CANDIDATES[1]]
    found = training_dataset(collection=dataclasses.replace(collection, qrels={}), candidates=candidates)
    assert found["no_negatives"][:] == [[text_key(collection.corpus["d04"].content)], []]


def test_no_labelled_query_is_refused(collection: Collection) -> None:
    """Reference: the remedy in the message."""
    with pytest.raises(NLTError, match=r"no query has a relevant candidate; mine more candidates or train without"):
        training_dataset(collection, CANDIDATES, qrels={"q1": {"d05": 1}})


def test_relevance_is_a_positive_grade() -> None:
    """Reference: the judgements, by hand."""
    assert relevance(CANDIDATES, QRELS).tolist() == [[False, True], [False, False]]
