"""The progress of training as a person reads it: one bar, and a line after each epoch and each evaluation."""

from __future__ import annotations

from typing import Any

from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerControl, TrainerState, TrainingArguments

from nlt_trainer.terminal import say

METRIC = "_ndcg_at_10"
"""End of the name of the metric that a line shows. The name begins with `eval_` and the evaluator's name."""


def dev_gain(state: TrainerState, dev_split: str | None, *, step: int, now: float | None = None) -> str:
    """Say what nDCG@10 on dev queries was before training and is in the end; empty where one of the two is not known.

    Args:
        state: has the log.
        dev_split: name of the dev queries.
        step: the step whose value in the log is that of the end.
        now: the value of the end, where it is not that of a step.
    """
    name = f"eval_{dev_split}{METRIC}"
    values = {entry["step"]: entry[name] for entry in state.log_history if name in entry}
    now = values.get(step) if now is None else now
    if now is None or 0 not in values:
        return ""
    return f"nDCG@10 on {dev_split} was {values[0]:.3f} before and is {now:.3f} now"


class TrainingProgress(ProgressCallback):
    """Shows a bar named `training`, and writes lines where the trainer would print its raw dictionaries."""

    training_bar: Any

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the bar. A run that resumes opens it at the step where it stopped."""
        self.current_step = state.global_step
        if state.is_world_process_zero:
            self.training_bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                desc="training",
                unit="step",
                dynamic_ncols=True,
                disable=args.disable_tqdm,
            )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the loss beside the bar."""
        if state.is_world_process_zero and self.training_bar is not None and "loss" in (logs or {}):
            self.training_bar.set_postfix_str(f"loss {float((logs or {})['loss']):.3f}")

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write how far training is, and the mean of the losses that were logged in this epoch."""
        if not state.is_world_process_zero:
            return
        begin = (state.epoch or 0) - 1
        losses = [entry["loss"] for entry in state.log_history if "loss" in entry and entry["epoch"] > begin]
        loss = f", loss {sum(losses) / len(losses):.3f}" if losses else ""
        epoch = f"epoch {state.epoch or 0:.0f} of {state.num_train_epochs}"
        say(f"{epoch}: step {state.global_step} of {state.max_steps}{loss}")

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write the metric, and also the best value so far if an earlier one was better."""
        super().on_evaluate(args, state, control, **kwargs)
        for key, value in (metrics or {}).items():
            if key.endswith(METRIC) and state.is_world_process_zero:
                name = key.removeprefix("eval_").removesuffix(METRIC)
                line = f"step {state.global_step} of {state.max_steps}: nDCG@10 on {name} {value:.3f}"
                earlier = [(entry[key], entry["step"]) for entry in state.log_history if key in entry]
                best, step = max(earlier, default=(value, state.global_step))
                say(line + (f", best so far {best:.3f} at step {step}" if best > value else ""))


def show_progress(trainer: Trainer) -> None:
    """Let a trainer show `TrainingProgress` in place of the two callbacks that print raw dictionaries."""
    replaced = [trainer.pop_callback(callback) for callback in (ProgressCallback, PrinterCallback)]
    if any(replaced):  # in a notebook the trainer has another callback, which draws a table
        trainer.add_callback(TrainingProgress())
