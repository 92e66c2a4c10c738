"""The main job on the embedded default: an encoder learns from a frozen LLM to search Python's standard library.

```bash
make demo
```

Every stage leaves a stamp of its recipe; a second call repeats only what is missing or whose recipe has changed.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nlt_trainer.arguments import RECIPE_BLOCKS
from nlt_trainer.errors import NLTError
from nlt_trainer.files import read_json, write_json
from nlt_trainer.recipe import parse_recipe
from nlt_trainer.report import write_report
from nlt_trainer.results import RESULTS_FILE, Result, read_results, results_table, write_results
from nlt_trainer.scripts import build_stdlib, detect_heads, evaluate, make_encoder, mine, run_main, score, shown, train
from nlt_trainer.scripts.common import peak_memory
from nlt_trainer.scripts.export import export_run


@dataclass(frozen=True)
class Stage:
    """One step of the demo.

    Args:
        name: of its stamp.
        run: the stage's `main`.
        recipe: YAML file.
        output: what exists when it is done.
        checkpoints: folder in which a killed run goes on; removed when the recipe has changed.
    """

    name: str
    run: Callable[[list[str] | None], None]
    recipe: Path
    output: Path
    checkpoints: Path | None = None


def main(argv: list[str] | None = None) -> None:
    """Run all stages, then write the report, show the table, check the export, say what to do next."""
    parser = argparse.ArgumentParser(description=shown(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", type=Path, default=Path("recipes/demo"), help="folder with the two recipes")
    recipes = parser.parse_args(argv).recipes
    gain, dream = recipes / "likelihood_gain.yaml", recipes / "dream.yaml"
    if not (gain.is_file() and dream.is_file()):
        raise NLTError(f"{recipes} has no demo recipes; run in the repository's root or give their folder: --recipes")
    model, data, gain_args = parse_recipe(RECIPE_BLOCKS, ["--config", str(gain)])
    dream_model, _, dream_args = parse_recipe(RECIPE_BLOCKS, ["--config", str(dream)])
    runs = [Path(gain_args.output_dir), Path(dream_args.output_dir)]
    folder = runs[0].parent
    stages = [
        Stage("build_stdlib", build_stdlib.main, gain, Path(data.collection)),
        Stage("make_encoder", make_encoder.main, gain, Path(model.encoder)),
        Stage("mine", mine.main, gain, Path(data.candidates)),
        Stage("score", score.main, gain, Path(data.gains)),
        Stage("train_likelihood_gain", train.main, gain, runs[0] / "encoder", runs[0]),
        Stage("detect_heads", detect_heads.main, dream, Path(dream_model.heads)),
        Stage("train_dream", train.main, dream, runs[1] / "encoder", runs[1]),
        Stage("evaluate_likelihood_gain", evaluate.main, gain, runs[0] / "results.json"),
        Stage("evaluate_dream", evaluate.main, dream, runs[1] / "results.json"),
    ]
    start, earlier = time.monotonic(), ""
    for number, stage in enumerate(stages, start=1):
        earlier = run_stage(stage, folder / "stamps", earlier=earlier, place=f"{number}/{len(stages)}")
    results = collect(runs)
    write_results(folder / "results.json", results)
    write_report(folder, embeddings=folder / "embeddings")
    print_table(folder, results, seconds=time.monotonic() - start)
    best = best_run(runs, results)
    exported, equal = export_run(best, "merged")
    print(f"Encoder {exported}, the same as in the trainer when loaded by {' and by '.join(equal)}\n")
    print_next(best, start=model.encoder, collection=data.collection)


def run_stage(stage: Stage, stamps: Path, *, earlier: str, place: str) -> str:
    """Run a stage unless its stamp says that it was done with this recipe after the same stages; returns its key."""
    content = f"{earlier}\n{stage.name}\n{sys.version}\n{stage.recipe.read_text(encoding='utf-8')}"
    key = hashlib.blake2b(content.encode(), digest_size=8).hexdigest()
    path = stamps / f"{stage.name}.json"
    stamp = read_json(path) if path.is_file() else {"key": key, "done": False}
    if stamp == {"key": key, "done": True} and stage.output.exists():
        print(f"[{place}] {stage.name}: done before", flush=True)
        return key
    if stamp["key"] != key and stage.checkpoints is not None:
        shutil.rmtree(stage.checkpoints, ignore_errors=True)  # of another recipe; this one starts anew
    print(f"[{place}] {stage.name} ...", flush=True)
    write_json(path, {"key": key, "done": False})
    stage.run(["--config", str(stage.recipe)])
    write_json(path, {"key": key, "done": True})
    return key


def collect(runs: list[Path]) -> list[Result]:
    """BM25 and the start once, then the trained encoders."""
    rows = [row for run in runs for row in read_results(run / RESULTS_FILE)]
    return list({(row.name, row.collection): row for row in rows}.values())


def best_run(runs: list[Path], results: list[Result]) -> Path:
    """The run whose encoder has the highest nDCG@10 of the table, the first of equal ones."""
    found = {row.name: row.ndcg_at_10 for row in results}
    return max(runs, key=lambda run: found[read_json(run / "training.json", stage="nlt train")["objective"]])


def print_table(folder: Path, results: list[Result], *, seconds: float) -> None:
    """Print the table, what it took, and where the report is."""
    print(f"\n{results_table(results)}\n")
    peak = peak_memory()["peak_memory_gib"]
    print(f"This call took {seconds / 60:.1f} minutes and at most {peak:.1f} GiB of memory.")
    print(f"Report {folder}/report.html (open it in a browser), results {folder}/results.json\n")


def print_next(run: Path, *, start: str, collection: str) -> None:
    """Print what to do with the better run's encoder."""
    print("What to do next")
    print("  use it:       from sentence_transformers import SentenceTransformer")
    print(f'                encoder = SentenceTransformer("{run}/encoder")')
    print('                encoder.encode_query("open a file for reading")')
    print(f"  search:       nlt search --encoder {run}/encoder --against {start} --corpus {collection}")
    print("  your own data: copy recipes/minilm/likelihood_gain.yaml and change the keys that README.md names under")
    print("                'Your own data', then: nlt mine, nlt score, nlt train, each with --config your.yaml")


if __name__ == "__main__":
    run_main(main)
