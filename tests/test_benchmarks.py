"""Benchmarks in miniature: that they run and that the compared cases compute the same."""

from __future__ import annotations

import importlib
import json
import runpy
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent / "benchmarks"


def test_shared_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: the loss of two copies; and less weights in memory."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    benchmark = runpy.run_path(str(BENCHMARKS / "shared_backbone.py"))
    size = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
    benchmark["write_model"](tmp_path / "llm", vocabulary=2000, **size)
    two, shared = (benchmark["measure"](tmp_path / "llm", shared=case) for case in (False, True))
    assert shared["loss"] == pytest.approx(two["loss"], abs=1e-3)
    assert shared["weights_mib"] < two["weights_mib"]
    assert set(shared) == {"weights_mib", "peak_before_loading_mib", "peak_mib", "loss"}


def test_growth(tiny_llm_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: the tokens that the LLM reads grow as it says; the exponent of a power law; a PNG."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    benchmark = runpy.run_path(str(BENCHMARKS / "growth.py"))
    benchmark["prepare"](tmp_path, str(tiny_llm_folder))
    benchmark["EARLIER_QUERIES"].update(dict.fromkeys(benchmark["EARLIER_QUERIES"], 4))
    small = dict.fromkeys(benchmark["SERIES"], (8, 16)) | {"scoring_bookkeeping": (16, 32), "dream_k": (2, 4)}
    results = {}
    for name, sizes in small.items():
        series = benchmark["SERIES"][name]
        points = [{"size": size} | series.measure(tmp_path, size) for size in sizes]
        assert all(point["seconds"] > 0 and point["memory_mib"] > 0 for point in points)
        results[name] = benchmark["summary"](name, points)
    first, second = ({name: r["points"][i].get("lm_tokens", 0) for name, r in results.items()} for i in (0, 1))
    assert second["scoring_length"] - first["scoring_length"] == 16 * 8  # 16 documents, each 8 tokens longer
    assert 1.8 < second["scoring_k"] / first["scoring_k"] < 2  # the no-document baseline stays
    for name in ("scoring_pairs", "scoring_bookkeeping", "dream_k"):
        assert 1.4 < second[name] / first[name] < 2.4
    assert benchmark["exponent"]([1, 2, 4, 8], [3, 12, 48, 192]) == pytest.approx(2)
    assert [row["sizes"] for row in benchmark["rows"](results)][:2] == ["8, 16", "16, 32"]
    benchmark["draw"](results, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_memory_is_counted_from_what_was_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: nothing happens inside, so the growth is what came between loading and measuring."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    benchmark = runpy.run_path(str(BENCHMARKS / "growth.py"))
    loaded = benchmark["status_mib"]("VmRSS") - 100
    with benchmark["watched"]() as from_start, benchmark["watched"](loaded) as from_loaded:
        pass
    assert from_start["memory_mib"] < 50 < 90 < from_loaded["memory_mib"] < 150


def test_growth_at_other_sizes(tiny_llm_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: the sizes that are asked for, in the JSON file; a PNG beside it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("PYTHONPATH", str(BENCHMARKS))  # the points' processes import the script's functions
    flags = ["--llm", str(tiny_llm_folder), "--series", "scoring_bookkeeping", "--sizes", "8", "16"]
    importlib.import_module("growth").main([*flags, "--json", str(tmp_path / "growth.json")])
    points = json.loads((tmp_path / "growth.json").read_text())["series"]["scoring_bookkeeping"]["points"]
    assert [point["size"] for point in points] == [8, 16]
    assert (tmp_path / "growth.png").is_file()


def test_starts(tiny_llm_folder: Path, tmp_path: Path) -> None:
    """Reference: the rows that are asked for; the metric of a collection whose queries are its documents' words."""
    benchmark = runpy.run_path(str(BENCHMARKS / "starts.py"))
    collection = tmp_path / "collection"
    (collection / "qrels").mkdir(parents=True)
    texts = ["green tea", "an owl hunts", "bread rises"]
    for name, prefix in (("corpus", "d"), ("queries", "q")):
        rows = [json.dumps({"_id": f"{prefix}{i}", "text": text}) for i, text in enumerate(texts)]
        (collection / f"{name}.jsonl").write_text("\n".join(rows))
    (collection / "qrels" / "dev.tsv").write_text(
        "query-id\tcorpus-id\tscore\n" + "\n".join(f"q{i}\td{i}\t1" for i in range(3))
    )
    flags = ["--llm", str(tiny_llm_folder), "--collection", str(collection), "--layers", "1"]
    benchmark["main"]([*flags, "--json", str(tmp_path / "starts.json")])
    rows = json.loads((tmp_path / "starts.json").read_text())
    assert [row["start"] for row in rows] == ["token embeddings", "first 1 layers"]
    assert [row["ndcg_at_10"] for row in rows] == [1, 1]


def test_planned_over_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: ratios by hand, of a plan made at half the stage's speed; what was not measured is left empty."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    benchmark = runpy.run_path(str(BENCHMARKS / "planned.py"))
    planned = {"score": {"lm_tokens": 1200.0, "seconds": 50.0, "memory": 3.0 * 2**20}}
    measured = {"score": {"lm_tokens": 1200, "seconds": 40.0, "memory": 4.0 * 2**20, "speed": 1e9}}
    table = benchmark["comparison"](planned, measured, speed=0.5e9).splitlines()
    assert table[2] == "| score | 1.00 (1,200 / 1,200) | 1.25 (50 / 40 s) | 0.75 (3 / 4 MiB) | 0.62 |"


def test_a_stage_is_measured_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: a stage whose imports take less memory than this process has; the message of one that fails."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    run = runpy.run_path(str(BENCHMARKS / "planned.py"))["run"]
    found = run("cli", ["--help"], log=tmp_path / "cli.txt")
    assert "stages:" in (tmp_path / "cli.txt").read_text()
    assert 0 < found["memory"] < 100 * 2**20
    assert found["seconds"] > 0 < found["speed"]
    with pytest.raises(SystemExit, match="unknown stage 'nothing'"):
        run("cli", ["nothing"], log=tmp_path / "cli.txt")
