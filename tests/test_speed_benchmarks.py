"""Benchmarks of speed in miniature: that they run, that the compared cases compute the same, and what they record."""

from __future__ import annotations

import importlib.util
import json
import runpy
import statistics
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent / "benchmarks"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a benchmark with some arguments; what it recorded."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.chdir(tmp_path)

    def call(name: str, *flags: str) -> dict[str, Any]:
        main = runpy.run_path(str(BENCHMARKS / f"{name}.py"))["main"]

        def here(_: str, *given: str) -> dict[str, Any]:
            """What a fresh process would print: importing everything again takes longer than the work."""
            capsys.readouterr()
            main(given)
            return json.loads(capsys.readouterr().out.splitlines()[-1])

        main.__globals__["in_fresh_process"] = here
        main([*flags, "--runs", "2", "--json", "results.json"])
        results: dict[str, Any] = json.loads(Path("results.json").read_text())
        assert results["machine"]["threads"] >= 1
        return results

    return call


def test_scoring(run: Any, tiny_llm_folder: Path, tiny_collection_folder: Path) -> None:
    """Reference: the plain loop's likelihoods, and lm-eval's where it is installed."""
    folder = str(tiny_collection_folder)
    results = run(
        "scoring_speed", "--llm", str(tiny_llm_folder), "--collection", folder, "--repeats", folder,
        "--queries", "3", "--candidates", "4", "--max_document_tokens", "16",
    )  # fmt: skip
    details = results["details"]["scoring"]["distinct"]
    assert details["plain loop"]["same_tokens"] == 1
    assert details["plain loop"]["difference"] < 1e-4
    assert details["work"]["pairs"] == 12
    assert results["details"]["scoring"]["repeats"]["work"]["documents"] == 4  # each of them comes with all 3 queries
    assert details["rows"][0]["pairs a document"] == pytest.approx(12 / details["work"]["documents"])
    assert results["scoring_peak_share"] > 0
    memory = results["details"]["scoring"]["memory"]
    assert memory["ours"]["peak_mib"] >= memory["ours"]["loaded_mib"] > 0
    if importlib.util.find_spec("lm_eval") is not None:
        assert results["scoring_vs_lm_eval"] > 0
        repeats = results["details"]["scoring"]["repeats"]
        for set_, pairs in ((details, 12), (repeats, 6)):
            assert set_["lm-eval"]["same_tokens"] > 0
            assert set_["lm-eval"]["difference"] < 1e-3
            (row,) = [row for row in set_["rows"] if row["case"] == "lm-eval"]
            assert row["pairs"] == pairs
        theirs, ours = repeats["seconds"]["lm-eval"], repeats["seconds"]["ours"]
        expected = statistics.median(2 * t / o for t, o in zip(theirs, ours, strict=True))
        assert results["scoring_repeats_vs_lm_eval"] == pytest.approx(expected, abs=1e-3)
        assert any(case.startswith("lm-eval, batch size") for case in memory)


def test_profile_of_scoring(
    tiny_llm_folder: Path,
    tiny_collection_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Reference: products are among a decoder's operators; shares are fractions of one, the largest first."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    main = runpy.run_path(str(BENCHMARKS / "scoring_profile.py"))["main"]
    main([
        "--llm", str(tiny_llm_folder), "--collection", str(tiny_collection_folder), "--queries", "3",
        "--candidates", "4", "--max_document_tokens", "16", "--operators", "100",
    ])  # fmt: skip
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    shares = [float(row[3]) for row in rows[2:]]
    assert any(row[0] in ("aten::addmm", "aten::mm", "mkldnn::_linear_pointwise") for row in rows)
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1, abs=0.02)


def test_dream(run: Any, tiny_llm_folder: Path, tiny_collection_folder: Path) -> None:
    """Reference: loss and gradient of the full graph, in both layouts, the second time from kept keys and values."""
    results = run(
        "dream_speed", "--llm", str(tiny_llm_folder), "--collection", str(tiny_collection_folder), "--prompts", "1",
        "--candidates", "3", "--max_document_tokens", "8", "--num_heads", "3", "--head_queries", "1",
    )  # fmt: skip
    for layout in ("sequential", "independent"):
        for visit in ("first", "disagreement"):
            found = results["details"]["dream"][layout][visit]
            assert found["loss"] < 1e-5
            assert found["gradient"] < 1e-5
    assert set(results["details"]["dream"]["memory"]) == {"full graph", "ours"}
    assert results["dream_memory_vs_full_graph"] > 0
    assert results["dream_vs_full_graph"] > 0
    assert results["dream_cached_vs_full_graph"] > 0


def test_training(run: Any, tiny_encoder_folder: Path, tiny_collection_folder: Path) -> None:
    """Reference: sentence-transformers' loss, which is ours times the squared temperature; that of float32."""
    results = run(
        "training_speed", "--encoder", str(tiny_encoder_folder), "--collection", str(tiny_collection_folder),
        "--steps", "2", "--batch_size", "2", "--candidates", "3", "--max_length", "16", "--bf16",
    )  # fmt: skip
    losses = results["details"]["training"]["losses"]
    assert losses["whole batch, bf16"] == pytest.approx(losses["whole batch"], rel=0.1)
    assert losses["whole batch, bf16"] != losses["whole batch"] != losses["ours"]
    assert results["train_bf16_vs_float32"] > 0
    assert losses["sentence-transformers"] == pytest.approx([0.05**2 * loss for loss in losses["ours"]], rel=1e-2)
    assert results["train_vs_sentence_transformers"] > 0


def test_cache(run: Any, tiny_llm_folder: Path) -> None:
    """Reference: the values that were stored, which the benchmark itself compares."""
    results = run("cache_speed", "--llm", str(tiny_llm_folder), "--pairs", "320")
    assert results["cache_pairs_per_second"] > 0
    assert results["details"]["cache"]["pairs"] == 320


def test_precision(run: Any, tiny_llm_folder: Path, tiny_encoder_folder: Path, tiny_collection_folder: Path) -> None:
    """Both precisions find the same, and the ratios are those of the seconds."""
    results = run(
        "precision_speed", "--llm", str(tiny_llm_folder), "--encoder", str(tiny_encoder_folder),
        "--collection", str(tiny_collection_folder), "--queries", "3", "--candidates", "4", "--tokens", "16",
        "--documents", "12",
    )  # fmt: skip
    agreement = results["details"]["precision"]["agreement"]
    assert agreement["correlation"] > 0.99
    assert agreement["same_best"] == 1
    assert 0.9 < agreement["shared_neighbours"] <= 1
    assert results["scoring_bf16_vs_float32"] > 0
    assert results["embedding_bf16_vs_float32"] > 0
