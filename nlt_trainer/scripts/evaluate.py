"""Evaluate BM25, the encoder before and after training, and other checkpoints, with mteb.

```bash
nlt evaluate --config recipes/demo/likelihood_gain.yaml
nlt evaluate --tasks NanoBEIR data/scifact:test --checkpoints ORG/MODEL runs/mine --fused true --output_dir runs/table
```

Evaluates on `tasks`; without them on the recipe's `collection` and `eval_split`, then on each of `eval_collections`,
on none twice; in float32. Writes `<output_dir>/results.json`, puts the results into the model card of the run, and
writes table, comparisons, values of every query and mteb's own files into `<output_dir>/evaluation`. Several processes
share the embedding. What was evaluated is kept: a killed evaluation goes on, a second one reads.
"""

from __future__ import annotations

from nlt_trainer.arguments.stages import EVALUATION_BLOCKS
from nlt_trainer.program import run_main, shown
from nlt_trainer.recipe.parsing import parse_recipe


def main(argv: list[str] | None = None) -> None:
    """Write results, card and the files of the evaluation; prints each result, then the table."""
    model, data, args, evaluation = parse_recipe(EVALUATION_BLOCKS, argv, description=shown(__doc__))
    from nlt_trainer.assembly.evaluation import evaluate

    evaluate(model, data, args, evaluation)


if __name__ == "__main__":
    run_main(main)
