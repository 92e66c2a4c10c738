"""The lines of training and of a table of results, against texts by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import PrinterCallback, ProgressCallback, TrainerControl, TrainerState, TrainingArguments

from nlt_trainer.run.progress import TrainingProgress, dev_gain, show_progress
from nlt_trainer.run.results import Result, verdicts
from nlt_trainer.terminal import late_bar, say

CONTROL = TrainerControl()


def state_at(step: int, log: list[dict[str, Any]]) -> TrainerState:
    return TrainerState(global_step=step, epoch=step / 10, num_train_epochs=3, max_steps=30, log_history=log)


def test_an_epoch_and_an_evaluation_are_a_line_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Reference: the lines; an epoch's loss is its mean; the best so far is named only where it is better."""
    progress, args = TrainingProgress(), TrainingArguments(output_dir=str(tmp_path), disable_tqdm=True)
    log: list[dict[str, Any]] = [{"loss": 1.0, "step": 5, "epoch": 0.5}, {"loss": 2.0, "step": 10, "epoch": 1.0}]
    progress.on_train_begin(args, state_at(0, []), CONTROL)
    progress.on_log(args, state_at(10, log), CONTROL, logs=log[-1])
    progress.on_epoch_end(args, state_at(10, log), CONTROL)
    found = {"eval_dev_ndcg_at_10": 0.4, "eval_dev_mrr_at_10": 0.3}
    log.append({**found, "step": 10})
    progress.on_evaluate(args, state_at(10, log), CONTROL, metrics=found)
    found = {"eval_dev_ndcg_at_10": 0.35}
    log.append({**found, "step": 20})
    progress.on_evaluate(args, state_at(20, log), CONTROL, metrics=found)
    log.append({"loss": 0.25, "step": 20, "epoch": 2.0})
    progress.on_epoch_end(args, state_at(20, log), CONTROL)
    progress.on_train_end(args, state_at(20, log), CONTROL)
    assert capsys.readouterr().out.splitlines() == [
        "epoch 1 of 3: step 10 of 30, loss 1.500",
        "step 10 of 30: nDCG@10 on dev 0.400",
        "step 20 of 30: nDCG@10 on dev 0.350, best so far 0.400 at step 10",
        "epoch 2 of 3: step 20 of 30, loss 0.250",
    ]


class Callbacks:
    """A trainer's list of callbacks."""

    def __init__(self, *callbacks: Any) -> None:
        self.callbacks = list(callbacks)

    def pop_callback(self, kind: type) -> Any:
        found = next((callback for callback in self.callbacks if type(callback) is kind), None)
        if found is not None:
            self.callbacks.remove(found)
        return found

    def add_callback(self, callback: Any) -> None:
        self.callbacks.append(callback)


@pytest.mark.parametrize("raw", [ProgressCallback, PrinterCallback])
def test_raw_dictionaries_are_replaced_once(raw: type) -> None:
    """Reference: the callbacks; a notebook's own, and a second call, change nothing."""
    trainer: Any = Callbacks(raw(), "other")
    for _ in range(2):
        show_progress(trainer)
    assert [type(callback) for callback in trainer.callbacks] == [str, TrainingProgress]
    notebook: Any = Callbacks("table")
    show_progress(notebook)
    assert notebook.callbacks == ["table"]


def row(name: str, value: float, collection: str = "python") -> Result:
    return Result(name, value, 0, 0, 0, 0, None, collection, "test")


def test_what_was_gained_is_said_in_words() -> None:
    """Reference: sentences by hand, with and without BM25 and start."""
    rows = [
        row("bm25", 0.5),
        row("start", 0.3),
        row("dream", 0.35),
        row("dream", 0.6, "other"),
        row("bm25", 0.5, "other"),
    ]
    assert verdicts([*rows, row("dream", 0.1, "alone")], "dream") == [
        "On python test its nDCG@10 is 0.350, 0.050 above the start, BM25 is still ahead by 0.150.",
        "On other test its nDCG@10 is 0.600, 0.100 above BM25.",
    ]
    assert verdicts([row("start", 0.4), row("dream", 0.3)], "dream") == [
        "On python test its nDCG@10 is 0.300, 0.100 below the start."
    ]
    assert verdicts(rows, "loop") == []
    named = [row("bm25", 0.5), row("a", 0.3), row("b", 0.35)]
    assert verdicts(named, "b", start="a") == [
        "On python test its nDCG@10 is 0.350, 0.050 above a, BM25 is still ahead by 0.150."
    ]
    assert verdicts(named, "a", start="a") == ["On python test its nDCG@10 is 0.300, BM25 is still ahead by 0.200."]


def test_what_the_dev_queries_gained_is_said_where_the_log_has_both() -> None:
    """Reference: the entries of the log; no entry of step 0, or of the step in question, says nothing."""
    log = [{"step": step, "eval_dev_ndcg_at_10": value} for step, value in ((0, 0.3), (2, 0.5), (4, 0.4))]
    state = TrainerState(log_history=[{"step": 0, "loss": 1.0}, *log])
    assert dev_gain(state, "dev", step=4) == "nDCG@10 on dev was 0.300 before and is 0.400 now"
    assert dev_gain(state, "dev", step=2).endswith("is 0.500 now")
    assert dev_gain(state, "dev", step=3) == dev_gain(state, "other", step=4) == dev_gain(state, None, step=4) == ""
    assert dev_gain(TrainerState(log_history=log[1:]), "dev", step=4) == ""


def test_short_work_shows_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    """Reference: what reaches the terminal; a line goes to standard output."""
    from tqdm import tqdm

    assert list(late_bar(tqdm, (range(3),), {"desc": "loading"})) == [0, 1, 2]
    say("done")
    assert capsys.readouterr() == ("done\n", "")
