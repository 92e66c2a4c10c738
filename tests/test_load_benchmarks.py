"""The benchmarks of load in miniature: that they run, and what they measure where the right value is known."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from nlt_trainer.data import beir

BENCHMARKS = Path(__file__).parent / "benchmarks"


@pytest.fixture(autouse=True)
def beside_the_benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def run(program: str, results: Path, *words: str) -> dict[str, object]:
    """Run a benchmark; returns the details that it has written."""
    importlib.import_module(program).main([*words, "--json", str(results)])
    details: dict[str, object] = json.loads(results.read_text())["details"]
    return details


def test_slope() -> None:
    """Reference: a line of 3 bytes a step."""
    slope = importlib.import_module("measuring").slope
    assert slope([0, 10, 20, 40], [5 + 3 * n / 2**20 for n in (0, 10, 20, 40)]) == pytest.approx(3)


def test_cache_load(tmp_path: Path) -> None:
    """Reference: the entries that were asked for; the process dies of SIGKILL, and no entry is lost."""
    found = run("cache_load", tmp_path / "results.json", "--entries", "20000", "--seconds", "0.05")["cache_load"]
    assert isinstance(found, dict)
    assert found["sizes"][0]["entries"] == 2000
    assert found["sizes"][1]["entries"] >= 20_000
    assert found["kill"]["entries lost"] == 0
    assert found["kill"]["signal"] in (0, 9)  # 0 where the write was done before the kill


@pytest.mark.parametrize("objective", ["likelihood_gain", "dream"])
def test_step_load(objective: str, tmp_path: Path) -> None:
    """Reference: a reading every 20 steps; a process that has loaded torch holds 100 MiB at least."""
    words = ("--steps", "200", "--objective", objective)
    found = run("step_load", tmp_path / "results.json", *words)[f"step_load_{objective}"]
    assert isinstance(found, dict)
    assert [step for step, _ in found["readings"]] == list(range(20, 201, 20))
    assert all(mib > 100 for _, mib in found["readings"])


def test_large_corpora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: the documents that are asked for; few embeddings are all compared, so that all nearest are found."""
    benchmark = importlib.import_module("large_corpora")
    monkeypatch.setattr(beir, "STORED_FROM", 0)
    benchmark.write_texts(tmp_path, 300, 5)
    benchmark.write_embeddings(tmp_path, 300, 5)
    for step in benchmark.STEPS:
        monkeypatch.setattr(beir, "STORED_FROM", 0)
        assert benchmark.measure(step, tmp_path)["seconds"] > 0
    assert json.loads((tmp_path / "read_again.json").read_text()) == 300
    assert [benchmark.recall(tmp_path, step) for step in ("read", "exact", "ivf_pq")] == [None, None, 1]
    assert benchmark.stored_mib(tmp_path) > 0


def test_app_load(tiny_encoder_folder: Path, tiny_collection_folder: Path, tmp_path: Path) -> None:
    """Reference: no error, and equal answers to equal queries, which the program checks."""
    pytest.importorskip("gradio", reason="the extra [app] is not installed")
    words = ("--encoder", str(tiny_encoder_folder), "--corpus", str(tiny_collection_folder))
    found = run("app_load", tmp_path / "results.json", *words, "--clients", "4", "--seconds", "4")["app_load"]
    assert isinstance(found, dict)
    assert found["errors"] == []
    assert found["readings"][-1][0] > 0


def test_remote_scoring(tiny_collection_folder: Path, tmp_path: Path) -> None:
    """Reference: the pairs that were asked for; no client is faster than the server's wait allows."""
    words = (
        "--collection", str(tiny_collection_folder), "--queries", "4", "--candidates", "3", "--requests", "4",
        "--seconds", "0.1", "--runs", "1",
    )  # fmt: skip
    found = run("remote_scoring", tmp_path / "results.json", *words)["remote_scoring"]
    assert isinstance(found, dict)
    assert (found["pairs"], found["in flight"]) == (12, 4)
    assert 0 < found["ours, pairs/s"] <= 40
    assert 0 < found["simplest client, pairs/s"] <= 40
    assert found["ours, ms of a core a pair"] > 0
