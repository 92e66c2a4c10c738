"""What `nlt plan` says of a recipe against what its stages then take, each in a process of its own.

```bash
python tests/benchmarks/planned.py recipes/demo/likelihood_gain.yaml --max_queries 32 --json runs/planned.json
```

Collection and encoder must be there. Files of the stages are removed before the plan is made, so that it has nothing to
read them off; further keys go to plan and stages alike. Memory is the peak of a process's resident set.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from nlt_trainer.arguments import RECIPE_BLOCKS
from nlt_trainer.files import read_json, write_json
from nlt_trainer.recipe import parse_recipe
from nlt_trainer.scripts.score import audit_file

COLUMNS = ("lm_tokens", "seconds", "memory", "file_bytes")


def run(stage: str, arguments: list[str], *, log: Path) -> dict[str, float]:
    """Run a stage; returns seconds of wall time and the peak of its memory, bytes."""
    begin = time.monotonic()
    with log.open("w") as output:
        command = [sys.executable, "-m", f"nlt_trainer.scripts.{stage}", *arguments]
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{stage} has failed:\n{log.read_text()}")
    unit = 1 if sys.platform == "darwin" else 1024
    return {"seconds": time.monotonic() - begin, "memory": usage.ru_maxrss * unit}


def read_off(measured: dict[str, dict[str, float]], model: Any, data: Any, args: Any) -> None:
    """Add to what was measured the tokens that reports of the stages name, and the size of score's files."""
    earlier = 0
    if "score" in measured:
        earlier = read_json(audit_file(data.gains))["lm_tokens"]
        cache = sum(path.stat().st_size for path in Path(data.score_cache).iterdir())
        measured["score"] |= {"lm_tokens": earlier, "file_bytes": cache + Path(data.gains).stat().st_size}
    if "detect_heads" in measured:
        heads = read_json(model.heads)["settings"]["lm_tokens"]
        measured["detect_heads"]["lm_tokens"], earlier = heads, earlier + heads
    read = read_json(Path(args.output_dir, "training.json"))["lm_tokens"]
    measured["train"]["lm_tokens"] = read - earlier


def comparison(planned: dict[str, dict[str, Any]], measured: dict[str, dict[str, float]]) -> str:
    """A table of planned over measured, with both in brackets."""
    units = {"memory": (2**20, "MiB"), "file_bytes": (2**10, "KiB"), "seconds": (1, "s"), "lm_tokens": (1, "")}
    lines = [f"| stage | {' | '.join(COLUMNS)} |", f"|---|{'---|' * len(COLUMNS)}"]
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
        lines.append(f"| {stage} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Plan, run and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--json", type=Path, help="file of the results")
    parser.add_argument("--logs", type=Path, default=Path("runs/planned"), help="folder for what the stages print")
    known, further = parser.parse_known_args()
    arguments = ["--config", known.recipe, *further]
    model, data, args = parse_recipe(RECIPE_BLOCKS, arguments)
    known.logs.mkdir(parents=True, exist_ok=True)
    for file in (data.candidates, data.gains, model.heads):
        Path(file).unlink(missing_ok=True)
    for folder in (data.score_cache, args.output_dir):
        shutil.rmtree(folder, ignore_errors=True)
    plan_file = known.logs / "plan.json"
    run("plan", [*arguments, "--plan_file", str(plan_file)], log=known.logs / "plan.txt")
    print((known.logs / "plan.txt").read_text())
    planned = {stage["stage"]: stage for stage in read_json(plan_file)["stages"]}
    measured = {s: run(s, arguments, log=known.logs / f"{s}.txt") for s in planned if s != "total"}
    read_off(measured, model, data, args)
    print(comparison(planned, measured))
    if known.json:
        write_json(known.json, {"planned": planned, "measured": measured, "arguments": json.dumps(arguments)})


if __name__ == "__main__":
    main()
