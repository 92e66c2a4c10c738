"""Find the attention heads of the frozen LLM through which DREAM can teach.

```bash
nlt detect_heads --config recipes/demo/dream.yaml
```

The option `head_method` says what a head is scored by: how surely the LLM's loss asks it for the right document, or
how well its attention finds that document. Which one is right is known from the gains (run `nlt score` first), from
sentences that are cut out of documents, or from judgements. For a control experiment, random or worst heads can be
selected by the same scores without running the LLM again:

```bash
nlt detect_heads --config recipes/demo/dream.yaml --head_scores runs/demo/heads.json \\
  --head_selection random --num_heads 16 --heads runs/demo/random_heads.json
```
"""

from __future__ import annotations

from nlt_trainer.arguments.stages import RECIPE_BLOCKS
from nlt_trainer.program import run_main, shown
from nlt_trainer.recipe.parsing import parse_recipe


def main(argv: list[str] | None = None) -> None:
    """Write the recipe's `heads` file."""
    model, data, args = parse_recipe(RECIPE_BLOCKS, argv, description=shown(__doc__), writes=["heads"])
    from nlt_trainer.assembly.head_detection import detect_heads

    detect_heads(model, data, args)


if __name__ == "__main__":
    run_main(main)
