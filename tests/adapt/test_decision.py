from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from scipy import stats

from nlt_trainer.adapt.decision import (
    Decision,
    Rankings,
    advice_where_nothing_is_gained,
    chosen_weight,
    cross_fitted,
    decide,
)
from nlt_trainer.choices import TargetKind
from nlt_trainer.data.fusion import weighted_fusion

NDCG_SECOND = 1 / np.log2(3)
COST = {"train_seconds": 9.0, "lm_tokens": 5, "seed": 1}
QRELS = {f"q{i}": {"right": 1} for i in range(40)}


WORDS: dict[str, Any] = {"asked": "held-out queries", "advice": "try this"}


def ranked(first: int, *, of: Mapping[str, object] = QRELS) -> Rankings:
    """Rankings that have the right document first for so many queries, and second for the others."""
    return {query: {"right": 0.9 if i < first else 0.4, "wrong": 0.5, "other": 0.1} for i, query in enumerate(of)}


def decided(*, bm25: int, start: int, adapted: int, judged_by_llm: bool = False) -> Decision:
    rankings = {"bm25": ranked(bm25), "start": ranked(start), "adapted": ranked(adapted)}
    return decide(
        rankings,
        QRELS,
        collection="c",
        split="held_out",
        cost=COST,
        judged_by_llm=judged_by_llm,
        **WORDS,
    )


def test_a_sure_gain_keeps_the_adapted_encoder() -> None:
    """nDCG@10 against its closed form, 1 and 1 / log2(3), and p against scipy's permutation test."""
    found = decided(bm25=0, start=10, adapted=30)
    rows = {row.name: row for row in found.rows}
    assert [*rows] == [
        "bm25", "start", "adapted", "start+bm25", "start+bm25 (rrf)", "adapted+bm25", "adapted+bm25 (rrf)",
    ]  # fmt: skip
    assert rows["adapted"].ndcg_at_10 == pytest.approx((30 + 10 * NDCG_SECOND) / 40)
    difference = np.repeat([0, 1 - NDCG_SECOND, 0], [10, 20, 10])
    expected = stats.permutation_test((difference,), np.mean, permutation_type="samples", rng=0).pvalue
    assert rows["adapted"].p_against_start == pytest.approx(expected, abs=0.002)
    assert [row.name for row in found.rows if row.kept] == [found.kept] == ["adapted"]
    assert found.sentence.startswith("WIN: nDCG@10 on held-out queries was 0.723 before and is 0.908 adapted")
    assert (rows["adapted"].seed, rows["start"].seed, rows["adapted"].lm_tokens) == (1, None, 5)


@pytest.mark.parametrize("adapted", [5, 10, 12])
def test_a_loss_nothing_or_an_unsure_gain_keeps_the_start(adapted: int) -> None:
    """12 of 40 queries instead of 10: p is 0.5, the chance that two coins show the same side."""
    found = decided(bm25=0, start=10, adapted=adapted)
    assert found.kept == "start"
    assert found.sentence.startswith("NO GAIN: ")
    assert "the encoder that you had is kept" in found.sentence
    assert found.sentence.endswith("; try this.")


def test_the_llms_own_judgements_ask_for_a_larger_gain() -> None:
    """600 queries of which 30 improve: the gain is 0.018 and beyond doubt, but the LLM has taught what it judges."""
    many = {f"q{i}": {"right": 1} for i in range(600)}
    rankings = {name: ranked(first, of=many) for name, first in (("bm25", 0), ("start", 10), ("adapted", 40))}
    by_people, by_llm = (
        decide(rankings, many, collection="c", split="held_out", cost=COST, judged_by_llm=judged_by_llm, **WORDS)
        for judged_by_llm in (False, True)
    )
    assert (by_people.kept, by_llm.kept) == ("adapted", "start")
    assert "a gain below 0.025 does not count, because the LLM judges what it has taught" in by_llm.sentence
    assert "does not count" not in by_people.sentence
    assert decided(bm25=0, start=10, adapted=30, judged_by_llm=True).kept == "adapted"


def test_a_small_sure_gain_on_made_queries_is_not_laid_to_the_llm() -> None:
    """Of 1,200 queries 12 improve: 0.004, beyond doubt, below what is enough, and no LLM has judged."""
    many = {f"q{i}": {"right": 1} for i in range(1200)}
    rankings = {name: ranked(first, of=many) for name, first in (("bm25", 0), ("start", 10), ("adapted", 22))}
    found = decide(
        rankings,
        many,
        collection="c",
        split="held_out",
        cost=COST,
        judged_by_llm=False,
        **WORDS,
    )
    assert found.kept == "start"
    assert "does not count" not in found.sentence


def test_a_start_that_reads_less_than_it_did_is_compared_with_what_it_had() -> None:
    """Against the closed form: of 40 queries the start with its own 256 tokens has 20 first, the others second."""
    first = {"bm25": 0, "start (256 tokens)": 20, "start": 30, "adapted": 30}
    rankings = {name: ranked(number) for name, number in first.items()}
    found = decide(
        rankings,
        QRELS,
        collection="c",
        split="held_out",
        cost=COST,
        judged_by_llm=False,
        **WORDS,
        lengths=(128, 256),
    )
    own = (20 + 20 * NDCG_SECOND) / 40
    assert f"; both read 128 tokens of a passage, and with its own 256 the start has {own:.3f}; " in found.sentence
    assert "tokens" not in decided(bm25=0, start=30, adapted=30).sentence


@pytest.mark.parametrize(
    ("made", "target", "answered", "expected"),
    [
        (True, None, False, "queries that people have typed help more than made ones"),
        (False, None, False, "more queries help most"),
        (False, None, True, "try more queries, or --target query"),
        (False, "query", True, "try more queries, or --target joint"),
    ],
)
def test_the_advice_names_what_was_not_tried(
    made: bool, target: TargetKind | None, answered: bool, expected: str
) -> None:
    """Whoever gave queries of people is not told to give some, and without answers there is no other target."""
    assert advice_where_nothing_is_gained(made=made, target=target, answered=answered) == expected


def test_bm25_is_named_where_it_is_ahead() -> None:
    found = decided(bm25=40, start=10, adapted=30)
    assert "BM25 alone" in found.sentence
    assert found.bm25_weight > 0


def test_the_weight_beside_a_taught_encoder_is_raised_towards_the_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: the mean by hand, rounded up; nothing changes for the start."""
    fitted = {"start": 0.7, "adapted": 0.4}
    monkeypatch.setattr("nlt_trainer.adapt.decision.fit_weight", lambda encoder, bm25, qrels: fitted[encoder["name"]])
    rankings: Any = {name: {"name": name} for name in ("bm25", "start", "adapted")}

    def chosen(kept: str) -> float:
        return chosen_weight(rankings, QRELS, kept=kept)

    assert (chosen("adapted"), chosen("start")) == (0.6, 0.7)
    fitted["start"] = 0.4
    assert chosen("adapted") == 0.4
    fitted["start"] = 0.1
    assert chosen("adapted") == 0.4


def test_each_half_is_fused_with_the_weight_of_the_other() -> None:
    """In one half only BM25 is right, in the other only the encoder: both halves get the wrong weight."""
    right, wrong = {"right": 1.0, "wrong": 0.0}, {"right": 0.0, "wrong": 1.0}
    encoder = {query: wrong if i % 2 else right for i, query in enumerate(QRELS)}
    bm25 = {query: right if i % 2 else wrong for i, query in enumerate(QRELS)}
    fused = cross_fitted(encoder, bm25, QRELS)
    assert fused.keys() == QRELS.keys()
    assert all(row["wrong"] > row["right"] for row in fused.values())


def test_reciprocal_rank_fusion_has_rows_of_its_own() -> None:
    """1/61 + 1/62 is more than 1/63 + 1/61: what the encoder has first and BM25 second is above what the encoder has
    third and BM25 first."""
    encoder = {query: {"right": 0.9, "wrong": 0.5, "other": 0.1} for query in QRELS}
    bm25 = {query: {"other": 9.0, "right": 5.0, "wrong": 1.0} for query in QRELS}
    rankings = {"bm25": bm25, "start": bm25, "adapted": encoder}
    found = decide(
        rankings,
        QRELS,
        collection="c",
        split="held_out",
        cost=COST,
        judged_by_llm=False,
        **WORDS,
    )
    rows = {row.name: row.ndcg_at_10 for row in found.rows}
    assert rows["start+bm25 (rrf)"] == pytest.approx(NDCG_SECOND)  # BM25 with itself
    assert rows["adapted+bm25 (rrf)"] == pytest.approx(1)


def test_queries_without_a_ranking_count_nothing() -> None:
    """A query for which BM25 finds nothing, against a fusion of the encoder alone."""
    bm25 = dict(ranked(40))
    bm25["q0"] = {}
    fused = cross_fitted(ranked(40), bm25, QRELS)
    assert [*fused["q0"]] == [*weighted_fusion(ranked(40)["q0"], {}, weight=0.5)]
