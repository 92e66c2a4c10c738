"""Where sentences end, and what counts as a word."""

from __future__ import annotations

import re

import pytest

from nlt_trainer.data.sentences import LINE_END, SENTENCE_END, count_words


def split(pattern: re.Pattern[str], text: str) -> list[str]:
    return [piece for piece in pattern.split(text) if piece.strip()]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One is here. Two follows! Is that three?", ["One is here.", "Two follows!", "Is that three?"]),
        ("So Smith et al. found it. See Fig. 3 there.", ["So Smith et al. found it.", "See Fig. 3 there."]),
        ("It was J. Bach. He played.", ["It was J. Bach.", "He played."]),
        ("Version 3.11 is out. Get it.", ["Version 3.11 is out.", "Get it."]),
        ("茶は葉から作る。紅茶も同じ！？緑茶は？", ["茶は葉から作る。", "紅茶も同じ！？", "緑茶は？"]),  # noqa: RUF001
        ("彼は「はい。」と言った。終わり。", ["彼は「はい。」と言った。", "終わり。"]),
        ("चाय पत्तों से बनती है। यह हरी है।", ["चाय पत्तों से बनती है।", "यह हरी है।"]),
        ("A line that goes\non here\nThe next\n\nand a paragraph", [
            "A line that goes\non here", "The next", "and a paragraph",
        ]),
        ("- first item\n- second item", ["- first item", "- second item"]),
    ],
)  # fmt: skip
def test_sentences_of_prose(text: str, sentences: list[str]) -> None:
    """Reference: split by hand."""
    assert split(SENTENCE_END, text) == sentences


def test_a_line_ends_a_sentence_where_lines_are_wanted() -> None:
    """Reference: the lines themselves."""
    assert split(LINE_END, "a = 1\nb = 2\n\n    c = 3") == ["a = 1", "b = 2", "    c = 3"]


@pytest.mark.parametrize(
    ("text", "words"),
    [("two words", 2), ("it's a well-kept one - yes.", 5), ("茶は葉から作る。", 3), ("Pythonの関数", 2), ("...", 0)],
)
def test_words(text: str, words: int) -> None:
    """Reference: counted by hand; two characters without spaces are a word."""
    assert count_words(text) == words
