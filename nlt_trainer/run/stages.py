"""Run stages one after another, and repeat in a later call only those whose work is not done or no longer right."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlt_trainer.files import read_json, write_json
from nlt_trainer.terminal import say


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
    """

    name: str
    run: Callable[[], None]
    output: Path
    settings: str = ""
    inputs: Sequence[Path] = ()
    forget: Callable[[], None] | None = None


def run_stages(stages: Sequence[Stage], stamps: Path) -> dict[str, float]:
    """Run the stages in their order; returns the seconds that each took, in this call or in an earlier one.

    Every stage leaves a stamp with a hash of its settings, of its inputs and of the earlier stages' hashes. It is
    skipped if its stamp has the same hash and its output is there.

    Args:
        stages: the stages; a later one may read what an earlier one has written.
        stamps: folder of the stamps.
    """
    seconds, earlier = {}, ""
    for number, stage in enumerate(stages, start=1):
        earlier, seconds[stage.name] = _run(stage, stamps, earlier=earlier, place=f"[{number}/{len(stages)}]")
    return seconds


def _run(stage: Stage, stamps: Path, *, earlier: str, place: str) -> tuple[str, float]:
    """Run a stage unless it is done; returns its hash and its seconds."""
    digest = hashlib.blake2b(f"{earlier}\n{stage.name}\n{sys.version}\n{stage.settings}".encode(), digest_size=8)
    for file in stage.inputs:
        with file.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "blake2b").digest())
    key, path = digest.hexdigest(), stamps / f"{stage.name}.json"
    stamp: dict[str, Any] = read_json(path) if path.is_file() else {"key": key, "done": False}
    if stamp.get("key") == key and stamp.get("done") and stage.output.exists():
        say(f"{place} {stage.name}: done before")
        return key, float(stamp.get("seconds", 0))
    if stamp.get("key") != key and stage.forget is not None:
        stage.forget()
    before = float(stamp.get("seconds", 0)) if stamp.get("key") == key else 0.0
    say(f"{place} {stage.name} ...")
    write_json(path, {"key": key, "done": False, "seconds": before})
    start = time.monotonic()
    stage.run()
    seconds = round(before + time.monotonic() - start, 1)
    write_json(path, {"key": key, "done": True, "seconds": seconds})
    return key, seconds
