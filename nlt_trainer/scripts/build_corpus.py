"""Turn a folder of documents into the corpus of a BEIR folder.

```bash
nlt build_corpus --documents my_documents --corpus data/mine
```

These files are read: .txt .md .rst .html .htm .csv .jsonl .parquet .pdf .docx. Each is cut into passages by its
headings and paragraphs. A passage that says nearly the same as an earlier one is left out. `corpus.report.json` lists
such passages, and every file that could not be read with the reason. If no file has changed, a second call does
nothing.
"""

from __future__ import annotations

from nlt_trainer.arguments.stages import CORPUS_BLOCKS
from nlt_trainer.program import run_main, shown
from nlt_trainer.recipe.parsing import parse_recipe


def main(argv: list[str] | None = None) -> None:
    """Write the corpus; prints what was read and what was left out."""
    (args,) = parse_recipe(CORPUS_BLOCKS, argv, description=shown(__doc__), writes=["corpus"])
    from nlt_trainer.assembly.corpus import corpus

    corpus(args)


if __name__ == "__main__":
    run_main(main)
