"""The settings by which `nlt adapt` knows that a stage's work is still right, and what its recipe holds."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from nlt_trainer.adapt.settings import (
    Adaptation,
    of_mining,
    of_queries,
    of_scoring,
    of_training,
    prepared,
    write_recipe,
)
from nlt_trainer.arguments.adapt import AdaptArguments
from nlt_trainer.arguments.data import DataArguments
from nlt_trainer.arguments.model import ModelArguments
from nlt_trainer.errors import NLTError
from nlt_trainer.training_arguments import NLTTrainingArguments


@pytest.fixture
def model(tiny_encoder_folder: Path, tiny_llm_folder: Path, tmp_path: Path) -> ModelArguments:
    """Copies of the tiny models, which a test may change."""
    for name, folder in (("encoder", tiny_encoder_folder), ("llm", tiny_llm_folder)):
        shutil.copytree(folder, tmp_path / name)
    return ModelArguments(encoder=str(tmp_path / "encoder"), llm=str(tmp_path / "llm"))


def adaptation(model: ModelArguments, folder: Path, **trainer: Any) -> Adaptation:
    args = NLTTrainingArguments(use_cpu=True, **trainer)
    return prepared(model, DataArguments(), args, AdaptArguments("documents", str(folder / "out")))


def test_a_model_counts_by_its_content(model: ModelArguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the same settings after the files of a folder, and the dtype that auto means, have changed."""
    work = adaptation(model, tmp_path)
    mining, scoring = of_mining(work), of_scoring(work)
    assert (of_mining(work), of_scoring(work)) == (mining, scoring)
    (tmp_path / "encoder" / "config_sentence_transformers.json").write_text("{}")
    assert (mined := of_mining(work)) != mining
    assert of_scoring(work) == scoring
    work.data.index = "ivf_pq"
    assert of_mining(work) == mined.replace(" bm25 ", " bm25 ivf_pq ") != mined
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"amx_bf16": True})
    assert (scored := of_scoring(work)) != scoring
    (tmp_path / "llm" / "generation_config.json").write_text("{}")
    assert (changed := of_scoring(work)) != scored
    work.data.token_likelihoods = True
    assert of_scoring(work) != changed


def test_queries_depend_on_models_only_where_an_llm_writes_them(model: ModelArguments, tmp_path: Path) -> None:
    work = adaptation(model, tmp_path)
    assert of_queries(work, "a") == of_queries(work, "b")
    work.options.queries = "both"
    assert of_queries(work, "a") != of_queries(work, "b")


def test_training_depends_on_what_decides_it_and_not_on_memory(model: ModelArguments, tmp_path: Path) -> None:
    plain = of_training(adaptation(model, tmp_path))
    memory = {"encoder_micro_batch_size": 2, "lm_micro_batch_size": 1, "logging_steps": 3}
    assert of_training(adaptation(model, tmp_path, **memory)) == plain
    best: dict[str, Any] = {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps"}
    texts = {
        plain,
        *(of_training(adaptation(model, tmp_path, **{key: 0.3})) for key in ("learning_rate", "average_with_start")),
        *(of_training(adaptation(model, tmp_path, **best, eval_steps=n, save_steps=4)) for n in (2, 4)),
        of_training(
            adaptation(model, tmp_path, **best, eval_steps=2, save_steps=4, metric_for_best_model="mrr_at_10")
        ),
    }
    assert len(texts) == 6


def test_the_recipe_chooses_the_best_checkpoint_as_the_command_does(model: ModelArguments, tmp_path: Path) -> None:
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 4}
    write_recipe(adaptation(model, tmp_path, **best))
    assert yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())["trainer"].items() >= best.items()


def test_keys_of_its_own_are_refused(model: ModelArguments, tmp_path: Path) -> None:
    given: Any = {"collection": DataArguments(collection="mine"), "eval_split": DataArguments(eval_split="dev")}
    options, args = AdaptArguments("documents", str(tmp_path)), NLTTrainingArguments(use_cpu=True)
    for key, data in given.items():
        with pytest.raises(NLTError, match=f"{key} is set, and adapt writes its own files"):
            prepared(model, data, args, options)
    with pytest.raises(NLTError, match="output_dir is set"):
        adaptation(model, tmp_path, output_dir="runs/mine")
