"""The prompts with which a frozen LLM writes queries: plain text with three examples, and one prompt a kind."""

from __future__ import annotations

KINDS = {
    "question": "Question that this passage answers:",
    "title": "Title:",
    "claim": "Claim that this passage supports:",
    "keywords": "Search words:",
}
"""Kind of query -> the line after which the LLM writes it."""

BEFORE = "Passage:"
EXAMPLES = (
    {
        "passage": "Oak leaves change colour because shorter days stop the tree from making chlorophyll. Once the "
        "green pigment breaks down, the yellow carotenoids that were there all summer can be seen.",
        "question": "why do leaves turn yellow in autumn?",
        "title": "Autumn colours of oak leaves",
        "claim": "Yellow pigments are present in leaves before autumn.",
        "keywords": "leaves autumn chlorophyll loss carotenoids",
    },
    {
        "passage": "def retry(call, times):\n    for left in reversed(range(times)):\n        try:\n        "
        "    return call()\n        except OSError:\n            if not left:\n                raise",
        "question": "how can I call a function again after an error?",
        "title": "Retry a call that fails with OSError",
        "claim": "The last error is raised when all attempts have failed.",
        "keywords": "python retry function on exception",
    },
    {
        "passage": "Tenants who give notice must do so in writing at least three months before they move out. The "
        "deposit is paid back within thirty days, less the cost of repairs.",
        "question": "how long does it take to get my rental deposit back?",
        "title": "Notice and deposit at the end of a tenancy",
        "claim": "A landlord may keep part of the deposit to pay for repairs.",
        "keywords": "tenancy notice period deposit return",
    },
)
"""Passages of different fields with a query of each kind."""


def prompt_start(kind: str) -> str:
    """The text of a prompt before the passage, which follows after a space."""
    shown = (f"{BEFORE} {example['passage']}{prompt_end(kind)} {example[kind]}\n\n" for example in EXAMPLES)
    return "".join(shown) + BEFORE


def prompt_end(kind: str) -> str:
    """The text of a prompt after the passage."""
    return f"\n{KINDS[kind]}"
