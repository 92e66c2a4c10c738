"""Fit a LoRA adapter of the scoring LLM to a collection by plain next-token prediction.

```bash
accelerate launch -m nlt_trainer.scripts.adapt_scorer --config recipes/adapt_scorer/adapt_scorer.yaml
```

`<output_dir>/adapter` is a PEFT folder, whole or absent, that `adapter:` of any recipe names; its content is part of
the score cache's key. Documents are read alone; with `adapt_pairs: true` also queries after their candidate of the
highest gain. No label is read. A killed run goes on from its last whole checkpoint.
"""

from __future__ import annotations

from nlt_trainer.arguments.stages import RECIPE_BLOCKS
from nlt_trainer.program import run_main, shown
from nlt_trainer.recipe.parsing import parse_recipe


def main(argv: list[str] | None = None) -> None:
    """Train and save the adapter; prints where it is and what it does to held-out documents."""
    model, data, args = parse_recipe(RECIPE_BLOCKS, argv, description=shown(__doc__))
    from nlt_trainer.assembly.scorer_adaptation import adapt_scorer

    adapt_scorer(model, data, args)


if __name__ == "__main__":
    run_main(main)
