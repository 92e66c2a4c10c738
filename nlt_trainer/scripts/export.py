"""Export a run's encoder, and check that it is the encoder that was trained.

```bash
nlt export --config recipes/demo/likelihood_gain.yaml
nlt export --config recipes/qwen2.5-0.5b/dream.yaml --form adapter
```

Sentence-Transformers and mteb load what is exported and embed probe texts with both prompts, on the CPU in float32;
where a number differs from the trainer's by more than 1e-5, the stage fails and names the first layer that differs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from nlt_trainer.arguments import RECIPE_BLOCKS
from nlt_trainer.cards import read_release, write_release
from nlt_trainer.export import ENCODER, FORMS, export
from nlt_trainer.recipe import parse_recipe
from nlt_trainer.scripts import run_main, shown
from nlt_trainer.scripts.common import processes


@dataclass
class ExportArguments:
    """Parameters that control the export."""

    form: str = field(
        default="merged",
        metadata={
            "help": f"{', '.join(FORMS)}: the whole encoder, its adapter alone, or in the format of a runtime that "
            "Sentence-Transformers exports to."
        },
    )


EXPORT_BLOCKS = {**RECIPE_BLOCKS, "export": ExportArguments}


def main(argv: list[str] | None = None) -> None:
    """Export and check; prints the folder."""
    *_, args, arguments = parse_recipe(EXPORT_BLOCKS, argv, description=shown(__doc__))
    if not processes(args).is_main_process:
        return
    folder, equal = export_run(Path(args.output_dir), arguments.form)
    print(f"{folder}: {arguments.form}; equal to the trained encoder within 1e-5: {', '.join(equal)}")


def export_run(run: Path, form: str) -> tuple[Path, list[str]]:
    """`export`, with card, recipe and record in the folder."""
    folder, equal = export(run, form)
    if folder != run / ENCODER:
        write_release(folder, *read_release(run / ENCODER))
    return folder, equal


if __name__ == "__main__":
    run_main(main)
