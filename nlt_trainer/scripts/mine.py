"""Find candidate documents for every training query, without reading a label.

```bash
nlt mine --config recipes/demo/likelihood_gain.yaml
```

By default BM25 chooses the candidates. With `--miner encoder --encoder <output_dir>/encoder` the encoder of an earlier
round chooses them, and with `--miner fused` this encoder and BM25 together. Several processes, which
`accelerate launch -m nlt_trainer.scripts.mine` starts, share the corpus. Embeddings are kept in
`<candidates>.embeddings` until the candidates are written, so a killed run continues where it stopped.
"""

from __future__ import annotations

from nlt_trainer.arguments.stages import RECIPE_BLOCKS
from nlt_trainer.data.beir import check_corpus
from nlt_trainer.program import run_main, shown
from nlt_trainer.recipe.parsing import parse_recipe


def main(argv: list[str] | None = None) -> None:
    """Write the recipe's `candidates` file."""
    model, data, args = parse_recipe(
        RECIPE_BLOCKS,
        argv,
        description=shown(__doc__),
        writes=["candidates"],
        check=lambda _, data, __: check_corpus(data.collection),
    )
    from nlt_trainer.assembly.mining import mine

    mine(model, data, args)


if __name__ == "__main__":
    run_main(main)
