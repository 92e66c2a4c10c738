"""The folder of a run: the names of its files, and the settings, report and results that stages have left in it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any

from nlt_trainer.arguments.stages import RECIPE_BLOCKS
from nlt_trainer.choices import ExportForm
from nlt_trainer.data.known_queries import read_query_keys
from nlt_trainer.errors import DataError, NLTError
from nlt_trainer.files import TRAINED_QUERIES_FILE
from nlt_trainer.recipe.keys import Block
from nlt_trainer.run.results import Result, read_results
from nlt_trainer.text_files import read_json

CHECKPOINT = "checkpoint-"
"""Prefix of the folders in which the trainer keeps its state; the number of the step follows."""

REPORT_KEYS = {"objective", "seed", "steps", "queries", "log", "train_seconds", "lm_tokens"}
"""Keys that the `training.json` of a finished run has."""


class Run:
    """The folder of a run, which may still be empty. The names of its files and folders are written down only here.

    What lies inside an encoder or a checkpoint is named by the module that writes it.

    Args:
        folder: `output_dir` of the recipe.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.settings_file = self.folder / "settings.json"
        """The recipe's blocks, and the trajectory, which a run must share to resume here; see `resume`."""
        self.training_file = self.folder / "training.json"
        """What training did: objective, cost and log. It is written when training has ended."""
        self.trained_queries_file = self.folder / TRAINED_QUERIES_FILE
        """Keys of the queries that were trained on, see `query_keys`; also of those that the start was trained on."""
        self.encoder = self.folder / "encoder"
        """The trained encoder, a Sentence-Transformers folder with its card, recipe and record."""
        self.adapter = self.folder / "adapter"
        """A LoRA adapter alone: the encoder's, or that of the LLM which `adapt_scorer` fits."""
        self.adaptation_file = self.folder / "adaptation.json"
        """What `adapt_scorer` did. It lies beside the adapter, because every JSON file inside is part of its hash."""
        self.probe_file = self.folder / "probe.safetensors"
        """Embeddings of the encoder as it was in the trainer, with which exports are compared."""
        self.results_file = self.folder / "results.json"
        """The table of results, a list of `Result`."""
        self.decision_file = self.folder / "decision.json"
        """What `nlt adapt` has decided: which encoder is kept, the verdict, the weight of BM25 beside it, and by which
        results."""
        self.recipe_file = self.folder / "recipe.yaml"
        """The recipe that `nlt adapt` writes, with which each stage can be run alone."""
        self.page_file = self.folder / "report.html"
        self.evaluation = self.folder / "evaluation"
        self.table_file = self.evaluation / "table.md"
        self.comparisons_file = self.evaluation / "comparisons.json"
        self.query_values_file = self.evaluation / "queries.jsonl"
        self.mteb = self.evaluation / "mteb"
        """mteb's own results, with a folder for each system and a file for each task."""

    def refreshed_candidates(self, step: int) -> Path:
        """The candidates that a refresh after a step has mined."""
        return self.folder / f"candidates-{step}.jsonl"

    def refreshed_gains(self, step: int) -> Path:
        """The gains of these candidates; the audit stands beside them."""
        return self.folder / f"gains-{step}.jsonl"

    def checkpoint(self, step: int) -> Path:
        """The folder of the trainer's state after a step."""
        return self.folder / f"{CHECKPOINT}{step}"

    def checkpoints(self) -> dict[int, Path]:
        """Folders of the trainer's states, by step; they may be half-written."""
        steps = {path: path.name.removeprefix(CHECKPOINT) for path in self.folder.glob(f"{CHECKPOINT}*")}
        return {int(step): path for path, step in sorted(steps.items()) if step.isdecimal()}

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def is_finished(self) -> bool:
        """Whether training has ended and left an encoder."""
        return self.encoder.is_dir() and self.training_file.is_file()

    def exported(self, form: ExportForm) -> Path:
        """The folder of an encoder in another form."""
        return self.adapter if form == "adapter" else self.folder / form

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Blocks of the recipe with their keys and values.

        Raises:
            DataError: the file is missing or lacks a block.
        """
        return self._read(self.settings_file, {*RECIPE_BLOCKS})

    @cached_property
    def report(self) -> dict[str, Any]:
        """What training did, as `training.json` says it.

        Raises:
            DataError: the file is missing or lacks a key.
        """
        return self._read(self.training_file, REPORT_KEYS)

    def _read(self, path: Path, keys: set[str]) -> dict[str, Any]:
        content: dict[str, Any] = read_json(path, stage="nlt train")
        if missing := sorted(keys - content.keys()):
            raise DataError(path, f"has no {', '.join(missing)}, as `nlt train` writes them; train again")
        return content

    @cached_property
    def decision(self) -> dict[str, Any] | None:
        """What `nlt adapt` has decided, as `Decision` has it; `None` where it had nothing to decide.

        Raises:
            DataError: the file is malformed.
        """
        return read_json(self.decision_file) if self.decision_file.is_file() else None

    @property
    def keeps_start(self) -> bool:
        """Whether `nlt adapt` has kept the start, so that `encoder` is the start and not what was trained."""
        return self.decision is not None and self.decision["kept"] == "start"

    @cached_property
    def results(self) -> list[Result]:
        """Rows of the table of results; there are none before `nlt evaluate`."""
        return read_results(self.results_file)

    @property
    def cost(self) -> dict[str, Any]:
        """What the encoder cost: `train_seconds`, `lm_tokens` and `seed`, as a `Result` has them."""
        return {key: self.report[key] for key in ("train_seconds", "lm_tokens", "seed")}

    @cached_property
    def trained_queries(self) -> frozenset[int]:
        """Keys of the queries that were trained on; none where an older version has trained.

        Raises:
            DataError: the file is malformed.
        """
        path = self.trained_queries_file
        return read_query_keys(path) if path.is_file() else frozenset()

    @property
    def log(self) -> list[dict[str, Any]]:
        """The trainer's log, entry by entry."""
        return list(self.report["log"])

    def logged(self, key: str) -> float:
        """Last value of a cost that grows from entry to entry of the log; 0 where the log does not have it."""
        return max((entry.get(key, 0) for entry in self.log), default=0)


def find_runs(folder: str | Path) -> list[Run]:
    """The finished run in a folder, or else the finished runs in its subfolders, sorted by name.

    Raises:
        NLTError: there is no finished run.
        DataError: a file of a run is missing or malformed.
    """
    run = Run(folder)
    found = [run] if run.training_file.is_file() else [Run(path) for path in sorted(run.folder.glob("*/"))]
    found = [run for run in found if run.training_file.is_file()]
    if not found:
        name = run.training_file.name
        raise NLTError(f"{folder} has no {name}, nor has a folder in it; name the output_dir of `nlt train`")
    for run in found:  # read all files now, so that a malformed one is reported before any work is done
        _ = run.report, run.settings, run.results
    return found


def unique_results(runs: Sequence[Run]) -> list[Result]:
    """Rows of all runs. A row that several runs have, such as that of BM25, appears once.

    Where runs have different rows under one name, such as two runs of one objective, each row also names its run.
    """
    owners: dict[Result, list[str]] = {}
    for run in runs:
        for row in run.results:
            owners.setdefault(row, []).append(run.name)
    named = Counter((row.name, row.collection, row.split, row.seed) for row in owners)
    return [
        row
        if named[row.name, row.collection, row.split, row.seed] == 1
        else dataclasses.replace(row, name=f"{row.name} ({', '.join(names)})")
        for row, names in owners.items()
    ]


def option_defaults() -> dict[str, Any]:
    """The default of every option of a recipe, in the form that the settings file has."""
    defaults: dict[str, Any] = {}
    for block in RECIPE_BLOCKS.values():
        arguments = block.full_class if isinstance(block, Block) else block
        defaults |= {field.name: _default(field) for field in dataclasses.fields(arguments)}
    return defaults


def changed_settings(settings: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings of a run that differ from the default: key -> (default, value)."""
    defaults = option_defaults()
    values = {key: value for block in RECIPE_BLOCKS for key, value in settings[block].items()}
    return {key: (defaults[key], value) for key, value in values.items() if value != defaults[key]}


def _default(field: dataclasses.Field[Any]) -> Any:
    """A field's default in the form that the settings file has."""
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    return value.value if isinstance(value, Enum) else value
