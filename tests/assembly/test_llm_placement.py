"""Where the LLM of a training run lives: on the encoder's weights, in another process; against the ordinary run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForCausalLM, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from nlt_trainer.arguments.data import DataArguments
from nlt_trainer.arguments.model import ModelArguments
from nlt_trainer.assembly.training import check_options
from nlt_trainer.errors import NLTError
from nlt_trainer.run.resume import CostCallback
from nlt_trainer.scripts import detect_heads, evaluate, mine, train
from nlt_trainer.training_arguments import NLTTrainingArguments

TEXTS = ["the largest animal", "bread and gas"]


@pytest.fixture
def run(tiny_llm_folder: Path, tiny_collection_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """Train DREAM for 4 steps with the LLM as encoder too, its adapter with dropout; returns the output folder."""
    blocks: dict[str, dict[str, Any]] = {
        "model": {
            "encoder": str(tiny_llm_folder),
            "llm": str(tiny_llm_folder),
            "llm_dtype": "float32",
            "pooling": "lasttoken",
            "lora": {"r": 4, "lora_alpha": 64, "lora_dropout": 0.2},
            "heads": f"{tmp_path}/heads.json",
            "num_heads": 4,
        },
        "data": {
            "collection": str(tiny_collection_folder),
            "train_split": "train",
            "candidates": f"{tmp_path}/candidates.jsonl",
            "num_candidates": 3,
            "max_document_tokens": 24,
            "head_method": "qrels",
            "head_qrels": "train",
        },
        "trainer": {
            "objective": "dream",
            "max_steps": 4,
            "per_device_train_batch_size": 2,
            "learning_rate": 0.05,
            "logging_steps": 1,
            "save_steps": 2,
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
        },
    }
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(blocks))
    mine.main(["--config", str(recipe)])
    detect_heads.main(["--config", str(recipe)])

    def run(name: str, *flags: str, stage: Any = train) -> Path:
        stage.main(["--config", str(recipe), "--output_dir", str(tmp_path / name), *flags])
        return tmp_path / name

    return run


def adapter(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoint-4" / "adapter_model.safetensors")


def losses(run: Path) -> list[float]:
    log = json.loads((run / "training.json").read_text())["log"]
    return [entry["loss"] for entry in log if "loss" in entry]


SHARED = ("--shared_backbone", "true")


def test_one_copy_of_the_weights_trains_as_two(run: Callable[..., Path], tiny_llm_folder: Path) -> None:
    """Reference: the run whose encoder has a copy of its own: losses, adapters, embeddings of the merged folders."""
    one, two = run("one", *SHARED), run("two")
    assert losses(one) == pytest.approx(losses(two), rel=1e-4)
    expected = adapter(two)
    torch.testing.assert_close(adapter(one), expected, rtol=1e-3, atol=1e-5)
    assert max(float(w.abs().max()) for name, w in expected.items() if "lora_B" in name) > 1e-3
    found, expected_texts = (
        SentenceTransformer(str(folder / "encoder"), device="cpu").encode(TEXTS) for folder in (one, two)
    )
    np.testing.assert_allclose(found, expected_texts, atol=1e-4)
    run("one", *SHARED, stage=evaluate)
    assert [row["name"] for row in json.loads((one / "results.json").read_text())] == ["bm25", "start", "dream"]


def test_the_adapter_alone_is_the_merged_encoder(run: Callable[..., Path]) -> None:
    """Reference: the merged encoder of the same run; the folder holds the adapter's weights and no others."""
    merged = SentenceTransformer(str(run("merged", *SHARED) / "encoder"), device="cpu")
    folder = run("adapter", *SHARED, "--merge_lora", "false") / "encoder"
    assert [file.name for file in folder.rglob("*.safetensors")] == ["adapter_model.safetensors"]
    alone = SentenceTransformer(str(folder), device="cpu")
    np.testing.assert_allclose(alone.encode(TEXTS), merged.encode(TEXTS), atol=1e-4)
    run("adapter", *SHARED, "--merge_lora", "false", stage=evaluate)


@pytest.mark.parametrize("adapted", [False, True])
def test_a_killed_run_goes_on(
    run: Callable[..., Path],
    tiny_llm_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    adapted: bool,
) -> None:
    """Reference: the adapter of a run that was not stopped; also on an LLM into which another one was merged."""

    def kill(
        self: TrainerCallback, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == 2:
            raise KeyboardInterrupt

    flags: tuple[str, ...] = SHARED
    if adapted:
        config = LoraConfig(r=4, lora_alpha=8, init_lora_weights=False)
        llm = AutoModelForCausalLM.from_pretrained(tiny_llm_folder)
        get_peft_model(llm, config).save_pretrained(str(tmp_path / "adapter"))
        flags = (*SHARED, "--adapter", str(tmp_path / "adapter"))
    expected = adapter(run("whole", *flags))
    with monkeypatch.context() as patch:
        patch.setattr(CostCallback, "on_save", kill)
        with pytest.raises(KeyboardInterrupt):
            run("stopped", *flags)
    found = adapter(run("stopped", *flags))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_an_llm_in_another_process_trains_the_same(run: Callable[..., Path]) -> None:
    """Reference: the run in one process: losses and adapters."""
    apart, together = run("apart", "--llm_process", "true", "--llm_device", "cpu"), run("together")
    assert losses(apart) == pytest.approx(losses(together), rel=1e-4)
    torch.testing.assert_close(adapter(apart), adapter(together), rtol=1e-3, atol=1e-5)
    tokens = [json.loads((folder / "training.json").read_text())["lm_tokens"] for folder in (apart, together)]
    assert tokens[0] == tokens[1] > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shared_backbone": True, "llm_device": "cpu"}, "on one device; leave llm_device and llm_process out"),
        ({"shared_backbone": True, "llm_process": True}, "on one device; leave llm_device and llm_process out"),
        ({"shared_backbone": True, "llm_revision": "a"}, "encoder_revision is None and llm_revision 'a'; set both"),
        ({"merge_lora": False}, "saves the encoder's adapter alone, and there is none; set lora"),
        ({"merge_lora": False, "lora": {"r": 2}, "encoder_revision": "a"}, "set merge_lora: true"),
        (
            {"merge_lora": False, "lora": {"r": 2}, "shared_backbone": True, "adapter": "a/b"},
            "neither a revision nor another adapter; set merge_lora: true",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], message: str) -> None:
    """Reference: the remedy in each message."""
    with pytest.raises(NLTError, match=message):
        ModelArguments(**settings)


@pytest.mark.parametrize("key", ["shared_backbone", "llm_process"])
def test_an_llm_that_nobody_reads_is_refused(run: Callable[..., Path], key: str) -> None:
    """Reference: the remedy in the message; likelihood gain reads stored gains."""
    with pytest.raises(NLTError, match=rf"{key}: objective 'info_nce' reads no LLM in training; leave {key} out"):
        run("x", "--objective", "info_nce", "--labels", "true", f"--{key}", "true")


def test_options_that_contradict_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: the remedy in the message, before anything is loaded."""
    args = NLTTrainingArguments(output_dir="", objective="dream", in_batch_candidates=True, use_cpu=True)
    with pytest.raises(NLTError, match=r"document_layout is sequential; set it to independent"):
        check_options(ModelArguments(), DataArguments(), args)
    independent = DataArguments(document_layout="independent")
    check_options(ModelArguments(llm_process=True), independent, args)
    evaluated = NLTTrainingArguments(output_dir="", eval_strategy="steps", use_cpu=True)
    with pytest.raises(NLTError, match=r"eval_strategy is steps and there is nothing to evaluate on; set dev_split"):
        check_options(ModelArguments(), independent, evaluated)
    monkeypatch.setattr(NLTTrainingArguments, "world_size", 2)
    check_options(ModelArguments(), independent, args)
    with pytest.raises(NLTError, match=r"set llm_process: false or train in one process"):
        check_options(ModelArguments(llm_process=True), independent, args)
