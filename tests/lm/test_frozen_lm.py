"""The frozen LLM: projection against the model's own head, adapters against PeftModel, refusals."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BloomConfig,
    BloomForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
)

from nlt_trainer.errors import NLTError
from nlt_trainer.lm.frozen_lm import FrozenLM, _merge_adapter

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
        for positions, tokens in ((1, 64), (3, 7), (512, 32), (512, 8192)):
            loss = lm.target_loss(hidden, IDS[:, 1:].flatten(), positions=positions, tokens=tokens)
            torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    assert tiny_lm.target_loss(torch.zeros(0, 32), torch.zeros(0, dtype=torch.long)).shape == (0,)


def test_a_head_that_does_more_is_refused(tiny_lm: FrozenLM) -> None:
    """Reference: logits divided by four after the output embedding, with nothing in the configuration that says so."""
    model = tiny_lm.model
    real = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = real(*args, **kwargs)
        output.logits = output.logits * 0.25
        return output

    model.forward = forward
    with pytest.raises(NLTError, match=r"'quarter' \(LlamaForCausalLM\): its logits are not .*Choose a decoder"):
        FrozenLM(model, tiny_lm.tokenizer, "quarter", {})


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


def test_an_adapter_of_other_layers_is_refused(tiny_llm_folder: Path, adapter_folder: Path) -> None:
    """Reference: weights of a layer that the LLM does not have, of which peft would merely warn."""
    path = adapter_folder / "adapter_model.safetensors"
    moved = {name.replace("layers.1.", "layers.7."): weight for name, weight in load_file(path).items()}
    save_file(moved, path)
    with pytest.raises(NLTError, match=r"does not fit .*layers\.[17]\..* belong to one of them alone"):
        FrozenLM.from_pretrained(str(tiny_llm_folder), adapter=str(adapter_folder))


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_half_written_adapter_is_refused(tiny_llm_folder: Path, adapter_folder: Path, file: str) -> None:
    """Reference: a file that was cut short, as by a full disk."""
    path = adapter_folder / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(NLTError, match=r"adapter .* cannot be loaded: "):
        FrozenLM.from_pretrained(str(tiny_llm_folder), adapter=str(adapter_folder))


def put_on_hub(folder: Path, cache: Path, commit: str) -> None:
    """Put a folder into the Hub's local cache as `org/adapter`, branch `main`."""
    root = cache / "models--org--adapter"
    (root / "refs").mkdir(parents=True, exist_ok=True)
    (root / "refs" / "main").write_text(commit)
    shutil.copytree(folder, root / "snapshots" / commit)


def test_an_adapter_on_the_hub_is_known_by_its_content(
    tiny_llm_folder: Path, adapter_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: the same adapter as a folder; a branch that moved on is another adapter. The Hub is offline."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def load(adapter: str) -> FrozenLM:
        return FrozenLM.from_pretrained(str(tiny_llm_folder), adapter=adapter, device="cpu")

    local = load(str(adapter_folder))
    put_on_hub(adapter_folder, tmp_path / "hub", "a" * 40)
    first = load("org/adapter")
    assert first.id == local.id
    torch.testing.assert_close(logits(first.model), logits(local.model))
    rewrite(adapter_folder / "adapter_config.json", lora_alpha=16)
    put_on_hub(adapter_folder, tmp_path / "hub", "b" * 40)
    assert load("org/adapter").id != first.id
    with pytest.raises(NLTError, match=r"adapter 'org/absent' cannot be loaded"):
        load("org/absent")


@pytest.mark.parametrize(
    ("weights", "revision"),
    [("org/llm@c0ffee", "c0ffee"), ("0123abc", None), ("0123abc on org/llm@c0ffee", None), ("a/b@c on a/d@e", "c")],
)
def test_the_revision_is_the_commit_of_a_hub_model(tiny_lm: FrozenLM, weights: str, revision: str | None) -> None:
    """Reference: by hand; of an adapter alone it is the adapter's and not its base's."""
    assert FrozenLM(tiny_lm.model, tiny_lm.tokenizer, "llm", {"weights": weights}).revision == revision


def test_a_pickled_adapter_is_refused(tiny_llm_folder: Path, adapter_folder: Path) -> None:
    """Reference: the remedy in the message."""
    (adapter_folder / "adapter_model.safetensors").rename(adapter_folder / "adapter_model.bin")
    with pytest.raises(NLTError, match=r"has no adapter_model.safetensors; save the adapter as safetensors"):
        FrozenLM.from_pretrained(str(tiny_llm_folder), adapter=str(adapter_folder))


@pytest.mark.parametrize(
    ("trained_on", "base", "location", "same"),
    [
        ("org/llm", "org/llm", "org/llm", True),
        ("other/llm", "org/llm", "org/llm", False),  # two Hub ids
        ("/elsewhere/llm", "org/llm", "org/llm", True),
        ("org/llm", "llm", "llm", True),  # the Hub knows some models under a name without an organisation too
        ("org/llm", "./models/llm", "models/2026/llm", True),
        ("", "org/llm", "org/llm", True),
    ],
)
def test_which_base_an_adapter_fits(
    tiny_lm: FrozenLM, adapter_folder: Path, trained_on: str, base: str, location: str, same: bool
) -> None:
    """Reference: two Hub ids are compared as a whole, a folder by its last name."""
    rewrite(adapter_folder / "adapter_config.json", base_model_name_or_path=trained_on)
    with nullcontext() if same else pytest.raises(NLTError, match=r"was trained on 'other/llm', not on 'org/llm'"):
        _merge_adapter(tiny_lm.model, str(adapter_folder), base=base, base_location=location)


def test_weights_that_give_nan_are_refused(tiny_lm: FrozenLM) -> None:
    """Reference: the reason is the weights and not the projection."""
    tiny_lm.model.get_parameter("model.norm.weight")[0] = torch.nan
    with pytest.raises(NLTError, match=r"its weights give NaN or infinite logits; use dtype float32"):
        FrozenLM(tiny_lm.model, tiny_lm.tokenizer, "broken", {})


def test_a_configuration_without_a_context_length_is_refused(tiny_lm: FrozenLM) -> None:
    """Reference: Bloom has no limit of positions; with the entry that the message names the length is known."""
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=64, hidden_size=32, n_layer=1, n_head=4)
    lm = FrozenLM(BloomForCausalLM(config), tiny_lm.tokenizer, "bloom", {})
    with pytest.raises(NLTError, match=r"'bloom': its BloomConfig has no max_position_embeddings.*config.json"):
        _ = lm.context_length
    lm.model.config.max_position_embeddings = 128
    assert lm.context_length == 128


def test_an_encoder_is_no_llm(tiny_encoder_folder: Path, tmp_path: Path) -> None:
    """Reference: a BERT without a language-model head, whose head would be random, and one that was trained to fill
    masks, which sees later tokens."""
    with pytest.raises(
        NLTError, match=r"have no weights for cls.predictions.* as an encoder has none.* Choose a decoder"
    ):
        FrozenLM.from_pretrained(str(tiny_encoder_folder.parent / "bert"), device="cpu")
    config = BertConfig(
        vocab_size=512, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    BertForMaskedLM(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_encoder_folder.parent / "bert").save_pretrained(tmp_path)
    with pytest.raises(
        NLTError, match=r"what it makes of a token changes with the tokens after it, as in an encoder. Choose a"
    ):
        FrozenLM.from_pretrained(str(tmp_path), device="cpu")


def test_an_unknown_dtype_is_refused(tiny_llm_folder: Path) -> None:
    """Reference: the choices in the message."""
    with pytest.raises(NLTError, match=r"LLM dtype 'float23' is unknown; choose one of auto, float32, bfloat16,"):
        FrozenLM.from_pretrained(str(tiny_llm_folder), dtype="float23")  # type: ignore[arg-type]  # on purpose


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


def test_a_model_that_cannot_be_loaded_is_refused(tiny_llm_folder: Path, tmp_path: Path) -> None:
    """Reference: no model, an empty folder, and weights of another size than the configuration's."""
    with pytest.raises(NLTError, match=r"model '/nowhere/llm': .* does not exist. Give a Hub id"):
        FrozenLM.from_pretrained("/nowhere/llm")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NLTError, match=r"LLM .*empty' cannot be loaded"):
        FrozenLM.from_pretrained(str(tmp_path / "empty"))
    (tmp_path / "odd").mkdir()
    for file in tiny_llm_folder.iterdir():
        shutil.copy(file, tmp_path / "odd")
    rewrite(tmp_path / "odd" / "config.json", hidden_size=48)
    with pytest.raises(NLTError, match=r"LLM .*odd' cannot be loaded: .*size"):
        FrozenLM.from_pretrained(str(tmp_path / "odd"))


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_half_written_folder_is_refused(tiny_llm_folder: Path, tmp_path: Path, file: str) -> None:
    """Reference: a file that was cut short, as by a full disk; safetensors and tokenizers have errors of their own."""
    shutil.copytree(tiny_llm_folder, tmp_path / "half")
    content = (tiny_llm_folder / file).read_bytes()
    (tmp_path / "half" / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(NLTError, match=r"LLM .*half' cannot be loaded: "):
        FrozenLM.from_pretrained(str(tmp_path / "half"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is there")
def test_a_device_that_is_not_there_is_named(tiny_llm_folder: Path) -> None:
    """Reference: the value and the remedy, before the weights are read."""
    with pytest.raises(NLTError, match=r"device 'cuda:1' cannot be used .*; choose another llm_device"):
        FrozenLM.from_pretrained(str(tiny_llm_folder), device="cuda:1")
    with pytest.raises(NLTError, match=r"device 'gpu' cannot be used .*; choose another llm_device"):
        FrozenLM.from_pretrained(str(tiny_llm_folder), device="gpu")
