"""The stage `adapt_scorer`: what it fits, what it saves, how it goes on after a kill, and who reads the result."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from nlt_trainer.arguments.stages import RECIPE_BLOCKS
from nlt_trainer.assembly.training import cost_before_training
from nlt_trainer.data.beir import load_collection
from nlt_trainer.errors import DataError, NLTError
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.lm.scoring import LikelihoodScorer
from nlt_trainer.program import Terminated
from nlt_trainer.recipe.parsing import parse_recipe
from nlt_trainer.run.checkpoints import last_checkpoint
from nlt_trainer.run.resume import CostCallback
from nlt_trainer.scripts import adapt_scorer, mine, score
from nlt_trainer.text_files import read_json


@pytest.fixture
def recipe(tiny_llm_folder: Path, tiny_collection_folder: Path, tmp_path: Path) -> str:
    """A recipe with a checkpoint every 4 of 12 steps."""
    blocks: dict[str, dict[str, Any]] = {
        "model": {"llm": str(tiny_llm_folder), "adapter_lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1}},
        "data": {
            "collection": str(tiny_collection_folder),
            "train_split": "train",
            "candidates": f"{tmp_path}/candidates.jsonl",
            "num_candidates": 3,
            "gains": f"{tmp_path}/gains.jsonl",
            "score_cache": f"{tmp_path}/scores",
            "max_document_tokens": 24,
        },
        "trainer": {
            "output_dir": f"{tmp_path}/run",
            "max_steps": 12,
            "per_device_train_batch_size": 4,
            "learning_rate": "1e-2",
            "save_steps": 4,
            "logging_steps": 4,
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
        },
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(blocks))
    return str(path)


def report_of(run: Path) -> dict[str, Any]:
    report: dict[str, Any] = read_json(run / "adaptation.json")
    return report


def held_out_losses(llm: Path, adapter: Path, collection: Path) -> list[float]:
    """Nats per token, without and with the adapter, of the document that seed 42 holds out."""
    corpus = load_collection(collection).corpus
    held_out = corpus[random.Random(42).sample(list(corpus), len(corpus))[0]]
    tokenizer = AutoTokenizer.from_pretrained(llm)
    frame, own = (tokenizer(text).input_ids for text in ("Document: ", held_out.content))
    ids = torch.tensor([frame + own[:24]])
    losses = []
    for with_adapter in (False, True):
        model: Any = AutoModelForCausalLM.from_pretrained(llm)
        model = PeftModel.from_pretrained(model, str(adapter)) if with_adapter else model
        with torch.no_grad():
            log_p = model.eval()(input_ids=ids).logits.log_softmax(-1)[0, len(frame) - 1 : -1]
        losses.append(-log_p.gather(-1, ids[0, len(frame) :, None]).mean().item())
    return losses


def test_an_adapter_is_fitted_and_is_an_ordinary_peft_folder(
    recipe: str, tiny_llm_folder: Path, tiny_collection_folder: Path, tmp_path: Path
) -> None:
    """Reference: peft's own loader, the base's files before, and the loss that the model has by hand."""
    before = {file: file.read_bytes() for file in tiny_llm_folder.iterdir()}
    adapt_scorer.main(["--config", recipe, "--train_sampling_strategy", "group_by_length"])
    adapter = tmp_path / "run" / "adapter"
    assert {file: file.read_bytes() for file in tiny_llm_folder.iterdir()} == before
    assert {file.name for file in adapter.iterdir()} == {
        ".nlt_trainer",
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
        "record.json",
    }
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["r"]) == (str(tiny_llm_folder), 4)
    report = report_of(tmp_path / "run")
    assert (report["documents"], report["pairs"], report["held_out_documents"], report["steps"]) == (11, 0, 1, 12)
    assert report["held_out_loss_after"] < report["held_out_loss_before"]
    assert report["lm_tokens"] > 0
    by_hand = held_out_losses(tiny_llm_folder, adapter, tiny_collection_folder)
    assert [report["held_out_loss_before"], report["held_out_loss_after"]] == pytest.approx(by_hand, abs=1e-3)
    lm = FrozenLM.from_pretrained(str(tiny_llm_folder), adapter=str(adapter), device="cpu")
    plain = AutoModelForCausalLM.from_pretrained(tiny_llm_folder)
    ids = torch.arange(5, 17)[None]
    with torch.no_grad():
        expected = PeftModel.from_pretrained(plain, str(adapter)).eval()(input_ids=ids).logits
        torch.testing.assert_close(lm.model(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
        assert (expected - AutoModelForCausalLM.from_pretrained(tiny_llm_folder)(ids).logits).abs().max() > 0.1
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(DataError, match=r"adapter_model.safetensors: is not as it was saved"):
        FrozenLM.from_pretrained(str(tiny_llm_folder), adapter=str(adapter), device="cpu")


def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: the adapter of a run that was not stopped; until it is done there is no adapter at all."""
    adapt_scorer.main(["--config", recipe, "--output_dir", f"{tmp_path}/whole"])

    def kill(
        self: TrainerCallback, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == 8:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(CostCallback, "on_save", kill)
        with pytest.raises(KeyboardInterrupt):
            adapt_scorer.main(["--config", recipe])
    assert not (tmp_path / "run" / "adapter").exists()
    assert (tmp_path / "run" / "checkpoint-8").is_dir()
    adapt_scorer.main(["--config", recipe])
    weights = [load_file(tmp_path / run / "adapter" / "adapter_model.safetensors") for run in ("whole", "run")]
    assert set(weights[0]) == set(weights[1])
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-5, atol=1e-6)
    whole, run = report_of(tmp_path / "whole"), report_of(tmp_path / "run")
    assert {**whole, "seconds": 0} == {**run, "seconds": 0}
    shutil.rmtree(tmp_path / "run" / "adapter")
    adapt_scorer.main(["--config", recipe])  # as after a kill between the last checkpoint and the adapter
    assert {**report_of(tmp_path / "run"), "seconds": 0} == {**whole, "seconds": 0}
    again = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert all(torch.equal(again[name], weights[1][name]) for name in again)
    for remaining in (True, False):
        for checkpoint in () if remaining else (tmp_path / "run").glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        with pytest.raises(NLTError, match=r"holds a run with other settings .*learning_rate: 0.01 there"):
            adapt_scorer.main(["--config", recipe, "--learning_rate", "0.1"])


def test_a_run_that_is_asked_to_end_leaves_a_checkpoint(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: the adapter of a run that was not stopped; no checkpoint is due at the step of the signal."""
    adapt_scorer.main(["--config", recipe, "--output_dir", f"{tmp_path}/whole"])

    def ask(
        self: TrainerCallback, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch, pytest.raises(Terminated):
        patch.setattr(CostCallback, "on_step_begin", ask)
        adapt_scorer.main(["--config", recipe])
    assert last_checkpoint(tmp_path / "run") == str(tmp_path / "run" / "checkpoint-3")
    adapt_scorer.main(["--config", recipe])
    expected, found = (load_file(tmp_path / run / "adapter" / "adapter_model.safetensors") for run in ("whole", "run"))
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-5, atol=1e-6)


def test_a_failed_write_leaves_no_adapter(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: the folder's absence when saving breaks off after its first file."""

    def breaks_off(self: PeftModel, folder: str, **kwargs: Any) -> None:
        Path(folder, "adapter_config.json").write_text("{}")
        if Path(folder).name.startswith(".adapter"):
            raise OSError("disk full")

    monkeypatch.setattr(PeftModel, "save_pretrained", breaks_off)
    with pytest.raises(OSError, match="disk full"):
        adapt_scorer.main(["--config", recipe, "--save_strategy", "no"])
    assert not [path for path in (tmp_path / "run").iterdir() if "adapter" in path.name]


def test_a_folder_that_is_no_adapter_is_refused_before_training(recipe: str, tmp_path: Path) -> None:
    """Reference: a folder as a copy that was cut short leaves it; nothing is trained."""
    half = tmp_path / "run" / "adapter"
    half.mkdir(parents=True)
    (half / "adapter_config.json").write_text("{}")
    with pytest.raises(NLTError, match=r"adapter is there already and was not written by nlt"):
        adapt_scorer.main(["--config", recipe])
    assert list(half.parent.iterdir()) == [half]


def test_pairs_come_from_gains(recipe: str, tmp_path: Path) -> None:
    """Reference: the queries of the gains file whose best gain is positive, minus held-out documents."""
    with pytest.raises(DataError, match="file not found; run `nlt mine` first, which writes it"):
        adapt_scorer.main(["--config", recipe, "--adapt_pairs", "true"])
    mine.main(["--config", recipe])
    with pytest.raises(DataError, match="file not found; run `nlt score` first, which writes it"):
        adapt_scorer.main(["--config", recipe, "--adapt_pairs", "true"])
    rows = [json.loads(line) for line in (tmp_path / "candidates.jsonl").read_text().splitlines()]
    gains = [{**row, "gain": [0.1, 0.2, 0.0] if b else [-1, -2, -3]} for b, row in enumerate(rows)]
    (tmp_path / "gains.jsonl").write_text("".join(json.dumps(row) + "\n" for row in gains))
    adapt_scorer.main(["--config", recipe, "--adapt_pairs", "true", "--adapt_documents", "2"])
    report = report_of(tmp_path / "run")
    assert report["documents"] == 2
    assert 2 <= report["pairs"] <= 3  # of 4 queries one has no helpful candidate, and one document is held out
    (tmp_path / "gains.audit.json").write_text(json.dumps({"scorer": {"model": {"llm": "org/other"}}}))
    with pytest.raises(NLTError, match=r"gains.jsonl was scored with llm 'org/other' and not "):
        adapt_scorer.main(["--config", recipe, "--adapt_pairs", "true", "--output_dir", f"{tmp_path}/other"])


def test_an_adapted_score_never_comes_from_the_plain_llms_cache(
    recipe: str, tiny_llm_folder: Path, tmp_path: Path
) -> None:
    """Reference: scores without a cache; the second scorer of each kind reads everything from the cache."""
    adapt_scorer.main(["--config", recipe])
    queries, documents = ["which animal is the largest"], [["The blue whale.", "Green tea."]]
    gains = {}
    for adapter in (None, str(tmp_path / "run" / "adapter")):
        lm = FrozenLM.from_pretrained(str(tiny_llm_folder), adapter=adapter, device="cpu")
        plain = LikelihoodScorer(lm, target="query").gain(queries, documents)
        for read in (True, False):
            scorer = LikelihoodScorer(lm, target="query", cache_folder=str(tmp_path / "cache"))
            gains[adapter] = scorer.gain(queries, documents)
            np.testing.assert_allclose(gains[adapter], plain, atol=1e-6)
            assert (scorer.lm_tokens > 0) == read
    first, second = gains.values()
    assert np.abs(first - second).max() > 1e-3
    assert len(list((tmp_path / "cache").glob("*.sqlite"))) == 2


def test_the_audit_ranks_gold_with_and_without_the_adapter(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reference: reciprocal ranks by hand from the gains files and the qrels of the training queries."""
    mine.main(["--config", recipe])
    score.main(["--config", recipe])
    assert "Gold among the candidates of 4 queries: mean reciprocal rank" in capsys.readouterr().out
    adapt_scorer.main(["--config", recipe])
    adapter = f"{tmp_path}/run/adapter"
    score.main(["--config", recipe, "--adapter", adapter, "--gains", f"{tmp_path}/adapted.jsonl"])
    gold = {"q1": "d01", "q2": "d07", "q3": "d08", "q4": "d09"}
    for name in ("gains", "adapted"):
        audit = json.loads((tmp_path / f"{name}.audit.json").read_text())
        assert (audit["scorer"]["llm"]["adapter"] is None) == (name == "gains")
        ranks = []
        for line in (tmp_path / f"{name}.jsonl").read_text().splitlines():
            row = json.loads(line)
            order = [row["document_ids"][k] for k in np.argsort(row["gain"])[::-1]]
            ranks.append(1 / (1 + order.index(gold[row["query_id"]])))
        assert audit["gold"]["queries"] == 4
        assert audit["gold"]["mrr_by_gain"] == pytest.approx(np.mean(ranks), abs=1e-4)


def test_training_counts_what_the_adapter_cost(recipe: str, tmp_path: Path) -> None:
    """Reference: the adapter's own report beside the gains' audit."""
    mine.main(["--config", recipe])
    adapt_scorer.main(["--config", recipe])
    flags = ["--config", recipe, "--adapter", f"{tmp_path}/run/adapter"]
    score.main(flags)
    audit, report = (json.loads((tmp_path / file).read_text()) for file in ("gains.audit.json", "run/adaptation.json"))
    found = cost_before_training(*parse_recipe(RECIPE_BLOCKS, flags))
    assert found["seconds"] == pytest.approx(audit["seconds"] + report["seconds"])
    assert found["lm_tokens"] == audit["lm_tokens"] + report["lm_tokens"]
    plain = cost_before_training(*parse_recipe(RECIPE_BLOCKS, ["--config", recipe]))
    assert plain["lm_tokens"] == audit["lm_tokens"]


def test_a_warm_up_that_does_nothing_is_said(recipe: str, caplog: pytest.LogCaptureFixture) -> None:
    """Reference: the schedule that has one, in one line."""
    adapt_scorer.main([
        "--config", recipe, "--max_steps", "1", "--lr_scheduler_type", "constant", "--warmup_steps", "0.5",
    ])  # fmt: skip
    (said,) = (message for message in caplog.messages if "warmup_steps" in message)
    assert said.startswith(
        "warmup_steps 0.5 does nothing, because lr_scheduler_type constant has no warm-up; set const"
    )


def test_wrong_settings_are_refused(recipe: str, tmp_path: Path) -> None:
    """Reference: the value and the remedy in each message."""
    with pytest.raises(NLTError, match=r"adapter is 'org/adapter'; an adapter is fitted to the plain LLM, leave"):
        adapt_scorer.main(["--config", recipe, "--adapter", "org/adapter"])
    for lora in ('{"rank": 4}', '{"target_modules": ["nothing"]}'):
        with pytest.raises(NLTError, match=r"adapter_lora .* does not fit LLM"):
            adapt_scorer.main(["--config", recipe, "--adapter_lora", lora])
    with pytest.raises(NLTError, match=r"infinite or NaN, nothing is saved; lower learning_rate"):
        adapt_scorer.main(["--config", recipe, "--learning_rate", "1e38", "--save_strategy", "no"])
    assert not (tmp_path / "run" / "adapter").exists()
