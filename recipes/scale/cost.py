"""What a corpus of many passages costs: hours of an accelerator, and the size of what lies on disk.

```bash
nlt plan --config recipes/demo/likelihood_gain.yaml --plan_file runs/scale/plan.json
python tests/benchmarks/large_corpora.py --documents 1000000 --json runs/scale/measured.json
python recipes/scale/cost.py --plan runs/scale/plan.json --collection runs/demo/collection \
  --planned_queries 320 --measured runs/scale/measured.json --accelerator "H100 bf16"
```

The plan says how many seconds a passage and a training query of one recipe take on the machine where it was made, and
how many FLOPs they cost elsewhere. The benchmark says how many bytes the corpus and its indexes take for a passage.
Both are multiplied by the numbers asked for. What grows otherwise is said below the table.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nlt_trainer.arguments.plan import PlanArguments
from nlt_trainer.data.beir import load_corpus
from nlt_trainer.run.results import table_row
from nlt_trainer.terminal import say
from nlt_trainer.text_files import read_json

MIB, GB = 2**20, 1e9
FILES = {"corpus": "read, the first time", "BM25": "index by BM25", "ivf_pq": "nearest 100, ivf_pq, with its building"}
"""What lies on disk -> the row of the benchmark whose files it is."""
SEARCH = "mine 8 candidates by BM25"
"""The row of the benchmark for a search through all documents."""
HERE = "where it was planned, measured"
"""Names the hardware of the rows that rest on measured seconds."""
WIDTH_BYTES = 4
"""Of a number in an embedding that is kept."""


def seconds_of(
    plan: Mapping[str, Any], *, passages: int, queries: int, speed: float | None = None
) -> dict[str, float] | None:
    """Seconds of a stage for one passage (embedding) or one training query (scoring, training).

    Args:
        plan: what `nlt plan` has written.
        passages: of the collection that it has planned, which it embeds twice to evaluate.
        queries: that it has planned to train on.
        speed: FLOPs a second; `None` takes the seconds that the plan has measured, without those that do not grow.

    Returns:
        `embed`, `score` and `train`; `None` where the plan could not measure a stage.
    """
    stages = {stage["stage"]: stage for stage in plan["stages"]}
    units = {"embed": ("evaluate", 2 * passages), "score": ("score", queries), "train": ("train", queries)}
    found = {}
    for name, (stage, number) in units.items():
        row = stages[stage]
        if speed is None and row["seconds"] is None:
            return None
        found[name] = (row["seconds"] - row["other_seconds"] if speed is None else row["flops"] / speed) / number
    return found


def measured_of(measured: Mapping[str, Any], *, documents: int) -> tuple[dict[str, float], float]:
    """Bytes on disk for one passage, by what they are, and seconds in which a core compares it with a query by BM25.

    Raises:
        KeyError: the benchmark was not run with so many documents.
    """
    rows = {row["step"]: row for row in measured["details"][f"large_corpora_{documents}"]}
    size = {name: rows[step]["files, MiB"] * MIB / documents for name, step in FILES.items()}
    return size, rows[SEARCH]["of the CPU"] / (documents * rows[SEARCH]["queries"])


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path, required=True, help="what `nlt plan --plan_file` has written")
    parser.add_argument("--collection", type=Path, required=True, help="the collection of that plan")
    parser.add_argument("--planned_queries", type=int, required=True, help="training queries of that plan")
    parser.add_argument("--measured", type=Path, required=True, help="figures of large_corpora.py")
    parser.add_argument("--measured_documents", type=int, default=1_000_000, help="of large_corpora.py")
    parser.add_argument("--width", type=int, default=384, help="numbers in an embedding")
    parser.add_argument("--passages", type=float, nargs="+", default=[1e6, 1e8, 1e9])
    parser.add_argument("--queries", type=float, nargs="+", default=[1e4, 1e4, 1e4], help="to train on")
    parser.add_argument("--accelerator", default="H100 bf16")
    options = parser.parse_args(argv)
    plan, content = PlanArguments(accelerator=options.accelerator), read_json(options.plan)
    passages = len(load_corpus(options.collection))
    size, search = measured_of(read_json(options.measured), documents=options.measured_documents)
    asked = [*zip(options.passages, options.queries, strict=True)]
    times = [["hardware", "passages", "training queries", "embed", "score", "train", "BM25, one core"]]
    times += [["---"] * len(times[0])]
    for hardware, speed in ((HERE, None), (f"one {plan.title}", plan.flops_a_second)):
        took = seconds_of(content, passages=passages, queries=options.planned_queries, speed=speed)
        for number, queries in asked if took else []:
            seconds = [each * took[name] for name, each in zip(took, (number, queries, queries), strict=True)]
            hours = [short(value / 3600) for value in (*seconds, number * queries * search)]
            times.append([hardware, power(number), f"{queries:,.0f}", *hours])
    stored = {"corpus": size["corpus"], "BM25": size["BM25"], "embeddings": options.width * WIDTH_BYTES}
    stored["ivf_pq"] = size["ivf_pq"]
    sizes = [["passages", *stored], ["---"] * (1 + len(stored))]
    sizes += [
        [power(number), *(short(number * each / GB, digits=3) for each in stored.values())] for number, _ in asked
    ]
    say("Hours:\n\n" + "\n".join(map(table_row, times)))
    say("\nGigabytes on disk:\n\n" + "\n".join(map(table_row, sizes)))


def short(number: float, *, digits: int = 2) -> str:
    """A number with few digits, and from 100 on without decimals."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.{digits}g}"


def power(number: float) -> str:
    """A large number as in the table."""
    return f"{number:.0e}".replace("e+0", "e")


if __name__ == "__main__":
    main()
