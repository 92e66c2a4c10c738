"""Split texts into sentences and count their words, in any language and without a model."""

from __future__ import annotations

import re

MIN_WORDS, MAX_WORDS = 5, 40
"""Words of a sentence that can be a query."""

ABBREVIATIONS = ("al", "cf", "vs", "e.g", "i.e", "Fig", "fig", "Figs", "Eq", "Dr", "Mr", "Mrs", "Ms", "Prof")
"""Words whose full stop ends no sentence. The full stop of a single capital letter does not either."""

_ABBREVIATED = "".join(rf"(?<!\b{re.escape(word)}\.)" for word in ABBREVIATIONS)
_STOP = rf"(?<=[.!?؟۔]){_ABBREVIATED}(?<!\b[A-Z]\.)\s+|(?<=[。！？।॥])(?![。！？」』）”’)])\s*"  # noqa: RUF001
LINE_END = re.compile(rf"{_STOP}|\n+")
"""Between two sentences, each of which stands on one line. Chinese, Japanese and Hindi need no space between them."""
SENTENCE_END = re.compile(rf"{_STOP}|\n\s*\n|\n(?!\s*[a-z])")
"""Between two sentences of prose. A line that begins in lower case goes on with the sentence of the line before it."""
UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
"""A character of a script without spaces between words: Thai, Lao, Burmese, Khmer, Japanese, Chinese."""


def count_words(text: str) -> int:
    """Number of words; where a script has no spaces between words, two characters count as one."""
    unspaced = len(UNSPACED.findall(text))
    return len(re.findall(r"\S*\w\S*", UNSPACED.sub(" ", text))) + unspaced // 2
