"""Queries that are among others, against texts by hand."""

from __future__ import annotations

from nlt_trainer.data.known_queries import count_known, query_keys


def test_a_query_is_known_by_its_words() -> None:
    """Reference: capitals, punctuation and white space make no other query; a word does."""
    known = query_keys(["Why is the sky blue?", "boil an egg"])
    assert count_known(["why is  the sky blue", "Boil an egg.", "boil two eggs"], known) == 2
    assert count_known([], known) == count_known(["boil an egg"], []) == 0
