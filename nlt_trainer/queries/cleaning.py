"""Make a query of what an LLM wrote, or refuse it."""

from __future__ import annotations

import re

from nlt_trainer.data.sentences import MAX_WORDS, count_words
from nlt_trainer.queries.prompts import BEFORE, EXAMPLES, KINDS

MIN_QUERY_WORDS = 3
AROUND = re.compile(r"^(?:[\s\"'“”*#>•-]+|\d{1,2}[.)]\s)+|[\s\"'“”*#]+$")
"""White space, quotation marks, and the marks of lists and headings."""
LABELS = tuple(label.casefold() for label in (BEFORE, *KINDS.values(), *(f"{kind}:" for kind in KINDS)))
SHOWN = frozenset(example[kind].casefold() for example in EXAMPLES for kind in KINDS)


def cleaned(written: str, passage: str) -> str | None:
    """The query in an LLM's text; `None` if there is none.

    Args:
        written: what the LLM wrote; a line that does not end with a line feed was cut off and is no query.
        passage: content of the passage that it had read.

    Returns:
        One line of 3 to 40 words that is neither copied from the passage nor from the prompt. Fewer than a third of
        its words are repetitions.
    """
    line, end, _ = written.partition("\n")
    query = AROUND.sub("", " ".join(line.split()))
    known = query.casefold()
    if not end or not MIN_QUERY_WORDS <= count_words(query) <= MAX_WORDS:
        return None
    words = known.split()
    if len(words) >= MIN_QUERY_WORDS and 3 * len(set(words)) <= 2 * len(words):
        return None
    if known.startswith(LABELS) or known in SHOWN or known.rstrip(".?!") in " ".join(passage.split()).casefold():
        return None
    return query
