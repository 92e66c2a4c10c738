"""Evaluate BM25, the encoder before and after training, and other checkpoints, with mteb.

```bash
nlt evaluate --config recipes/demo/likelihood_gain.yaml
nlt evaluate --tasks NanoBEIR data/scifact:test --checkpoints ORG/MODEL runs/mine --fused true --output_dir runs/table
```

The start is that of the run in `output_dir`, whatever the recipe names now. Where `nlt adapt` has kept the start, it
is the run's encoder and stands in the table alone. The encoders are evaluated on `tasks`. Without `tasks` they are
evaluated on the recipe's `collection` and `eval_split`, and on each of `eval_collections`; nothing is evaluated twice.
Encoders run in float32, and several processes share the embedding.

The stage writes `<output_dir>/results.json` and puts the results into the model card of the run. The folder
`<output_dir>/evaluation` gets the table, comparisons, the values of every query and mteb's own files. Results are
kept, so a killed evaluation continues where it stopped, and a second one only reads them.
"""

from __future__ import annotations

from nlt_trainer.arguments.stages import EVALUATION_BLOCKS
from nlt_trainer.program import run_main, shown
from nlt_trainer.recipe.parsing import parse_recipe
from nlt_trainer.run.folder import Run

OUT = Run("output_dir")
"""The run in the folder that the option `output_dir` names."""


def main(argv: list[str] | None = None) -> None:
    """Write results, card and the files of the evaluation; prints each result, then the table."""
    _, data, args, evaluation = parse_recipe(
        EVALUATION_BLOCKS,
        argv,
        description=shown(__doc__),
        writes=["output_dir", OUT.results_file, OUT.table_file, OUT.query_values_file, "evaluation_cache"],
    )
    from nlt_trainer.assembly.evaluation import evaluate
    from nlt_trainer.assembly.parts import alone

    with alone(args):
        evaluate(data, args, evaluation)


if __name__ == "__main__":
    run_main(main)
