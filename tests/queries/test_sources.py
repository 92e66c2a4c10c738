"""Which passages belong together, in which order they are asked, and which are held out."""

from __future__ import annotations

import logging

import pytest

from nlt_trainer.errors import NLTError
from nlt_trainer.queries.sources import document_of, split_by_source, spread


def sources(documents: int, passages: int) -> dict[str, str]:
    return {f"q{d}.{p}": f"doc{d}.md#{p}" for d in range(documents) for p in range(passages)}


@pytest.mark.parametrize(
    ("passage", "document"), [("a/b.md#3", "a/b.md"), ("C#.md#0", "C#.md"), ("d17", "d17"), ("#1", "#1")]
)
def test_the_document_of_a_passage(passage: str, document: str) -> None:
    assert document_of(passage) == document


def test_passages_are_spread_over_documents() -> None:
    """Reference: three documents of 1, 2 and 3 passages; each round takes one of each that has some left."""
    ids = ["a#0", "b#0", "b#1", "c#0", "c#1", "c#2"]
    order = spread(ids, seed=0)
    assert sorted(order) == ids
    assert [sorted(map(document_of, part)) for part in (order[:3], order[3:5], order[5:])] == [
        ["a", "b", "c"], ["b", "c"], ["c"],
    ]  # fmt: skip
    assert spread(reversed(ids), seed=0) == order
    assert any(spread(ids, seed=seed) != order for seed in range(1, 5))


@pytest.mark.parametrize(
    ("documents", "passages", "share", "held_out"),
    [(400, 2, 0.15, 120), (40, 3, 0.15, 51), (400, 5, 0.5, 200), (30, 1, 0.15, 15), (800, 1, 0.01, 50)],
)
def test_no_document_is_on_both_sides(documents: int, passages: int, share: float, held_out: int) -> None:
    """Reference: the share of the queries, but 50 to 200 and no more than half; whole documents round it up."""
    given = sources(documents, passages)
    splits = split_by_source(given, held_out_share=share)
    sides = {split: {document_of(given[query]) for query in judged} for split, judged in splits.items()}
    assert sides["train"].isdisjoint(sides["held_out"])
    assert len(splits["held_out"]) == held_out
    assert len(splits["train"]) == documents * passages - held_out
    assert all(grades == {given[query]: 1} for judged in splits.values() for query, grades in judged.items())


@pytest.mark.parametrize(("wanted", "held_out"), [(25, 25), (40, 40), (300, 300), (2000, 500)])
def test_a_number_is_held_out_as_it_is(wanted: int, held_out: int) -> None:
    """Reference: the number itself, or a quarter of 2,000, where a share would be raised to 50 or cut to 200."""
    given = sources(400, 5)
    splits = split_by_source(given, held_out=wanted)
    assert len(splits["held_out"]) == held_out
    sides = [{document_of(given[query]) for query in judged} for judged in splits.values()]
    assert sides[0].isdisjoint(sides[1])


@pytest.mark.parametrize(("documents", "held_out"), [(15, 20), (6, 15), (40, 50)])
def test_large_documents_do_not_take_most_of_the_queries(documents: int, held_out: int) -> None:
    """Reference: by hand, of five queries a document: a quarter of 200, 20 of 75, and half of 30."""
    splits = split_by_source(sources(documents, 5), held_out=240)
    assert len(splits["held_out"]) == held_out


def test_passages_of_one_title_are_on_one_side() -> None:
    """Reference: ids that do not name a document, 40 titles of three passages each; an id that does is taken first."""
    given = {f"q{i}": f"d{i}" for i in range(120)}
    titles = {f"d{i}": f"story {i // 3}" for i in range(120)}
    splits = split_by_source(given, titles=titles)
    sides = {split: {titles[given[query]] for query in judged} for split, judged in splits.items()}
    assert sides["train"].isdisjoint(sides["held_out"])
    assert document_of("a.md#3", "story") == "a.md"
    assert document_of("d3", "story") == "story"


def test_the_seed_chooses_the_documents() -> None:
    """Reference: equal seeds give equal splits in any order of the queries; another seed gives another."""
    given = sources(200, 1)
    first = split_by_source(given, seed=3)["held_out"]
    assert set(split_by_source(dict(reversed(given.items())), seed=3)["held_out"]) == set(first)
    assert set(split_by_source(given, seed=4)["held_out"]) != set(first)


def test_a_document_that_is_most_of_the_corpus_trains() -> None:
    """Reference: 300 queries of one document and 60 of 60 others."""
    given = {f"big{n}": f"big.md#{n}" for n in range(300)} | {f"q{n}": f"doc{n}.md" for n in range(60)}
    splits = split_by_source(given)
    assert set(splits["held_out"]) < {f"q{n}" for n in range(60)}
    assert len(splits["held_out"]) == 54


def test_two_large_documents() -> None:
    """Reference: the smaller one is held out, of which 200 queries are kept."""
    given = {f"a{n}": f"a#{n}" for n in range(500)} | {f"b{n}": f"b#{n}" for n in range(450)}
    splits = split_by_source(given)
    assert {len(judged) for judged in splits.values()} == {500, 200}
    assert all(query.startswith("b") for query in splits["held_out"])


def test_of_one_document_passages_are_held_out(caplog: pytest.LogCaptureFixture) -> None:
    """Reference: 60 passages with two queries each; both queries of a passage are on one side."""
    given = {f"{kind}{n}": f"only.md#{n}" for n in range(60) for kind in "ab"}
    with caplog.at_level(logging.WARNING):
        splits = split_by_source(given)
    assert "one document 'only.md', so that passages of it are held out" in caplog.text
    sides = [{given[query] for query in judged} for judged in splits.values()]
    assert sides[0].isdisjoint(sides[1])
    assert len(splits["held_out"]) == 50


def test_too_few_queries_are_refused() -> None:
    """Reference: their number and that of the passages, and the remedy."""
    with pytest.raises(NLTError, match=r"^19 queries could be made, of 19 usable passages, and 20 .*longer passages"):
        split_by_source(sources(19, 1))
    with pytest.raises(NLTError, match=r"all 20 queries come from the passage 'a'"):
        split_by_source({f"q{n}": "a" for n in range(20)})
    for share in (0.0, 1.0):
        with pytest.raises(NLTError, match=f"held_out_share is {share}"):
            split_by_source(sources(30, 1), held_out_share=share)
