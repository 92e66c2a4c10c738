"""The table of recipes/scale: what many passages cost."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "recipes" / "scale" / "cost.py"


def test_costs_are_those_of_plan_and_benchmark_times_the_numbers(
    tiny_collection_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reference: by hand. 12 passages are embedded twice by 24e12 FLOPs, so that one costs 1e12; an accelerator of 10
    TFLOP/s at 40 % embeds 1e6 of them in 1e6 * 1e12 / 4e12 seconds. Where it was planned one took 48 / 24 seconds.
    BM25 compared 5 queries with 1,000 documents in 7.2 seconds.
    """
    flops = {"mine": 0.0, "score": 8e12, "train": 4e12, "evaluate": 24e12, "total": 36e12}
    stages = [
        {"stage": name, "flops": value, "seconds": 7 + value / 0.5e12, "other_seconds": 7}
        for name, value in flops.items()
    ]
    plan, measured = tmp_path / "plan.json", tmp_path / "measured.json"
    plan.write_text(json.dumps({"stages": stages}))
    steps = {"read, the first time": 100, "index by BM25": 50, "nearest 100, ivf_pq, with its building": 25}
    rows = [{"step": step, "files, MiB": size} for step, size in steps.items()]
    rows.append({"step": "mine 8 candidates by BM25", "files, MiB": 0, "of the CPU": 7.2, "queries": 5})
    measured.write_text(json.dumps({"details": {"large_corpora_1000": rows}}))
    given = ["--plan", str(plan), "--collection", str(tiny_collection_folder), "--planned_queries", "4"]
    given += ["--measured", str(measured), "--measured_documents", "1000", "--accelerator", "10"]
    given += ["--passages", "1e6", "1e9", "--queries", "1000", "1e6"]
    main = runpy.run_path(str(SCRIPT))["main"]
    main(given)
    elsewhere = [
        "| one 10 TFLOP/s at 40% | 1e6 | 1,000 | 69 | 0.14 | 0.069 | 400 |",
        "| one 10 TFLOP/s at 40% | 1e9 | 1,000,000 | 69,444 | 139 | 69 | 400,000,000 |",
    ]
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:] == [
        "| hardware | passages | training queries | embed | score | train | BM25, one core |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| where it was planned, measured | 1e6 | 1,000 | 556 | 1.1 | 0.56 | 400 |",
        "| where it was planned, measured | 1e9 | 1,000,000 | 555,556 | 1,111 | 556 | 400,000,000 |",
        *elsewhere,
        "",
        "Gigabytes on disk:",
        "",
        "| passages | corpus | BM25 | embeddings | ivf_pq |",
        "| --- | --- | --- | --- | --- |",
        "| 1e6 | 105 | 52.4 | 1.54 | 26.2 |",
        "| 1e9 | 104,858 | 52,429 | 1,536 | 26,214 |",
    ]
    plan.write_text(json.dumps({"stages": [{**stage, "seconds": None} for stage in stages]}))  # no model was there
    main(given)
    assert capsys.readouterr().out.splitlines()[4:6] == elsewhere
