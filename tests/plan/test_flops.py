"""The arithmetic of a plan against closed cases."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from nlt_trainer.data.candidates import QueryCandidates
from nlt_trainer.data.gains import write_gains
from nlt_trainer.lm.score_cache import ScoreCache
from nlt_trainer.plan.flops import ModelShape, Schedule, gains_bytes, score_cache_bytes
from nlt_trainer.plan.readings import Reading, micro_batches, padded, tokens_read

SHAPE = ModelShape(1000, 100, 2, 8, 16, 8, 4, 50)


def test_a_text_sees_itself_and_what_was_read_before() -> None:
    """Reference: pairs that are counted one by one."""
    pairs = sum(1 for i in range(5) for j in range(7 + 5) if j <= 7 + i)
    assert Reading.text(5, after=7, targets=2) == Reading(5, pairs, 2)
    assert Reading.text(2) + Reading.text(3) * 2 == Reading(8, 3 + 12, 0)


@pytest.mark.parametrize("tied", [True, False])
def test_the_shape_of_a_decoder(tied: bool) -> None:
    """Reference: weights by hand of a Llama with 4 heads of 6 on 2 key-value heads, with and without a tied head."""
    config = LlamaConfig(
        vocab_size=50, hidden_size=8, intermediate_size=16, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=6, tie_word_embeddings=tied,
    )  # fmt: skip
    with torch.device("meta"):
        shape = ModelShape.of(AutoModelForCausalLM.from_config(config), bytes_per_number=2)
    layer = 8 * 24 + 2 * 8 * 12 + 24 * 8 + 3 * 8 * 16 + 2 * 8
    assert shape == ModelShape(3 * layer + 8 + (1 if tied else 2) * 400, 3 * layer + 8, 3, 8, 16, 24, 12, 50, 2)
    assert shape.key_value_bytes == 3 * 2 * 12 * 2


def test_flops_forward_and_backward() -> None:
    """Reference: 2 FLOPs a weight and token, 4 a layer, pair and unit of width; backward once and twice that."""
    reading = Reading(10, 30, 3)
    linear, attention, projection = 2 * 100 * 10, 4 * 2 * 8 * 30, 2 * 8 * 50 * 3
    assert SHAPE.flops(reading) == linear + attention + projection
    assert SHAPE.flops(reading, graph=1.0) == 2 * linear + 3 * attention + 2 * projection
    assert SHAPE.flops(reading, graph=0.5) == 1.5 * linear + 2 * attention + 2 * projection
    assert SHAPE.flops(reading, graph=1.0, trained=True) == 3 * linear + 3 * attention + 2 * projection


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, Schedule(15, 30, 3.0)),  # 10 rows in batches of 2
        ({"batch": 4}, Schedule(9, 30, 3.0)),
        ({"batch": 4, "drop_last": True}, Schedule(6, 24, 3.0)),
        ({"accumulation": 2}, Schedule(9, 30, 3.0)),
        ({"max_steps": 7}, Schedule(7, 14, 1.4)),
        ({"epochs": 0.5}, Schedule(3, 6, 0.6)),
    ],
)
def test_the_schedule_of_training(settings: dict[str, float], expected: Schedule) -> None:
    """Reference: batches by hand."""
    given = {"batch": 2, "accumulation": 1, "epochs": 3.0, "max_steps": -1, "drop_last": False, **settings}
    assert Schedule.of(10, **given) == expected  # type: ignore[arg-type]


def test_how_often_a_strategy_comes() -> None:
    """Reference: by hand; a share of the steps below 1; transformers saves and evaluates after the last step too."""
    schedule = Schedule(25, 100, 2.5)
    given = [("no", 5), ("epoch", 5), ("steps", 10), ("steps", 500), ("steps", 5), ("steps", 0.2)]
    assert [schedule.times(*each) for each in given] == [0, 3, 3, 1, 5, 5]


def test_documents_are_read_once_while_they_are_kept() -> None:
    """Reference: reads by hand, for keeping nothing, everything, and the two last used."""
    lengths = {"a": 10, "b": 20, "c": 10}
    calls = [["a", "b", "a"], ["a", "c"], ["b"], ["a"]]
    assert tokens_read(calls, lengths, capacity=0) == (30 + 20 + 20 + 10, 0)
    assert tokens_read(calls, lengths, capacity=100) == (40, 40)
    # a and b fill it; c drives out b, then b drives out a and c stays; a is read again
    assert tokens_read(calls, lengths, capacity=30) == (30 + 10 + 20 + 10, 30)


def test_every_row_comes_once_an_epoch() -> None:
    """Reference: the rows themselves, in micro-batches that end with a batch."""
    calls = list(micro_batches(7, epochs=1.5, batch=5, micro_batch=2, seed=0))
    assert [len(call) for call in calls[:4]] == [2, 2, 1, 2]
    assert sorted(i for call in calls[:4] for i in call) == list(range(7))
    assert len([i for call in calls[4:] for i in call]) == 4


def test_padding_to_the_longest() -> None:
    """Reference: all in one group, and each alone."""
    assert padded([1, 2, 3], 3) == Reading.text(3) * 3
    assert padded([1, 2, 3], 1) == Reading.text(1) + Reading.text(2) + Reading.text(3)


def test_padding_in_parts_of_a_batch() -> None:
    """Reference: parts by hand, longest first."""
    lengths = [9, 2, 3, 8, 1, 7]
    assert padded(lengths, 6, texts=4) == Reading.text(9) * 4 + Reading.text(2) * 2
    assert padded(lengths, 6, tokens=18) == Reading.text(9) * 2 + Reading.text(7) * 2 + Reading.text(2) * 2
    assert padded(lengths, 6, tokens=4) == sum((Reading.text(n) for n in (9, 8, 7, 3)), Reading.text(2) * 2)


def test_the_size_of_a_score_cache(tmp_path: Path) -> None:
    """Reference: a cache of 3,000 pairs, put in batches as scoring does."""
    cache, draw = ScoreCache(tmp_path, {"a": 1}), random.Random(0)
    for _ in range(30):
        keys = [draw.randbytes(16) for _ in range(100)]
        tokens = {key: np.zeros(12, np.float32) for key in keys}
        cache.put(dict.fromkeys(keys, (-1.5, 12, False)), tokens)
    assert score_cache_bytes(3000, 12) == pytest.approx(cache.path.stat().st_size, rel=0.25)


def test_the_size_of_a_gains_file(tmp_path: Path) -> None:
    """Reference: the file that is written, with and without tokens."""
    draw = np.random.default_rng(0)
    ids = tuple(f"document {i}" for i in range(8))
    rows = [QueryCandidates(f"query {b}", "a text", None, ids, (1.0,) * 8) for b in range(20)]
    for tokens in (0, 12):
        further: dict[str, Any] = {"target_tokens": [12] * 20, "log_likelihood": draw.normal(-30, 9, (20, 8))}
        if tokens:
            further["token_log_likelihoods"] = draw.normal(-2, 1, (20, 8, tokens))
        write_gains(tmp_path / "gains.jsonl", rows, draw.normal(size=(20, 8)), further=further)
        planned = gains_bytes([row.query_id for row in rows], [ids] * 20, token_numbers=tokens)
        assert planned == pytest.approx((tmp_path / "gains.jsonl").stat().st_size, rel=0.05)
