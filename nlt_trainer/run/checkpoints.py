"""Tell whole checkpoints from half-written ones, and find the last whole one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from nlt_trainer.errors import NLTError
from nlt_trainer.files import SIZES_FILE, read_json, write_json
from nlt_trainer.run.folder import Run

logger = logging.getLogger(__name__)


def last_checkpoint(folder: Path) -> str | None:
    """The last checkpoint whose files are all complete. Later ones are ignored, with a warning that names them."""
    for _, checkpoint in sorted(Run(folder).checkpoints().items(), reverse=True):
        fault = checkpoint_fault(checkpoint)
        if fault is None:
            return str(checkpoint)
        logger.warning("%s is half-written and ignored: %s; remove it, or copy it again", checkpoint, fault)
    return None


def checkpoint_fault(checkpoint: Path) -> str | None:
    """What a checkpoint lacks; `None` where it is whole."""
    if not checkpoint.is_dir():
        return "there is no such folder"
    if not (checkpoint / SIZES_FILE).is_file():
        return f"{SIZES_FILE}, which is written last, is missing"
    try:
        sizes = read_json(checkpoint / SIZES_FILE)
    except NLTError as error:
        return str(error)
    for name, size in sizes.items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} of {size} bytes"
    return None


class CheckpointFiles(TrainerCallback):
    """Writes a list of a checkpoint's files and their sizes into it, when all processes have written their files.

    A checkpoint that lacks the list, or a file on it, was interrupted by a kill, by a full disk or while it was
    copied.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remove the list from checkpoints of later steps, so that they count as whole only when written anew.

        They come from an earlier attempt. A kill while they are written anew would mix the files of both attempts.
        """
        if state.is_world_process_zero:
            for step, checkpoint in Run(str(args.output_dir)).checkpoints().items():
                if step > state.global_step:
                    (checkpoint / SIZES_FILE).unlink(missing_ok=True)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            folder = Run(str(args.output_dir)).checkpoint(state.global_step)
            files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SIZES_FILE)
            write_json(folder / SIZES_FILE, {f.relative_to(folder).as_posix(): f.stat().st_size for f in files})
