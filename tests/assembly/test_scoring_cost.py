"""What the audit of gains says about the cost of scoring, where several processes share it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nlt_trainer.arguments.data import DataArguments
from nlt_trainer.arguments.model import ModelArguments
from nlt_trainer.assembly import scoring
from nlt_trainer.assembly.parts import load_scorer
from nlt_trainer.data.beir import load_collection
from nlt_trainer.data.candidates import mine_candidates


def test_seconds_of_two_processes_are_those_of_both(
    tiny_llm_folder: Path, tiny_collection_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: by hand. The clock goes on by ten seconds, in which this process has read a part of all tokens, and
    another one the rest as fast."""
    collection = load_collection(tiny_collection_folder, splits=["train"])
    candidates = mine_candidates(collection, list(collection.queries.values()), num_candidates=3)
    model = ModelArguments(llm=str(tiny_llm_folder), llm_dtype="float32")
    data = DataArguments(
        collection=str(tiny_collection_folder),
        gains=str(tmp_path / "gains.jsonl"),
        score_cache=str(tmp_path / "scores"),
    )
    own, other = (load_scorer(model, data, target="query") for _ in range(2))
    texts = scoring.texts_of(candidates, collection)
    rest = scoring.pairs_of(candidates[2:], texts[2:]), scoring.pairs_of(candidates[2:])

    @contextmanager
    def half(items: list[Any]) -> Iterator[list[Any]]:
        yield items[:2]

    def wait() -> None:
        for pairs in rest:
            other.fill_cache(pairs)

    two = SimpleNamespace(num_processes=2, is_main_process=True, split_between_processes=half, wait_for_everyone=wait)
    monkeypatch.setattr(scoring, "PartialState", lambda: two)
    clock = count(0.0, 10.0)
    monkeypatch.setattr(scoring, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    tokens = 1000
    report = scoring.score_candidates(own, candidates, model=model, data=data, collection=collection, tokens=tokens)
    assert other.lm_tokens > 0
    assert report["seconds"] == pytest.approx(10 * tokens / own.lm_tokens, abs=0.1)
