"""Cut a document into passages by structure and length."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from semantic_text_splitter import TextSplitter

from nlt_trainer.data.beir import Document
from nlt_trainer.documents.encodings import clean
from nlt_trainer.documents.sections import Source
from nlt_trainer.documents.words import count_pieces, count_words

FEWEST_WORDS = 5
"""A shorter text is no passage of its own."""
BLOCK = 20_000
"""Characters that are cut at once: the time for a text without any structure grows with its square."""
SLACK = 1.1
"""How many times its greatest length a passage may have after a piece too short to stand alone has joined it."""
BETWEEN = " > "
"""Stands between title and headings."""


@dataclass(frozen=True)
class PassageLength:
    """How long a passage may be.

    Args:
        most: the greatest length of a passage, without its title. By default a passage of prose or code with its title
            fits into the 256 tokens that all-MiniLM-L6-v2 reads, with few exceptions.
        unit: what is counted; a corpus is made anew if it changes.
        count: the length of a text, such as the number of its tokens.
    """

    most: int = 180
    unit: str = "pieces"
    count: Callable[[str], int] = count_pieces


@dataclass
class Piece:
    """A text with the title and headings above it."""

    title: str
    heading: str
    text: str


def cut(source: Source, name: str, *, title: str, length: PassageLength) -> tuple[list[Document], int]:
    """Return the passages of a document or row, and how many pieces were too short to stand or to join another.

    Ids are `name#1`, `name#2`, ...; those of a row are `name#row`, or `name#row.1`, ... if it is cut.

    Args:
        source: what a reader has found.
        name: of its file.
        title: of a document that has none itself.
        length: of a passage.
    """
    pieces = _joined(_pieces(source, title=title, length=length), length)
    spoken = count_words(source.title) if source.row is not None else 0  # the title of a row is part of its text
    kept = [piece for piece in pieces if count_words(piece.text) + spoken >= FEWEST_WORDS]
    documents = []
    for number, piece in enumerate(kept, start=1):
        place = f"{number}" if source.row is None else f"{source.row}" + (f".{number}" if len(kept) > 1 else "")
        documents.append(Document(f"{name}#{place}", piece.title, piece.text))
    return documents, len(pieces) - len(kept)


def _pieces(source: Source, *, title: str, length: PassageLength) -> Iterator[Piece]:
    splitter = TextSplitter.from_callback(length.count, length.most)
    top = source.title.strip() or (title if source.row is None else "")
    for section in source.sections:
        headings = [" ".join(clean(part).split()) for part in (top, *section.headings)]
        above = list(dict.fromkeys(part for part in headings if part))
        for block in _blocks(clean(section.text)):
            for text in splitter.chunks(block):
                yield Piece(BETWEEN.join(above), above[-1] if section.headings else "", text)


def _blocks(text: str) -> Iterator[str]:
    """Cut a long text at the end of a paragraph, a line or a word, in this order of preference."""
    start = 0
    while len(text) - start > BLOCK:
        half, end = start + BLOCK // 2, start + BLOCK
        cuts = (text.rfind(mark, half, end) for mark in ("\n\n", "\n", ". ", " "))
        end = next((found + 1 for found in cuts if found >= 0), end)
        yield text[start:end]
        start = end
    yield text[start:]


def _joined(pieces: Iterator[Piece], length: PassageLength) -> list[Piece]:
    """Join each piece that is too short with the one before it, or the one after it, if the two are not too long."""
    kept: list[Piece] = []
    for piece in pieces:
        last = kept[-1] if kept else None
        if last and min(count_words(last.text), count_words(piece.text)) < FEWEST_WORDS:
            between = "\n" if piece.title == last.title else f"\n{piece.heading}\n"
            text = f"{last.text}{between}{piece.text}"
            if length.count(text) <= SLACK * length.most:
                last.text = text
                continue
        kept.append(piece)
    return kept
