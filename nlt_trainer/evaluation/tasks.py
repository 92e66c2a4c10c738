"""The tasks of an evaluation: find them by folder or by mteb's name, and load their data."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mteb
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from mteb.abstasks import AbsTask
from mteb.abstasks.aggregated_task import AbsTaskAggregate
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.get_tasks import TASK_LIST

from nlt_trainer.errors import NLTError
from nlt_trainer.evaluation.folder_task import BEIRFolderRetrieval, Part
from nlt_trainer.hub_calls import download_command, explain, hub_answers, raise_of_disk


@dataclass(frozen=True)
class EvaluationTask:
    """A task and its name in a table.

    Args:
        task: mteb's task; its data may not have been loaded yet.
        collection: name of the task, or of the folder.
        split: the split that is evaluated, or how many splits there are.
        fingerprint: identifies everything in the task on which a result depends.
    """

    task: AbsTaskRetrieval
    collection: str
    split: str
    fingerprint: str

    @classmethod
    def of(cls, task: AbsTaskRetrieval) -> EvaluationTask:
        """Make the entry of a task."""
        own = ", without own documents" if task.ignore_identical_ids else ""
        if isinstance(task, BEIRFolderRetrieval):
            content = f"{task.metadata.name} {task.metadata.dataset['revision']}"  # independent of the folder's place
            return cls(task, task.collection.name, task.split, content + own)
        described = [task.metadata.name, task.metadata.dataset, list(task.eval_splits), list(task.hf_subsets)]
        splits = list(task.eval_splits)
        split = splits[0] if len(splits) == 1 else f"{len(splits)} splits"
        return cls(task, task.metadata.name, split, json.dumps(described, sort_keys=True) + own)

    @property
    def title(self) -> str:
        """Name and split."""
        return f"{self.collection} {self.split}"

    @property
    def query_texts(self) -> list[str]:
        """The queries of a folder; none for a task of mteb, whose data may not have been loaded."""
        task = self.task
        if not isinstance(task, BEIRFolderRetrieval):
            return []
        return [query.text for query in task.collection.split_queries(task.split)]

    def parts(self) -> list[Part]:
        """Split and subset of each part of a loaded task; the figure of a task is the mean over its parts."""
        return [
            (split, subset)
            for split in self.task.eval_splits
            for subset in self.task.hf_subsets
            if split in self.task.dataset.get(subset, {})
        ]


@dataclass
class TaskList:
    """The tasks of an evaluation.

    Args:
        tasks: every task once, in the order in which tasks were named.
        averages: name of a benchmark, or of a task that is the mean of others -> what the mean is taken over: titles
            of tasks, or names of other averages.
        left_out: benchmark -> names of its tasks that are not evaluated, each with the reason.
    """

    tasks: list[EvaluationTask] = field(default_factory=list)
    averages: dict[str, list[str]] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def add(self, task: AbsTask) -> str:
        """Add a task, or the tasks over which it is the mean; returns its name in `averages`.

        Raises:
            NLTError: another task has the same title.
        """
        if isinstance(task, AbsTaskAggregate):
            self.averages[task.metadata.name] = [self.add(part) for part in task.metadata.tasks]
            return task.metadata.name
        assert isinstance(task, AbsTaskRetrieval)
        entry = EvaluationTask.of(task)
        known = next((known for known in self.tasks if known.title == entry.title), None)
        if known is None:
            self.tasks.append(entry)
        elif known.fingerprint != entry.fingerprint:
            raise NLTError(f"two different tasks would be called {entry.title!r}; rename one folder")
        return entry.title


def resolve_tasks(names: Iterable[str]) -> TaskList:
    """Find the tasks that a user names.

    Args:
        names: each is FOLDER:SPLIT of a BEIR or TREC folder, or the name of a task or benchmark of mteb. From a
            benchmark only the public tasks that retrieve texts by a text are taken.

    Raises:
        DataError: a folder is malformed.
        NLTError: there is no such folder, task or benchmark (the message names the nearest), or a task is of another
            kind.
    """
    found = TaskList()
    for name in names:
        folder, _, split = name.rpartition(":")
        if folder and split and Path(folder).expanduser().is_dir():
            found.add(BEIRFolderRetrieval(Path(folder).expanduser(), split=split))
        else:
            _add_named(found, name)
    return found


def _add_named(found: TaskList, name: str) -> None:
    benchmarks = {name: b for b in mteb.get_benchmarks() for name in (b.name, *(b.aliases or ()))}
    if name in benchmarks:
        _add_benchmark(found, benchmarks[name])
        return
    task = _get_task(name, [*benchmarks])
    if reason := _unfit(task):
        raise NLTError(f"task {name!r} {reason}; evaluate measures retrieval of text by text")
    found.add(task)


def _add_benchmark(found: TaskList, benchmark: Any) -> None:
    reasons = {task.metadata.name: _unfit(task) for task in benchmark.tasks}
    fit = [task for task in benchmark.tasks if not reasons[task.metadata.name]]
    if not fit:
        raise NLTError(f"benchmark {benchmark.name!r} has no public task of retrieval of text by text; name another")
    found.averages[benchmark.name] = [found.add(task) for task in fit]
    if left_out := [f"{name} ({reason})" for name, reason in reasons.items() if reason]:
        found.left_out[benchmark.name] = left_out


def _unfit(task: AbsTask) -> str:
    """Why a task is not a public one that retrieves texts by a text; empty if it is."""
    if task.metadata.type != "Retrieval":
        return f"is of type {task.metadata.type}"
    if list(task.metadata.modalities) != ["text"]:
        return f"has {', '.join(task.metadata.modalities)}"
    return "" if task.metadata.is_public else "is private"


def _get_task(name: str, benchmarks: Sequence[str]) -> AbsTask:
    try:
        return mteb.get_task(name)
    except KeyError:
        pass
    known = {known.lower(): known for known in [*benchmarks, *(t.metadata.name for t in TASK_LIST)]}
    near = difflib.get_close_matches(name.lower(), known, n=1)
    remedy = f"did you mean {known[near[0]]!r}?" if near else "https://docs.mteb.org lists them"
    form = " For a folder write FOLDER:SPLIT, e.g. data/scifact:test." if ":" in name or "/" in name else ""
    raise NLTError(f"{name!r} is no folder, and no task or benchmark of mteb; {remedy}{form}")


def check_data(entries: Sequence[EvaluationTask]) -> None:
    """Check that the data of all tasks is available, before any task is evaluated.

    Raises:
        NLTError: the Hub is out of reach and some data is not on this machine; the message says what to place where.
    """
    remote = [entry for entry in entries if not isinstance(entry.task, BEIRFolderRetrieval)]
    if not remote or hub_answers():
        return
    missing: dict[str, EvaluationTask] = {}
    for entry in remote:
        if _snapshot(entry.task.metadata.dataset) is None:
            try:
                load_task(entry)  # `datasets` has a cache of its own
            except NLTError:
                missing[entry.title] = entry
    if missing:
        raise NLTError(_missing([*missing.values()]))


def load_task(entry: EvaluationTask) -> None:
    """Load a task's data: from its folder, from the Hub, or from the Hub's cache if the Hub is out of reach.

    Raises:
        NLTError: the data is not on this machine and cannot be fetched; the message says what to place where.
    """
    task = entry.task
    if task.data_loaded:
        return
    if isinstance(task, BEIRFolderRetrieval):
        task.load_data()
        return
    dataset = task.metadata.dataset
    if not hub_answers() and (folder := _snapshot(dataset)):
        # When it is offline, `datasets` does not look into the Hub's own cache, but it can read any folder.
        task.metadata = task.metadata.model_copy(update={"dataset": {**dataset, "path": folder}})
    try:
        task.load_data()
    except Exception as error:  # errors of `datasets` (half a file, no such split, a script) share no base
        task.metadata = task.metadata.model_copy(update={"dataset": dataset})
        raise_of_disk(error)
        said = explain(error, dataset["path"], repo_type="dataset", revision=dataset["revision"])
        raise NLTError(f"{_missing([entry])}\n({type(error).__name__}: {said})") from error
    task.convert_v1_dataset_format_to_v2(None)
    if any(task.dataset[subset][split]["top_ranked"] for split, subset in entry.parts()):
        raise NLTError(f"task {entry.collection} ranks given candidates; evaluate measures search of a whole corpus")


def _snapshot(dataset: Any) -> str | None:
    try:
        return snapshot_download(
            dataset["path"], repo_type="dataset", revision=dataset["revision"], local_files_only=True
        )
    except LocalEntryNotFoundError:
        return None


def _missing(entries: Sequence[EvaluationTask]) -> str:
    others = f" and {len(entries) - 1} others have" if len(entries) > 1 else " has"
    datasets = [entry.task.metadata.dataset for entry in entries]
    commands = [download_command(d["path"], repo_type="dataset", revision=d["revision"]) for d in datasets]
    return "\n".join(
        [
            f"{entries[0].collection}{others} data that cannot be loaded: it is not on this machine or not whole, and "
            "the Hub does not give it, or it has no such split. Where there is a network, run",
            *(f"  {command}" for command in dict.fromkeys(commands)),
            "and copy the folders datasets--ORG--NAME from the Hub's cache there (~/.cache/huggingface/hub) to "
            f"{constants.HF_HUB_CACHE} here",
        ]
    )
