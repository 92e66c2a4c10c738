"""Run stages one after another, and repeat in a later call only those whose work is not done or no longer right."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlt_trainer.errors import DataError
from nlt_trainer.file_hashes import file_hash
from nlt_trainer.terminal import say
from nlt_trainer.text_files import read_json, write_json


@dataclass(frozen=True)
class Stage:
    """One of several steps that build on one another.

    Args:
        name: name of the stage and of its stamp.
        run: does the work.
        output: file or folder that exists when the work is done.
        settings: text that is different where the work would be, such as a recipe.
        inputs: files that no earlier stage has written; their content counts as the settings do.
        forget: removes what a killed stage would continue from; called if the settings have changed.
        needs: names of the earlier stages whose work this one reads; `None`: of all of them.
    """

    name: str
    run: Callable[[], None]
    output: Path
    settings: str = ""
    inputs: Sequence[Path] = ()
    forget: Callable[[], None] | None = None
    needs: Sequence[str] | None = None


def run_stages(stages: Sequence[Stage], stamps: Path) -> dict[str, float]:
    """Run the stages in their order; returns the seconds that each took, in this call or in an earlier one.

    Every stage leaves a stamp with a hash of its settings, of its inputs and of the hashes of the stages that it
    needs, and if its output is a file, with a hash of that. It is skipped if its stamp has the same hashes and its
    output is there, so that it runs again where somebody has replaced the file. Before a stage runs, the stages that
    need it count as not done, so that they run after it, even in another call if this one is killed.

    Args:
        stages: the stages; a later one may read what an earlier one has written.
        stamps: folder of the stamps.

    Raises:
        DataError: a stamp is damaged.
    """
    seconds, keys = {}, dict[str, str]()
    for number, stage in enumerate(stages, start=1):
        key = _key(stage, earlier=[keys[name] for name in (keys if stage.needs is None else stage.needs)])
        place = f"[{number}/{len(stages)}] {stage.name}"
        stamp = _read(stage, stamps)
        if stamp["key"] == key and stamp["done"] and _is_as_left(stage, stamp):
            say(f"{place}: done before")
        else:
            say(f"{place} ...")
            needing = (later for later in stages[number:] if later.needs is None or stage.name in later.needs)
            stamp = _run(stage, stamps, key=key, needing=needing)
        keys[stage.name], seconds[stage.name] = key, float(stamp["seconds"])
    return seconds


def _key(stage: Stage, *, earlier: Sequence[str]) -> str:
    """Hash of everything that decides a stage's work."""
    text = f"{' '.join(earlier)}\n{stage.name}\n{stage.settings}"
    digest = hashlib.blake2b(text.encode(), digest_size=8)
    for file in stage.inputs:
        with file.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "blake2b").digest())
    return digest.hexdigest()


def _content(stage: Stage) -> str | None:
    """Hash of the file that is a stage's output; `None` for a folder."""
    return file_hash(stage.output) if stage.output.is_file() else None


def _is_as_left(stage: Stage, stamp: dict[str, Any]) -> bool:
    """Whether the output is there, and as the stage has left it; stamps of earlier versions do not say how."""
    return stage.output.exists() and stamp["output"] in (None, _content(stage))


def _file(stage: Stage, stamps: Path) -> Path:
    return stamps / f"{stage.name}.json"


def _read(stage: Stage, stamps: Path) -> dict[str, Any]:
    """The stamp of a stage; an empty one where it has none.

    Raises:
        DataError: it is damaged.
    """
    file = _file(stage, stamps)
    remedy = f"it says whether {stage.name} is done; remove it, and {stage.name} runs again"
    found = read_json(file, remedy=remedy) if file.is_file() else {}
    stamp: dict[str, Any] = {"key": None, "done": False, "seconds": 0, "output": None, **found}
    kinds = {"key": str | None, "done": bool, "seconds": int | float, "output": str | None}
    for name, kind in kinds.items():
        if not isinstance(stamp[name], kind):
            raise DataError(file, f"{name} is {stamp[name]!r}; {remedy}")
    return stamp


def _run(stage: Stage, stamps: Path, *, key: str, needing: Iterable[Stage]) -> dict[str, Any]:
    """Run a stage, after which the stages that need it are not done any more; returns its stamp."""
    for later in needing:
        if _file(later, stamps).is_file():
            write_json(_file(later, stamps), {**_read(later, stamps), "done": False})
    stamp = _read(stage, stamps)
    if stamp["key"] not in (None, key):
        if stage.forget is not None:
            stage.forget()
        stamp["seconds"] = 0
    write_json(_file(stage, stamps), {**stamp, "key": key, "done": False})
    start = time.monotonic()
    stage.run()
    seconds = round(stamp["seconds"] + time.monotonic() - start, 1)
    stamp = {"key": key, "done": True, "seconds": seconds, "output": _content(stage)}
    write_json(_file(stage, stamps), stamp)
    return stamp
