"""The training dataset: queries, the texts of their candidates, and the gains or labels that an objective needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from nlt_trainer.data.beir import Collection, Qrels
from nlt_trainer.data.candidates import QueryCandidates
from nlt_trainer.data.questions import text_key
from nlt_trainer.errors import NLTError


def training_dataset(
    collection: Collection,
    candidates: Sequence[QueryCandidates],
    *,
    gain: np.ndarray | None = None,
    likelihoods: Mapping[str, Sequence[Any]] | None = None,
    qrels: Qrels | None = None,
) -> Dataset:
    """Make a dataset with one row for each query.

    A row has `query` and `documents` (K texts), and `answer` if all queries have one. If they are given, it also has
    `gain` (K numbers), the columns of `likelihoods`, and from `qrels` the index `positive`. With `qrels`, and where a
    query is a document itself, it has `no_negatives`: the keys of the documents that are judged relevant, whether they
    are candidates or not, and of the query itself.

    Args:
        collection: where the documents' texts come from.
        candidates: B queries with K candidates each.
        gain: `(B, K)`, nats per target token.
        likelihoods: B values a column, as `read_likelihoods` reads them.
        qrels: judgements; queries without a relevant candidate are left out. Only labelled baselines use them.

    Raises:
        NLTError: no query is left.
    """
    rows = []
    answered = all(c.answer for c in candidates)
    owned = any(collection.own_document(c.query_id) is not None for c in candidates)
    for b, c in enumerate(candidates):
        row: dict[str, object] = {
            "query": c.query,
            "documents": [collection.corpus[document_id].content for document_id in c.document_ids],
        }
        if answered:
            row["answer"] = c.answer
        if gain is not None:
            row["gain"] = [float(g) for g in gain[b]]
        row |= {name: values[b] for name, values in (likelihoods or {}).items()}
        if qrels is not None:
            grades = [qrels.get(c.query_id, {}).get(document_id, 0) for document_id in c.document_ids]
            if max(grades) <= 0:
                continue
            row["positive"] = int(np.argmax(grades))
        if qrels is not None or owned:
            row["no_negatives"] = _no_negatives(collection, c.query_id, qrels or {})
        rows.append(row)
    if not rows:
        raise NLTError("no query has a relevant candidate; mine more candidates or train without labels")
    return Dataset.from_list(rows)


def _no_negatives(collection: Collection, query_id: str, qrels: Qrels) -> list[int]:
    """Keys of the texts that are no negatives of a query, wherever in a batch they stand."""
    relevant = [document_id for document_id, grade in qrels.get(query_id, {}).items() if grade > 0]
    ids = [*relevant, collection.own_document(query_id)]
    return [text_key(collection.corpus[i].content) for i in ids if i is not None and i in collection.corpus]


def relevance(candidates: Sequence[QueryCandidates], qrels: Qrels) -> np.ndarray:
    """Mark the candidates that are judged relevant: `(B, K)` bool."""
    return np.array([[qrels.get(c.query_id, {}).get(d, 0) > 0 for d in c.document_ids] for c in candidates])
