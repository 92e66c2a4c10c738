"""Say what a recipe will cost before anything runs: tokens, FLOPs, seconds, files and memory of each stage.

```bash
nlt plan --config recipes/demo/likelihood_gain.yaml --accelerator "A100 bf16"
```

Counts come from the candidates where there are some, else from candidates that are mined for a sample and thrown
away. Seconds are scaled up from about ten seconds of the real scorer, trainer and evaluator, run with the recipe's
models; where an LLM or an encoder has no weights here, a model of its configuration with fewer layers stands in.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path

from nlt_trainer.arguments.stages import PLAN_BLOCKS
from nlt_trainer.assembly.parts import processes
from nlt_trainer.errors import NLTError
from nlt_trainer.files import write_json
from nlt_trainer.plan.context import PlanContext, StagePlan
from nlt_trainer.plan.evaluation import plan_evaluate
from nlt_trainer.plan.flops import accelerator_peak
from nlt_trainer.plan.scoring import plan_detect_heads, plan_mine, plan_score
from nlt_trainer.plan.training import plan_train
from nlt_trainer.program import run_main, shown
from nlt_trainer.recipe.parsing import parse_recipe

LEAVING = 0.2
"""Share of the time of its imports that a process takes to end, when the interpreter takes them down."""


def main(argv: list[str] | None = None) -> None:
    """Print the plan."""
    start = (1 + LEAVING) * time.process_time()  # what a stage needs before it begins and after: its imports
    model, data, args, plan = parse_recipe(PLAN_BLOCKS, argv, description=shown(__doc__))
    peak = accelerator_peak(plan.accelerator, plan.accelerator_tflops)
    if (started := processes(args).num_processes) > 1:
        raise NLTError(f"{started} processes were started, and plan times one; start it alone: nlt plan --config ...")
    with tempfile.TemporaryDirectory() as folder:
        context = PlanContext(model, data, args, Path(folder), start)
        stages = plan_stages(context)
    if peak is not None:
        stages = [stage.on_accelerator(plan.utilisation * peak) for stage in stages]
    name = plan.accelerator or f"{plan.accelerator_tflops} TFLOP/s"
    print(plan_table(stages, f"{name} at {plan.utilisation:.0%}" if peak is not None else None))
    for note in context.notes:
        print(f"- {note}")
    if plan.plan_file is not None:
        rows = [dataclasses.asdict(stage) for stage in stages]
        write_json(plan.plan_file, {"stages": rows, "notes": context.notes})


def plan_stages(context: PlanContext) -> list[StagePlan]:
    """The stages that the recipe needs, in their order, and their sum."""
    model, data, args = context.model, context.data, context.args
    detects = "dream" in args.objectives and model.head_scores is None
    scores = args.reads_gains(data) or (detects and data.head_method in ("gain", "correlation"))
    # Evaluation is planned first: its memory is that of this process, which has no LLM yet.
    last = [plan_evaluate(context)] if data.eval_split or data.eval_collections else []
    stages = [plan_mine(context), *([plan_score(context)] if scores else [])]
    stages += [plan_detect_heads(context)] if detects else []
    stages += [plan_train(context), *last]
    return [*stages, total(stages)]


def total(stages: list[StagePlan]) -> StagePlan:
    """The sum of stages, unknown where one is; memory is that of the hungriest."""

    def of(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) if len(known) == len(values) else None

    return StagePlan(
        "total",
        of([s.lm_tokens for s in stages]),
        of([s.flops for s in stages]),
        of([s.seconds for s in stages]),
        sum(s.other_seconds for s in stages),
        sum(s.file_bytes for s in stages),
        max((s.memory for s in stages if s.memory is not None), default=None),
    )


def plan_table(stages: list[StagePlan], accelerator: str | None) -> str:
    """Render the stages and their sum as a Markdown table."""
    names = ["stage", "LLM tokens", "10^12 FLOPs", "time here", accelerator, "files", "peak memory"]
    columns = [name for name in names if name is not None]
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for s in stages:
        cells = [s.stage, _number(s.lm_tokens, "{:,.0f}"), _number(s.flops, "{:,.1f}", 1e12), duration(s.seconds)]
        cells += [duration(s.accelerator_seconds)] if accelerator else []
        cells += [size(s.file_bytes) if s.file_bytes else "", "?" if s.memory is None else size(s.memory)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _number(value: float | None, form: str, unit: float = 1.0) -> str:
    return "?" if value is None else form.format(value / unit) if value else ""


def duration(seconds: float | None) -> str:
    """Seconds as people say them; `?` where they are not known."""
    if seconds is None:
        return "?"
    for unit, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} s"


def size(number: float) -> str:
    """Bytes as people say them."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if number >= unit:
            return f"{number / unit:.1f} {name}"
    return f"{number:.0f} B"


if __name__ == "__main__":
    run_main(main)
