"""Find the attention heads of the frozen LLM that turn to the right document because of the query.

```bash
nlt detect_heads --config recipes/demo/dream.yaml
```

Which document is right is known from the gains (`score` comes first), from sentences cut out of documents, or from
judgements: `head_method`. Heads for a control come from the same scores without another look at the LLM:

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
    model, data, args = parse_recipe(RECIPE_BLOCKS, argv, description=shown(__doc__))
    from nlt_trainer.assembly.head_detection import detect_heads

    detect_heads(model, data, args)


if __name__ == "__main__":
    run_main(main)
