"""Write the running interpreter's standard library as a code-search collection.

```bash
nlt build_stdlib --config recipes/demo/likelihood_gain.yaml
```

The recipe's `collection` names the BEIR folder to write.
"""

from __future__ import annotations

from nlt_trainer.arguments.stages import RECIPE_BLOCKS
from nlt_trainer.program import run_main, shown
from nlt_trainer.recipe.parsing import parse_recipe


def main(argv: list[str] | None = None) -> None:
    """Write the BEIR folder that the recipe's `collection` names."""
    model, data, args = parse_recipe(RECIPE_BLOCKS, argv, description=shown(__doc__), writes=["collection"])
    from nlt_trainer.assembly.starts import build_stdlib

    build_stdlib(model, data, args)


if __name__ == "__main__":
    run_main(main)
