"""Run the demo stage by stage: an encoder learns from a frozen LLM to search Python's standard library."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from nlt_trainer.arguments.data import DataArguments
from nlt_trainer.arguments.evaluation import EvaluationArguments
from nlt_trainer.arguments.model import ModelArguments
from nlt_trainer.arguments.search import SearchArguments
from nlt_trainer.arguments.stages import RECIPE_BLOCKS
from nlt_trainer.assembly.evaluation import evaluate
from nlt_trainer.assembly.head_detection import detect_heads
from nlt_trainer.assembly.mining import mine
from nlt_trainer.assembly.parts import peak_memory
from nlt_trainer.assembly.publishing import export_run
from nlt_trainer.assembly.scoring import score
from nlt_trainer.assembly.starts import build_stdlib
from nlt_trainer.assembly.training import train
from nlt_trainer.recipe.parsing import parse_recipe
from nlt_trainer.report.page import write_report
from nlt_trainer.report.search_terminal import search
from nlt_trainer.run.folder import Run
from nlt_trainer.run.results import Result, read_results, results_table, verdicts, write_results
from nlt_trainer.run.stages import Stage, run_stages
from nlt_trainer.terminal import say
from nlt_trainer.training_arguments import NLTTrainingArguments

EXAMPLE_QUERY = "open a file for reading"


def run_demo(gain: Path, dream: Path) -> None:
    """Run all stages, write the report, check the export, and say what to do next and what was gained.

    Every stage leaves a stamp of its recipe. A second call repeats only stages whose output is missing or whose recipe
    has changed, and those that need them.

    Args:
        gain: recipe of the likelihood gain.
        dream: recipe of DREAM, on the same collection.
    """
    writes: list[str | Path] = [
        "collection",
        "candidates",
        "gains",
        "score_cache",
        "heads",
        "output_dir",
        Run("output_dir").encoder,
    ]
    model, data, gain_args = parse_recipe(RECIPE_BLOCKS, ["--config", str(gain)], writes=writes)
    dream_model, dream_data, dream_args = parse_recipe(RECIPE_BLOCKS, ["--config", str(dream)], writes=writes)
    runs = [Run(gain_args.output_dir), Run(dream_args.output_dir)]
    group = Run(runs[0].folder.parent)  # its table and its page show both runs
    folder = group.folder
    stages = [
        stage_of("build_stdlib", build_stdlib, gain, data.collection, settings=sys.version),  # whose library it reads
        stage_of("mine", mine_recipe, gain, data.candidates, needs=["build_stdlib"]),
        stage_of("score", score, gain, data.gains, needs=["mine"]),
        stage_of("train_likelihood_gain", train, gain, runs[0].encoder, runs[0], needs=["score"]),
        stage_of("mine_dream", mine_recipe, dream, dream_data.candidates, needs=["build_stdlib"]),
        stage_of("score_dream", score, dream, dream_data.gains, needs=["mine_dream"]),
        stage_of("detect_heads", detect_heads, dream, dream_model.heads, needs=["score_dream"]),
        stage_of("train_dream", train, dream, runs[1].encoder, runs[1], needs=["detect_heads"]),
        stage_of(
            "evaluate_likelihood_gain", evaluate_recipe, gain, runs[0].results_file, needs=["train_likelihood_gain"]
        ),
        stage_of("evaluate_dream", evaluate_recipe, dream, runs[1].results_file, needs=["train_dream"]),
    ]
    start = time.monotonic()
    run_stages(stages, folder / "stamps")
    results = collect(runs)
    write_results(group.results_file, results)
    write_report(folder, embeddings=EvaluationArguments().cache / "embeddings")
    print_table(group, results, seconds=time.monotonic() - start)
    best = best_run(runs, results)
    exported, equal = export_run(best, "merged")
    say(f"Encoder {exported}, the same as in the trainer when loaded by {' and by '.join(equal)}\n")
    show_search(best.encoder, start=model.encoder, collection=data.collection)
    print_next(best.encoder)
    print_verdicts(results)


def mine_recipe(model: ModelArguments, data: DataArguments, args: NLTTrainingArguments) -> None:
    """Mine, and keep the start's embeddings for the evaluation."""
    mine(model, data, args, embeddings=EvaluationArguments().cache / "embeddings")


def evaluate_recipe(model: ModelArguments, data: DataArguments, args: NLTTrainingArguments) -> None:
    """Evaluate with the defaults, without a table; the demo shows one table of both runs at the end."""
    evaluate(data, args, EvaluationArguments(), show_table=False)


def stage_of(
    name: str,
    run: Callable[[ModelArguments, DataArguments, NLTTrainingArguments], None],
    recipe: Path,
    output: str | Path,
    trained: Run | None = None,
    *,
    needs: Sequence[str] = (),
    settings: str = "",
) -> Stage:
    """A stage that runs with a recipe, which is read when the stage begins.

    Args:
        name: name of the stage.
        run: takes the recipe's blocks.
        recipe: YAML file of the recipe.
        output: file or folder that exists when the stage is done.
        trained: run of the stage, whose checkpoints are removed if the recipe has changed.
        needs: names of the stages whose work it reads. The two objectives do not need each other.
        settings: what its work depends on beside the recipe.
    """
    return Stage(
        name,
        lambda: run(*parse_recipe(RECIPE_BLOCKS, ["--config", str(recipe)])),
        Path(output),
        settings,
        inputs=[recipe],
        forget=None if trained is None else lambda: shutil.rmtree(trained.folder, ignore_errors=True),
        needs=needs,
    )


def collect(runs: list[Run]) -> list[Result]:
    """The results of BM25, the start and the trained encoders; rows that the runs share stand once."""
    rows = [row for run in runs for row in read_results(run.results_file)]
    return list({(row.name, row.collection): row for row in rows}.values())


def best_run(runs: list[Run], results: list[Result]) -> Run:
    """The run whose encoder has the highest nDCG@10 in the table; the first one if several are equal."""
    found = {row.name: row.ndcg_at_10 for row in results}
    return max(runs, key=lambda run: found[run.report["objective"]])


def print_table(group: Run, results: list[Result], *, seconds: float) -> None:
    """Print the table, the time and memory that the demo took, and where the report is."""
    say(f"\n{results_table(results)}\n")
    peak = peak_memory()["peak_memory_gib"]
    say(f"This call took {seconds / 60:.1f} minutes and at most {peak:.1f} GiB of memory.")
    say(f"Report {group.page_file} (open it in a browser), results {group.results_file}\n")


def show_search(encoder: Path, *, start: str, collection: str) -> None:
    """Search the standard library with the better run's encoder and with its start, as the printed command does."""
    say(f'nlt search --encoder {encoder} --against {start} --corpus {collection} --query "{EXAMPLE_QUERY}"')
    search(SearchArguments(str(encoder), collection, against=start, top_k=3, query=EXAMPLE_QUERY))


def print_next(encoder: Path) -> None:
    """Print what to do with the better run's encoder."""
    say("\nWhat to do next")
    say("  use it:       from sentence_transformers import SentenceTransformer")
    say(f'                encoder = SentenceTransformer("{encoder}")')
    say(f'                encoder.encode_query("{EXAMPLE_QUERY}")')
    say("  search:       the command above without --query asks for queries")
    say("  your own data: nlt adapt DOCUMENTS --encoder sentence-transformers/all-MiniLM-L6-v2 --output runs/adapt")


def print_verdicts(results: list[Result]) -> None:
    """Print what each trained encoder gains over the start, and whether BM25 is ahead."""
    say()
    for name in dict.fromkeys(row.name for row in results if row.seed is not None):
        for sentence in verdicts(results, name):
            say(f"{name}: {sentence}")
