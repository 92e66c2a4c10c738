"""Fit a LoRA adapter of the scoring LLM to a collection by plain next-token prediction.

```bash
accelerate launch -m nlt_trainer.scripts.adapt_scorer --config recipes/adapt_scorer/adapt_scorer.yaml
```

The adapter is written to `<output_dir>/adapter`, a PEFT folder that appears complete or not at all. To score with it,
name this folder under `adapter:` in a recipe; scores with and without it are cached separately. The LLM learns to
predict the documents of the collection. With `adapt_pairs: true` it also learns to predict each query after its
candidate of the highest gain. No label is read. A killed run continues from its last complete checkpoint.
"""

from __future__ import annotations

from nlt_trainer.arguments.stages import RECIPE_BLOCKS
from nlt_trainer.program import run_main, shown
from nlt_trainer.recipe.parsing import parse_recipe
from nlt_trainer.run.folder import Run

OUT = Run("output_dir")
"""The run in the folder that the option `output_dir` names."""


def main(argv: list[str] | None = None) -> None:
    """Train and save the adapter; prints its folder and how it changes the loss of held-out documents."""
    model, data, args = parse_recipe(
        RECIPE_BLOCKS, argv, description=shown(__doc__), writes=["output_dir", OUT.adapter]
    )
    from nlt_trainer.assembly.parts import alone
    from nlt_trainer.assembly.scorer_adaptation import adapt_scorer

    with alone(args):
        adapt_scorer(model, data, args)


if __name__ == "__main__":
    run_main(main)
