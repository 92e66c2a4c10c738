"""Cut queries out of passages: a sentence or a heading, which the written corpus then no longer has."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace

from nlt_trainer.data.beir import Document
from nlt_trainer.data.folding import folded
from nlt_trainer.documents.passages import BETWEEN
from nlt_trainer.queries.excerpts import Excerpt, excerpts, heading_excerpt, without
from nlt_trainer.queries.made import MadeQueries
from nlt_trainer.queries.sources import spread

MAX_HOLDERS = {"sentence": 3, "heading": 1}
"""A sentence that stands in more passages is boilerplate, such as a licence. A heading goes from no other passage."""
SPARE = 2
"""Passages that are looked at for each wanted query, because what some of them offer turns out to be boilerplate."""


def crop_queries(
    corpus: Mapping[str, Document], *, num_queries: int, titles: bool = True, seed: int = 0
) -> MadeQueries:
    """Cut a sentence out of each of some passages (the inverse cloze task of Lee et al., arXiv 1906.00300).

    The sentence goes from its passage and from every other passage that has it, so that no stage that reads the
    returned corpus can tell the source by copied words. A query is left out if a passage would still have it in other
    capitals or with other punctuation. A passage gives one query at most; it also loses the sentences that it shares
    with the sources of other queries. One with fewer than 3 sentences gives none, and one of source code gives a
    comment. The innermost heading of a title can be cut in place of a sentence if no other passage has it; the
    headings above it stay. Sentences are left out if they have fewer than 5 or more than 40 words, consist mostly of
    digits and signs, or stand in more than 3 passages.

    Args:
        corpus: passage id -> passage.
        num_queries: the most queries to make; they are spread over documents (`document_of`).
        titles: whether headings are cut out of titles, too.
        seed: of the choice of passages and sentences.

    Returns:
        Queries of the kinds `sentence` and `heading`; fewer than wanted, or none, if passages do not give more.
    """
    known_titles = Counter(document.title for document in corpus.values())
    offered: dict[str, list[Excerpt]] = {}
    for passage_id in spread(corpus, seed=seed):
        passage = corpus[passage_id]
        heading = heading_excerpt(passage) if titles and known_titles[passage.title] == 1 else None
        if offer := [*excerpts(passage), *([heading] if heading else [])]:
            offered[passage_id] = offer
        if len(offered) >= SPARE * num_queries:
            break
    holders = find_holders((e.query for offer in offered.values() for e in offer), corpus)
    made, seen = MadeQueries(dict(corpus), {}, {}), set[str]()
    for passage_id, offer in offered.items():
        if len(made.queries) == num_queries:
            break
        for excerpt in _preferred(offer, holders, random.Random(f"{seed} {passage_id}")):
            rests = _rests(made.corpus, passage_id, excerpt, holders)
            if rests is not None and folded(excerpt.query) not in seen:
                made.corpus.update(rests)
                made.add(excerpt.kind, excerpt.query, passage_id)
                seen.add(folded(excerpt.query))
                break
    return made


def find_holders(texts: Iterable[str], corpus: Mapping[str, Document]) -> dict[str, list[str]]:
    """Find all passages that have a text, whatever capitals, punctuation and white space: text -> passage ids.

    A passage is searched only for texts whose longest inner word it has.
    """
    anchored: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for text in dict.fromkeys(texts):
        sought = folded(text)
        anchored[max(sought.split()[1:-1], key=len, default="")].append((text, sought))
    holders: dict[str, list[str]] = {text: [] for group in anchored.values() for text, _ in group}
    for passage in corpus.values():
        content = folded(passage.content)
        for word in {"", *content.split()} & anchored.keys():
            for text, sought in anchored[word]:
                if sought in content:
                    holders[text].append(passage.id)
    return holders


def _preferred(offer: list[Excerpt], holders: Mapping[str, list[str]], draw: random.Random) -> list[Excerpt]:
    """The excerpts in a random order: in half of the passages the heading first; sentences of few passages first."""
    usable = [e for e in offer if len(holders[e.query]) <= MAX_HOLDERS[e.kind]]
    draw.shuffle(usable)
    heading_first = draw.random() < 0.5
    return sorted(usable, key=lambda e: ((e.kind == "heading") != heading_first, len(holders[e.query])))


def _rests(
    corpus: Mapping[str, Document], source: str, excerpt: Excerpt, holders: Mapping[str, list[str]]
) -> dict[str, Document] | None:
    """The passages that have an excerpt, without it; `None` where the source has lost it, or where one keeps it or
    would be empty."""
    rests, sought = {}, folded(excerpt.query)
    for passage_id in {source, *holders[excerpt.query]}:
        passage = corpus[passage_id]
        text = without(passage.text, excerpt.cut)
        if passage_id == source and excerpt.kind == "sentence" and text == passage.text:
            return None
        title = passage.title.rpartition(BETWEEN)[0] if excerpt.kind == "heading" else passage.title
        rest = replace(passage, title=title, text=text)
        if not text.strip() or sought in folded(rest.content):
            return None
        rests[passage_id] = rest
    return rests
