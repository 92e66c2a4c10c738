"""Adapt an encoder to your documents, without labels, and keep it only if it finds more than before.

```bash
nlt adapt DOCUMENTS --encoder sentence-transformers/all-MiniLM-L6-v2 --output OUT
```

DOCUMENTS is a folder of texts (.txt .md .rst .html .csv .jsonl .parquet .pdf .docx) or a BEIR folder. Queries are cut
out of the documents, or written by the LLM where these are source code; if you have some that people typed, name their
file with --queries. A frozen LLM says which passages make a query easier to predict, and the encoder learns from that.
Held-out queries decide: the encoder in OUT/encoder is the adapted one if it gained, and otherwise the one that you
had. The exit code is then 3.

Each stage is skipped if it is done, so a killed run continues where it stopped. OUT/recipe.yaml runs single stages.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from nlt_trainer.arguments.stages import ADAPT_BLOCKS
from nlt_trainer.files import alone_in
from nlt_trainer.program import run_main, shown
from nlt_trainer.recipe.parsing import parse_recipe
from nlt_trainer.run.folder import Run

DEFAULTS = Path(__file__).parents[1] / "adapt" / "defaults.yaml"
"""The settings that the command begins with, a recipe like any other."""

OUT = Run("output")
"""The run in the folder that the option `output` names."""


def with_flags(argv: Sequence[str]) -> list[str]:
    """The command line with a flag before the documents, which may stand first, and with a recipe."""
    words = list(argv)
    if words and not words[0].startswith("-"):
        words.insert(0, "--documents")
    has_recipe = any(word.partition("=")[0] == "--config" for word in words)
    return words if has_recipe else [*words, "--config", str(DEFAULTS)]


def main(argv: list[str] | None = None) -> int:
    """Run all stages; returns 0, or 3 where the encoder was not better than before."""
    words = with_flags(sys.argv[1:] if argv is None else argv)
    options, model, data, args = parse_recipe(
        ADAPT_BLOCKS,
        words,
        description=shown(__doc__),
        writes=[OUT.recipe_file],
        check=lambda options, *_: options.check_files(),
    )
    from nlt_trainer.adapt.pipeline import adapt

    with alone_in(options.output):
        return adapt(model, data, args, options)


if __name__ == "__main__":
    run_main(main)
