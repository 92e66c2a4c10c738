"""The collection that `nlt adapt` trains on: the documents' passages, and queries of which some are held out."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Collection, Sequence
from pathlib import Path

from nlt_trainer.arguments.adapt import LEAST_HELD_OUT
from nlt_trainer.arguments.data import DataArguments
from nlt_trainer.arguments.model import ModelArguments
from nlt_trainer.assembly.gains import load_gains
from nlt_trainer.data.beir import Document, Qrels, Query, load_collection, write_collection, write_qrels
from nlt_trainer.data.candidates import read_candidates
from nlt_trainer.errors import NLTError
from nlt_trainer.queries.excerpts import is_code
from nlt_trainer.terminal import say

TRAIN, HELD_OUT, DEV = "train", "held_out", "dev"
"""The splits. Of `train` only the queries are read, and no judgement. `dev` is half of `held_out`."""
SHARE = 0.25
"""The largest share of the queries that is held out."""


def write_query_collection(
    folder: Path, corpus: Sequence[Document], queries: Sequence[Query], *, held_out: int, most: int | None, seed: int
) -> None:
    """Write a collection of documents and of queries that people have typed.

    Nothing is known of what is relevant to them. The files of both splits therefore name each query with one document
    of grade 0, which says that nothing is judged; `judge_held_out` fills in the held-out queries. Answers are written
    only if every query has one, so that the LLM predicts the same of the queries of both splits.

    Args:
        folder: BEIR folder to write.
        corpus: the documents.
        queries: the queries.
        held_out: number of queries to hold out; at most a quarter is held out.
        most: number of queries to take of all, drawn by seed; `None` takes all.
        seed: of the draw and of the division.

    Raises:
        NLTError: there are too few queries.
    """
    if most is not None and most < len(queries):
        drawn = sorted(random.Random(seed).sample(range(len(queries)), most))
        say(f"{most:,} of {len(queries):,} queries drawn; --num_queries takes more")
        queries = [queries[i] for i in drawn]
    without = sum(query.answer is None for query in queries)
    if 0 < without < len(queries):
        say(f"{without:,} of {len(queries):,} queries have no answer, so that the answers of the others are left out")
        queries = [Query(query.id, query.text) for query in queries]
    number = min(held_out, int(SHARE * len(queries)))
    if number < LEAST_HELD_OUT:
        raise NLTError(
            f"{len(queries)} queries are too few to train on some and decide on others; give at least "
            f"{int(LEAST_HELD_OUT / SHARE)}, or leave queries out, so that they are made from the documents"
        )
    order = sorted(queries, key=lambda query: hashlib.sha256(f"{seed}:{query.id}".encode()).digest())
    out = {query.id for query in order[:number]}
    nothing = {corpus[0].id: 0}
    qrels = {
        TRAIN: {query.id: nothing for query in queries if query.id not in out},
        HELD_OUT: {query.id: nothing for query in queries if query.id in out},
    }
    write_collection(folder, corpus=corpus, queries=queries, qrels=qrels, stage="nlt make_queries")


def mostly_code(passages: Collection[Document]) -> bool:
    """Whether more than half of the passages are source code."""
    return 2 * sum(is_code(passage.text) for passage in passages) > len(passages)


def check_made(folder: Path) -> None:
    """Refuse a collection of made queries of which too few are held out.

    Raises:
        NLTError: names their number and the remedy.
    """
    number = len(load_collection(folder, splits=[HELD_OUT]).split_qrels(HELD_OUT))
    if number < LEAST_HELD_OUT:
        raise NLTError(
            f"{number} made queries could be held out, and fewer than {LEAST_HELD_OUT} decide nothing; give more "
            "documents, raise num_queries, or give queries of your own"
        )


def judge_held_out(model: ModelArguments, data: DataArguments) -> None:
    """Judge held-out queries by the LLM: the candidate with the highest gain counts as relevant.

    No person has judged them. A query whose best gain is not positive gets a grade of 0 and has no say in a decision.
    Nothing of BM25 is mixed into these gains, because BM25 is one of the systems that are compared.

    Args:
        model: the block `model:`, with which the gains were computed.
        data: names the collection, whose file of held-out judgements is replaced, and the candidates and gains of the
            held-out queries.

    Raises:
        NLTError: too few queries have a candidate of positive gain, or the gains are refused, see `load_gains`.
    """
    collection = load_collection(data.collection, splits=[HELD_OUT])
    found = read_candidates(data.candidates, collection)
    gain = load_gains(model, data, collection=collection, candidates=found)
    judged = {
        c.query_id: {c.document_ids[row.argmax()]: int(row.max() > 0)} for c, row in zip(found, gain, strict=True)
    }
    usable = sum(any(grades.values()) for grades in judged.values())
    if usable < LEAST_HELD_OUT:
        raise NLTError(
            f"{data.gains}: the LLM can judge {usable} of {len(judged)} held-out queries, those that a candidate "
            f"makes easier to predict, and fewer than {LEAST_HELD_OUT} decide nothing; give more queries with a "
            "larger held_out, choose another llm, or leave queries out, so that they are made from the documents"
        )
    write_qrels(Path(data.collection), {HELD_OUT: judged})


def write_dev(folder: Path) -> None:
    """Write every second judged held-out query as a split of its own, on which training may choose weights.

    The others decide. A query that has a say in both would favour the trained encoder.

    Raises:
        NLTError: too few queries would be left to decide.
    """
    judged = judged_queries(folder, HELD_OUT)
    if len(judged) < 2 * LEAST_HELD_OUT:
        raise NLTError(
            f"{len(judged)} held-out queries are judged, and half of them choose weights (average_with_start: auto, "
            f"or the best checkpoint); {2 * LEAST_HELD_OUT} are needed: raise held_out, or leave the choice out"
        )
    write_qrels(folder, {DEV: {query: judged[query] for query in list(judged)[::2]}})


def judged_queries(folder: Path, split: str) -> Qrels:
    """The judgements of a split's queries that have a relevant document."""
    found = load_collection(folder, splits=[split]).split_qrels(split)
    return {query: grades for query, grades in found.items() if any(grades.values())}
