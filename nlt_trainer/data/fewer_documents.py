"""A collection with fewer documents, for evaluations that have to be quick."""

from __future__ import annotations

import dataclasses
import random
from itertools import chain, zip_longest

from nlt_trainer.data.beir import Collection
from nlt_trainer.data.bm25 import bm25_rankings
from nlt_trainer.errors import NLTError

HARD_NEGATIVES = 10
"""Number of BM25's documents of each query that are taken before others."""


def with_fewer_documents(collection: Collection, *, split: str, num_documents: int, seed: int = 0) -> Collection:
    """The collection with so many documents, in the order of its corpus.

    All that are judged for the split's queries are among them. Then come BM25's best documents of each query, the
    first of every query before the second of any, and then documents that are drawn at random.

    Args:
        collection: the whole collection; one that has no more documents is returned as it is.
        split: the qrels whose queries will be evaluated.
        num_documents: the number of documents.
        seed: of the random documents.

    Raises:
        NLTError: more documents are judged.
    """
    if num_documents >= len(collection.corpus):
        return collection
    named = dict.fromkeys(chain.from_iterable(collection.split_qrels(split).values()))
    judged = [document_id for document_id in named if document_id in collection.corpus]
    if len(judged) > num_documents:
        raise NLTError(
            f"dev_documents is {num_documents}, and {len(judged)} documents are judged for the queries of split "
            f"{split!r}; set it to {len(judged)} at least"
        )
    rankings = bm25_rankings(collection, collection.split_queries(split), top_k=HARD_NEGATIVES).values()
    hard = (found for found in chain.from_iterable(zip_longest(*rankings)) if found is not None)
    drawn = random.Random(seed).sample(list(collection.corpus), len(collection.corpus))
    chosen = set(list(dict.fromkeys([*judged, *hard, *drawn]))[:num_documents])
    return dataclasses.replace(collection, corpus={i: d for i, d in collection.corpus.items() if i in chosen})
