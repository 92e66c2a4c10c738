"""Cut queries out of passages: a sentence or the title, which the written corpus then no longer has."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace

from nlt_trainer.data.beir import Document
from nlt_trainer.queries.excerpts import Excerpt, excerpts, title_excerpt, without
from nlt_trainer.queries.made import MadeQueries
from nlt_trainer.queries.sources import spread

MAX_HOLDERS = 3
"""A sentence that stands in more passages is boilerplate, such as a licence."""
SPARE = 2
"""Passages that are looked at for each wanted query, because what some of them offer turns out to be boilerplate."""


def crop_queries(
    corpus: Mapping[str, Document], *, num_queries: int, titles: bool = True, seed: int = 0
) -> MadeQueries:
    """Cut a sentence out of each of some passages (the inverse cloze task of Lee et al., arXiv 1906.00300).

    The sentence goes from its passage and from every other passage that has it, so that no stage that reads the
    returned corpus can tell the source by copied words. A passage loses one sentence at most, and none if it has fewer
    than 3. A passage of source code loses a comment. A title that no other passage has can be cut in place of a
    sentence. Sentences are left out if they have fewer than 5 or more than 40 words, consist mostly of digits and
    signs, or stand in more than 3 passages.

    Args:
        corpus: passage id -> passage.
        num_queries: the most queries to make; they are spread over documents (`document_of`).
        titles: whether titles are cut, too.
        seed: of the choice of passages and sentences.

    Returns:
        Queries of the kinds `sentence` and `title`; fewer than wanted, or none, if passages do not give more.
    """
    known_titles = Counter(document.title for document in corpus.values())
    offered: dict[str, list[Excerpt]] = {}
    for passage_id in spread(corpus, seed=seed):
        passage = corpus[passage_id]
        title = title_excerpt(passage) if titles and known_titles[passage.title] == 1 else None
        if offer := [*excerpts(passage), *([title] if title else [])]:
            offered[passage_id] = offer
        if len(offered) >= SPARE * num_queries:
            break
    holders = find_holders((e.cut for offer in offered.values() for e in offer if e.kind == "sentence"), corpus)
    made, seen = MadeQueries(dict(corpus), {}, {}), set[str]()
    for passage_id, offer in offered.items():
        if len(made.queries) == num_queries:
            break
        for excerpt in _preferred(offer, holders, random.Random(f"{seed} {passage_id}")):
            rests = _rests(made.corpus, passage_id, excerpt, holders)
            if rests is not None and excerpt.query.casefold() not in seen:
                made.corpus.update(rests)
                made.add(excerpt.kind, excerpt.query, passage_id)
                seen.add(excerpt.query.casefold())
                break
    return made


def find_holders(cuts: Iterable[str], corpus: Mapping[str, Document]) -> dict[str, list[str]]:
    """Find all passages that have a text, whatever the white space between its words: text -> passage ids.

    A passage is searched only for texts whose longest inner word it has.
    """
    anchored: dict[str, list[str]] = defaultdict(list)
    for cut in dict.fromkeys(cuts):
        anchored[max(cut.split()[1:-1], key=len, default="")].append(cut)
    holders: dict[str, list[str]] = {cut: [] for group in anchored.values() for cut in group}
    for passage in corpus.values():
        words = passage.content.split()
        content = " ".join(words)
        for word in {"", *words} & anchored.keys():
            for cut in anchored[word]:
                if cut in content:
                    holders[cut].append(passage.id)
    return holders


def _preferred(offer: list[Excerpt], holders: Mapping[str, list[str]], draw: random.Random) -> list[Excerpt]:
    """The excerpts in a random order: in half of the passages the title first, and sentences of few passages first."""
    usable = [e for e in offer if len(holders.get(e.cut, ())) <= MAX_HOLDERS]
    draw.shuffle(usable)
    title_first = draw.random() < 0.5
    return sorted(usable, key=lambda e: ((e.kind == "title") != title_first, len(holders.get(e.cut, ()))))


def _rests(
    corpus: Mapping[str, Document], source: str, excerpt: Excerpt, holders: Mapping[str, list[str]]
) -> dict[str, Document] | None:
    """The passages that have an excerpt, without it; `None` where the source has lost it, or where one keeps it or
    would be empty."""
    rests = {}
    for passage_id in holders.get(excerpt.cut, [source]):
        passage = corpus[passage_id]
        text = without(passage.text, excerpt.cut)
        if passage_id == source and excerpt.kind == "sentence" and text == passage.text:
            return None
        title = "" if excerpt.kind == "title" else passage.title
        rest = replace(passage, title=title, text=text)
        if not text.strip() or excerpt.cut in " ".join(rest.content.split()):
            return None
        rests[passage_id] = rest
    return rests
