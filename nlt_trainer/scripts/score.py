"""Compute how much each candidate raises the likelihood of its query's target, and audit the result.

```bash
accelerate launch -m nlt_trainer.scripts.score --config recipes/demo/likelihood_gain.yaml
```

The stage writes the recipe's `gains` file and an audit beside it. Scores are stored in a cache batch by batch, so a
killed run continues where it stopped. Several processes share the work.
"""

from __future__ import annotations

from nlt_trainer.arguments.stages import RECIPE_BLOCKS
from nlt_trainer.data.beir import check_corpus
from nlt_trainer.program import run_main, shown
from nlt_trainer.recipe.parsing import parse_recipe


def main(argv: list[str] | None = None) -> None:
    """Write the recipe's `gains` file and the audit beside it."""
    model, data, args = parse_recipe(
        RECIPE_BLOCKS,
        argv,
        description=shown(__doc__),
        writes=["gains", "score_cache"],
        check=lambda _, data, __: check_corpus(data.collection),
    )
    from nlt_trainer.assembly.scoring import score

    score(model, data, args)


if __name__ == "__main__":
    run_main(main)
