"""Publish a run's encoder on the Hub with its card, recipe and results, in one commit with a tag.

```bash
nlt push --config recipes/demo/likelihood_gain.yaml --repo ORG/NAME --dry_run true
nlt push --config recipes/demo/likelihood_gain.yaml --repo ORG/NAME
```

The first command only lists the files, and the second one sends them. The encoder is exported and checked first (see
`nlt export`), and nothing is sent if the check fails. The token is that of HF_TOKEN or of `hf auth login`. A new
repository is private; its owner can make it public on its page.
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
    """Export and check the encoder, then send it; prints each file that is sent and the release."""
    model, data, args, export, to = parse_recipe(
        PUSH_BLOCKS, argv, description=shown(__doc__), writes=[OUT.exported(form) for form in get_args(ExportForm)]
    )
    from nlt_trainer.assembly.publishing import push_run

    push_run(model, data, args, export, to)


if __name__ == "__main__":
    run_main(main)
