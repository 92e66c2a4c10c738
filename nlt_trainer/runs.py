"""Training runs on disk: what `train` and `evaluate` have left of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from nlt_trainer.arguments import RECIPE_BLOCKS
from nlt_trainer.errors import NLTError
from nlt_trainer.files import read_json
from nlt_trainer.results import Result

REPORT_FILE = "training.json"


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
    results = read_json(folder / "results.json", kind=list) if (folder / "results.json").is_file() else []
    return Run(
        folder,
        read_json(folder / REPORT_FILE),
        read_json(folder / "settings.json", stage="nlt train"),
        [Result(**row) for row in results],
    )


def unique_results(runs: Sequence[Run]) -> list[Result]:
    """Rows of all runs; what several of them have, as BM25, stands once."""
    rows = [row for run in runs for row in run.results]
    return list({(row.name, row.collection, row.split, row.seed): row for row in rows}.values())


def changed_settings(settings: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings of a run that differ from the default: key -> (default, value)."""
    defaults: dict[str, Any] = {}
    for arguments in RECIPE_BLOCKS.values():
        defaults |= {field.name: _default(field) for field in dataclasses.fields(arguments)}
    values = {key: value for block in RECIPE_BLOCKS for key, value in settings[block].items()}
    return {key: (defaults[key], value) for key, value in values.items() if value != defaults[key]}


def _default(field: dataclasses.Field[Any]) -> Any:
    """A field's default as `settings.json` writes it."""
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    return value.value if isinstance(value, Enum) else value
