"""Adapters, merged and read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import TaskType
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import TrainerControl, TrainerState, TrainingArguments

from nlt_trainer.encoder.loading import load_encoder
from nlt_trainer.encoder.lora import load_lora, lora_config, merge_lora
from nlt_trainer.errors import NLTError
from nlt_trainer.release.export import save_trained
from nlt_trainer.run.folder import Run
from nlt_trainer.run.resume import AdapterCallback


def test_a_merged_encoder_equals_the_adapted_one_and_stands_alone(tiny_encoder_folder: Path, tmp_path: Path) -> None:
    """Against the embeddings of the encoder with its adapter."""
    start = load_encoder(str(tiny_encoder_folder), device="cpu").encode(["green tea", "an owl"])
    encoder = load_encoder(str(tiny_encoder_folder), lora={"r": 2, "target_modules": ["query", "value"]}, device="cpu")
    for name, parameter in encoder.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    adapted = encoder.encode(["green tea", "an owl"])
    assert np.abs(adapted - start).max() > 1e-3
    save_trained(Run(tmp_path), encoder, merge=True, keep_adapter=False)
    assert not list(tmp_path.glob("**/adapter*"))
    alone = SentenceTransformer(str(tmp_path / "encoder"), device="cpu")
    np.testing.assert_allclose(alone.encode(["green tea", "an owl"]), adapted, atol=1e-5)


LORAS = [
    {"target_modules": ["query", "value"]},
    {"target_modules": ["query"], "use_dora": True},
    {"target_modules": ["query"], "modules_to_save": ["word_embeddings"]},
    {"target_modules": ["query", "value"], "modules_to_save": ["layer.1.attention"]},
    {"target_modules": ["query"], "trainable_token_indices": [5, 9]},
    {"target_modules": ["query"], "bias": "all"},
]


@pytest.fixture(params=LORAS, ids=lambda lora: next(reversed(lora)))
def adapted(request: pytest.FixtureRequest, tiny_encoder_folder: Path) -> tuple[SentenceTransformer, dict[str, Any]]:
    """An encoder with an adapter all of whose parameters have been trained, and the adapter's settings."""
    lora = {"r": 2, **request.param}
    encoder = load_encoder(str(tiny_encoder_folder), lora=lora, device="cpu")
    for parameter in encoder.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return encoder, lora


def test_every_trained_weight_is_in_the_merged_encoder(
    adapted: tuple[SentenceTransformer, dict[str, Any]], tiny_encoder_folder: Path, tmp_path: Path
) -> None:
    """Reference: the embeddings of the encoder before merging, and the names of the weights before training."""
    encoder, _ = adapted
    start = load_encoder(str(tiny_encoder_folder), device="cpu").encode(["green tea", "an owl"])
    expected = encoder.encode(["green tea", "an owl"])
    assert np.abs(expected - start).max() > 1e-3
    merge_lora(encoder)
    np.testing.assert_allclose(encoder.encode(["green tea", "an owl"]), expected, atol=1e-5)
    encoder.save_pretrained(str(tmp_path))
    names = [set(load_file(folder / "model.safetensors")) for folder in (tmp_path, tiny_encoder_folder)]
    assert names[0] == names[1]
    np.testing.assert_allclose(
        SentenceTransformer(str(tmp_path), device="cpu").encode(["green tea", "an owl"]), expected, atol=1e-5
    )


def test_every_trained_weight_is_read_back(
    adapted: tuple[SentenceTransformer, dict[str, Any]], tiny_encoder_folder: Path, tmp_path: Path
) -> None:
    """Reference: the state of the encoder that was saved, in one that was loaded afresh."""
    encoder, lora = adapted
    encoder.save_pretrained(str(tmp_path))
    other = load_encoder(str(tiny_encoder_folder), lora=lora, device="cpu")
    load_lora(other, tmp_path)
    found = other.state_dict()
    assert [name for name, value in encoder.state_dict().items() if not torch.equal(found[name], value)] == []


def test_an_adapter_is_read_back_bit_by_bit(tiny_llm_folder: Path, tmp_path: Path) -> None:
    """Reference: the adapter that was saved; its base is bfloat16, in which these numbers do not exist."""
    lora = {"r": 2, "target_modules": ["q_proj", "v_proj"]}
    saved, other = (
        load_encoder(str(tiny_llm_folder), dtype="bfloat16", pooling="lasttoken", lora=lora, device="cpu")
        for _ in range(2)
    )
    for name, parameter in saved.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    saved.save_pretrained(str(tmp_path))
    load_lora(other, tmp_path)
    expected = {name: value for name, value in saved.state_dict().items() if "lora_" in name}
    found = {name: value for name, value in other.state_dict().items() if "lora_" in name}
    assert len(expected) == 8
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert any(not torch.equal(value.bfloat16().float(), value) for value in expected.values())


@pytest.mark.parametrize("at", ["begin", "end"])
@pytest.mark.parametrize("lora", [{}, {"use_dora": True}, {"modules_to_save": ["embed_tokens"]}])
def test_a_checkpoint_gives_a_run_its_base_and_its_adapter_back(
    tiny_llm_folder: Path, tmp_path: Path, lora: dict[str, Any], at: str
) -> None:
    """Reference: the weights before a load that changed them all, as one of another revision does."""
    lora = {"r": 2, "target_modules": ["q_proj"], **lora}
    encoder = load_encoder(str(tiny_llm_folder), pooling="lasttoken", lora=lora, device="cpu")
    encoder.save_pretrained(str(tmp_path))
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    for checkpoint, restored in ((str(tmp_path), True), (None, False), (str(tmp_path / "none"), False)):
        state = TrainerState(best_model_checkpoint=checkpoint if at == "end" else None), TrainerControl()
        callback = AdapterCallback(encoder, None if at == "end" else checkpoint, loads_best=at == "end")
        for value in encoder.state_dict().values():
            value += 1
        arguments = TrainingArguments(use_cpu=True)
        callback.on_train_begin(arguments, *state)
        callback.on_train_end(arguments, *state)
        same = [torch.equal(value, before[name]) for name, value in encoder.state_dict().items()]
        assert all(same) if restored else not all(same)


def test_an_encoder_without_an_adapter_is_left_alone(tiny_encoder: SentenceTransformer) -> None:
    """Against its state before."""
    before = {name: value.clone() for name, value in tiny_encoder.state_dict().items()}
    merge_lora(tiny_encoder)
    assert all(torch.equal(value, before[name]) for name, value in tiny_encoder.state_dict().items())


def test_an_unknown_argument_of_an_adapter_is_named() -> None:
    """Reference: peft's own name for the rank is r."""
    assert lora_config(TaskType.CAUSAL_LM, {"r": 3}).r == 3
    with pytest.raises(NLTError, match=r"lora \{'rank': 4\}: .*'rank'; give arguments of peft.LoraConfig"):
        lora_config(TaskType.CAUSAL_LM, {"rank": 4})
