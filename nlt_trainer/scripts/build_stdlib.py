"""Write the running interpreter's standard library as a code-search collection.

```bash
nlt build_stdlib --config recipes/demo/likelihood_gain.yaml
```
"""

from __future__ import annotations

from nlt_trainer.arguments import RECIPE_BLOCKS
from nlt_trainer.data.stdlib import build_stdlib_collection
from nlt_trainer.recipe import parse_recipe
from nlt_trainer.scripts import run_main, shown
from nlt_trainer.scripts.common import processes


def main(argv: list[str] | None = None) -> None:
    """Write the BEIR folder that the recipe's `collection` names."""
    _, data, args = parse_recipe(RECIPE_BLOCKS, argv, description=shown(__doc__))
    if not processes(args).is_main_process:
        return
    collection = build_stdlib_collection(data.collection)
    splits = ", ".join(f"{name} {len(qrels)}" for name, qrels in collection.qrels.items())
    print(f"{data.collection}: {len(collection.corpus)} functions; queries: {splits}")


if __name__ == "__main__":
    run_main(main)
