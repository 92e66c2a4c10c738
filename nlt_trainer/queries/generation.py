"""Make queries of passages with a frozen LLM: written in several kinds, cleaned and filtered."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import islice

from nlt_trainer.data.beir import Document, Query
from nlt_trainer.data.questions import hash_of
from nlt_trainer.queries.cleaning import cleaned
from nlt_trainer.queries.made import MadeQueries
from nlt_trainer.queries.prompts import KINDS
from nlt_trainer.queries.sources import spread
from nlt_trainer.queries.writer import Job, QueryWriter

Filter = Callable[[Sequence[Query], Sequence[str]], Sequence[bool]]
"""Says of each query, given the ids of the passages they were written about, whether it is kept."""
EXPECTED_SHARE = 0.3
"""Share of written queries that are expected to be kept, before any were."""
MIN_WAVE = 32
"""Queries that are at least written before the filter runs, which indexes the corpus each time."""


def generate_queries(
    writer: QueryWriter, corpus: Mapping[str, Document], *, num_queries: int, keep: Filter, seed: int = 0
) -> tuple[MadeQueries, dict[str, Counter[str]]]:
    """Let an LLM write queries until enough are kept, or each passage has been asked for each kind.

    Args:
        writer: writes the texts.
        corpus: passage id -> passage; it is returned as it is.
        num_queries: the most queries to keep. They are spread over documents, and a passage gives a second kind only
            after every passage was asked for a first.
        keep: the filter, for example by `returns`.
        seed: of the order of passages and kinds.

    Returns:
        The queries, of the kinds in `KINDS`; fewer than wanted, or none, if the filter keeps no more. Beside them, for
        each kind, how many texts were `generated`, `cleaned` and `kept`.

    Raises:
        NLTError: as `QueryWriter.write`.
    """
    made, seen = MadeQueries(dict(corpus), {}, {}), set[str]()
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    jobs, asked = iter(_jobs(corpus, seed=seed)), 0
    while (missing := num_queries - len(made.queries)) > 0:
        share = max(len(made.queries) / asked, 0.05) if asked else EXPECTED_SHARE
        if not (wave := list(islice(jobs, max(MIN_WAVE, math.ceil(missing / share))))):
            break
        asked += len(wave)
        usable: list[tuple[Job, str]] = []
        for job, text in zip(wave, writer.write(wave), strict=True):
            counts[job.kind]["generated"] += 1
            query = cleaned(text, job.passage.content)
            if query is not None and query.casefold() not in seen:
                seen.add(query.casefold())
                counts[job.kind]["cleaned"] += 1
                usable.append((job, query))
        queries = [Query(f"{job.kind}:{job.passage.id}", query) for job, query in usable]
        for (job, query), kept in zip(usable, keep(queries, [job.passage.id for job, _ in usable]), strict=True):
            if kept and len(made.queries) < num_queries:
                made.add(job.kind, query, job.passage.id)
            counts[job.kind]["kept"] += kept
    return made, counts


def _jobs(corpus: Mapping[str, Document], *, seed: int) -> list[Job]:
    """All pairs of a passage and a kind: first one of each passage, with kinds in turn, then a second, and so on."""
    kinds, order = list(KINDS), spread((i for i in corpus if corpus[i].content), seed=seed)
    first = {passage_id: hash_of(f"{seed} {passage_id}") for passage_id in order}
    return [Job(kinds[(first[i] + turn) % len(kinds)], corpus[i]) for turn in range(len(kinds)) for i in order]
