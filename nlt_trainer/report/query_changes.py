"""Query by query: what an encoder finds after training that it did not find before, and the reverse."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytrec_eval

from nlt_trainer.data.beir import Collection, Document, Query, load_collection
from nlt_trainer.encoder.loading import load_encoder
from nlt_trainer.errors import NLTError
from nlt_trainer.report.comparison import SearchIndex, ranks
from nlt_trainer.run.folder import Run

QUERY_CHUNK = 32
"""Queries whose similarities to the whole corpus are held at once."""

TOP_K = 10


@dataclass(frozen=True)
class Outcome:
    """What an encoder makes of one query.

    Args:
        ndcg: nDCG@10.
        rank: of the best relevant document in the whole corpus, from 1; `None` where none is judged relevant.
        first: the document that it puts first.
    """

    ndcg: float
    rank: int | None
    first: Document


@dataclass(frozen=True)
class QueryChange:
    """One query before and after training.

    Args:
        query: the query.
        relevant: a document with its highest grade; `None` where none is judged relevant.
        before: what the start makes of it.
        after: what the trained encoder makes of it.
    """

    query: Query
    relevant: Document | None
    before: Outcome
    after: Outcome

    @property
    def difference(self) -> float:
        """Change of nDCG@10."""
        return self.after.ndcg - self.before.ndcg


def outcomes(index: SearchIndex, collection: Collection, split: str) -> dict[str, Outcome]:
    """What an encoder makes of each query of a split: query id -> outcome.

    nDCG is trec_eval's, as everywhere in this project: of equal scores the document with the greater id stands first.

    Args:
        index: the encoder over the collection's corpus.
        collection: the collection, with the qrels of the split.
        split: whose queries are asked.

    Raises:
        DataError: the collection has no such split.
    """
    qrels = collection.split_qrels(split)
    evaluator = pytrec_eval.RelevanceEvaluator(qrels, {f"ndcg_cut.{TOP_K}"})
    numbers = {document.id: number for number, document in enumerate(index.documents)}
    found: dict[str, Outcome] = {}
    queries = collection.split_queries(split)
    for start in range(0, len(queries), QUERY_CHUNK):
        chunk = queries[start : start + QUERY_CHUNK]
        for query, scores in zip(chunk, index.scores([query.text for query in chunk]), strict=True):  # (N,)
            place = ranks(scores)
            last = scores[place <= TOP_K].min()  # whatever scores as much may stand among the first for trec_eval
            run = {index.documents[i].id: float(scores[i]) for i in np.flatnonzero(scores >= last)}
            relevant = [numbers[document_id] for document_id, grade in qrels[query.id].items() if grade > 0]
            found[query.id] = Outcome(
                evaluator.evaluate({query.id: run})[query.id][f"ndcg_cut_{TOP_K}"],
                int(place[relevant].min()) if relevant else None,
                index.documents[place.argmin()],
            )
    return found


def query_changes(before: SearchIndex, after: SearchIndex, collection: Collection, split: str) -> list[QueryChange]:
    """Every query of a split before and after training, the most improved first; equal ones in the collection's order.

    Raises:
        DataError: the collection has no such split.
    """
    old, new = (outcomes(index, collection, split) for index in (before, after))
    qrels = collection.split_qrels(split)
    changes = [
        QueryChange(query, _relevant(collection, qrels[query.id]), old[query.id], new[query.id])
        for query in collection.split_queries(split)
    ]
    return sorted(changes, key=lambda change: -change.difference)


def _relevant(collection: Collection, grades: dict[str, int]) -> Document | None:
    document_id = max(grades, key=lambda key: grades[key])
    return collection.corpus[document_id] if grades[document_id] > 0 else None


@dataclass(frozen=True)
class RunChange:
    """How a run has changed its encoder.

    Args:
        run: the run.
        split: whose queries are compared; `None` where no queries are judged.
        changes: every query of it, the most improved first; none where they could not be compared.
        note: why they could not.
        start_ndcg: nDCG@10 of the start on the dev queries; `None` where it is not known.
    """

    run: Run
    split: str | None
    changes: list[QueryChange]
    note: str = ""
    start_ndcg: float | None = None

    @property
    def counts(self) -> dict[str, int]:
        """How many queries became better, stayed as they were, or became worse."""
        signs = np.sign([change.difference for change in self.changes])
        return {name: int((signs == sign).sum()) for name, sign in (("improved", 1), ("unchanged", 0), ("harmed", -1))}

    @property
    def means(self) -> tuple[float, float]:
        """nDCG@10 before and after, over all queries."""
        before, after = np.mean([(change.before.ndcg, change.after.ndcg) for change in self.changes], axis=0)
        return float(before), float(after)


class RunComparer:
    """Compares runs with their starts; what several of them share is read and embedded once.

    Args:
        embeddings: folder in which embeddings are kept; `None` means the user's cache.
    """

    def __init__(self, embeddings: str | Path | None = None) -> None:
        self.embeddings = embeddings
        self._load = cache(load_collection)
        self._starts: dict[str, SearchIndex] = {}

    def compare(self, run: Run) -> RunChange:
        """Compare on the split that `evaluate` reports on, else on the dev split.

        Where the collection or an encoder is gone, a note says so.
        """
        data = run.settings["data"]
        dev, split = data["dev_split"], data["eval_split"] or data["dev_split"]
        if split is None:
            return RunChange(run, None, [], "Not compared: eval_split and dev_split are null, no queries are judged")
        try:
            collection = self._load(data["collection"], splits=tuple(sorted({split, dev or split})))
            start = self._start(run.settings["model"], collection)
            encoder = load_encoder(str(run.encoder))
            after = SearchIndex("after", encoder, collection.corpus, cache=self.embeddings)
            at_start = outcomes(start, collection, dev) if dev is not None else {}
            return RunChange(
                run,
                split,
                query_changes(start, after, collection, split),
                start_ndcg=float(np.mean([outcome.ndcg for outcome in at_start.values()])) if at_start else None,
            )
        except NLTError as error:
            return RunChange(run, split, [], f"Not compared: {error}")

    def _start(self, model: dict[str, Any], collection: Collection) -> SearchIndex:
        """What the run started from, over the collection's corpus."""
        name, options = (
            model["encoder"],
            {
                "revision": model["encoder_revision"],
                "prompts": model["encoder_prompts"],
                "max_seq_length": model["max_seq_length"],
                "pooling": model["pooling"],
            },
        )
        key = json.dumps([str(collection.folder), name, options])
        if key not in self._starts:
            encoder = load_encoder(name, **options)
            self._starts[key] = SearchIndex("before", encoder, collection.corpus, cache=self.embeddings)
        return self._starts[key]
