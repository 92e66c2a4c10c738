"""Find what can be cut out of a passage as a query: a sentence of prose, a comment in code, or a heading."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from nlt_trainer.data.beir import Document
from nlt_trainer.data.bm25 import tokenize
from nlt_trainer.data.sentences import LINE_END, MAX_WORDS, MIN_WORDS, SENTENCE_END, count_words
from nlt_trainer.documents.passages import BETWEEN

MIN_SENTENCES = 3
"""A passage with fewer sentences would lose too much with one of them."""
MIN_HEADING_WORDS = 3
MARKS = re.compile(r"^(?:[\s#>*•\"'/-]+|\d{1,3}[.)]\s+)+|[\s*/\"'#]+$")
COMMENT = re.compile(
    r'"""(?P<doc>.+?)"""|/\*(?P<block>.+?)\*/|(?P<lines>^[ \t]*(?P<mark>#|//|--)[^\n]*(?:\n[ \t]*(?P=mark)[^\n]*)*)',
    flags=re.DOTALL | re.MULTILINE,
)
"""A docstring, a comment between `/*` and `*/`, or neighbouring lines that begin with the same mark."""
PARAGRAPH_END = re.compile(r"\n\s*\n")
LINE_MARKS = re.compile(r"^[ \t]*(?:#+!?|//+|--+|\*+)[ \t]?", flags=re.MULTILINE)
NO_PROSE = re.compile(r"://|\bwww\.|\||\w\.\w+\(|[!=:]=|[-=]>|&&|[{};]$")
"""An address, a row of a table or a line of code."""
CODE_LINE = re.compile(
    r"[{};]\s*$|\w\(.*\)\s*:?$|\)\s*:\s*$|\s(?:=|==|!=|\+=|->|=>|:=|&&|\|\|)\s|^\s*[@)}\]]|\w\.\w+\("
    r"|^\s*(?:import|from|return|def|class|else|try|func|fn|public|private|static|const|let|var)\b"
)


@dataclass(frozen=True)
class Excerpt:
    """A piece of a passage that can be a query.

    Args:
        kind: `sentence` or `heading`.
        query: the text of the query.
        cut: what has to go from the passage, with single spaces for white space.
    """

    kind: str
    query: str
    cut: str


def excerpts(document: Document) -> list[Excerpt]:
    """The sentences of a passage that can be queries, in their order; none if it has fewer than 3 sentences.

    In code they are comments and docstrings, of which the first sentence is the query and all is cut.
    """
    code = is_code(document.text)
    sentences = [s for s in (LINE_END if code else SENTENCE_END).split(document.text) if s.strip()]
    if len(sentences) < MIN_SENTENCES:
        return []
    pairs = _comments(document.text) if code else [(_plain(s), s) for s in sentences]
    return [Excerpt("sentence", query, " ".join(cut.split())) for query, cut in pairs if is_useful(query)]


def heading_excerpt(document: Document) -> Excerpt | None:
    """The innermost heading of a passage's title, if it can be a query and the passage has a text besides.

    A title such as `Handbook > How to restore the cache` is a path of headings. The heading must have 3 words or more.
    """
    heading = " ".join(document.title.rpartition(BETWEEN)[2].split())
    usable = document.text and is_useful(heading, min_words=MIN_HEADING_WORDS)
    return Excerpt("heading", heading, heading) if usable else None


def is_useful(text: str, *, min_words: int = MIN_WORDS) -> bool:
    """Whether a text can be a query: prose of `min_words` to 40 words, most of them of letters, with content.

    Content are words that are neither numbers nor English stop words; there must be `min_words - 1` different ones.
    """
    words = text.split()
    if not min_words <= count_words(text) <= MAX_WORDS or NO_PROSE.search(text):
        return False
    content = sum(max(1, count_words(token)) for token in {*tokenize(text)} if not token.isdigit())
    return 2 * sum(map(_is_letters, words)) > len(words) and content >= min_words - 1


def is_code(text: str) -> bool:
    """Whether a text is source code: three lines or more, of which half look like code, comments left out."""
    lines = [line for line in COMMENT.sub("", text).splitlines() if line.strip()]
    return len(lines) >= 3 and 2 * sum(CODE_LINE.search(line) is not None for line in lines) >= len(lines)


def without(text: str, cut: str) -> str:
    """A text without a cut piece wherever it stands, whatever its capitals and the white space between its words."""
    pattern = r"\s+".join(re.escape(word) for word in cut.split())
    return re.sub(rf"{pattern}[ \t]*", "", text, flags=re.IGNORECASE)


def _comments(text: str) -> list[tuple[str, str]]:
    """First sentence and whole text of each comment in source code."""
    found = []
    for match in COMMENT.finditer(text):
        inner = LINE_MARKS.sub("", match["doc"] or match["block"] or match["lines"]).strip()
        paragraph = " ".join(PARAGRAPH_END.split(inner)[0].split())
        sentence = LINE_END.split(paragraph)[0]
        if not CODE_LINE.search(sentence):
            found.append((_plain(sentence), match[0]))
    return found


def _plain(sentence: str) -> str:
    """A sentence on one line, without the marks of a heading, a list, a quotation or a comment around it."""
    plain = MARKS.sub("", " ".join(sentence.split()))
    return plain.replace('"', "") if plain.count('"') % 2 else plain


def _is_letters(word: str) -> bool:
    """Whether more than half of a word's characters are letters or marks on letters."""
    return 2 * sum(unicodedata.category(character)[0] in "LM" for character in word) > len(word)
