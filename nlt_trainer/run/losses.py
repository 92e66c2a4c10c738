"""The losses that the trainer logs, as means over the whole run, also where it resumes."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import reduce
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

STEPS = "steps"
"""Name under which Sentence Transformers' trainer counts the batches whose terms it has added."""


class RunningLosses(TrainerCallback, ExportableState):
    """Sums of the loss and its terms, which a checkpoint keeps.

    The library's own sums begin at zero where a run resumes. The first entry of its log would then leave out the steps
    between the last entry and the checkpoint, and `train_loss` all steps before it.

    Args:
        terms: sums of the loss's terms since the last entry of the log, and the number of batches under
            `STEPS`, as Sentence Transformers' trainer keeps them.
    """

    def __init__(self, terms: dict[str, Tensor]) -> None:
        self.terms = terms
        self.first_step = self.logged_step = 0
        self.logged = 0.0
        self.since: float | Tensor = 0.0
        """Sum since the last entry of the log; a tensor, so that a step does not wait for the GPU."""

    def state(self) -> dict[str, Any]:
        """The sums, as a checkpoint keeps them."""
        sums = {"first_step": self.first_step, "logged_step": self.logged_step, "logged": self.logged}
        terms = {name: term.item() for name, term in self.terms.items()}
        return {"args": {}, "attributes": {**sums, "since": float(self.since), "terms": terms}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Go on with the sums of the checkpoint. One of an earlier version has none, and they begin where it ends."""
        states: Any = state.stateful_callbacks  # by class name
        kept = states.get(type(self).__name__) if state.global_step else None
        step = state.global_step
        found: dict[str, Any] = {"first_step": step, "logged_step": step, "logged": 0.0, "since": 0.0, "terms": {}}
        found |= kept["attributes"] if kept else {}
        self.first_step, self.logged_step = found["first_step"], found["logged_step"]
        self.logged = found["logged"]
        self.since = torch.tensor(found["since"], device=args.device)
        self.terms.clear()
        for name, value in found["terms"].items():
            self.terms[name] = torch.tensor(value, device=args.device)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let all processes have the same terms before a checkpoint, which is written by one of them."""
        if control.should_save:
            self.terms.update({name: reduce(term, "mean") for name, term in self.terms.items() if name != STEPS})

    on_epoch_end = on_step_end

    def add(self, loss: Tensor) -> None:
        """Add the loss of a batch, which is divided by the batches of a step."""
        self.since = self.since + loss.detach()

    def entry(self, logs: dict[str, float], step: int) -> dict[str, float]:
        """An entry of the log with the means of the whole run in place of the library's.

        Args:
            logs: the entry; `loss` is the mean since the last entry, and `train_loss` that of the run.
            step: steps that were made.
        """
        whole = {}
        if "loss" in logs:
            since = float(self.since)
            whole["loss"] = since / (step - self.logged_step)
            self.logged, self.since, self.logged_step = self.logged + since, 0.0, step
        if "train_loss" in logs:
            whole["train_loss"] = (self.logged + float(self.since)) / max(step - self.first_step, 1)
        return {**logs, **whole}
