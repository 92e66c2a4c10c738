"""Scoring by workers of Ray against as many local processes, pairs a second.

```bash
python tests/benchmarks/ray_speed.py --collection data/nq_gold
```

Both score the same candidates of BM25 with the stage `score`, in turn. The seconds are those that the stage reports
itself: they begin when it has read its candidates and end when all scores are in the cache. The local processes have
loaded the LLM by then, and the first of Ray's workers too, but the others load it within that time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from measuring import LLM, collection_at, in_turn, parser, ratio, record, show

from nlt_trainer.data.candidates import mine_candidates, write_candidates
from nlt_trainer.text_files import read_json


def score(name: str, launch: list[str], engine: list[str], *, words: list[str], folder: Path) -> float:
    """Run the stage with a new cache; returns the seconds of all its LLMs together, as it reports them."""
    out = folder / name
    given = [*words, "--gains", f"{out}.jsonl", "--score_cache", tempfile.mkdtemp(dir=folder), *engine]
    command = [sys.executable, "-m", *launch, "nlt_trainer.scripts.score", *given]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    seconds: float = read_json(out.with_suffix(".audit.json"))["seconds"]
    return seconds


def main(argv: list[str] | None = None) -> None:
    """Score in turn; print a table and write JSON."""
    flags = parser(__doc__)
    flags.add_argument("--llm", default=LLM)
    flags.add_argument("--llm_dtype", default="float32")
    flags.add_argument("--collection", type=Path)
    flags.add_argument("--queries", type=int, default=160)
    flags.add_argument("--workers", type=int, default=2)
    options = flags.parse_args(argv)
    collection, number = collection_at(options.collection), str(options.workers)
    queries = [*collection.queries.values()][: options.queries]
    candidates = mine_candidates(collection, queries, num_candidates=8)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_candidates(folder / "candidates.jsonl", candidates, corpus=collection.corpus)
        given = {
            "collection": collection.folder, "candidates": folder / "candidates.jsonl", "num_candidates": 8,
            "llm": options.llm, "llm_dtype": options.llm_dtype, "max_document_tokens": 96, "target": "query",
            "use_cpu": "true", "report_to": "none", "output_dir": folder / "run",
        }  # fmt: skip
        words = [word for key, value in given.items() for word in (f"--{key}", str(value))]
        local = ["torch.distributed.run", "--nproc_per_node", number, "-m"]
        ray = ["--engine", "ray", "--ray_workers", number]
        cases = {
            "ray": partial(score, "ray", [], ray, words=words, folder=folder),
            "local": partial(score, "local", local, [], words=words, folder=folder),
        }
        _, values = in_turn(cases, runs=options.runs)
        gains = {
            case: [json.loads(line)["gain"] for line in (folder / f"{case}.jsonl").read_text().splitlines()]
            for case in cases
        }
    if options.llm_dtype == "float32":  # other dtypes round another division into batches visibly
        np.testing.assert_allclose(gains["ray"], gains["local"], atol=1e-4)
    pairs = 9 * len(queries)  # with eight documents and without one
    rates = {case: [pairs * options.workers / s for s in found] for case, found in values.items()}
    against = ratio(rates["ray"], rates["local"])
    rows = [{"engine": case, "pairs/s": float(np.median(found))} for case, found in rates.items()]
    show(rows)
    print(f"\nratio {against['ratio']} ({against['lowest']} to {against['highest']})")
    record(options.json, "ray_speed", {"ray_against_local": against["ratio"]}, {"rates": rates, **against})


if __name__ == "__main__":
    main()
