"""A BEIR or TREC folder as a task of mteb."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from datasets import Dataset
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata

from nlt_trainer.data.beir import Collection
from nlt_trainer.data.trec import load_folder

METRICS = ("ndcg_at_10", "mrr_at_10", "recall_at_100")
TOP_K = 100

Part = tuple[str, str]
"""Split and subset of a task; a folder's subset is `default`."""


class BEIRFolderRetrieval(AbsTaskRetrieval):
    """A BEIR or TREC folder as a retrieval task of mteb; nothing is downloaded.

    Titles are joined to texts as `Document.content` does it, so encoders see in evaluation what they saw in training.
    A document that is the query itself counts as not found, as in mteb's ArguAna, see `Collection.own_document`.
    The task's dataset revision is a hash of the data, so results of other data are never taken for its own.
    Like every task of mteb it seeds the global random generators when it is made.

    Args:
        collection: a collection, or the folder to read.
        split: the qrels to evaluate on.

    Raises:
        DataError: a malformed folder, or one without such a split.

    Example:
        ```python
        import mteb
        from sentence_transformers import SentenceTransformer

        task = BEIRFolderRetrieval("data/scifact", split="test")
        mteb.evaluate(SentenceTransformer("all-MiniLM-L6-v2"), task, cache=None)
        ```
    """

    k_values: tuple[int, ...] = (1, 10, TOP_K)

    def __init__(self, collection: Collection | str | Path, *, split: str = "test"):
        self.collection = as_collection(collection, split)
        self.split = split
        self.ignore_identical_ids = any(
            self.collection.own_document(query.id) for query in self.collection.split_queries(split)
        )
        if self.ignore_identical_ids:  # one document more is searched for, which may be the query itself
            self.k_values = (*self.k_values, TOP_K + 1)
        self.metadata = TaskMetadata(
            name=f"{self.collection.name}-{split}",
            description=f"Retrieval on the {split} split of a folder.",
            dataset={"path": str(self.collection.folder), "revision": _fingerprint(self.collection, split)},
            type="Retrieval",
            category="t2t",
            eval_splits=[split],
            eval_langs=["eng-Latn"],
            main_score=METRICS[0],
        )
        super().__init__()

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
        """Fill `self.dataset` from the collection; called by mteb."""
        documents = self.collection.corpus.values()
        queries = self.collection.split_queries(self.split)
        self.dataset = {
            "default": {
                self.split: {
                    "corpus": Dataset.from_dict(
                        {"id": [document.id for document in documents], "text": [d.content for d in documents]}
                    ),
                    "queries": Dataset.from_dict(
                        {"id": [query.id for query in queries], "text": [query.text for query in queries]}
                    ),
                    "relevant_docs": {
                        query_id: dict(grades) for query_id, grades in self.collection.split_qrels(self.split).items()
                    },
                    "top_ranked": None,
                }
            }
        }
        self.data_loaded = True

    def unload_data(self) -> None:
        """Drop the dataset; called by mteb, whose own version also drops metadata that belongs to an instance."""
        if self.data_loaded:
            del self.dataset
            self.data_loaded = False


def as_collection(collection: Collection | str | Path, split: str) -> Collection:
    """The collection itself if it was read already, else the one that is read from the folder. It has the split."""
    if isinstance(collection, Collection):
        collection.split_qrels(split)
        return collection
    return load_folder(collection, split=split)


def _fingerprint(collection: Collection, split: str) -> str:
    """Return a hash of everything that a result on this split depends on."""
    digest = hashlib.sha256()
    for document in collection.corpus.values():
        digest.update(repr((document.id, document.content)).encode())
    for query in collection.split_queries(split):
        digest.update(repr((query.id, query.text)).encode())
    digest.update(repr(collection.split_qrels(split)).encode())
    return digest.hexdigest()
