"""A document as sections under headings, found in Markdown and reStructuredText."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nlt_trainer.documents.words import count_words

KEY = r"[^\s#\-\]}:][^:\n]*:(?:[ \t].*)?\n"
FRONT_MATTER = re.compile(rf"\A---[ \t]*\n((?:#.*\n|[ \t]*\n)*{KEY}(?:{KEY}|[ \t#\-\]}}].*\n|\n)*?)---[ \t]*(?:\n|\Z)")
"""Keys with values between two lines of dashes. Text between two such lines is text between two rules."""
FRONT_TITLE = re.compile(r"^title:[ \t]*([\"']?)(.+?)\1[ \t]*$", flags=re.MULTILINE)
ADORNMENT = re.compile(r"([!-/:-@\[-`{-~])\1{2,}")
"""A line of one punctuation mark, as stands below, and sometimes above, a heading in reStructuredText."""
MAX_HEADING_WORDS = 25
"""A longer heading is a paragraph that looks like one."""


@dataclass(frozen=True, slots=True)
class Section:
    """A stretch of text with the headings that it stands under, from the outermost to the innermost."""

    headings: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Source:
    """What a reader finds: a document, or one row of a table.

    Args:
        title: empty where there is none.
        sections: the text, in its order.
        row: number of the row in its file, counted from 1; `None` for a document.
    """

    title: str
    sections: Sequence[Section]
    row: int | None = None


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading with the lines that it takes, from `begin` up to and without `end`; `level` 1 is the outermost."""

    begin: int
    end: int
    level: int
    title: str


def markdown_source(text: str, *, title: str = "") -> Source:
    """Cut Markdown at its headings.

    Args:
        text: the Markdown; metadata in YAML at its start is no part of the text, but may have a title.
        title: the title if no heading of level 1 comes first.
    """
    front = FRONT_MATTER.match(text)
    if front:
        text, named = text[front.end() :], FRONT_TITLE.search(front[1])
        title = named[2] if named else title
    return _source(text.split("\n"), _markdown_headings(text), title=title)


def rst_source(text: str) -> Source:
    """Cut reStructuredText at its headings. Directives stay as they are written: nothing is included or run."""
    lines = text.split("\n")
    return _source(lines, _rst_headings(lines), title="")


def _markdown_headings(text: str) -> list[Heading]:
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark")
    found = []
    tokens = parser.disable("inline").parse(text)  # the text between headings needs no parsing
    parser.enable("inline")
    for token, content in itertools.pairwise(tokens):
        if token.type == "heading_open" and token.level == 0 and token.map:
            parts = parser.parseInline(content.content)[0].children or []
            title = "".join(" " if part.type == "softbreak" else part.content for part in parts)
            found.append(Heading(token.map[0], token.map[1], int(token.tag[1:]), title))
    return found


def _rst_headings(lines: Sequence[str]) -> list[Heading]:
    found: list[Heading] = []
    styles: list[tuple[str, bool]] = []  # the marks of a level, in the order in which levels appear
    for number, line in enumerate(lines[1:], start=1):
        title = lines[number - 1].strip()
        mark = ADORNMENT.fullmatch(line.rstrip())
        if not mark or not title or len(line.rstrip()) < len(title) or ADORNMENT.fullmatch(title):
            continue
        over = number > 1 and lines[number - 2].rstrip() == line.rstrip()
        if lines[number - 1][0].isspace() and not over:
            continue  # a quoted paragraph
        style = (mark[1], over)
        if style not in styles:
            styles.append(style)
        found.append(Heading(number - 1 - over, number + 1, styles.index(style) + 1, title))
    return found


def _source(lines: Sequence[str], headings: Iterable[Heading], *, title: str) -> Source:
    """Put the lines between headings under the headings that hold there; the first heading gives the title."""
    path: list[Heading] = []
    sections, start, first = [], 0, None
    for heading in headings:
        if not heading.title.strip() or count_words(heading.title) > MAX_HEADING_WORDS:
            continue
        sections.append(Section(tuple(above.title for above in path), "\n".join(lines[start : heading.begin])))
        path = [*(above for above in path if above.level < heading.level), heading]
        start, first = heading.end, first or heading
    sections.append(Section(tuple(above.title for above in path), "\n".join(lines[start:])))
    if first and (first.level == 1 or not title):
        title = first.title
    return Source(title, sections)
