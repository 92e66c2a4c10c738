"""Fetch a release from the Hub into a folder, or scores into a score cache.

```bash
nlt pull --repo ORG/NAME --revision v1 --folder encoders/name
nlt pull --repo ORG/NAME-scores --score_cache runs/demo/scores
```

The folder appears when all files have arrived. If a pull was interrupted, run the same command again to continue it.
Files that can run code are not fetched. Scores are added to those that the cache has, and `nlt score` does not compute
them again.
"""

from __future__ import annotations

from nlt_trainer.arguments.stages import PULL_BLOCKS
from nlt_trainer.program import run_main, shown
from nlt_trainer.recipe.parsing import parse_recipe


def main(argv: list[str] | None = None) -> None:
    """Fetch the release; prints where it is and its commit."""
    (of,) = parse_recipe(PULL_BLOCKS, argv, description=shown(__doc__), writes=["folder", "score_cache"])
    from nlt_trainer.assembly.publishing import pull_release

    pull_release(of)


if __name__ == "__main__":
    run_main(main)
