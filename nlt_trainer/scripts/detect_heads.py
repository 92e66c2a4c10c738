"""Find the attention heads of the frozen LLM that turn to the right document because of the query.

```bash
nlt detect_heads --config recipes/demo/dream.yaml
```

Without labels the candidate of the highest gain stands for the right one (`score` comes first); `head_qrels` names a
split whose judgements are used instead.
"""

from __future__ import annotations

import dataclasses
import time

import numpy as np

from nlt_trainer.arguments import RECIPE_BLOCKS, DataArguments
from nlt_trainer.data.beir import Collection
from nlt_trainer.data.candidates import QueryCandidates, read_candidates
from nlt_trainer.data.gains import read_gains
from nlt_trainer.data.training import relevance
from nlt_trainer.models.heads import detect_query_focused_heads, relevant_by_gain
from nlt_trainer.recipe import parse_recipe
from nlt_trainer.scripts import run_main
from nlt_trainer.scripts.common import load_llm, load_training_collection, processes, prompt_tokens


def main(argv: list[str] | None = None) -> None:
    """Write the recipe's `heads` file."""
    model, data, args = parse_recipe(RECIPE_BLOCKS, argv)
    if not processes(args).is_main_process:
        return
    collection = load_training_collection(data)
    candidates = read_candidates(data.candidates, collection)
    relevant, source = gold(collection, data, candidates)
    usable = np.flatnonzero(relevant.any(1))
    drawn = np.random.default_rng(args.seed).permutation(usable)[: data.head_queries]
    lm = load_llm(model)
    start = time.monotonic()
    found = detect_query_focused_heads(
        lm,
        [candidates[i].query for i in drawn],
        documents=[[collection.corpus[d].content for d in candidates[i].document_ids] for i in drawn],
        relevant=relevant[drawn],
        tokens=prompt_tokens(lm, data),
        layout=data.document_layout,  # type: ignore[arg-type]  # checked by DataArguments
        num_heads=model.num_heads,
        seed=args.seed,
    )
    seconds = round(time.monotonic() - start, 1)
    dataclasses.replace(found, settings={**found.settings, "gold": source, "seconds": seconds}).save(model.heads)
    best = ", ".join(f"{layer}.{head} ({found.scores[layer][head]:.2f})" for layer, head in found.heads[:4])
    print(f"{model.heads}: {len(found.heads)} heads, best (mean reciprocal rank of gold): {best}")


def gold(collection: Collection, data: DataArguments, candidates: list[QueryCandidates]) -> tuple[np.ndarray, str]:
    """Which candidates count as right, `(B, K)` bool, and where that comes from."""
    if data.head_qrels is not None:
        return relevance(candidates, collection.split_qrels(data.head_qrels)), f"qrels/{data.head_qrels}.tsv"
    return relevant_by_gain(read_gains(data.gains, candidates)), "candidate of the highest gain"


if __name__ == "__main__":
    run_main(main)
