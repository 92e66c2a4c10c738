"""Adapt an encoder to your documents, without labels, and keep it only if it finds more than before.

```bash
nlt adapt DOCUMENTS --encoder sentence-transformers/all-MiniLM-L6-v2 --output OUT
```

DOCUMENTS is a folder of texts (.txt .md .rst .html .csv .jsonl .parquet .pdf .docx) or a BEIR folder. Queries are cut
out of the documents; if you have some that people typed, name their file with --queries. A frozen LLM says which
passages make a query easier to predict, and the encoder learns from that. Held-out queries decide: the encoder in
OUT/encoder is the adapted one if it gained, and otherwise the one that you had. The exit code is then 3.

Each stage is skipped if it is done, so a killed run continues where it stopped. OUT/recipe.yaml runs single stages.
"""

from __future__ import annotations

import sys
from pathlib import Path

from nlt_trainer.arguments.stages import ADAPT_BLOCKS
from nlt_trainer.program import run_main, shown
from nlt_trainer.recipe.parsing import parse_recipe

DEFAULTS = Path(__file__).parents[1] / "adapt" / "defaults.yaml"
"""The settings that the command begins with, a recipe like any other."""


def main(argv: list[str] | None = None) -> int:
    """Run all stages; returns 0, or 3 where the encoder was not better than before."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and not words[0].startswith("-"):
        words.insert(0, "--documents")
    if not any(word == "--config" or word.startswith("--config=") for word in words):
        words += ["--config", str(DEFAULTS)]
    model, data, args, options = parse_recipe(ADAPT_BLOCKS, words, description=shown(__doc__))
    from nlt_trainer.adapt.pipeline import adapt

    return adapt(model, data, args, options)


if __name__ == "__main__":
    run_main(main)
