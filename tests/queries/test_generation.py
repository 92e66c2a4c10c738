"""Queries that an LLM writes: which texts are queries, who is asked for what, and which queries lead back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from nlt_trainer.data.beir import Document, Query
from nlt_trainer.data.candidates import QueryCandidates
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.lm.scoring import LikelihoodScorer
from nlt_trainer.queries.cleaning import cleaned
from nlt_trainer.queries.generation import MIN_WAVE, generate_queries
from nlt_trainer.queries.prompts import EXAMPLES, KINDS
from nlt_trainer.queries.round_trip import returns
from nlt_trainer.queries.writer import Job, QueryWriter

CORPUS = {f"{d}.md#{p}": Document(f"{d}.md#{p}", "", f"Passage {d} {p}") for d in range(10) for p in range(4)}
PASSAGE = "Bees\nA honey bee visits\nmany flowers. It carries pollen."


class ScriptedWriter(QueryWriter):
    """Writes a text for each job without an LLM, and remembers the jobs."""

    def __init__(self, text: str = "what is said in {kind} {id}") -> None:
        self.text, self.asked = text, list[Job]()

    def write(self, jobs: Sequence[Job]) -> list[str]:
        self.asked += jobs
        return [self.text.format(kind=job.kind, id=job.passage.id) + "\n" for job in jobs]


def keep_all(queries: Sequence[Query], sources: Sequence[str]) -> list[bool]:
    return [True] * len(queries)


@pytest.mark.parametrize(
    ("written", "query"),
    [
        (" what do bees carry?\n", "what do bees carry?"),
        (' "Bees and  their pollen"\nPassage: more', "Bees and their pollen"),
        ("1. What do bees carry?\n", "What do bees carry?"),
        ("what do bees car", None),
        ("bees pollen pollen\n", None),
        ("how do you know what you know\n", "how do you know what you know"),
        ("two words\n", None),
        ("\n", None),
        ("word " * 41 + "\n", None),
        ("Passage: something about bees\n", None),
        ("Title: something about bees\n", None),
        ("a honey bee visits many flowers\n", None),
        ("It carries pollen.\n", None),
        (f" {EXAMPLES[0]['question']}\n", None),
        ("ミツバチは何を運びますか\n", "ミツバチは何を運びますか"),
    ],
)
def test_what_is_a_query_in_a_written_text(written: str, query: str | None) -> None:
    """Reference: cleaned by hand: cut off, too short, too long, an echo of the prompt or a copy is none."""
    assert cleaned(written, PASSAGE) == query


def test_each_passage_is_asked_once_before_any_is_asked_twice() -> None:
    """Reference: 40 passages of 10 documents and four kinds, of which every passage gives each once."""
    writer = ScriptedWriter()
    made, counts = generate_queries(writer, CORPUS, num_queries=1000, keep=keep_all)
    ids = [job.passage.id for job in writer.asked]
    assert sorted(ids[:40]) == sorted(CORPUS)
    assert len({i.split("#")[0] for i in ids[:10]}) == 10
    assert {(job.kind, job.passage.id) for job in writer.asked} == {(kind, i) for kind in KINDS for i in CORPUS}
    assert len({job.kind for job in writer.asked[:40]}) == len(KINDS)
    assert len(writer.asked) == len(made.queries) == 160
    assert counts == {kind: {"generated": 40, "cleaned": 40, "kept": 40} for kind in KINDS}
    assert all(made.sources[f"{job.kind}:{job.passage.id}"] == job.passage.id for job in writer.asked)


def test_empty_passages_are_not_asked() -> None:
    """Reference: each kind of the other passages."""
    writer = ScriptedWriter()
    generate_queries(writer, {**CORPUS, "empty": Document("empty", "", "")}, num_queries=1000, keep=keep_all)
    assert {job.passage.id for job in writer.asked} == set(CORPUS)


def test_no_more_is_written_than_is_wanted() -> None:
    """Reference: the smallest wave, and the number of queries."""
    writer = ScriptedWriter()
    made, _ = generate_queries(writer, CORPUS, num_queries=8, keep=keep_all)
    assert (len(writer.asked), len(made.queries)) == (MIN_WAVE, 8)


def test_the_filter_and_the_counts() -> None:
    """Reference: a filter that keeps titles alone; waves go on until all were asked."""

    def titles(queries: Sequence[Query], sources: Sequence[str]) -> list[bool]:
        assert [query.id.partition(":")[2] for query in queries] == list(sources)
        return [query.id.startswith("title:") for query in queries]

    made, counts = generate_queries(ScriptedWriter(), CORPUS, num_queries=100, keep=titles)
    assert len(made.queries) == 40
    assert {kind: (c["cleaned"], c["kept"]) for kind, c in counts.items()} == {
        kind: (40, 40 if kind == "title" else 0) for kind in KINDS
    }


def test_equal_texts_are_one_query() -> None:
    """Reference: the one text that is always written."""
    made, counts = generate_queries(ScriptedWriter("always the same"), CORPUS, num_queries=9, keep=keep_all)
    assert [query.text for query in made.queries.values()] == ["always the same"]
    assert sum(c["cleaned"] for c in counts.values()) == 1


def test_queries_that_lead_back(tiny_lm: FrozenLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: gains by hand of source and others: the highest, not the highest, negative, source not found, found
    without a common word; eight are compared."""
    corpus = {f"d{n}": Document(f"d{n}", "", f"text {n}") for n in range(30)}
    ids = tuple(f"d{n}" for n in range(20))
    words = (*[1.0] * 19, 0.0)
    candidates = [QueryCandidates(f"q{n}", f"query {n}", None, ids, words) for n in range(5)]
    gains = {"query 0": [0.5, 0.4], "query 1": [0.4, 0.5], "query 2": [-0.1, -0.2], "query 4": [0.5, 0.4]}
    seen: list[list[str]] = []

    def gain(queries: Sequence[str], documents: Sequence[Sequence[str]]) -> np.ndarray:
        seen.extend(map(list, documents))
        return np.array([[*gains[query], *[-1.0] * 6] for query in queries])

    scorer = LikelihoodScorer(tiny_lm, target="query")
    monkeypatch.setattr(scorer, "gain", gain)
    sources = ["d12", "d3", "d0", "d25", "d19"]
    kept = returns(candidates, sources, corpus, scorer=scorer, by_words=True)
    assert kept == [True, False, False, False, False]
    assert seen[0] == [f"text {n}" for n in (12, 0, 1, 2, 3, 4, 5, 6)]
    assert len(seen) == 3
    assert returns(candidates, sources, corpus, scorer=scorer, by_words=False)[4]
    assert returns(candidates[3:4], ["d25"], corpus, scorer=scorer, by_words=True) == [False]
