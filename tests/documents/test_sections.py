"""Headings of Markdown and reStructuredText against documents by hand."""

from __future__ import annotations

import pytest

from nlt_trainer.documents.sections import Source, markdown_source, rst_source


def plain(source: Source) -> list[tuple[tuple[str, ...], str]]:
    """Headings and text of the sections that have text."""
    return [(section.headings, section.text.strip()) for section in source.sections if section.text.strip()]


MARKDOWN = """before

# The *guide*
intro

## Install `it`

```
# no heading
```

Under
-----
two

# Other [link](x.md)
three
"""


def test_markdown_is_cut_at_its_headings() -> None:
    """Reference: sections by hand; a fenced line is no heading, an underlined one is, and marks are no text of it."""
    source = markdown_source(MARKDOWN)
    assert source.title == "The guide"
    assert plain(source) == [
        ((), "before"),
        (("The guide",), "intro"),
        (("The guide", "Install it"), "```\n# no heading\n```"),
        (("The guide", "Under"), "two"),
        (("Other link",), "three"),
    ]


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("---\ntitle: From data\ntags: [a]\n---\ntext", "From data"),
        ('---\ntitle: "Quoted"\n---\n## Lower\ntext', "Quoted"),
        ("---\ntitle: From data\n---\n# Heading\ntext", "Heading"),
        ("## Lower\ntext", "Lower"),
        ("text", ""),
    ],
)
def test_the_title_of_markdown(text: str, title: str) -> None:
    """Reference: the first heading of level 1, else the metadata, else any heading; metadata is no text."""
    source = markdown_source(text)
    assert source.title == title
    assert [text for _, text in plain(source)] == ["text"]


def test_a_paragraph_that_is_underlined_is_text() -> None:
    """Reference: Markdown's own rule would make a heading of all of it."""
    paragraph = " ".join(["word"] * 40)
    assert plain(markdown_source(f"{paragraph}\n---\nrest")) == [((), f"{paragraph}\n---\nrest")]


@pytest.mark.parametrize(
    ("between", "is_metadata"),
    [
        ("All of this is text.\n", False),
        ("- a list\n- of text\n", False),
        ("\n", False),
        ("title: a\nAnd a sentence.\n", False),
        ("http://a.example says more\n", False),
        ("# comment\n\ntags:\n- a\n  deeper\n\nlist: [\n  b\n]\ntext: |\n  A sentence.\n", True),
    ],
)
def test_text_between_two_rules_is_no_metadata(between: str, is_metadata: bool) -> None:
    """Reference: YAML's form of keys and values, which metadata has and text has not."""
    found = "".join(section.text for section in markdown_source(f"---\n{between}\n---\nrest").sections)
    assert found == ("rest" if is_metadata else f"---\n{between}\n---\nrest")


RST = """=====
Title
=====

intro

Part
----
.. include:: /etc/passwd

Deep
~~~~
text

    quoted
    ------

Next
----
=====  =====
cell   cell
=====  =====
"""


def test_rst_is_cut_at_its_headings() -> None:
    """Reference: sections by hand; levels come in the order of their marks, and no directive is followed."""
    source = rst_source(RST)
    assert source.title == "Title"
    assert plain(source) == [
        (("Title",), "intro"),
        (("Title", "Part"), ".. include:: /etc/passwd"),
        (("Title", "Part", "Deep"), "text\n\n    quoted\n    ------"),
        (("Title", "Next"), "=====  =====\ncell   cell\n=====  ====="),
    ]
