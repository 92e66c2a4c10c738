"""SIGTERM in training: the checkpoint that it leaves, and the resumed run against an uninterrupted one."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from nlt_trainer.objectives.info_nce import InfoNCELoss
from nlt_trainer.program import Terminated
from nlt_trainer.run.checkpoints import last_checkpoint
from nlt_trainer.run.resume import CostCallback
from nlt_trainer.run.termination import CheckpointOnTermination
from nlt_trainer.trainer import NLTTrainer
from nlt_trainer.training_arguments import NLTTrainingArguments

ROWS = [
    {"query": f"query {b}", "documents": [f"text {b}", f"text {b + 1}"], "gain": [1.0, 0.0]} for b in range(6)
]  # 3 steps an epoch


class Terminate(TrainerCallback):
    """Sends signals to this process in the course of a step, as the scheduler of a cluster does."""

    def __init__(self, step: int, times: int = 1) -> None:
        self.step, self.times = step, times

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == self.step - 1:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGTERM)


def trainer_of(folder: Path, encoder: Path, *callbacks: TrainerCallback) -> NLTTrainer:
    """A trainer of 7 steps of 2 queries that writes no checkpoint by itself and logs every other step."""
    model = SentenceTransformer(str(encoder), device="cpu")
    args = NLTTrainingArguments(
        output_dir=str(folder), max_steps=7, per_device_train_batch_size=2, learning_rate=1e-2, report_to=[],
        use_cpu=True, disable_tqdm=True, seed=5, save_strategy="no", logging_steps=2,
    )  # fmt: skip
    loss = InfoNCELoss(model)
    return NLTTrainer(
        model,
        args,
        train_dataset=Dataset.from_list(ROWS),
        loss=loss,
        data_collator=loss.collator(),  # type: ignore[arg-type]  # any callable
        callbacks=[CheckpointOnTermination(), CostCallback(loss), *callbacks],
    )


def losses(trainer: NLTTrainer) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history for name in ("loss", "train_loss") if name in entry]


@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_terminated_run_goes_on_as_if_it_had_not_ended(tiny_encoder_folder: Path, tmp_path: Path, step: int) -> None:
    """Reference: weights and losses of an uninterrupted run, to the last bit; step 3 is the last of an epoch."""
    before = signal.getsignal(signal.SIGTERM)
    whole = trainer_of(tmp_path / "whole", tiny_encoder_folder)
    whole.train()
    ended = trainer_of(tmp_path / "run", tiny_encoder_folder, Terminate(step))
    with pytest.raises(Terminated):
        ended.train()
    assert signal.getsignal(signal.SIGTERM) == before
    assert last_checkpoint(tmp_path / "run") == str(tmp_path / "run" / f"checkpoint-{step}")
    resumed = trainer_of(tmp_path / "run", tiny_encoder_folder)
    resumed.train(resume_from_checkpoint=last_checkpoint(tmp_path / "run"))
    assert losses(resumed) == losses(whole)
    assert len(losses(whole)) == 4
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], weight)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_second_signal_does_not_wait_for_the_checkpoint(tiny_encoder_folder: Path, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    trainer = trainer_of(tmp_path / "run", tiny_encoder_folder, Terminate(2, times=2))
    try:
        with pytest.raises(Terminated):
            trainer.train()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert trainer.state.global_step == 1
    assert last_checkpoint(tmp_path / "run") is None
