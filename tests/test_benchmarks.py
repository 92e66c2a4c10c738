"""Benchmarks in miniature: that they run and that the compared cases compute the same."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent / "benchmarks"


def test_shared_backbone(tmp_path: Path) -> None:
    """Reference: the loss of two copies; and less weights in memory."""
    benchmark = runpy.run_path(str(BENCHMARKS / "shared_backbone.py"))
    size = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
    benchmark["write_model"](tmp_path / "llm", vocabulary=2000, **size)
    two, shared = (benchmark["measure"](tmp_path / "llm", shared=case) for case in (False, True))
    assert shared["loss"] == pytest.approx(two["loss"], abs=1e-3)
    assert shared["weights_mib"] < two["weights_mib"]
    assert set(shared) == {"weights_mib", "peak_before_loading_mib", "peak_mib", "loss"}
