"""Compare an encoder before and after training, query by query: which queries training has improved or harmed."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytrec_eval

from nlt_trainer.arguments.model import start_options
from nlt_trainer.data.beir import Collection, Document, Query, load_collection
from nlt_trainer.data.fewer_documents import with_fewer_documents
from nlt_trainer.encoder.loading import load_encoder
from nlt_trainer.errors import NLTError
from nlt_trainer.report.comparison import SearchIndex, ranks
from nlt_trainer.run.folder import Run

QUERY_CHUNK = 32
"""Number of queries whose similarities to the whole corpus are in memory at once."""

TOP_K = 10

KEPT = "The encoder that you had is kept, so no query finds more or less"
"""Stands in place of the comparison where `nlt adapt` has kept the start."""


@dataclass(frozen=True)
class Outcome:
    """How well an encoder ranks the documents for one query.

    Args:
        ndcg: nDCG@10.
        rank: rank of the best relevant document in the whole corpus, from 1; `None` if it has none.
        first: the document that the encoder ranks first.
    """

    ndcg: float
    rank: int | None
    first: Document


@dataclass(frozen=True)
class QueryChange:
    """One query before and after training.

    Args:
        query: the query.
        relevant: a relevant document with the query's highest grade in the corpus; `None` if it has none.
        before: outcome with the encoder before training.
        after: outcome with the trained encoder.
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
    """Compute the outcome of each query of a split: query id -> outcome.

    As everywhere in this project, nDCG is that of trec_eval: among equal scores the document with the greater id comes
    first. A document that is the query itself is not found, see `Collection.own_document`.

    Args:
        index: the collection's corpus, embedded by the encoder.
        collection: the collection, with the qrels of the split.
        split: the split whose queries are searched for.

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
            if (own := collection.own_document(query.id)) is not None:
                scores[numbers[own]] = -np.inf
            place = ranks(scores)
            last = scores[place <= TOP_K].min()  # trec_eval may put any document with this score among the first
            first = np.flatnonzero(np.isfinite(scores) & (scores >= last))
            run = {index.documents[i].id: float(scores[i]) for i in first}
            relevant = [numbers[d] for d, grade in qrels[query.id].items() if grade > 0 and d in numbers]
            found[query.id] = Outcome(
                evaluator.evaluate({query.id: run})[query.id][f"ndcg_cut_{TOP_K}"],
                int(place[relevant].min()) if relevant else None,
                index.documents[place.argmin()],
            )
    return found


def query_changes(before: SearchIndex, after: SearchIndex, collection: Collection, split: str) -> list[QueryChange]:
    """Every query of a split before and after training, the most improved first; ties are in the collection's order.

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
    relevant = [document_id for document_id, grade in grades.items() if grade > 0 and document_id in collection.corpus]
    return collection.corpus[max(relevant, key=lambda key: grades[key])] if relevant else None


def that_decide(collection: Collection, split: str, dev: str | None) -> Collection:
    """The same collection with judgements of those queries of a split alone by which `nlt adapt` decides.

    They have a relevant document, and are not among the queries of another split `dev`, on which training chooses what
    it saves.
    """
    chosen_on = {} if dev in (None, split) else collection.split_qrels(str(dev))
    judged = collection.split_qrels(split).items()
    decide = {query: grades for query, grades in judged if any(grades.values()) and query not in chosen_on}
    return replace(collection, qrels={split: decide})


def ndcg_in_training(run: Run, index: SearchIndex, collection: Collection, split: str) -> float:
    """Mean nDCG@10 of an encoder as training measures it: with `dev_documents`, few documents are searched.

    Args:
        run: the run whose training it is compared with.
        index: the whole corpus, embedded by the encoder.
        collection: the collection, with all its judgements.
        split: the run's `dev_split`.
    """
    if (number := run.settings["data"].get("dev_documents")) is not None:
        collection = with_fewer_documents(collection, split=split, num_documents=number, seed=run.report["seed"])
        index = index.within(collection.corpus)
    return float(np.mean([outcome.ndcg for outcome in outcomes(index, collection, split).values()]))


@dataclass(frozen=True)
class RunChange:
    """How a run has changed its encoder.

    Args:
        run: the run.
        split: the split whose queries are compared; `None` if no queries are judged.
        changes: every query of the split, the most improved first; empty if they could not be compared.
        note: the reason why they could not be compared.
        start_ndcg: nDCG@10 of the encoder before training on the dev queries, see `ndcg_in_training`; `None` if it is
            not known.
    """

    run: Run
    split: str | None
    changes: list[QueryChange]
    note: str = ""
    start_ndcg: float | None = None

    @property
    def counts(self) -> dict[str, int]:
        """Number of queries that improved, stayed the same, or became worse."""
        signs = np.sign([change.difference for change in self.changes])
        return {name: int((signs == sign).sum()) for name, sign in (("improved", 1), ("unchanged", 0), ("harmed", -1))}

    @property
    def means(self) -> tuple[float, float]:
        """Mean nDCG@10 over all queries, before and after training."""
        before, after = np.mean([(change.before.ndcg, change.after.ndcg) for change in self.changes], axis=0)
        return float(before), float(after)


class RunComparer:
    """Compares the encoders of runs before and after training. What several runs share is read and embedded once.

    Documents are embedded in bfloat16 where the run's setting `bf16_full_eval` says so.

    Args:
        embeddings: folder in which embeddings are kept; `None` means the user's cache.
    """

    def __init__(self, embeddings: str | Path | None = None) -> None:
        self.embeddings = embeddings
        self._load = cache(load_collection)
        self._starts: dict[str, SearchIndex] = {}

    def compare(self, run: Run) -> RunChange:
        """Compare on the split on which `evaluate` reports, or else on the dev split.

        If the collection or an encoder no longer exists, or `nlt adapt` has kept the start, the result only has a note
        that says so. Of the held-out queries of `nlt adapt` only those count that decide.
        """
        data = run.settings["data"]
        dev, split = data["dev_split"], data["eval_split"] or data["dev_split"]
        if split is None:
            return RunChange(run, None, [], "Not compared: eval_split and dev_split are null, no queries are judged")
        try:
            collection = self._load(data["collection"], splits=tuple(sorted({split, dev or split})))
            bf16 = run.settings["trainer"].get("bf16_full_eval", False)
            start = self._start(run.settings["model"], collection, bf16=bf16)
            encoder = load_encoder(str(run.encoder))
            start_ndcg = None if dev is None else ndcg_in_training(run, start, collection, dev)
            if run.decision is not None:
                collection = that_decide(collection, split, dev)
            if run.keeps_start:
                return RunChange(run, split, [], KEPT, start_ndcg)
            after = SearchIndex("after", encoder, collection.corpus, cache=self.embeddings, bf16=bf16)
            return RunChange(run, split, query_changes(start, after, collection, split), start_ndcg=start_ndcg)
        except NLTError as error:
            return RunChange(run, split, [], f"Not compared: {error}")

    def _start(self, model: dict[str, Any], collection: Collection, *, bf16: bool) -> SearchIndex:
        """The collection's corpus, embedded by the encoder from which the run started."""
        name, options = model["encoder"], start_options(model)
        key = json.dumps([str(collection.folder), name, options, bf16])
        if key not in self._starts:
            encoder = load_encoder(name, **options)
            self._starts[key] = SearchIndex("before", encoder, collection.corpus, cache=self.embeddings, bf16=bf16)
        return self._starts[key]
