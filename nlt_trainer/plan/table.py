"""Print the plan of a recipe as a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from nlt_trainer.arguments.data import DataArguments
from nlt_trainer.arguments.model import ModelArguments
from nlt_trainer.arguments.stages import PlanArguments
from nlt_trainer.assembly.parts import processes
from nlt_trainer.errors import NLTError
from nlt_trainer.plan.stages import Planner
from nlt_trainer.terminal import say
from nlt_trainer.text_files import write_json
from nlt_trainer.training_arguments import NLTTrainingArguments


def plan_recipe(model: ModelArguments, data: DataArguments, args: NLTTrainingArguments, plan: PlanArguments) -> None:
    """Print what each stage of a recipe costs, and write it to `plan_file` if that is set.

    Raises:
        NLTError: several processes were started.
    """
    if (started := processes(args).num_processes) > 1:
        raise NLTError(f"{started} processes were started, and plan times one; start it alone: nlt plan --config ...")
    planner, speed = Planner(model, data, args), plan.flops_a_second or math.nan
    rows = [row | {"accelerator_seconds": row["other_seconds"] + row["flops"] / speed} for row in planner.stages()]
    total = {key: sum(row[key] for row in rows) for key in rows[0] if key != "stage"}
    total["memory"] = max(row["memory"] for row in rows) + 0 * total["memory"]  # NaN if one row has it
    rows.append({"stage": "total"} | total)
    say("\n".join([table(rows, plan.accelerator and plan.title), *(f"- {note}" for note in planner.notes)]))
    if plan.plan_file is not None:
        known = [{key: None if value != value else value for key, value in row.items()} for row in rows]
        write_json(plan.plan_file, {"stages": known, "notes": planner.notes})


def table(rows: Sequence[Mapping[str, Any]], accelerator: str | None) -> str:
    """Return the rows as a Markdown table with aligned columns. A `?` stands for a value that is not known."""

    def time(seconds: float) -> str:
        return str(timedelta(seconds=round(seconds)))

    columns: dict[str, tuple[str, Callable[[Any], str]]] = {
        "stage": ("stage", str),
        "lm_tokens": ("LLM tokens", lambda tokens: f"{tokens:,.0f}" if tokens else ""),
        "flops": ("10^12 FLOPs", lambda flops: f"{flops / 1e12:,.1f}" if flops else ""),
        "seconds": ("time here", time),
        **({"accelerator_seconds": (accelerator, time)} if accelerator else {}),
        "memory": ("peak memory", lambda size: f"{size / 2**30:.1f} GiB"),
    }
    texts = [
        [name, *("?" if row[key] != row[key] else shown(row[key]) for row in rows)]
        for key, (name, shown) in columns.items()
    ]
    widths = [max(map(len, column)) for column in texts]
    aligned = [map(str.ljust if i == 0 else str.rjust, texts[i], [w] * len(texts[i])) for i, w in enumerate(widths)]
    head, *body = zip(*aligned, strict=True)
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["-" * width for width in widths], *body))
