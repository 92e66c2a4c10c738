"""Publish on the Hub: a run's encoder with its card, recipe and results, its gains, and the scores of its LLM.

```bash
nlt push --config recipes/demo/likelihood_gain.yaml --repo ORG/NAME --dry_run true
nlt push --config recipes/demo/likelihood_gain.yaml --repo ORG/NAME
nlt push --config recipes/demo/likelihood_gain.yaml --scores_repo ORG/NAME-scores
```

The first command only lists the files, and the second one sends them, in one commit with a tag. The encoder is
exported and checked first (see `nlt export`), and nothing is sent if the check fails. The token is that of HF_TOKEN or
of `hf auth login`. A new repository is private; its owner can make it public on its page.
"""

from __future__ import annotations

from typing import get_args

from nlt_trainer.arguments.stages import PUSH_BLOCKS
from nlt_trainer.choices import ExportForm
from nlt_trainer.program import run_main, shown
from nlt_trainer.recipe.parsing import parse_recipe
from nlt_trainer.run.folder import Run

OUT = Run("output_dir")
"""The run in the folder that the option `output_dir` names."""


def main(argv: list[str] | None = None) -> None:
    """Send what repositories are named for, an encoder after a check; prints each file and the releases."""
    model, data, args, export, to = parse_recipe(
        PUSH_BLOCKS, argv, description=shown(__doc__), writes=[OUT.exported(form) for form in get_args(ExportForm)]
    )
    from nlt_trainer.assembly.publishing import push_run

    push_run(model, data, args, export, to)


if __name__ == "__main__":
    run_main(main)
