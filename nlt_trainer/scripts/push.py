"""Publish a run's encoder on the Hub, with card, recipe and results, in one commit with a tag.

```bash
nlt push --config recipes/demo/likelihood_gain.yaml --repo ORG/NAME --dry_run true
nlt push --config recipes/demo/likelihood_gain.yaml --repo ORG/NAME
```

Nothing is sent unless the export passes its check (`nlt export`). The token is that of HF_TOKEN or of `hf auth
login`. A new repository is private; its owner makes it public on its page.
"""

from __future__ import annotations

from nlt_trainer.arguments.stages import PUSH_BLOCKS
from nlt_trainer.program import run_main, shown
from nlt_trainer.recipe.parsing import parse_recipe


def main(argv: list[str] | None = None) -> None:
    """Check, then send; prints where it is."""
    _, data, args, export, to = parse_recipe(PUSH_BLOCKS, argv, description=shown(__doc__))
    from nlt_trainer.assembly.publishing import push_run

    push_run(data, args, export, to)


if __name__ == "__main__":
    run_main(main)
