"""Train an encoder with the recipe's objective.

```bash
accelerate launch -m nlt_trainer.scripts.train --config recipes/demo/dream.yaml
```

The trained encoder is written to `<output_dir>/encoder`, a Sentence-Transformers folder. Checkpoints stand beside it,
and a killed run continues from the last complete one.
"""

from __future__ import annotations

from nlt_trainer.arguments.stages import RECIPE_BLOCKS
from nlt_trainer.data.beir import check_corpus
from nlt_trainer.program import run_main, shown
from nlt_trainer.recipe.parsing import parse_recipe
from nlt_trainer.run.folder import Run

OUT = Run("output_dir")
"""The run in the folder that the option `output_dir` names."""


def main(argv: list[str] | None = None) -> None:
    """Train the encoder and save it; prints its folder."""
    model, data, args = parse_recipe(
        RECIPE_BLOCKS,
        argv,
        description=shown(__doc__),
        writes=["output_dir", OUT.encoder, OUT.adapter],
        check=lambda _, data, __: check_corpus(data.collection),
    )
    from nlt_trainer.assembly.parts import alone
    from nlt_trainer.assembly.training import train

    with alone(args):
        train(model, data, args)


if __name__ == "__main__":
    run_main(main)
