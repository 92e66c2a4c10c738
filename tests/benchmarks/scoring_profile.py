"""Where the time of scoring goes: its operators, on pairs whose documents hardly repeat.

```bash
python tests/benchmarks/scoring_profile.py --collection data/nq_gold
```

Scores the first 128 pairs of `scoring_speed.py`, so many that weights are packed, under torch's profiler. A share is
an operator's own time over that of all. Without `--collection` the pairs come from the standard library.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from measuring import LLM, show
from scoring_speed import PACKING_PAIRS, PLAIN_BATCH, distinct, make_scorer, ours, texts_at
from torch.profiler import ProfilerActivity, profile


def main(argv: list[str] | None = None) -> None:
    """Print operators, longest first."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--llm", default=LLM)
    flags.add_argument("--collection", type=Path, help="BEIR folder whose documents hardly repeat")
    flags.add_argument("--queries", type=int, default=24)
    flags.add_argument("--candidates", type=int, default=16)
    flags.add_argument("--max_document_tokens", type=int, default=96)
    flags.add_argument("--operators", type=int, default=12, help="to show")
    options = flags.parse_args(argv)
    scorer = make_scorer(options.llm, options.max_document_tokens)
    texts = texts_at(options.collection, distinct, scorer, options)[1][:PACKING_PAIRS]
    score = ours(scorer)
    score(texts[:PLAIN_BATCH])
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        score(texts)
    found = sorted(profiled.key_averages(), key=lambda operator: -operator.self_cpu_time_total)
    total = sum(operator.self_cpu_time_total for operator in found)  # microseconds
    show(
        [
            {
                "operator": operator.key,
                "calls": operator.count,
                "seconds": operator.self_cpu_time_total / 1e6,
                "share": operator.self_cpu_time_total / total,
            }
            for operator in found[: options.operators]
        ]
    )


if __name__ == "__main__":
    main()
