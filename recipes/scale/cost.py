"""What a corpus of many passages costs: hours of an accelerator, and the size of what lies on disk.

```bash
nlt plan --config recipes/demo/likelihood_gain.yaml --plan_file runs/scale/plan.json
python tests/benchmarks/large_corpora.py --documents 1000000 --json runs/scale/measured.json
python recipes/scale/cost.py --plan runs/scale/plan.json --collection runs/demo/collection \
  --planned_queries 320 --measured runs/scale/measured.json --accelerator "H100 bf16"
```

The plan says how many FLOPs a passage and a training query of one recipe cost, and the benchmark how many bytes the
corpus and its indexes take for a passage. Both are multiplied by the numbers asked for. What grows otherwise is said
below the table.
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
WIDTH_BYTES = 4
"""Of a number in an embedding that is kept."""


def work_of(plan: Mapping[str, Any], *, passages: int, queries: int) -> dict[str, float]:
    """FLOPs of a stage for one passage (embedding) or one training query (scoring, training).

    Args:
        plan: what `nlt plan` has written.
        passages: of the collection that it has planned, which it embeds twice to evaluate.
        queries: that it has planned to train on.
    """
    flops = {stage["stage"]: stage["flops"] for stage in plan["stages"]}
    return {
        "embed": flops["evaluate"] / 2 / passages,
        "score": flops["score"] / queries,
        "train": flops["train"] / queries,
    }


def bytes_of(measured: Mapping[str, Any], *, documents: int) -> dict[str, float]:
    """Bytes on disk for one passage, by what they are.

    Raises:
        KeyError: the benchmark was not run with so many documents.
    """
    rows = {row["step"]: row for row in measured["details"][f"large_corpora_{documents}"]}
    return {name: rows[step]["files, MiB"] * MIB / documents for name, step in FILES.items()}


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path, required=True, help="what `nlt plan --plan_file` has written")
    parser.add_argument("--collection", type=Path, required=True, help="the collection of that plan")
    parser.add_argument("--planned_queries", type=int, required=True, help="training queries of that plan")
    parser.add_argument("--measured", type=Path, required=True, help="figures of large_corpora.py")
    parser.add_argument("--measured_documents", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=384, help="numbers in an embedding")
    parser.add_argument("--passages", type=float, nargs="+", default=[1e6, 1e8, 1e9])
    parser.add_argument("--queries", type=float, nargs="+", default=[1e5, 1e6, 1e6], help="to train on")
    parser.add_argument("--accelerator", default="H100 bf16")
    options = parser.parse_args(argv)
    plan = PlanArguments(accelerator=options.accelerator)
    passages = len(load_corpus(options.collection))
    work = work_of(read_json(options.plan), passages=passages, queries=options.planned_queries)
    size = bytes_of(read_json(options.measured), documents=options.measured_documents)
    hours = 3600 * float(plan.flops_a_second or 0)
    head = ["passages", "training queries", "embed, h", "score, h", "train, h"]
    head += ["corpus, GB", "BM25, GB", "embeddings, GB", "ivf_pq, GB"]
    rows = [head, ["---"] * len(head)]
    for number, queries in zip(options.passages, options.queries, strict=True):
        took = [number * work["embed"], queries * work["score"], queries * work["train"]]
        stored = [size["corpus"], size["BM25"], options.width * WIDTH_BYTES, size["ivf_pq"]]
        rows.append(
            [f"{number:.0e}".replace("e+0", "e"), f"{queries:,.0f}"]
            + [f"{flops / hours:,.2g}" for flops in took]
            + [f"{number * each / GB:,.3g}" for each in stored]
        )
    say(f"Hours of one {plan.title}, and gigabytes on disk:\n")
    for row in rows:
        say(table_row(row))


if __name__ == "__main__":
    main()
