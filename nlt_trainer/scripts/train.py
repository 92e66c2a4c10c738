"""Train an encoder with the recipe's objective.

```bash
accelerate launch -m nlt_trainer.scripts.train --config recipes/demo/dream.yaml
```

`<output_dir>/encoder` is a Sentence-Transformers folder; checkpoints stand beside it, and a killed run goes on from
the last whole one.
"""

from __future__ import annotations

from nlt_trainer.arguments.stages import RECIPE_BLOCKS
from nlt_trainer.program import run_main, shown
from nlt_trainer.recipe.parsing import parse_recipe


def main(argv: list[str] | None = None) -> None:
    """Train and save; prints where the encoder is."""
    model, data, args = parse_recipe(RECIPE_BLOCKS, argv, description=shown(__doc__))
    from nlt_trainer.assembly.training import train

    train(model, data, args)


if __name__ == "__main__":
    run_main(main)
