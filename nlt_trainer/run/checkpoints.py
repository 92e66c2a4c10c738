"""Tell whole checkpoints from damaged or half-written ones, and find the last whole one."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import IntervalStrategy, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from nlt_trainer.errors import NLTError
from nlt_trainer.file_hashes import file_hash
from nlt_trainer.files import CHECKSUMS_FILE
from nlt_trainer.run.folder import Run
from nlt_trainer.text_files import read_json, write_json

logger = logging.getLogger(__name__)


def last_checkpoint(folder: Path) -> str | None:
    """The last checkpoint that is whole. Later ones are ignored, with a warning that names them."""
    for _, checkpoint in sorted(Run(folder).checkpoints().items(), reverse=True):
        fault = checkpoint_fault(checkpoint)
        if fault is None:
            return str(checkpoint)
        logger.warning("%s is not whole and ignored: %s; remove it, or copy it again", checkpoint, fault)
    return None


def checkpoint_fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint; `None` where it is whole, so that each file is as it was written."""
    if not checkpoint.is_dir():
        return "there is no such folder"
    if not (checkpoint / CHECKSUMS_FILE).is_file():
        return f"{CHECKSUMS_FILE}, which is written last, is missing"
    try:
        listed = read_json(checkpoint / CHECKSUMS_FILE)
    except NLTError as error:
        return str(error)
    if not listed:
        return f"{CHECKSUMS_FILE} lists no file"
    for name, written in listed.items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        # earlier versions of this package have listed sizes
        if written != (file.stat().st_size if isinstance(written, int) else file_hash(file)):
            return f"{name} is not as it was written"
    return None


def awaits_evaluation(checkpoint: Path, args: TrainingArguments) -> bool:
    """Whether a run was to evaluate right after it had written a checkpoint, which its log does not have.

    A checkpoint that is written after a number of steps may be that of the last step of an epoch, at the end of which
    `eval_strategy: epoch` evaluates.
    """
    if args.eval_strategy != IntervalStrategy.EPOCH:
        return False
    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    at_end = state.epoch is not None and float(state.epoch).is_integer()
    now = (entry for entry in state.log_history if entry["step"] == state.global_step)
    return at_end and not any(name.startswith("eval_") for entry in now for name in entry)


def best_checkpoint(state: TrainerState, *, beside: Path) -> str | None:
    """The best checkpoint so far. The folder of the run may have been moved or copied since it was named.

    Args:
        state: as a checkpoint has it.
        beside: this checkpoint.
    """
    near = Run(beside.parent).checkpoint(state.best_global_step or 0)
    return str(near) if near.is_dir() else state.best_model_checkpoint


def check_best(state: TrainerState) -> None:
    """Refuse a best checkpoint that is not whole; the trainer would go on with the last weights in its place.

    Args:
        state: of a run that saves the best checkpoint, at its end or as the checkpoint that it resumes from has it.

    Raises:
        NLTError: a file is missing or damaged.
    """
    best = state.best_model_checkpoint
    if best is not None and (fault := checkpoint_fault(Path(best))) is not None:
        raise NLTError(
            f"{best}, the best checkpoint, is not whole ({fault}), and no encoder is saved; copy it again, or set "
            "load_best_model_at_end: false to save the last weights (unless training stops early), or remove it and "
            "all later ones, so that the run makes these steps anew"
        )


class CheckpointFiles(TrainerCallback):
    """Writes a list of a checkpoint's files and their hashes into it, when all processes have written their files.

    A checkpoint that lacks the list, or a file on it, was interrupted by a kill, by a full disk or while it was
    copied. A file with another hash was cut off, or the disk has changed it.

    `save_total_limit` removes the checkpoints whose folders have the earliest times. After a clock was set back, that
    would be the newest one. Folders with a time in the future therefore get the present time before one is written.

    Args:
        resumed: the checkpoint that the run resumes from; `None` where it begins anew.
    """

    def __init__(self, resumed: str | None = None) -> None:
        self.resumed = resumed

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remove the list from checkpoints of later steps, so that they count as whole only when written anew.

        They come from an earlier attempt. A kill while they are written anew would mix the files of both attempts.
        Of the state that a run resumes from, the best checkpoint is sought beside the one that it lies in, and the
        intervals of logs, evaluations and checkpoints are those of the arguments.
        """
        if self.resumed is not None:
            state.best_model_checkpoint = best_checkpoint(state, beside=Path(self.resumed))
            state.compute_steps(args, state.max_steps)
        if state.is_world_process_zero:
            for step, checkpoint in Run(str(args.output_dir)).checkpoints().items():
                if step > state.global_step:
                    (checkpoint / CHECKSUMS_FILE).unlink(missing_ok=True)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Give the folders of checkpoints that have a time in the future the present time."""
        if control.should_save and state.is_world_process_zero:
            for checkpoint in Run(str(args.output_dir)).checkpoints().values():
                if checkpoint.stat().st_mtime > time.time():
                    os.utime(checkpoint)

    on_epoch_end = on_step_end

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            folder = Run(str(args.output_dir)).checkpoint(state.global_step)
            files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUMS_FILE)
            write_json(folder / CHECKSUMS_FILE, {f.relative_to(folder).as_posix(): file_hash(f) for f in files})
