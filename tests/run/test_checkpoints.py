"""Which checkpoint a run goes on from, and how that is known."""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from nlt_trainer.data.collator import NLTCollator
from nlt_trainer.errors import NLTError
from nlt_trainer.objectives.likelihood_gain import LikelihoodGainLoss
from nlt_trainer.run.checkpoints import last_checkpoint
from nlt_trainer.text_files import write_json
from nlt_trainer.trainer import NLTTrainer
from nlt_trainer.training_arguments import NLTTrainingArguments


def make_trainer(
    encoder: SentenceTransformer, folder: Path, *, steps: int, save_total_limit: int | None = None
) -> NLTTrainer:
    """A trainer that leaves a checkpoint after every second step."""
    args = NLTTrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=2, save_steps=2, report_to=[],
        use_cpu=True, disable_tqdm=True, save_total_limit=save_total_limit,
    )  # fmt: skip
    rows = [{"query": f"query {b}", "documents": ["green tea", "an owl"], "gain": [0.1 * b, 0.2]} for b in range(4)]
    return NLTTrainer(
        encoder,
        args,
        train_dataset=Dataset.from_list(rows),
        loss=LikelihoodGainLoss(encoder),
        data_collator=NLTCollator(encoder),  # type: ignore[arg-type]  # any callable
    )


def test_a_checkpoint_lists_its_files(tiny_encoder: SentenceTransformer, tmp_path: Path) -> None:
    """Reference: the files that are there; the last by number comes first, not the last by name."""
    assert last_checkpoint(tmp_path) is None
    make_trainer(tiny_encoder, tmp_path, steps=10).train()
    checkpoint = tmp_path / "checkpoint-10"
    listed = json.loads((checkpoint / "checkpoint_files.json").read_text())
    found = {path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file()}
    assert set(listed) == found - {"checkpoint_files.json"}
    assert {"model.safetensors", "optimizer.pt", "trainer_state.json", "1_Pooling/config.json"} <= set(listed)
    assert last_checkpoint(tmp_path) == str(checkpoint)


class SetBack(TrainerCallback):
    """Sets the clock back by an hour after each checkpoint, so that what is there has a time in the future."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        future = time.time() + 3600
        os.utime(Path(str(args.output_dir)) / f"checkpoint-{state.global_step}", (future, future))


def test_a_clock_that_is_set_back_costs_no_checkpoint(tiny_encoder: SentenceTransformer, tmp_path: Path) -> None:
    """Reference: the newest checkpoint by its step, and its files, although the older one has a later time."""
    trainer = make_trainer(tiny_encoder, tmp_path, steps=4, save_total_limit=1)
    trainer.add_callback(SetBack())
    trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-4"]
    assert (tmp_path / "checkpoint-4" / "model.safetensors").is_file()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")


def test_a_list_without_files_is_no_checkpoint(tmp_path: Path) -> None:
    """Reference: a folder that holds nothing but the list."""
    write_json(tmp_path / "checkpoint-2" / "checkpoint_files.json", {})
    assert last_checkpoint(tmp_path) is None


def test_no_time_in_the_log_comes_from_the_clock(
    tiny_encoder: SentenceTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: a clock that goes back an hour whenever it is read; the loss of every entry is there."""
    hours = itertools.count(500_000, -1)
    monkeypatch.setattr(time, "time", lambda: next(hours) * 3600.0)
    trainer = make_trainer(tiny_encoder, tmp_path, steps=2)
    result = trainer.train()
    assert result.metrics["train_runtime"] < 0
    assert [{*entry} for entry in trainer.state.log_history] == [{"train_loss", "total_flos", "epoch", "step"}]


def test_nothing_that_is_saved_holds_the_arguments(tiny_encoder: SentenceTransformer, tmp_path: Path) -> None:
    """Reference: the pickle that the library writes of them, with each checkpoint and each saved encoder."""
    trainer = make_trainer(tiny_encoder, tmp_path, steps=2)
    SentenceTransformerTrainer.save_model(trainer, str(tmp_path / "library"))
    (tmp_path / "library" / "training_args.bin").unlink()
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    trainer.save_model()
    assert (tmp_path / "saved" / "model.safetensors").is_file()
    assert list(tmp_path.rglob("training_args.bin")) == []


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def flip(path: Path) -> None:
    """Change one bit in the middle, as a failing disk does."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage", "fault"),
    [
        ("optimizer.pt", cut, "optimizer.pt is not as it was written"),
        ("optimizer.pt", flip, "optimizer.pt is not as it was written"),
        ("model.safetensors", flip, "model.safetensors is not as it was written"),
        ("config.json", flip, "config.json is not as it was written"),
        ("scheduler.pt", flip, "scheduler.pt is not as it was written"),
        ("model.safetensors", Path.unlink, "model.safetensors is missing"),
        ("1_Pooling/config.json", Path.unlink, "1_Pooling/config.json is missing"),
        ("checkpoint_files.json", Path.unlink, "checkpoint_files.json, which is written last, is missing"),
        ("checkpoint_files.json", cut, "checkpoint_files.json: not valid JSON"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over(
    tiny_encoder: SentenceTransformer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
    damage: Callable[[Path], None],
    fault: str,
) -> None:
    """Reference: the checkpoint before it, from which training goes on; the warning names file and remedy."""
    make_trainer(tiny_encoder, tmp_path, steps=4).train()
    damage(tmp_path / "checkpoint-4" / name)
    with caplog.at_level(logging.WARNING):
        assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    assert re.search(rf"checkpoint-4 is not whole and ignored: .*{fault}.*; remove it, or copy it", caplog.text)
    trainer = make_trainer(tiny_encoder, tmp_path, steps=6)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 6
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-6")


def test_a_list_of_sizes_from_an_earlier_version_is_read(tiny_encoder: SentenceTransformer, tmp_path: Path) -> None:
    """Reference: the sizes of the files, in the place of their hashes."""
    make_trainer(tiny_encoder, tmp_path, steps=2).train()
    checkpoint = tmp_path / "checkpoint-2"
    files = [path for path in checkpoint.rglob("*") if path.is_file() and path.name != "checkpoint_files.json"]
    sizes = {path.relative_to(checkpoint).as_posix(): path.stat().st_size for path in files}
    (checkpoint / "checkpoint_files.json").write_text(json.dumps(sizes))
    assert last_checkpoint(tmp_path) == str(checkpoint)
    cut(checkpoint / "optimizer.pt")
    assert last_checkpoint(tmp_path) is None


def test_a_later_checkpoint_of_an_earlier_run_is_not_gone_on_from(
    tiny_encoder: SentenceTransformer, tmp_path: Path
) -> None:
    """Reference: a run that begins anew in the folder of another and is stopped before its first checkpoint."""
    make_trainer(tiny_encoder, tmp_path, steps=2).train()
    trainer = make_trainer(tiny_encoder, tmp_path, steps=1)
    trainer.args.save_strategy = "no"
    trainer.train()
    assert last_checkpoint(tmp_path) is None
    with pytest.raises(NLTError, match="has no whole checkpoint; leave resume_from_checkpoint out"):
        trainer.train(resume_from_checkpoint=True)
