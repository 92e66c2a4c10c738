"""Scoring what is scored already: pairs a second that come out of the score cache.

```bash
python tests/benchmarks/cache_speed.py
```

The cache is filled by hand, so that no LLM has to read the pairs; the scorer then finds all of them there.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from typing import Any

import numpy as np
from measuring import LLM, in_turn, parser, record, show

from nlt_trainer.lm.candidate_pairs import Pair
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.lm.scoring import LikelihoodScorer

DOCUMENT = "word {} and then some more of the same, so that it is as long as a passage of a hundred words is. " * 6


def make_pairs(number: int, *, candidates: int = 16) -> list[Pair]:
    """Queries with documents of about 600 characters, each of which stands at several queries."""
    documents = [DOCUMENT.format(i, i, i, i, i, i) for i in range(max(candidates, number // 40))]
    return [
        (documents[(7 * b + k) % len(documents)], f"query number {b} of them", None)
        for b in range(number // candidates)
        for k in range(candidates)
    ]


def main(argv: list[str] | None = None) -> None:
    """Fill a cache and read it; print a table and write JSON."""
    flags = parser(__doc__, runs=5)
    flags.add_argument("--llm", default=LLM)
    flags.add_argument("--pairs", type=int, default=80_000)
    options = flags.parse_args(argv)
    pairs = make_pairs(options.pairs)
    with tempfile.TemporaryDirectory() as folder:
        lm = FrozenLM.from_pretrained(options.llm, device="cpu")
        scorer = LikelihoodScorer(lm, target="query", cache_folder=folder)
        assert scorer.cache is not None
        keys = [scorer.cache.key(*pair) for pair in pairs]
        stored = {key: (-1.5 * i, 7, False) for i, key in enumerate(keys)}
        scorer.cache.put(stored, {key: np.full(7, -0.2, np.float32) for key in stored})

        def read() -> Any:
            return scorer.log_likelihood(pairs).log_likelihood

        read()
        seconds, values = in_turn({"cache": read}, runs=options.runs)
        assert scorer.lm_tokens == 0
        np.testing.assert_array_equal(values["cache"][-1], [stored[key][0] for key in keys])
    rates = [len(pairs) / s for s in seconds["cache"]]
    show([{"pairs": len(pairs), "pairs/s": statistics.median(rates), "lowest": min(rates), "highest": max(rates)}])
    figures = {"cache_pairs_per_second": round(statistics.median(rates))}
    print(json.dumps(figures))
    record(options.json, "cache", figures, {"pairs": len(pairs), "seconds": seconds["cache"]})


if __name__ == "__main__":
    main()
