"""Evaluate BM25, the encoder before and the encoder after training on held-out queries, with mteb.

```bash
nlt evaluate --config recipes/demo/likelihood_gain.yaml
```

Reports on `collection` and `eval_split`, then on each of `eval_collections`, on none twice, in float32;
writes `<output_dir>/results.json` and puts the results into the model card.
"""

from __future__ import annotations

from pathlib import Path

from nlt_trainer.arguments import RECIPE_BLOCKS, ModelArguments
from nlt_trainer.cards import write_card
from nlt_trainer.data.beir import Collection, load_collection
from nlt_trainer.errors import NLTError
from nlt_trainer.evaluation import evaluate_bm25, evaluate_encoder
from nlt_trainer.files import read_json
from nlt_trainer.models.encoder import load_encoder
from nlt_trainer.recipe import parse_recipe
from nlt_trainer.results import Result, results_table, write_results
from nlt_trainer.scripts import run_main, shown
from nlt_trainer.scripts.common import load_untrained, processes


def main(argv: list[str] | None = None) -> None:
    """Write results and card; prints the table."""
    model, data, args = parse_recipe(RECIPE_BLOCKS, argv, description=shown(__doc__))
    if not processes(args).is_main_process:
        return
    run = Path(args.output_dir)
    results = []
    own = [] if data.eval_split is None else [(data.collection, data.eval_split)]
    if not own and not data.eval_collections:
        raise NLTError("eval_split is null and eval_collections empty; name a split or a collection to report on")
    named = [*own, *map(folder_and_split, data.eval_collections)]
    for folder, split in {(Path(folder).resolve(), split): (folder, split) for folder, split in named}.values():
        collection = load_collection(folder, splits=[split])
        results += [
            evaluate_baseline(collection, split),
            evaluate_start(collection, split, model=model),
            evaluate_run(collection, split, run=run, model=model),
        ]
    write_results(run / "results.json", results)
    write_card(run, results)
    print(results_table(results))


def folder_and_split(entry: str) -> tuple[str, str]:
    """Split an entry of `eval_collections`.

    Raises:
        NLTError: it is not FOLDER:SPLIT.
    """
    folder, _, split = entry.rpartition(":")
    if not folder or not split:
        raise NLTError(f"eval_collections has {entry!r}; write FOLDER:SPLIT, e.g. data/scifact:test")
    return folder, split


def evaluate_baseline(collection: Collection, split: str) -> Result:
    """BM25's row."""
    metrics = evaluate_bm25(collection, split=split)
    return Result("bm25", **metrics, train_seconds=0, lm_tokens=0, seed=None, collection=collection.name, split=split)


def evaluate_start(collection: Collection, split: str, *, model: ModelArguments) -> Result:
    """The row of the encoder that training starts from."""
    metrics = evaluate_encoder(load_untrained(model), collection, split=split)
    return Result("start", **metrics, train_seconds=0, lm_tokens=0, seed=None, collection=collection.name, split=split)


def evaluate_run(collection: Collection, split: str, *, run: Path, model: ModelArguments) -> Result:
    """The row of a trained encoder.

    Raises:
        NLTError: the run's folder has no finished encoder.
    """
    if not (run / "encoder").is_dir() or not (run / "training.json").is_file():
        raise NLTError(f"{run} has no finished encoder; run `nlt train` with this recipe first")
    report = read_json(run / "training.json", stage="nlt train")
    metrics = evaluate_encoder(load_encoder(str(run / "encoder")), collection, split=split)
    return Result(
        report["objective"],
        **metrics,
        train_seconds=report["train_seconds"],
        lm_tokens=report["lm_tokens"],
        seed=report["seed"],
        collection=collection.name,
        split=split,
    )


if __name__ == "__main__":
    run_main(main)
