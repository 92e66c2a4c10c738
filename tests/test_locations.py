"""Where models come from: Hub ids, folders, packages, GGUF files."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from nlt_trainer import locations
from nlt_trainer.errors import NLTError
from nlt_trainer.files import cache_folder
from nlt_trainer.locations import is_hub_id, local_path, resolve_model

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")


def test_names_are_resolved(tiny_llm_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: the four forms that the docstring lists."""
    (tmp_path / "some_models" / "tiny").mkdir(parents=True)
    (tmp_path / "some_models" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_model("org/model") == "org/model"
    assert resolve_model(str(tiny_llm_folder)) == str(tiny_llm_folder)
    assert resolve_model("~/some_models") == str(tmp_path / "some_models")
    assert resolve_model("package:some_models/tiny") == str(tmp_path / "some_models" / "tiny")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "package:no_such_models/tiny",
            "no package that is imported as 'no_such_models' is installed; correct it, or install the distribution",
        ),
        ("package:no_such.models/tiny", "no package that is imported as 'no_such.models' is installed"),
        ("package:/tiny", "no package that is imported as '' is installed"),
        ("package:tokenizer/tiny", r"imported as 'tokenizer' is installed; did you mean 'tokenizers'\?"),
        ("package:nlt_trainer/nothing", "nothing does not exist. Correct the path inside the package"),
        ("./nothing", "does not exist. Give a Hub id"),
        ("runs/nothing/encoder", "runs/nothing/encoder does not exist. Give a Hub id"),
        ("my model", "my model does not exist. Give a Hub id"),
        ("nothing.gguf", "nothing.gguf does not exist. Give the path of a .gguf file on this machine"),
    ],
)
def test_what_is_not_there_is_refused(name: str, message: str) -> None:
    """Reference: the message names place and remedy."""
    with pytest.raises(NLTError, match=message):
        resolve_model(name)


@pytest.mark.parametrize(
    ("name", "is_id"),
    [
        ("org/model", True),
        ("gpt2", True),
        ("Org-1/a_Model.v2-bf16", True),
        ("org/MODEL-GGUF", True),
        ("elsewhere/model", True),
        ("here/model", False),
        ("here", False),
        ("here/other", True),  # an organisation may be called like a folder
        ("./org/model", False),
        ("../model", False),
        (".model", False),
        ("~/model", False),
        ("/org/model", False),
        ("runs/demo/encoder", False),
        ("org/model.gguf", False),
        ("model.gguf", False),
        ("package:llm/model", False),
        ("org//model", False),
        ("org/", False),
        ("/", False),
        ("org/a--b", False),
        ("org/a..b", False),
        ("org/model.git", False),
        ("datasets/org/name", False),
        ("https://huggingface.co/org/model", False),
        ("org/my model", False),
        ("", False),
    ],
)
def test_what_is_a_hub_id(name: str, is_id: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: the Hub's own rule for names, and the folder `here/model` of the working directory."""
    (tmp_path / "here" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert is_hub_id(name) is is_id
    if is_id:
        assert local_path(name) is None


def test_the_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: `NLT_CACHE` before `XDG_CACHE_HOME` before `~/.cache`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NLT_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "nlt_trainer"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "nlt_trainer"
    monkeypatch.setenv("NLT_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "mine"


def write_gguf(path: Path, folder: Path) -> None:
    """Write the tiny Llama as GGUF, with rows of query and key weights interleaved as llama.cpp has them."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())["model"]
    tokens = sorted(tokenizer["vocab"], key=tokenizer["vocab"].get)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if i < len(SPECIAL) else 1 for i in range(len(tokens))])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    state = {key: value.float().numpy() for key, value in model.state_dict().items()}
    writer.add_tensor("token_embd.weight", state["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", state["model.norm.weight"])
    writer.add_tensor("output.weight", state["lm_head.weight"])
    for layer in range(config.num_hidden_layers):
        for ours, theirs in names.items():
            value = state[f"model.layers.{layer}.{ours}.weight"]
            if theirs in heads:
                h = heads[theirs]
                value = value.reshape(h, 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
            writer.add_tensor(f"blk.{layer}.{theirs}.weight", np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_is_converted_once(tiny_llm_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: logits and token ids of the model that the GGUF file was written from."""
    monkeypatch.setenv("NLT_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "files" / "tiny.gguf"
    path.parent.mkdir()
    write_gguf(path, tiny_llm_folder)
    folder = resolve_model(str(path))
    assert Path(folder).parent == tmp_path / "cache" / "models"
    ids = torch.arange(5, 17)[None]
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(tiny_llm_folder)(input_ids=ids).logits
        found = AutoModelForCausalLM.from_pretrained(folder)(input_ids=ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    text = "the blue whale, 1 moth"
    assert (
        AutoTokenizer.from_pretrained(folder)(text).input_ids
        == AutoTokenizer.from_pretrained(tiny_llm_folder)(text).input_ids
    )
    written = Path(folder, "model.safetensors").stat().st_mtime_ns
    assert resolve_model(str(path)) == folder
    assert Path(folder, "model.safetensors").stat().st_mtime_ns == written


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "record.json"])
def test_a_damaged_conversion_is_made_again(
    tiny_llm_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
) -> None:
    """Reference: the bytes of the first conversion, of which a disk has changed one; version 0.1 kept no hashes."""
    monkeypatch.setenv("NLT_CACHE", str(tmp_path / "cache"))
    write_gguf(tmp_path / "tiny.gguf", tiny_llm_folder)
    folder = Path(resolve_model(str(tmp_path / "tiny.gguf")))
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    damaged = bytearray(before[name])
    damaged[-9] ^= 1
    (folder / name).write_bytes(damaged)
    assert resolve_model(str(tmp_path / "tiny.gguf")) == str(folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert "tiny.gguf, is damaged and made again: " in caplog.text
    (folder / "record.json").unlink()
    assert resolve_model(str(tmp_path / "tiny.gguf")) == str(folder)
    assert (folder / "record.json").read_bytes() == before["record.json"]


def test_a_damaged_gguf_file_is_refused(
    tiny_llm_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: a file that was cut short, and one that is no GGUF; no model folder is left."""
    monkeypatch.setenv("NLT_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "tiny.gguf"
    write_gguf(path, tiny_llm_folder)
    for content in (path.read_bytes()[:5000], b"no model"):
        path.write_bytes(content)
        with pytest.raises(NLTError, match=r"GGUF file .*tiny.gguf' cannot be loaded: "):
            resolve_model(str(path))
    assert not list((tmp_path / "cache" / "models").glob("tiny-*"))


def test_a_gguf_file_is_converted_by_one_of_several(
    tiny_llm_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: the number of conversions when four ask at once; threads hold the lock file as processes do."""
    monkeypatch.setenv("NLT_CACHE", str(tmp_path / "cache"))
    write_gguf(tmp_path / "tiny.gguf", tiny_llm_folder)
    convert = locations._write_converted
    conversions: list[Path] = []

    def counted(path: Path, target: Path) -> None:
        conversions.append(target)
        convert(path, target)

    monkeypatch.setattr(locations, "_write_converted", counted)
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(resolve_model, [str(tmp_path / "tiny.gguf")] * 4))
    assert folders == {str(conversions[0])}
    assert len(conversions) == 1
    assert not list(conversions[0].parent.glob(".*.partial"))
