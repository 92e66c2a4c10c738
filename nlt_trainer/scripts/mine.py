"""Find candidate documents for every training query; no label is read.

```bash
nlt mine --config recipes/demo/likelihood_gain.yaml
```
"""

from __future__ import annotations

from nlt_trainer.arguments import RECIPE_BLOCKS
from nlt_trainer.data.candidates import mine_candidates, write_candidates
from nlt_trainer.recipe import parse_recipe
from nlt_trainer.scripts import run_main, shown
from nlt_trainer.scripts.common import chosen_queries, load_training_collection, processes


def main(argv: list[str] | None = None) -> None:
    """Write the recipe's `candidates` file."""
    _, data, args = parse_recipe(RECIPE_BLOCKS, argv, description=shown(__doc__))
    if not processes(args).is_main_process:
        return
    collection = load_training_collection(data)
    candidates = mine_candidates(
        collection,
        chosen_queries(collection, data, seed=args.seed),
        num_candidates=data.num_candidates,
        num_random=data.num_random_candidates,
        seed=args.seed,
    )
    write_candidates(data.candidates, candidates)
    print(f"{data.candidates}: {len(candidates)} queries with {data.num_candidates} candidates each")


if __name__ == "__main__":
    run_main(main)
