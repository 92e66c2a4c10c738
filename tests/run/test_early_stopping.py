"""Early stopping: where it stops by hand, resumed runs against uninterrupted ones, and what a finished run does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.evaluation import BaseEvaluator
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from nlt_trainer.errors import NLTError
from nlt_trainer.objectives.info_nce import InfoNCELoss
from nlt_trainer.run.checkpoints import last_checkpoint
from nlt_trainer.run.early_stopping import EarlyStopping, no_step_is_left
from nlt_trainer.run.resume import start_checkpoint
from nlt_trainer.text_files import write_json
from nlt_trainer.trainer import NLTTrainer
from nlt_trainer.training_arguments import NLTTrainingArguments

ROWS = [
    {"query": f"query {b}", "documents": [f"text {b}", f"text {b + 1}"], "gain": [1.0, 0.0]} for b in range(6)
]  # 3 steps an epoch
FIGURES = {1: 0.4, 2: 0.6, 3: 0.6, 4: 0.5, 5: 0.9}
"""Step -> nDCG@10 on the dev queries. With patience 2 training stops after step 4, and step 2 is the best."""


class Figures(BaseEvaluator):
    """Has a figure for each step, whatever the encoder is."""

    def __init__(self) -> None:
        super().__init__()
        self.primary_metric = "dev_ndcg_at_10"

    def __call__(
        self, model: Any, output_path: str | None = None, epoch: float = -1, steps: int = -1
    ) -> dict[str, float]:
        return {"dev_ndcg_at_10": FIGURES.get(steps, 0.0)}


class Interrupt(TrainerCallback):
    """Stops before the step after one, as a kill does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def trainer_of(
    folder: Path, encoder: Path, *callbacks: TrainerCallback, patience: int | None = 2, seed: int = 5, **settings: Any
) -> NLTTrainer:
    model = SentenceTransformer(str(encoder), device="cpu")
    args = NLTTrainingArguments(
        output_dir=str(folder), max_steps=7, per_device_train_batch_size=2, learning_rate=1e-2, eval_strategy="steps",
        early_stopping_patience=patience, report_to=[], use_cpu=True, disable_tqdm=True, seed=seed,
        load_best_model_at_end=True, logging_steps=1,
        **({"eval_steps": 1, "save_steps": 1 if patience is None else 500} | settings),
    )  # fmt: skip
    loss = InfoNCELoss(model)
    stopping = [] if patience is None else [EarlyStopping(patience)]
    return NLTTrainer(
        model,
        args,
        train_dataset=Dataset.from_list(ROWS),
        loss=loss,
        data_collator=loss.collator(),  # type: ignore[arg-type]  # any callable
        evaluator=Figures(),
        callbacks=[*stopping, *callbacks],
    )


def weights(trainer: NLTTrainer) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in trainer.model.state_dict().items()}


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_killed_run_stops_where_the_uninterrupted_one_does(
    tiny_encoder_folder: Path, tmp_path: Path, step: int
) -> None:
    """Reference: the steps of `FIGURES` by hand, and the weights of the checkpoint of the best step."""
    whole = trainer_of(tmp_path / "whole", tiny_encoder_folder)
    whole.train()
    assert (whole.state.global_step, whole.state.best_global_step) == (4, 2)
    assert whole.args.metric_for_best_model == "eval_dev_ndcg_at_10"
    killed = trainer_of(tmp_path / "run", tiny_encoder_folder, Interrupt(step))
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    resumed = trainer_of(tmp_path / "run", tiny_encoder_folder)
    resumed.train(resume_from_checkpoint=last_checkpoint(tmp_path / "run"))
    assert (resumed.state.global_step, resumed.state.best_global_step) == (4, 2)
    assert [e["loss"] for e in resumed.state.log_history if "loss" in e] == pytest.approx(
        [e["loss"] for e in whole.state.log_history if "loss" in e], abs=1e-6
    )
    best = SentenceTransformer(str(tmp_path / "whole" / "checkpoint-2"), device="cpu").state_dict()
    for name, weight in weights(resumed).items():
        torch.testing.assert_close(weight, best[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("patience", [2, None], ids=["stopped early", "all steps"])
def test_a_finished_run_makes_no_step(tiny_encoder_folder: Path, tmp_path: Path, patience: int | None) -> None:
    """Reference: the checkpoints and the weights of the first call; both ends lie inside an epoch."""
    first = trainer_of(tmp_path, tiny_encoder_folder, patience=patience)
    first.train()
    last = 4 if patience else 7
    assert first.state.global_step == last
    before = {path.name: load_file(path / "model.safetensors") for path in tmp_path.glob("checkpoint-*")}
    assert len(before) == last
    again = trainer_of(tmp_path, tiny_encoder_folder, patience=patience)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == last
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == set(before)
    assert again.args.max_steps == 7
    found = weights(again)
    assert all(torch.equal(found[name], weight) for name, weight in weights(first).items())


def test_more_patience_goes_on(tiny_encoder_folder: Path, tmp_path: Path) -> None:
    """Reference: `FIGURES`; the step after the one that stopped is the best."""
    trainer_of(tmp_path, tiny_encoder_folder).train()
    checkpoint = tmp_path / "checkpoint-4"
    assert [no_step_is_left(checkpoint, patience=patience) for patience in (2, 3, None)] == [True, False, False]
    patient = trainer_of(tmp_path, tiny_encoder_folder, patience=3)
    patient.train(resume_from_checkpoint=True)
    assert (patient.state.global_step, patient.state.best_global_step) == (7, 5)


def test_an_evaluation_between_two_checkpoints_may_be_the_best(tiny_encoder_folder: Path, tmp_path: Path) -> None:
    """Reference: the weights after step 5, the best of `FIGURES`, of a run that has a checkpoint of each step."""
    whole = trainer_of(tmp_path / "whole", tiny_encoder_folder, patience=None)
    whole.train()
    found = trainer_of(tmp_path / "run", tiny_encoder_folder, patience=None, save_steps=2)
    found.train()
    assert Path(str(found.state.best_model_checkpoint)) == tmp_path / "run" / "checkpoint-5"
    assert found.args.save_steps == 2
    best = SentenceTransformer(str(tmp_path / "whole" / "checkpoint-5"), device="cpu").state_dict()
    for name, weight in weights(found).items():
        torch.testing.assert_close(weight, best[name], rtol=0, atol=1e-6)


def test_a_resumed_run_evaluates_at_the_steps_that_it_is_told_now(tiny_encoder_folder: Path, tmp_path: Path) -> None:
    """Reference: by hand; every third step until the kill, then every second one, and the last."""
    killed = trainer_of(tmp_path, tiny_encoder_folder, Interrupt(4), patience=None, eval_steps=3, save_steps=3)
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    resumed = trainer_of(tmp_path, tiny_encoder_folder, patience=None, eval_steps=2, save_steps=2)
    resumed.train(resume_from_checkpoint=True)
    log = resumed.state.log_history
    assert [entry["step"] for entry in log if "eval_dev_ndcg_at_10" in entry] == [3, 4, 6, 7]


def test_the_best_checkpoint_of_a_folder_that_was_moved_is_found(tiny_encoder_folder: Path, tmp_path: Path) -> None:
    """Reference: the best weights of the run before its folder had another name; and those of no other folder."""
    first = trainer_of(tmp_path / "run", tiny_encoder_folder)
    first.train()
    (tmp_path / "run").rename(tmp_path / "moved")
    for other in (False, True):
        if other:  # a run of the former name, whose checkpoints are others
            trainer_of(tmp_path / "run", tiny_encoder_folder, seed=6).train()
        settings: dict[str, Any] = {"trajectory": {}, "trainer": {}}
        write_json(tmp_path / "moved" / "settings.json", settings)
        moved = trainer_of(tmp_path / "moved", tiny_encoder_folder)
        moved.train(resume_from_checkpoint=start_checkpoint(moved.args, settings))
        found = weights(moved)
        assert all(torch.equal(found[name], weight) for name, weight in weights(first).items())


def arguments(tmp_path: Path, **settings: Any) -> NLTTrainingArguments:
    return NLTTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **settings)


def test_patience_alone_is_enough(tmp_path: Path) -> None:
    """Reference: what the library's callback needs; checkpoints that a recipe sets stay."""
    epochs = arguments(tmp_path, early_stopping_patience=2, eval_strategy="epoch")
    assert (epochs.save_strategy, epochs.load_best_model_at_end, epochs.greater_is_better) == ("epoch", True, True)
    steps = arguments(tmp_path, early_stopping_patience=2, eval_strategy="steps", eval_steps=5)
    assert (steps.save_strategy, steps.save_steps) == ("steps", 5)
    own = arguments(tmp_path, early_stopping_patience=2, eval_strategy="steps", eval_steps=5, save_steps=10)
    assert own.save_steps == 10


def test_patience_without_evaluations_is_refused(tmp_path: Path) -> None:
    """Reference: the remedy in each message."""
    with pytest.raises(NLTError, match=r"early_stopping_patience is 2, and .* nothing; set dev_split, and eval_str"):
        arguments(tmp_path, early_stopping_patience=2)
    with pytest.raises(NLTError, match=r"early_stopping_patience is 0; it must be at least 1"):
        arguments(tmp_path, early_stopping_patience=0, eval_strategy="epoch")
    for share in (-0.1, 1.5):
        with pytest.raises(NLTError, match=rf"average_with_start is {share}; it must be from 0 to 1, or auto"):
            arguments(tmp_path, average_with_start=share)
