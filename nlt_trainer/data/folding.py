"""Compare texts by their words, whatever the capitals, the punctuation and the white space."""

from __future__ import annotations

import unicodedata

import regex

BETWEEN_WORDS = regex.compile(r"[\p{P}\s]+")


def folded(text: str) -> str:
    """The words of a text in small letters with single spaces between them; empty for punctuation alone."""
    return BETWEEN_WORDS.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()
