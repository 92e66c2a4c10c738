"""Search a corpus with an encoder in the terminal, or with two of them side by side.

```bash
nlt search --encoder runs/demo/dream/encoder --against runs/demo/start --corpus runs/demo/collection
nlt search --encoder runs/demo/dream/encoder --corpus runs/demo/collection --query "open a file for reading"
```

Type a query and Enter; an empty line, Ctrl-D or Ctrl-C leaves. Queries can also be piped in, one a line. Embeddings
are kept on disk by content, so that the second start reads them.
"""

from __future__ import annotations

from nlt_trainer.arguments.stages import SEARCH_BLOCKS
from nlt_trainer.program import run_main, shown
from nlt_trainer.recipe.parsing import parse_recipe


def main(argv: list[str] | None = None) -> None:
    """Print what is found for each query."""
    (args,) = parse_recipe(SEARCH_BLOCKS, argv, description=shown(__doc__))
    from nlt_trainer.report.search_terminal import search

    search(args)


if __name__ == "__main__":
    run_main(main)
