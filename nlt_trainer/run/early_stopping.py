"""Stop training when evaluations get no better, also in a run that resumes, and tell a run that has stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME


class EarlyStopping(EarlyStoppingCallback):
    """The library's callback, which counts on where the checkpoint stopped from which a run resumes."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        self.early_stopping_patience_counter = waited(state)


def waited(state: TrainerState) -> int:
    """The number of evaluations since the best one, as a checkpoint has it."""
    states: Any = state.stateful_callbacks  # by class name
    found = states.get(EarlyStopping.__name__, {"attributes": {}})
    return int(found["attributes"].get("early_stopping_patience_counter", 0))


def no_step_is_left(checkpoint: Path, *, patience: int | None) -> bool:
    """Whether a checkpoint is the last of its run: all steps are done, or it has stopped early."""
    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    return state.global_step >= state.max_steps or (patience is not None and waited(state) >= patience)
