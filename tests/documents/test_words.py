"""Words and pieces against counts by hand, in several scripts."""

from __future__ import annotations

import string

import pytest

from nlt_trainer.documents.words import ASCII_PIECE, ASCII_WORD, PIECE, WORD, count_pieces, count_words, words


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


@pytest.mark.parametrize("text", [string.printable, "".join(map(chr, range(128))), f"snake_case, 3.14\t{'ab' * 30}!"])
def test_a_text_that_is_all_ascii_has_the_same_words_and_pieces(text: str) -> None:
    """Reference: the patterns for every text."""
    assert ASCII_WORD.findall(text) == WORD.findall(text)
    assert ASCII_PIECE.findall(text) == PIECE.findall(text)
