"""Words and pieces against counts by hand, in several scripts."""

from __future__ import annotations

import pytest

from nlt_trainer.documents.words import count_pieces, count_words, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Two words.", ["Two", "words"]),
        ("état naïf", ["état", "naïf"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),  # vowel signs belong to their word
        ("检索 abc文", ["检", "索", "abc", "文"]),
        ("a" * 45, ["a" * 20, "a" * 20, "a" * 5]),
        ("... --- !", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    """Reference: words by hand."""
    assert words(text) == expected
    assert count_words(text) == len(expected)


@pytest.mark.parametrize(("text", "expected"), [("a, b.", 4), ("embedding", 2), ("检索!", 3), ("", 0)])
def test_pieces_are_marks_and_8_letters_each(text: str, expected: int) -> None:
    """Reference: counts by hand."""
    assert count_pieces(text) == expected
