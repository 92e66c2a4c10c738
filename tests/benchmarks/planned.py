"""What `nlt plan` says of a recipe against what its stages then take, each in a process of its own.

```bash
python tests/benchmarks/planned.py recipes/demo/likelihood_gain.yaml --folder runs/planned --max_queries 32
```

Collection and encoder must be there. All files of the stages go to a new folder, so that the plan is made before any
of them is there; further keys go to plan and stages alike. Memory is the peak of a process's resident set. The
machine's speed of matrix products is measured before and after each process: `at one speed` has the plan's seconds as
they would be at the stage's speed, over the seconds of the stage.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from measuring import matmul_peak

from nlt_trainer.arguments.beside import audit_file
from nlt_trainer.arguments.stages import RECIPE_BLOCKS
from nlt_trainer.recipe.parsing import parse_recipe
from nlt_trainer.text_files import read_json, write_json

FILES = {
    "candidates": "candidates.jsonl",
    "gains": "gains.jsonl",
    "score_cache": "scores",
    "heads": "heads.json",
    "output_dir": "run",
}
"""Keys of what stages write, and where it goes."""

LAUNCH = """
import pathlib, resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
pathlib.Path(sys.argv[1]).write_text(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(code)
"""
"""Runs a command and writes the peak of its memory; it is small itself, since Linux counts who starts a process in."""

COLUMNS = ("lm_tokens", "seconds", "memory")


def run(stage: str, arguments: list[str], *, log: Path) -> dict[str, float]:
    """Run a stage; returns seconds of wall time, the peak of its memory, bytes, and the machine's FLOPs a second."""
    before, begin = matmul_peak(), time.monotonic()
    memory = log.with_suffix(".memory")
    with log.open("w") as output:
        command = [sys.executable, "-m", f"nlt_trainer.scripts.{stage}", *arguments]
        process = subprocess.run([sys.executable, "-c", LAUNCH, str(memory), *command], stdout=output, stderr=output)
    if process.returncode:
        raise SystemExit(f"{stage} has failed:\n{log.read_text()}")
    seconds, unit = time.monotonic() - begin, 1 if sys.platform == "darwin" else 1024
    return {"seconds": seconds, "memory": int(memory.read_text()) * unit, "speed": (before + matmul_peak()) / 2}


def read_off(measured: dict[str, dict[str, float]], model: Any, data: Any, args: Any) -> None:
    """Add to what was measured the tokens that reports of the stages name."""
    earlier = 0
    if "score" in measured:
        earlier = read_json(audit_file(data.gains))["lm_tokens"]
        measured["score"]["lm_tokens"] = earlier
    if "detect_heads" in measured:
        heads = read_json(model.heads)["settings"]["lm_tokens"]
        measured["detect_heads"]["lm_tokens"], earlier = heads, earlier + heads
    read = read_json(Path(args.output_dir, "training.json"))["lm_tokens"]
    measured["train"]["lm_tokens"] = read - earlier


def comparison(planned: dict[str, dict[str, Any]], measured: dict[str, dict[str, float]], *, speed: float) -> str:
    """A table of planned over measured, with both in brackets; the plan was made at this speed."""
    units = {"memory": (2**20, "MiB"), "seconds": (1, "s"), "lm_tokens": (1, "")}
    lines = [f"| stage | {' | '.join(COLUMNS)} | at one speed |", f"|---|{'---|' * len(COLUMNS)}---|"]
    for stage, found in measured.items():
        cells = []
        for column in COLUMNS:
            plan, truth = planned[stage][column], found.get(column)
            unit, name = units[column]
            if not truth:
                cells.append("")
            else:
                cells.append(
                    f"{plan / truth:.2f} ({plan / unit:,.0f} / {truth / unit:,.0f} {name})".replace(" )", ")")
                )
        cells.append(f"{planned[stage]['seconds'] * speed / found['speed'] / found['seconds']:.2f}")
        lines.append(f"| {stage} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Plan, run and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--folder", type=Path, required=True, help="new folder, for files, logs and results")
    known, further = parser.parse_known_args()
    if known.folder.exists():
        raise SystemExit(f"{known.folder} is there already; name a new folder")
    known.folder.mkdir(parents=True)
    arguments = ["--config", known.recipe, *further]
    for key, name in FILES.items():
        arguments += [f"--{key}", str(known.folder / name)]
    model, data, args = parse_recipe(RECIPE_BLOCKS, arguments)
    plan_file = known.folder / "plan.json"
    plan = run("plan", [*arguments, "--plan_file", str(plan_file)], log=known.folder / "plan.txt")
    print((known.folder / "plan.txt").read_text())
    planned = {stage["stage"]: stage for stage in read_json(plan_file)["stages"]}
    anew = {"evaluate": ["--evaluation_cache", str(known.folder / "evaluation")]}  # reads nothing of earlier runs
    measured = {
        stage: run(stage, [*arguments, *anew.get(stage, [])], log=known.folder / f"{stage}.txt")
        for stage in planned
        if stage != "total"
    }
    read_off(measured, model, data, args)
    print(comparison(planned, measured, speed=plan["speed"]))
    write_json(
        known.folder / "results.json", {"arguments": arguments, "plan": plan, "planned": planned, "measured": measured}
    )


if __name__ == "__main__":
    main()
