"""The stage `evaluate`: score a recipe's encoder and other systems on its collections or on named tasks, with mteb."""

from __future__ import annotations

import difflib
from pathlib import Path

from accelerate import PartialState

from nlt_trainer.arguments.data import DataArguments
from nlt_trainer.arguments.evaluation import EvaluationArguments
from nlt_trainer.arguments.model import start_options
from nlt_trainer.assembly.parts import processes, ray_workers
from nlt_trainer.encoder.embedding_cache import trim
from nlt_trainer.errors import NLTError
from nlt_trainer.evaluation.folder_task import BEIRFolderRetrieval
from nlt_trainer.evaluation.systems import BM25, Checkpoint, EncoderSystems, Family, RunFile, System
from nlt_trainer.evaluation.table import Evaluation, file_name
from nlt_trainer.evaluation.task_scores import TaskScoreCache, TaskScores, score
from nlt_trainer.evaluation.tasks import EvaluationTask, TaskList, check_data, load_task, resolve_tasks
from nlt_trainer.ray_workers import RayWorkers
from nlt_trainer.release.card import write_card
from nlt_trainer.run.folder import Run
from nlt_trainer.run.results import Result, verdicts, write_results
from nlt_trainer.terminal import say
from nlt_trainer.training_arguments import NLTTrainingArguments

GIB = 2**30


def evaluate(
    data: DataArguments,
    args: NLTTrainingArguments,
    evaluation: EvaluationArguments,
    *,
    show_table: bool = True,
) -> None:
    """Write results, card and the files of the evaluation; prints what is done, then the table and the verdicts."""
    state, run = processes(args), Run(str(args.output_dir))
    tasks = find_tasks(data, evaluation)
    if not run.is_finished and not evaluation.checkpoints and not evaluation.run_files:
        raise NLTError(
            f"{run.folder} has no finished encoder; run `nlt train` with this recipe first, or name --checkpoints"
        )
    checkpoints = [
        *(checkpoints_of(run) if run.is_finished else []),
        *map(Checkpoint.named, evaluation.checkpoints),
    ]
    progress = state.is_main_process and not args.disable_tqdm
    families = find_families(
        checkpoints,
        evaluation,
        state=state,
        workers=ray_workers(args),
        bf16=args.bf16_full_eval,
        show_progress=progress,
    )
    systems = [system for family in families for system in family.systems()]
    against = check_systems(systems, evaluation.against)
    scores = score_systems(tasks, families, TaskScoreCache(evaluation.cache / "results"), state=state)
    if not state.is_main_process:
        return
    trim(evaluation.cache / "embeddings", evaluation.embedding_cache_gib * GIB)
    found = Evaluation(tasks, systems, scores, against)
    results = found.rows()
    write_results(run.results_file, results)
    table = found.write(run)
    if run.is_finished:
        write_card(run, results)
    if not show_table:
        return
    say(f"\n{table}")
    is_trained = run.is_finished and not run.keeps_start
    if sentences := gained(results, [checkpoint.name for checkpoint in checkpoints], is_trained=is_trained):
        say("\n" + "\n".join(sentences))


def gained(results: list[Result], names: list[str], *, is_trained: bool) -> list[str]:
    """What encoders gain over the first one, and whether BM25 is ahead: a line for each encoder and collection.

    Args:
        results: rows of the table.
        names: the encoders, the one that the others are compared with first. If there is no other, it has the lines.
        is_trained: whether the second is the recipe's own; the lines are then about it alone.
    """
    about = names[1:2] if is_trained else names[1:] or names
    return [f"{name}: {sentence}" for name in about for sentence in verdicts(results, name, start=names[0])]


def find_tasks(data: DataArguments, evaluation: EvaluationArguments) -> TaskList:
    """The tasks that the user named, or else those of the recipe.

    Raises:
        NLTError: there are no tasks, or there are several although a run file is given.
    """
    if evaluation.tasks:
        tasks = resolve_tasks(evaluation.tasks)
    else:
        named = reported(data)
        if not named:
            raise NLTError("eval_split is null and eval_collections empty; name a split or a collection to report on")
        tasks = TaskList()
        for folder, split in named:
            tasks.add(BEIRFolderRetrieval(folder, split=split))
    if evaluation.run_files and len(tasks.tasks) != 1:
        raise NLTError(f"run_files belong to one task, and there are {len(tasks.tasks)}; name that task alone")
    return tasks


def reported(data: DataArguments) -> list[tuple[str, str]]:
    """The collections and splits on which the recipe reports, each pair once."""
    own = [(data.collection, data.eval_split)] if data.eval_split else []
    named = [*own, *map(folder_and_split, data.eval_collections)]
    return list({(Path(folder).resolve(), split): (folder, split) for folder, split in named}.values())


def folder_and_split(entry: str) -> tuple[str, str]:
    """Divide an entry of `eval_collections` into folder and split.

    Raises:
        NLTError: the entry is not FOLDER:SPLIT.
    """
    folder, _, split = entry.rpartition(":")
    if not folder or not split:
        raise NLTError(f"eval_collections has {entry!r}; write FOLDER:SPLIT, e.g. data/scifact:test")
    return folder, split


def checkpoints_of(run: Run) -> list[Checkpoint]:
    """The encoder from which a run has started, and the trained encoder, unless `nlt adapt` has kept the start."""
    model = run.settings["model"]
    start = Checkpoint("start", model["encoder"], start_options(model))
    return [start] if run.keeps_start else [start, Checkpoint.of_run(run.report["objective"], run)]


def find_families(
    checkpoints: list[Checkpoint],
    evaluation: EvaluationArguments,
    *,
    state: PartialState,
    workers: RayWorkers | None,
    bf16: bool,
    show_progress: bool,
) -> list[Family]:
    """BM25, the encoders and the run files, in the order of the table."""
    with_bm25 = evaluation.fused or bool(evaluation.bm25_weights)
    bm25 = BM25(keep=with_bm25)
    encoders = [
        EncoderSystems(
            checkpoint,
            folder=evaluation.cache / "embeddings",
            batch_size=evaluation.encode_batch_size,
            bm25=bm25 if with_bm25 else None,
            reciprocal_ranks=evaluation.fused,
            bm25_weights=evaluation.bm25_weights,
            truncate_dims=evaluation.truncate_dims,
            precisions=evaluation.quantisations,
            processes=state,
            workers=workers,
            bf16=bf16,
            show_progress=show_progress,
        )
        for checkpoint in checkpoints
    ]
    return [bm25, *encoders, *map(RunFile, evaluation.run_files)]


def check_systems(systems: list[System], against: str | None) -> str | None:
    """The name of the row with which the others are compared: the one in `against`, or else the first encoder's.

    Raises:
        NLTError: two rows have the same name or would have the same file, or no row has the name in `against`.
    """
    names = [system.name for system in systems]
    if doubled := [name for name in names if names.count(name) > 1]:
        raise NLTError(f"two rows would be called {doubled[0]!r}; name each checkpoint once, or by its path")
    files: dict[str, str] = {}
    for name in names:
        if (other := files.setdefault(file_name(name), name)) != name:
            raise NLTError(f"rows {other!r} and {name!r} would be one file; name each checkpoint once, or rename one")
    if against is not None and against not in names:
        near = difflib.get_close_matches(against, names, n=1)
        raise NLTError(
            f"against is {against!r}; " + (f"did you mean {near[0]!r}?" if near else f"choose of {', '.join(names)}")
        )
    return against or next((system.name for system in systems if system.is_encoder), None)


def score_systems(
    tasks: TaskList, families: list[Family], cache: TaskScoreCache, *, state: PartialState
) -> dict[tuple[str, str], TaskScores]:
    """Evaluate each system on each task, unless the cache has the result. Other processes only help to embed."""
    rows = {id(family): family.systems() for family in families}
    grid = [(family, entry, system) for family in families for entry in tasks.tasks for system in rows[id(family)]]
    names = {system.name for _, _, system in grid}
    kept = {(system.name, entry.title): cache.get(system.fingerprint, entry) for _, entry, system in grid}
    check_data([entry for entry in tasks.tasks if any(kept[name, entry.title] is None for name in names)])
    state.wait_for_everyone()  # no process may write a result before all have read the cache
    if state.is_main_process:
        for name, left_out in tasks.left_out.items():
            say(f"{name}: left out are {', '.join(left_out)}")
    scores: dict[tuple[str, str], TaskScores] = {}
    for number, (family, entry, system) in enumerate(grid, start=1):
        earlier = kept[system.name, entry.title]
        found = earlier or score_system(entry, system, is_main=state.is_main_process)
        if found is not None and state.is_main_process:
            if earlier is None:
                cache.put(system.fingerprint, entry, found)
            scores[system.name, entry.title] = found
            say(f"[{number}/{len(grid)}] {entry.title}: {system.name} is done" + (", kept" if earlier else ""))
        if number == len(grid) or grid[number][0] is not family:
            family.release()
    return scores


def score_system(entry: EvaluationTask, system: System, *, is_main: bool) -> TaskScores | None:
    """Evaluate a system on a task. A process other than the main one embeds its share and returns `None`."""
    if is_main:
        load_task(entry)
        return score(entry, system.rank(entry))
    if system.embed is not None:
        load_task(entry)
        system.embed(entry)
    return None
