"""Duplicates against the Jaccard similarity of shingles, computed exactly."""

from __future__ import annotations

import random

import pytest

from nlt_trainer.documents.duplicates import SHINGLE, SIMILARITY, Duplicates
from nlt_trainer.documents.words import words


def similarity(one: str, other: str) -> float:
    """Jaccard similarity of the shingles of two texts."""
    sets = []
    for text in (one, other):
        found = words(text.casefold())
        sets.append({tuple(found[i : i + SHINGLE]) for i in range(max(1, len(found) - SHINGLE + 1))})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def sentence(seed: int, length: int = 150) -> list[str]:
    return random.Random(seed).choices([f"word{n}" for n in range(5000)], k=length)


def test_the_first_stands_for_the_others() -> None:
    """Reference: ids by hand."""
    text, near = " ".join(sentence(1)), " ".join([*sentence(1)[:-2], "other", "end"])
    duplicates = Duplicates()
    assert duplicates.stands_for("a", text) is None
    assert duplicates.stands_for("b", " ".join(sentence(2))) is None
    assert duplicates.stands_for("c", text) == "a"
    assert duplicates.stands_for("d", near) == "a"
    assert duplicates.stands_for("e", " ".join(sentence(2))) == "b"


@pytest.mark.parametrize(("changed", "folded"), [(1, True), (2, True), (12, False), (40, False)])
def test_how_much_may_differ(changed: int, folded: bool) -> None:
    """Reference: the exact similarity, which lies well on one side of the bound, for 50 pairs."""
    for seed in range(50):
        one = sentence(seed)
        other = [*one[:-changed], *(f"new{n}" for n in range(changed))]
        if not folded:
            other = other[:40] + ["in between"] * (changed // 4) + other[40:]
        exact = similarity(" ".join(one), " ".join(other))
        assert abs(exact - SIMILARITY) > 0.05
        assert (exact > SIMILARITY) is folded
        duplicates = Duplicates()
        duplicates.stands_for("a", " ".join(one))
        assert (duplicates.stands_for("b", " ".join(other)) == "a") is folded


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Read this  text, please!", "read THIS\ntext please"),
        ("一二三四五六七八", "一二三四五 六七八。"),
        ("Füße", "FÜSSE"),
    ],
)
def test_case_spaces_and_punctuation_make_no_difference(one: str, other: str) -> None:
    """Reference: the same words."""
    duplicates = Duplicates()
    assert duplicates.stands_for("a", one) is None
    assert duplicates.stands_for("b", other) == "a"


def test_one_word_makes_a_short_text_another() -> None:
    """Reference: the similarity of texts of 8 words that differ in one."""
    one, other = "the price of a steel bolt is three", "the price of a steel bolt is four"
    assert similarity(one, other) < SIMILARITY
    duplicates = Duplicates()
    duplicates.stands_for("a", one)
    assert duplicates.stands_for("b", other) is None
