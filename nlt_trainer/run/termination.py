"""End training with a checkpoint when the program is asked to end, as schedulers of clusters do before they kill."""

from __future__ import annotations

import signal
import threading
from typing import Any

import torch
from accelerate.utils import reduce
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from nlt_trainer.program import Terminated, terminate


class CheckpointOnTermination(TrainerCallback):
    """After SIGTERM, lets the step that is under way end, saves a checkpoint and raises `Terminated`.

    It stands before the callbacks that add to a checkpoint, so that they know in time that one will be written. A
    second SIGTERM ends the program at once. Outside the main thread signals cannot be received, and nothing happens.
    """

    def __init__(self) -> None:
        self.asked = self.ends = False
        self.previous: Any = None

    def _ask(self, *signal_and_frame: Any) -> None:
        if self.asked:
            terminate(*signal_and_frame)
        self.asked = True

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if threading.current_thread() is threading.main_thread():
            self.previous = signal.signal(signal.SIGTERM, self._ask)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask for a checkpoint. All processes write it at the same step, whichever of them got the signal."""
        self.ends = self.asked
        if args.world_size > 1:
            self.ends = bool(reduce(torch.tensor(float(self.asked), device=args.device), reduction="sum"))
        if self.ends:
            control.should_save = control.should_training_stop = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """End after the checkpoint; the trainer comes here from the step that was the last, also within an epoch."""
        if self.ends:
            self._restore()
            raise Terminated

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._restore()

    def _restore(self) -> None:
        """Receive signals as before training."""
        if self.previous is not None:
            signal.signal(signal.SIGTERM, self.previous)
            self.previous = None
