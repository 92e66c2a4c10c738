"""Sentences, comments and headings that are cut out of passages: which ones, and what is left."""

from __future__ import annotations

import pytest

from nlt_trainer.data.beir import Document
from nlt_trainer.queries.crop import MAX_HOLDERS, crop_queries, find_holders
from nlt_trainer.queries.excerpts import excerpts, heading_excerpt, is_code, is_useful, without

ANIMALS = ("whale", "heron", "badger", "salmon", "beetle", "falcon", "otter", "walrus")
LICENCE = "This text may be copied freely by everyone who likes it."
CORPUS = {
    f"{animal}.md#{n}": Document(
        f"{animal}.md#{n}",
        "",
        f"A young {animal} sleeps under old trees number {n}. Hungry {animal} parents hunt small fish near river {n}! "
        f"{LICENCE}",
    )
    for animal in ANIMALS
    for n in range(3)
}
CODE = '''def close(self):
    """Close the file and release its lock.

    Nothing happens the second time.
    """
    # Flush what other threads
    # have written before us. Then go on.
    self.buffer.flush()
    if self.lock == OPEN:  # type: ignore
        self.lock.release()
    # self.x = old_value(self.y) when it was here
    self.closed = True
'''


def plain(document: Document) -> str:
    return " ".join(document.content.split())


def test_no_passage_of_the_written_corpus_has_a_cut_sentence() -> None:
    """Reference: the sentences as the corpus has them; a copy of two passages in a third loses them too."""
    first, second = CORPUS["whale.md#0"], CORPUS["heron.md#1"]
    wrapped = f"{first.text} {second.text}".replace(" ", "\n   ")
    corpus = {**CORPUS, "copy.md": Document("copy.md", "Both", f"{wrapped}\n\nA word of its own remains here.")}
    made = crop_queries(corpus, num_queries=100)
    assert set(made.sources) == set(made.queries) == {query.id for query in made.queries.values()}
    assert set(CORPUS) <= set(made.sources.values())
    assert list(made.corpus) == list(corpus)
    for query_id, query in made.queries.items():
        assert query.text in plain(corpus[made.sources[query_id]])
        assert not [document.id for document in made.corpus.values() if query.text in plain(document)]
    assert len(set(made.sources.values())) == len(made.queries)  # one of a passage at most


def test_the_rest_of_a_passage_stays_as_it_was() -> None:
    """Reference: the passage without the one sentence that is the query."""
    made = crop_queries(CORPUS, num_queries=8)
    assert len(made.queries) == 8
    changed = [i for i in CORPUS if made.corpus[i] != CORPUS[i]]
    assert sorted(changed) == sorted(made.sources.values())
    for query_id, source in made.sources.items():
        assert made.corpus[source].text.split() == CORPUS[source].text.replace(made.queries[query_id].text, "").split()


def test_queries_are_spread_over_documents() -> None:
    """Reference: 8 documents of 3 passages; 8 queries are of 8 documents, 12 of at most two each."""
    for number, most in ((8, 1), (12, 2)):
        documents = [source.split("#")[0] for source in crop_queries(CORPUS, num_queries=number).sources.values()]
        assert len(documents) == number
        assert max(map(documents.count, documents)) == most


def test_boilerplate_is_never_a_query() -> None:
    """Reference: the sentence that 24 passages have; in as many as allowed it is one."""
    made = crop_queries(CORPUS, num_queries=100)
    assert LICENCE not in {query.text for query in made.queries.values()}
    few = {
        str(n): Document(str(n), "", f"Yes, number {n}. So it is. {LICENCE}") for n in range(MAX_HOLDERS["sentence"])
    }
    made = crop_queries(few, num_queries=100)
    assert [query.text for query in made.queries.values()] == [LICENCE]
    assert all(LICENCE not in document.text for document in made.corpus.values())


def test_the_seed_draws_passages_and_sentences() -> None:
    """Reference: equal seeds give equal queries, in whatever order the corpus stands; another seed gives others."""
    first = crop_queries(CORPUS, num_queries=10, seed=1)
    assert crop_queries(dict(reversed(CORPUS.items())), num_queries=10, seed=1).queries == first.queries
    assert crop_queries(CORPUS, num_queries=10, seed=2).queries != first.queries


def test_passages_of_under_three_sentences_are_left_whole() -> None:
    """Reference: two sentences, which would both do."""
    two = Document("a", "", "A young whale sleeps under old trees. Hungry whale parents hunt small fish.")
    assert excerpts(two) == []
    assert crop_queries({"a": two}, num_queries=5).corpus == {"a": two}


def test_a_title_of_one_passage_is_a_query_and_goes() -> None:
    """Reference: titles by hand: of one passage, of two, of two words, the only content."""
    titled = {
        "one": Document("one", "Feeding habits of otters", "Feeding habits of otters are known. They eat fish."),
        "two": Document("two", "Nests of grey herons", "They build high."),
        "three": Document("three", "Nests of grey herons", "They come back."),
        "four": Document("four", "Old whales", "They sing."),
        "five": Document("five", "Hunting grounds of falcons", ""),
    }
    made = crop_queries(titled, num_queries=9)
    assert [(q.id, q.text) for q in made.queries.values()] == [("heading:one", "Feeding habits of otters")]
    assert made.corpus["one"] == Document("one", "", "are known. They eat fish.")
    assert {i: made.corpus[i] for i in ("two", "three", "four", "five")} == {
        i: titled[i] for i in ("two", "three", "four", "five")
    }
    assert not crop_queries(titled, num_queries=9, titles=False).queries


def test_of_a_path_of_headings_only_the_innermost_is_cut() -> None:
    """Reference: by hand; a heading under which other passages stand, or that another one mentions, is no query."""
    titles = ("Handbook of operations > How to restore the cache", "Handbook of operations > How to rotate log files",
              "Handbook of operations > How to rotate log files > Daily")  # fmt: skip
    corpus = {title: Document(title, title, f"Ask the team {n} first.") for n, title in enumerate(titles)}
    made = crop_queries(corpus, num_queries=9)
    assert [(q.id, q.text) for q in made.queries.values()] == [(f"heading:{titles[0]}", "How to restore the cache")]
    assert made.corpus[titles[0]] == Document(titles[0], "Handbook of operations", "Ask the team 0 first.")
    mention = Document("m", "", "See how to restore the cache.")
    assert not crop_queries({**corpus, "m": mention}, num_queries=9).queries


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("FEEDING HABITS OF OTTERS\nThey eat fish.", "\nThey eat fish."),
        ("Feeding habits (of otters): they eat fish.", None),
    ],
)
def test_a_heading_goes_in_other_capitals_or_is_no_query(text: str, rest: str | None) -> None:
    """Reference: the text without it; with a bracket inside it is not cut and would give the query away."""
    corpus = {"a": Document("a", "Feeding habits of otters", text)}
    made = crop_queries(corpus, num_queries=1)
    assert made.corpus == (corpus if rest is None else {"a": Document("a", "", rest)})
    assert len(made.queries) == (rest is not None)


@pytest.mark.parametrize(("copy", "queries"), [("HUNGRY parents HUNT", 1), ("Hungry parents, hunt", 0)])
def test_a_sentence_goes_from_other_passages_in_other_capitals_or_is_no_query(copy: str, queries: int) -> None:
    """Reference: two passages that share a sentence; with a comma inside it is not cut."""
    corpus = {
        "a": Document("a", "", "Yes. No. Hungry parents hunt small fish."),
        "b": Document("b", "", f"{copy} small fish. So it is."),
    }
    made = crop_queries(corpus, num_queries=9)
    assert len(made.queries) == queries
    assert made.corpus == corpus or made.corpus["b"].text == "So it is."


def test_in_code_comments_are_queries() -> None:
    """Reference: the comments by hand; one that is code and one that is short are none."""
    assert is_code(CODE)
    found = excerpts(Document("f", "", CODE))
    assert [e.query for e in found] == [
        "Close the file and release its lock.",
        "Flush what other threads have written before us.",
    ]
    rest = without(CODE, found[1].cut)
    assert "Flush" not in rest and "Then go on" not in rest and "Nothing happens" in rest
    assert "self.buffer.flush()" in rest


@pytest.mark.parametrize("text", [CORPUS["whale.md#0"].text, "One line (P = 0.011).\nAnother one.\nA third.", ""])
def test_prose_is_no_code(text: str) -> None:
    """Reference: texts of which less than half of the lines look like code."""
    assert not is_code(text)


@pytest.mark.parametrize(
    ("text", "useful"),
    [
        ("A honey bee visits many flowers.", True),
        ("मधुमक्खी कई फूलों पर जाती है और पराग लाती है।", True),
        ("ミツバチは多くの花を訪れて花粉を運ぶ。", True),
        ("Too short a one.", False),
        ("12.5 13.7 14.9 16.1 mean value of five", False),
        ("It is what it was and so on.", False),
        ("See https://example.org for more flowers and bees.", False),
        ("name | colour | weight | habitat of each", False),
        ("result = table.lookup(name of the flower here)", False),
        ("word " * 41, False),
    ],
)
def test_which_sentences_are_useful(text: str, useful: bool) -> None:
    """Reference: judged by hand."""
    assert is_useful(text) == useful


def test_marks_around_a_sentence_are_no_part_of_the_query() -> None:
    """Reference: a heading, a list and a lone quotation mark by hand; what is cut has the marks."""
    text = '## How young falcons learn hunting\n\n1. Parents drop dead prey near "nests.\n- Then they wait. Yes.'
    found = excerpts(Document("a", "", text))
    assert [e.query for e in found] == ["How young falcons learn hunting", "Parents drop dead prey near nests."]
    assert found[0].cut == "## How young falcons learn hunting"


def test_holders_are_found_whatever_the_white_space() -> None:
    """Reference: the passages by hand, for a text with inner words and for one without spaces."""
    corpus = {
        "a": Document("a", "", "so a young\n  whale sleeps well"),
        "b": Document("b", "young whale sleeps", "and a youngwhale"),
        "c": Document("c", "", "茶は葉から作る。終わり"),
    }
    found = find_holders(["young whale sleeps", "葉から作る", "nowhere to be"], corpus)
    assert found == {"young whale sleeps": ["a", "b"], "葉から作る": ["c"], "nowhere to be": []}
    assert find_holders(["a young whale, sleeps?"], {"d": Document("d", "", "(A) YOUNG whale sleeps!")}) == {
        "a young whale, sleeps?": ["d"]
    }


def test_a_sentence_that_a_title_has_too_stays() -> None:
    """Reference: the passage itself; its title would give the query away."""
    sentence = "Hungry falcon parents hunt small birds."
    document = Document("a", sentence, f"{sentence} Yes. No.")
    assert heading_excerpt(document) is not None
    assert crop_queries({"a": document}, num_queries=1, titles=False).corpus == {"a": document}
