"""Passages against documents by hand: length, titles, ids, and pieces that are too short."""

from __future__ import annotations

import pytest

from nlt_trainer.documents import passages
from nlt_trainer.documents.passages import FEWEST_WORDS, SLACK, PassageLength, cut
from nlt_trainer.documents.sections import Section, Source
from nlt_trainer.documents.words import words

PARAGRAPH = "One sentence of seven words stands here. Another sentence of seven words stands here."
WORDS = PassageLength(20, "words", lambda text: len(text.split()))


def source(*texts: str, headings: tuple[str, ...] = (), title: str = "", row: int | None = None) -> Source:
    return Source(title, [Section(headings, text) for text in texts], row)


def test_paragraphs_stay_whole_where_they_fit() -> None:
    """Reference: paragraphs of 14 words, of which one fits into 20 and two do not."""
    documents, short = cut(source("\n\n".join([PARAGRAPH] * 3)), "a/b.txt", title="b", length=WORDS)
    assert [document.text for document in documents] == [PARAGRAPH] * 3
    assert [document.id for document in documents] == ["a/b.txt#1", "a/b.txt#2", "a/b.txt#3"]
    assert {document.title for document in documents} == {"b"}
    assert short == 0


@pytest.mark.parametrize(
    "text", [PARAGRAPH * 500, "word " * 12_000, "字" * 30_000, "a" * 50_000, f"{PARAGRAPH}\n" * 900]
)
def test_no_passage_is_too_long_and_no_word_is_lost(text: str) -> None:
    """Reference: the words of the text in their order; the text is longer than what is cut at once."""
    length = PassageLength(50)
    documents, short = cut(source(text), "a", title="", length=length)
    assert max(length.count(document.text) for document in documents) <= SLACK * length.most
    assert short == 0
    if "word" in text or "字" in text:  # in a run of letters the pieces of a word change with the cuts
        assert [word for document in documents for word in words(document.text)] == words(text)


def test_the_caller_says_what_is_counted() -> None:
    """Reference: the number of characters."""
    documents, _ = cut(source(PARAGRAPH), "a", title="", length=PassageLength(45, "characters", len))
    assert [len(document.text) for document in documents] == [40, 44]


def test_a_title_is_that_of_the_document_with_the_headings() -> None:
    """Reference: titles by hand; none stands twice, and white space is single."""
    headings = ("Guide", "In\nstall", "Linux")
    documents, _ = cut(source(PARAGRAPH, headings=headings, title="Guide"), "a", title="file", length=WORDS)
    assert documents[0].title == "Guide > In stall > Linux"


def test_a_short_piece_joins_a_neighbour() -> None:
    """Reference: by hand; the heading of a piece that joins another stays in the text."""
    sections = [Section(("A",), "See below."), Section(("A", "B"), PARAGRAPH), Section(("A", "C"), "As above.")]
    documents, short = cut(Source("A", sections), "a", title="", length=PassageLength())
    assert [(document.title, document.text) for document in documents] == [
        ("A", f"See below.\nB\n{PARAGRAPH}\nC\nAs above."),
    ]
    assert short == 0


def test_short_pieces_do_not_grow_without_end() -> None:
    """Reference: the greatest length; a glossary has many short sections, and all of them are kept."""
    sections = [Section((f"Term{n}",), f"meaning number {n}") for n in range(200)]
    documents, short = cut(Source("", sections), "a", title="", length=WORDS)
    assert max(WORDS.count(document.text) for document in documents) <= SLACK * WORDS.most
    assert short == 0
    assert sum(document.text.count("meaning number") for document in documents) == 200


@pytest.mark.parametrize(
    ("text", "count"), [("", 0), (" \n\t", 0), ("\0\ud800", 0), ("Four words are few.", 1), ("--- ... *** +++ ===", 1)]
)
def test_what_is_too_short_to_stand_is_left_out(text: str, count: int) -> None:
    """Reference: the fewest words; the title of a document is no part of them."""
    documents, short = cut(source(text, title="A title with more than five words"), "a", title="", length=WORDS)
    assert documents == []
    assert short == count


def test_a_row_has_its_number_and_its_title_counts() -> None:
    """Reference: ids and titles by hand; a row without a title does not take that of its file."""
    (one,), _ = cut(source("steel hex bolt", title="Bolt M4", row=7), "a.csv", title="a", length=WORDS)
    assert (one.id, one.title, one.text) == ("a.csv#7", "Bolt M4", "steel hex bolt")
    many, _ = cut(source(f"{PARAGRAPH}\n\n{PARAGRAPH}", row=8), "a.csv", title="a", length=WORDS)
    assert [(document.id, document.title) for document in many] == [("a.csv#8.1", ""), ("a.csv#8.2", "")]


def test_a_text_without_structure_is_cut_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: the text itself; no block is longer than the bound."""
    monkeypatch.setattr(passages, "BLOCK", 100)
    text = f"{PARAGRAPH}\n" * 20 + "x" * 500
    blocks = list(passages._blocks(text))
    assert "".join(blocks) == text
    assert max(map(len, blocks)) <= 100
    assert blocks[0] == f"{PARAGRAPH}\n"


def test_the_bounds_leave_room_for_a_passage() -> None:
    """Reference: the 256 tokens of all-MiniLM-L6-v2, less 2 of its own; a title has what is left."""
    assert SLACK * PassageLength().most < 254
    assert FEWEST_WORDS < PassageLength().most
