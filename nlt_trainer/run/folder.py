"""Training runs on disk: what `train` and `evaluate` have left of each."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from nlt_trainer.arguments.stages import RECIPE_BLOCKS
from nlt_trainer.errors import DataError, NLTError
from nlt_trainer.files import read_json
from nlt_trainer.recipe.keys import Block
from nlt_trainer.run.results import RESULTS_FILE, Result, read_results

REPORT_FILE = "training.json"
REPORT_KEYS = {"objective", "seed", "steps", "queries", "log", "train_seconds", "lm_tokens"}
"""Keys of it that a report needs."""


@dataclass(frozen=True)
class Run:
    """One finished training run.

    Args:
        folder: its output folder, with `encoder/` in it.
        report: `training.json`.
        settings: `settings.json`: blocks of keys and values.
        results: rows of `results.json`; none before `nlt evaluate`.
    """

    folder: Path
    report: dict[str, Any]
    settings: dict[str, Any]
    results: list[Result]

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def log(self) -> list[dict[str, Any]]:
        """The trainer's log, entry by entry."""
        return list(self.report["log"])

    def logged(self, key: str) -> float:
        """Last value of a cost that the log counts up; 0 where it has none."""
        return max((entry.get(key, 0) for entry in self.log), default=0)


def find_runs(folder: str | Path) -> list[Run]:
    """The run in a folder, or the runs in its subfolders, by name.

    Raises:
        NLTError: there is none.
        DataError: a file of a run is missing or malformed.
    """
    folder = Path(folder)
    files = [folder / REPORT_FILE] if (folder / REPORT_FILE).is_file() else sorted(folder.glob(f"*/{REPORT_FILE}"))
    if not files:
        raise NLTError(f"{folder} has no {REPORT_FILE}, nor has a folder in it; name the output_dir of `nlt train`")
    return [_load(file.parent) for file in files]


def _load(folder: Path) -> Run:
    report = read_json(folder / REPORT_FILE)
    settings = read_json(folder / "settings.json", stage="nlt train")
    for file, content, keys in ((REPORT_FILE, report, REPORT_KEYS), ("settings.json", settings, {*RECIPE_BLOCKS})):
        if missing := sorted(keys - content.keys()):
            raise DataError(folder / file, f"has no {', '.join(missing)}, as `nlt train` writes them; train again")
    return Run(folder, report, settings, read_results(folder / RESULTS_FILE))


def unique_results(runs: Sequence[Run]) -> list[Result]:
    """Rows of all runs; what several of them have, as BM25, stands once.

    Where runs have different rows of one name, as two of one objective or with two starts, each says whose it is.
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


def changed_settings(settings: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings of a run that differ from the default: key -> (default, value)."""
    defaults: dict[str, Any] = {}
    for block in RECIPE_BLOCKS.values():
        arguments = block.full_class if isinstance(block, Block) else block
        defaults |= {field.name: _default(field) for field in dataclasses.fields(arguments)}
    values = {key: value for block in RECIPE_BLOCKS for key, value in settings[block].items()}
    return {key: (defaults[key], value) for key, value in values.items() if value != defaults[key]}


def _default(field: dataclasses.Field[Any]) -> Any:
    """A field's default as `settings.json` writes it."""
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    return value.value if isinstance(value, Enum) else value
