from __future__ import annotations

import pytest

from nlt_trainer.data.folding import folded


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("How do I\n RESET it ?", "how do i reset it"),
        ("«Straße»", "strasse"),
        ("re-set (it)", "re set it"),
        ("sort in C++", "sort in c++"),
        ("की का", "की का"),
        ("葉から作る。", "葉から作る"),
        ("?!", ""),
    ],
)
def test_words_are_what_is_left(text: str, words: str) -> None:
    """Reference: by hand; marks on letters and signs of mathematics are no punctuation."""
    assert folded(text) == words
