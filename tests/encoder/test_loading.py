"""Encoders: loading, prompts, pooling, LoRA, and token embeddings of an LLM."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import hub

from nlt_trainer.choices import EncoderDtype, PoolingMode
from nlt_trainer.encoder.loading import all_but_the_top, encoder_from_token_embeddings, load_encoder
from nlt_trainer.errors import NLTError

TEXTS = ["the blue whale", "an owl hunts at night"]


def test_an_encoder_is_loaded_as_it_is(tiny_encoder_folder: Path) -> None:
    """Reference: `SentenceTransformer(folder)`."""
    encoder = load_encoder(str(tiny_encoder_folder), device="cpu")
    expected = SentenceTransformer(str(tiny_encoder_folder), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(encoder.encode_query(TEXTS), expected, atol=1e-6)
    assert encoder.prompts == {"query": "", "document": ""}


def test_prompts_stand_before_texts_and_are_saved(tiny_encoder_folder: Path, tmp_path: Path) -> None:
    """Reference: embeddings of texts with the prompt written out."""
    prompts = {"query": "find: ", "document": "passage: "}
    encoder = load_encoder(str(tiny_encoder_folder), prompts=prompts, max_seq_length=8, device="cpu")
    assert encoder.max_seq_length == 8
    encoder.save_pretrained(str(tmp_path / "saved"))
    for loaded in (encoder, load_encoder(str(tmp_path / "saved"), device="cpu")):
        assert loaded.prompts == prompts
        np.testing.assert_allclose(
            loaded.encode_query(TEXTS), encoder.encode([f"find: {text}" for text in TEXTS]), atol=1e-6
        )
        np.testing.assert_allclose(
            loaded.encode_document(TEXTS), encoder.encode([f"passage: {text}" for text in TEXTS]), atol=1e-6
        )


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_plain_transformer_gets_pooling_and_unit_length(tiny_encoder_folder: Path, pooling: PoolingMode) -> None:
    """Reference: hidden states of the transformer, pooled by hand."""
    folder = tiny_encoder_folder.parent / "bert"
    encoder = load_encoder(str(folder), pooling=pooling, device="cpu")
    inputs = AutoTokenizer.from_pretrained(folder)(
        TEXTS, padding=True, return_tensors="pt", return_token_type_ids=False
    )
    with torch.no_grad():
        states = AutoModel.from_pretrained(folder)(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    pooled = (states * mask).sum(1) / mask.sum(1) if pooling == "mean" else states[:, 0]
    expected = torch.nn.functional.normalize(pooled, dim=-1).numpy()
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-5)


def test_a_trained_encoder_is_loaded_by_the_recipe_of_its_start(tiny_encoder_folder: Path) -> None:
    """Reference: the encoder without the setting, which says what the folder does by itself."""
    plain, named = (load_encoder(str(tiny_encoder_folder), pooling=p, device="cpu") for p in (None, "mean"))
    np.testing.assert_array_equal(named.encode(["a bee"]), plain.encode(["a bee"]))
    assert len(named) == len(plain)


def test_a_decoder_with_last_token_pooling(tiny_llm_folder: Path) -> None:
    """Reference: the hidden state of each text's last token, one text at a time."""
    encoder = load_encoder(str(tiny_llm_folder), pooling="lasttoken", device="cpu")
    model, tokenizer = AutoModel.from_pretrained(tiny_llm_folder), AutoTokenizer.from_pretrained(tiny_llm_folder)
    with torch.no_grad():
        rows = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, -1] for text in TEXTS]
    expected = torch.nn.functional.normalize(torch.stack(rows), dim=-1).numpy()
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-4)


def test_lora_trains_the_adapter_alone(tiny_encoder_folder: Path, tmp_path: Path) -> None:
    """Reference: names of the parameters that require a gradient; a saved adapter is loaded with its base."""
    encoder = load_encoder(
        str(tiny_encoder_folder), lora={"r": 4, "lora_alpha": 8, "target_modules": ["query", "value"]}, device="cpu"
    )
    trained = [name for name, p in encoder.named_parameters() if p.requires_grad]
    assert len(trained) == 8
    assert all("lora_" in name for name in trained)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    encoder.save_pretrained(str(tmp_path / "adapted"))
    expected = encoder.encode(TEXTS)
    np.testing.assert_allclose(
        SentenceTransformer(str(tmp_path / "adapted"), device="cpu").encode(TEXTS), expected, atol=1e-5
    )
    assert np.abs(expected - load_encoder(str(tiny_encoder_folder), device="cpu").encode(TEXTS)).max() > 1e-3


def lora_gradients(folder: Path, *, checkpointing: bool) -> dict[str, torch.Tensor]:
    """Gradients of an adapter on a decoder; checks that with checkpointing a layer is run a second time."""
    torch.manual_seed(0)
    lora = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
    encoder = load_encoder(str(folder), dtype="bfloat16", pooling="lasttoken", lora=lora, device="cpu").train()
    for name, parameter in encoder.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    if checkpointing:
        encoder.gradient_checkpointing_enable()
    calls = []
    encoder.get_submodule("0.model.layers.0.mlp").register_forward_pre_hook(lambda *_: calls.append(1))
    encoder(encoder.preprocess(TEXTS))["sentence_embedding"][:, :5].float().sum().backward()
    assert len(calls) == (2 if checkpointing else 1)
    return {name: p.grad for name, p in encoder.named_parameters() if p.requires_grad and p.grad is not None}


def test_gradient_checkpointing_changes_no_gradient(tiny_llm_folder: Path) -> None:
    """Reference: the gradients without it, on a frozen bfloat16 base; the layers do run twice."""
    plain = lora_gradients(tiny_llm_folder, checkpointing=False)
    checkpointed = lora_gradients(tiny_llm_folder, checkpointing=True)
    assert len(plain) == 2 * 7 * 2  # A and B of seven projections in two layers
    assert plain.keys() == checkpointed.keys()
    assert all(torch.equal(checkpointed[name], gradient) for name, gradient in plain.items())


def test_the_dtype_is_the_recipes_and_an_adapter_is_float32(tiny_llm_folder: Path, tmp_path: Path) -> None:
    """Reference: a checkpoint in bfloat16, as decoders of the Hub are."""
    model = AutoModelForCausalLM.from_pretrained(tiny_llm_folder, dtype="bfloat16")
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_llm_folder).save_pretrained(tmp_path)
    for dtype in get_args(EncoderDtype):
        expected = getattr(torch, dtype)
        encoder = load_encoder(str(tmp_path), dtype=dtype, pooling="lasttoken", device="cpu")
        assert {p.dtype for p in encoder.parameters()} == {expected}
        lora = {"r": 4, "target_modules": "all-linear"}
        encoder = load_encoder(str(tmp_path), dtype=dtype, pooling="lasttoken", lora=lora, device="cpu")
        assert {p.dtype for p in encoder.parameters() if p.requires_grad} == {torch.float32}
        assert {p.dtype for p in encoder.parameters() if not p.requires_grad} == {expected}
    with pytest.raises(NLTError, match="encoder dtype 'float16' is unknown; choose one of float32, bfloat16"):
        load_encoder(str(tmp_path), dtype="float16")  # type: ignore[arg-type]  # on purpose


@pytest.mark.parametrize("pooling", [None, "lasttoken"])
def test_the_revision_reaches_every_file(monkeypatch: pytest.MonkeyPatch, pooling: PoolingMode | None) -> None:
    """Reference: the revision of each look-up in the Hub's cache; the message says what to do."""
    asked: set[str | None] = set()
    lookup = hub.cached_files

    def cached_files(*names: Any, **options: Any) -> Any:
        asked.add(options.get("revision"))
        return lookup(*names, **options)

    monkeypatch.setattr(hub, "cached_files", cached_files)
    remedy = "hf download org/none --revision abc --local-dir DIR"
    with pytest.raises(NLTError, match=rf"encoder 'org/none' cannot be loaded: .*{remedy}"):
        load_encoder("org/none", revision="abc", pooling=pooling)
    assert asked == {"abc"}


def test_token_embeddings_of_an_llm(tiny_llm_folder: Path, tmp_path: Path) -> None:
    """Reference: numpy in float64: without mean and strongest direction, weighted by log(1 + id)."""
    encoder = encoder_from_token_embeddings(str(tiny_llm_folder))
    state = AutoModelForCausalLM.from_pretrained(tiny_llm_folder).state_dict()
    table = state["model.embed_tokens.weight"].double().numpy()
    table = table - table.mean(0)
    top = np.linalg.svd(table, full_matrices=False)[2][0]  # of 32 dimensions one is removed
    table = (table - np.outer(table @ top, top)) * np.log1p(np.arange(len(table)))[:, None]
    tokenizer = AutoTokenizer.from_pretrained(tiny_llm_folder)
    rows = np.stack([table[tokenizer(text, add_special_tokens=False).input_ids].mean(0) for text in TEXTS])
    expected = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-5)
    encoder.save_pretrained(str(tmp_path / "static"))
    loaded = load_encoder(str(tmp_path / "static"), device="cpu")
    np.testing.assert_allclose(loaded.encode(TEXTS), expected, atol=1e-5)
    with pytest.raises(NLTError, match=r"is a table of token embeddings; LoRA needs a transformer"):
        load_encoder(str(tmp_path / "static"), lora={"r": 4})
    with pytest.raises(NLTError, match=r"reads texts of any length; leave `max_seq_length` out"):
        load_encoder(str(tmp_path / "static"), max_seq_length=4)


def test_token_embeddings_do_not_depend_on_threads() -> None:
    """Reference: the same bits with one thread and with two, which are left as they were."""
    embeddings = torch.randn(4096, 192, generator=torch.Generator().manual_seed(0))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(all_but_the_top(embeddings))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


def test_a_pickled_llm_is_not_read(tiny_llm_folder: Path, tmp_path: Path) -> None:
    """Reference: the same weights as a pickle instead of safetensors."""
    folder = shutil.copytree(tiny_llm_folder, tmp_path / "pickled")
    torch.save(AutoModelForCausalLM.from_pretrained(folder).state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(NLTError, match=r"LLM .*pickled' cannot be loaded: .*safetensors"):
        encoder_from_token_embeddings(str(folder))


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "modules.json"])
def test_a_half_written_folder_is_refused(tiny_encoder_folder: Path, tmp_path: Path, file: str) -> None:
    """Reference: a file that was cut short, as by a full disk; safetensors and tokenizers have errors of their own."""
    shutil.copytree(tiny_encoder_folder, tmp_path / "half")
    path = next((tmp_path / "half").rglob(file))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(NLTError, match=r"encoder .*half' cannot be loaded: "):
        load_encoder(str(tmp_path / "half"))


def test_settings_that_do_not_fit_are_refused(tiny_encoder_folder: Path, tmp_path: Path) -> None:
    """Reference: the value and the remedy in each message."""
    folder, plain = str(tiny_encoder_folder), str(tiny_encoder_folder.parent / "bert")
    with pytest.raises(NLTError, match=r"prompts has the keys \['passage'\]; only 'query' and 'document'"):
        load_encoder(folder, prompts={"passage": "x"})
    with pytest.raises(NLTError, match=r"with its own pooling; leave `pooling` out or set it to mean"):
        load_encoder(folder, pooling="cls")
    with pytest.raises(NLTError, match=r"pooling 'max' is unknown; choose one of mean, cls, lasttoken"):
        load_encoder(plain, pooling="max")  # type: ignore[arg-type]  # on purpose
    (tmp_path / "empty").mkdir()
    with pytest.raises(NLTError, match=r"encoder .*empty' cannot be loaded"):
        load_encoder(str(tmp_path / "empty"))
    with pytest.raises(NLTError, match=r"encoder .*empty' cannot be loaded"):
        load_encoder(str(tmp_path / "empty"), pooling="mean")
