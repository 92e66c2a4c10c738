"""The frozen LLM: projection against the model's own head, adapters against PeftModel, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, CohereConfig, CohereForCausalLM, GraniteConfig, GraniteForCausalLM

from nlt_trainer.errors import NLTError
from nlt_trainer.models.frozen_lm import FrozenLM

IDS = torch.arange(5, 17).reshape(2, 6)


@pytest.fixture
def adapter_folder(tiny_llm_folder: Path, tmp_path: Path) -> Path:
    """A LoRA adapter of the tiny LLM that changes its output."""
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llm_folder), config).save_pretrained(
        str(tmp_path / "adapter")
    )
    return tmp_path / "adapter"


def rewrite(path: Path, **changes: object) -> None:
    """Change entries of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@torch.no_grad()
def logits(model: torch.nn.Module) -> Tensor:
    return model(input_ids=IDS).logits


def test_nothing_of_it_is_trained(tiny_lm: FrozenLM) -> None:
    """Reference: the definition of frozen."""
    assert not tiny_lm.model.training
    assert not any(p.requires_grad for p in tiny_lm.model.parameters())
    assert (tiny_lm.num_layers, tiny_lm.num_heads, tiny_lm.context_length) == (2, 4, 256)


@torch.no_grad()
def test_the_projection_is_the_models_own_head(tiny_lm: FrozenLM) -> None:
    """Reference: `model(input_ids).logits`, also of Granite, which divides its logits."""
    torch.manual_seed(0)
    config = GraniteConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=4, initializer_range=0.5, logits_scaling=7.0,
    )  # fmt: skip
    granite = FrozenLM(GraniteForCausalLM(config), tiny_lm.tokenizer, "granite", {})
    for lm in (tiny_lm, granite):
        ours = lm.project(lm.model.base_model(input_ids=IDS).last_hidden_state)
        torch.testing.assert_close(ours, logits(lm.model), rtol=1e-5, atol=1e-5)
        hidden = lm.model.base_model(input_ids=IDS).last_hidden_state[:, :-1].flatten(0, 1)
        expected = torch.nn.functional.cross_entropy(
            ours[:, :-1].flatten(0, 1), IDS[:, 1:].flatten(), reduction="none"
        )
        for slice_size in (1, 3, 256):
            loss = lm.target_loss(hidden, IDS[:, 1:].flatten(), slice_size=slice_size)
            torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    assert tiny_lm.target_loss(torch.zeros(0, 32), torch.zeros(0, dtype=torch.long)).shape == (0,)


def test_a_head_that_does_more_is_refused(tiny_lm: FrozenLM) -> None:
    """Reference: Cohere multiplies its logits by `logit_scale`, which the projection does not know."""
    torch.manual_seed(0)
    config = CohereConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        initializer_range=0.5, logit_scale=0.25, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with pytest.raises(NLTError, match=r"'cohere' \(CohereForCausalLM\): its logits are not .*Choose a decoder"):
        FrozenLM(CohereForCausalLM(config), tiny_lm.tokenizer, "cohere", {})


def test_an_adapter_is_merged(tiny_llm_folder: Path, adapter_folder: Path) -> None:
    """Reference: the output of `PeftModel`, not merged."""
    plain = AutoModelForCausalLM.from_pretrained(tiny_llm_folder)
    before = logits(plain)
    expected = logits(PeftModel.from_pretrained(plain, adapter_folder).eval())
    lm = FrozenLM.from_pretrained(str(tiny_llm_folder), adapter=str(adapter_folder), device="cpu")
    torch.testing.assert_close(logits(lm.model), expected, rtol=1e-4, atol=1e-4)
    assert (expected - before).abs().max() > 0.1
    assert not any(p.requires_grad for p in lm.model.parameters())
    assert type(lm.model).__name__ == "LlamaForCausalLM"


def test_an_adapter_of_another_base_is_refused(tiny_llm_folder: Path, adapter_folder: Path) -> None:
    """Reference: the base that adapter_config.json names."""
    rewrite(adapter_folder / "adapter_config.json", base_model_name_or_path="org/other-llm")
    with pytest.raises(NLTError, match=r"was trained on 'org/other-llm', not on .*leave the adapter out"):
        FrozenLM.from_pretrained(str(tiny_llm_folder), adapter=str(adapter_folder))


def test_an_adapter_that_does_not_fit_or_exist_is_refused(tiny_llm_folder: Path, adapter_folder: Path) -> None:
    """Reference: the adapter's rank does not match its own weights; a folder that is not there."""
    rewrite(adapter_folder / "adapter_config.json", r=3)
    with pytest.raises(NLTError, match=r"does not fit"):
        FrozenLM.from_pretrained(str(tiny_llm_folder), adapter=str(adapter_folder))
    with pytest.raises(NLTError, match=r"adapter '/nowhere/adapter' cannot be loaded"):
        FrozenLM.from_pretrained(str(tiny_llm_folder), adapter="/nowhere/adapter")


def test_the_fingerprint_tells_weights_adapter_tokenizer_and_dtype_apart(
    tiny_llm_folder: Path, adapter_folder: Path, tiny_bos_lm: FrozenLM, tiny_lm: FrozenLM
) -> None:
    """Reference: a score depends on each of them, hence ids must differ; loading twice gives the same id."""
    again = FrozenLM.from_pretrained(str(tiny_llm_folder), device="cpu")
    assert again.id == tiny_lm.id
    halved = FrozenLM.from_pretrained(str(tiny_llm_folder), dtype="bfloat16", device="cpu")
    adapted = FrozenLM.from_pretrained(str(tiny_llm_folder), adapter=str(adapter_folder), device="cpu")
    assert halved.model.dtype == torch.bfloat16
    assert len({lm.id for lm in (tiny_lm, halved, adapted, tiny_bos_lm)}) == 4
    assert adapted.fingerprint["weights"] == tiny_lm.fingerprint["weights"]


def test_a_model_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """Reference: the message names the model and the remedy."""
    with pytest.raises(NLTError, match=r"model '/nowhere/llm': .* does not exist. Give a Hub id"):
        FrozenLM.from_pretrained("/nowhere/llm")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NLTError, match=r"LLM .*empty' cannot be loaded"):
        FrozenLM.from_pretrained(str(tmp_path / "empty"))
