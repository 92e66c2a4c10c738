"""Export a run's encoder, and check that it is the encoder that was trained.

```bash
nlt export --config recipes/demo/likelihood_gain.yaml
nlt export --config recipes/qwen2.5-0.5b/dream.yaml --form adapter
```

For the check, Sentence-Transformers and mteb load the exported encoder and embed probe texts with both prompts, on the
CPU in float32. If a number differs from the trained encoder's by more than 1e-5, the stage fails and names the first
layer that differs.
"""

from __future__ import annotations

from typing import get_args

from nlt_trainer.arguments.stages import EXPORT_BLOCKS
from nlt_trainer.choices import ExportForm
from nlt_trainer.program import run_main, shown
from nlt_trainer.recipe.parsing import parse_recipe
from nlt_trainer.run.folder import Run

OUT = Run("output_dir")
"""The run in the folder that the option `output_dir` names."""


def main(argv: list[str] | None = None) -> None:
    """Export and check the encoder; prints its folder."""
    *_, args, export = parse_recipe(
        EXPORT_BLOCKS, argv, description=shown(__doc__), writes=[OUT.exported(form) for form in get_args(ExportForm)]
    )
    from nlt_trainer.assembly.publishing import export_and_say

    export_and_say(args, export.form)


if __name__ == "__main__":
    run_main(main)
