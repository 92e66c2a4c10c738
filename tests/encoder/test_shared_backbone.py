"""An encoder on the frozen LLM's own weights, against one with a copy of them; and the LLM, against itself alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from nlt_trainer.encoder.loading import load_encoder
from nlt_trainer.encoder.lora import merge_lora
from nlt_trainer.encoder.shared_backbone import share_weights
from nlt_trainer.errors import NLTError
from nlt_trainer.injection.attention import enable_document_attention
from nlt_trainer.injection.document_prompts import DocumentPrompts, build_prompts
from nlt_trainer.injection.heads import HeadSet
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.lm.prompt_tokens import PromptTokens
from nlt_trainer.lm.scoring import LikelihoodScorer
from nlt_trainer.objectives.dream import DREAMLoss
from nlt_trainer.prompts import PromptTemplate

LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"], "lora_dropout": 0.5}
QUERIES = ["how is tea made", "which bird hunts at night"]
DOCUMENTS = [
    ["Green tea is made from leaves.", "An owl hunts."],
    ["Silk is spun by a moth.", "An owl hunts at night."],
]
TEXTS = [text for row in DOCUMENTS for text in row]
IDS = torch.arange(5, 17).reshape(2, 6)


@pytest.fixture(params=["untied", "tied"])
def llm_folder(request: pytest.FixtureRequest, tiny_llm_folder: Path, tmp_path: Path) -> Path:
    """The tiny LLM, and the same with its token embeddings as output embeddings."""
    if request.param == "untied":
        return tiny_llm_folder
    model = AutoModelForCausalLM.from_pretrained(tiny_llm_folder)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tmp_path / "tied")
    AutoTokenizer.from_pretrained(tiny_llm_folder).save_pretrained(tmp_path / "tied")
    return tmp_path / "tied"


@pytest.fixture
def lm(llm_folder: Path) -> FrozenLM:
    return FrozenLM.from_pretrained(str(llm_folder), device="cpu")


def encoder_on(lm: FrozenLM | None, folder: str, **lora: object) -> SentenceTransformer:
    """An encoder with an adapter that does something, equal whether it has a backbone or a copy of its own."""
    encoder = load_encoder(folder, pooling="lasttoken", lora={**LORA, **lora}, device="cpu", backbone=lm)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in encoder.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.3, generator=generator)
    return encoder


def transformer_of(encoder: SentenceTransformer) -> PreTrainedModel:
    model = encoder.transformers_model
    assert isinstance(model, PreTrainedModel)
    return model


@torch.no_grad()
def logits(lm: FrozenLM) -> Tensor:
    return lm.model(input_ids=IDS).logits


def test_there_is_one_copy_of_the_weights(lm: FrozenLM) -> None:
    """Reference: addresses of all tensors; only the adapter has memory of its own."""
    encoder = encoder_on(lm, lm.name)
    assert (lm.model.lm_head.weight is lm.model.model.embed_tokens.weight) == lm.model.config.tie_word_embeddings
    theirs = {t.data_ptr() for t in (*lm.model.parameters(), *lm.model.buffers())}
    own = {name for name, t in [*encoder.named_parameters(), *encoder.named_buffers()] if t.data_ptr() not in theirs}
    trained = {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert own == trained
    assert trained
    assert all("lora_" in name for name in trained)
    assert not any(p.requires_grad for p in lm.model.parameters())
    assert {str(t.device) for t in (*encoder.parameters(), *encoder.buffers())} == {"cpu"}


def test_the_encoder_is_the_one_with_a_copy_of_its_own(lm: FrozenLM) -> None:
    """Reference: `load_encoder` without a backbone: embeddings and gradients, with checkpointed activations, too."""
    shared, separate = encoder_on(lm, lm.name, lora_dropout=0.0), encoder_on(None, lm.name, lora_dropout=0.0)
    np.testing.assert_allclose(shared.encode(TEXTS), separate.encode(TEXTS), atol=1e-6)
    gradients = []
    for encoder, checkpointing in ((separate, False), (shared, False), (shared, True)):
        if checkpointing:
            transformer_of(encoder).gradient_checkpointing_enable()
        encoder.train().zero_grad()
        encoder(encoder.preprocess(TEXTS))["sentence_embedding"][:, :3].sum().backward()
        gradients.append({name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None})
    assert set(gradients[0]) == {name for name, p in shared.named_parameters() if p.requires_grad}
    for found in gradients[1:]:
        torch.testing.assert_close(found, gradients[0], rtol=1e-4, atol=1e-6)
    assert all(p.grad is None for p in lm.model.parameters())


def test_the_llm_reads_without_the_adapter(lm: FrozenLM) -> None:
    """Reference: the LLM before there was an encoder, bit by bit, while the encoder trains with dropout."""
    scorer = LikelihoodScorer(lm, target="query")
    expected, gain = logits(lm), scorer.gain(QUERIES, DOCUMENTS)
    encoder = encoder_on(lm, lm.name).train()
    first, second = (encoder(encoder.preprocess(TEXTS))["sentence_embedding"] for _ in range(2))
    assert not torch.equal(first, second)  # dropout is on
    assert torch.equal(logits(lm), expected)
    np.testing.assert_array_equal(scorer.gain(QUERIES, DOCUMENTS), gain)
    assert not lm.model.training
    assert encoder.training
    first.sum().backward()
    assert torch.equal(logits(lm), expected)


def test_document_attention_leaves_the_encoder_alone(lm: FrozenLM) -> None:
    """Reference: embeddings before the LLM's attention was switched, bit by bit."""
    encoder = encoder_on(lm, lm.name)
    before = encoder.encode(TEXTS)
    enable_document_attention(lm)
    assert lm.model.config._attn_implementation != transformer_of(encoder).config._attn_implementation
    np.testing.assert_array_equal(encoder.encode(TEXTS), before)


@contextmanager
def failing(lm: FrozenLM) -> Iterator[None]:
    """Let the LLM break off in its last layer."""

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    hook = lm.model.get_submodule("model.layers.1").register_forward_hook(fail)
    yield
    hook.remove()


def prompts_of(lm: FrozenLM) -> DocumentPrompts:
    tokens = PromptTokens(lm.tokenizer, PromptTemplate(), max_document_tokens=32)
    return build_prompts(tokens, QUERIES, DOCUMENTS, target="query", context_length=256)


def dream(encoder: SentenceTransformer, lm: FrozenLM) -> DREAMLoss:
    heads = HeadSet(((1, 2), (0, 3)), ((0.5,) * 4,) * 2, lm.name, lm.fingerprint, {})
    return DREAMLoss(encoder, lm, heads=heads, temperature=0.3)


def gradients_of(loss: DREAMLoss) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch and the gradients of everything that is trained."""
    encoder = loss.model
    features = [encoder.preprocess(QUERIES), encoder.preprocess(TEXTS)]
    value = loss(features, prompts_of(loss.reader.lm).as_dict())["dream"]
    value.backward()
    return value.detach(), {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}


def test_dream_trains_as_with_two_copies(lm: FrozenLM, llm_folder: Path) -> None:
    """Reference: LLM and encoder with weights of their own; an exception in the LLM before changes nothing."""
    shared = dream(encoder_on(lm, lm.name, lora_dropout=0.0), lm)
    with failing(lm), pytest.raises(RuntimeError, match="out of memory"):
        gradients_of(shared)
    found = gradients_of(shared)
    other = FrozenLM.from_pretrained(str(llm_folder), device="cpu")
    expected = gradients_of(dream(encoder_on(None, lm.name, lora_dropout=0.0), other))
    torch.testing.assert_close(found[0], expected[0])
    largest = max(float(g.abs().max()) for g in expected[1].values())
    torch.testing.assert_close(found[1], expected[1], rtol=1e-3, atol=1e-4 * largest)
    assert largest > 1e-5
    assert all("lora_" in name for name in found[1])
    assert all(p.grad is None for p in lm.model.parameters())


def test_the_adapter_alone_is_saved_and_loads_without_the_trainer(lm: FrozenLM, tmp_path: Path) -> None:
    """Reference: embeddings before; the folder holds no weight of the base and names it by an absolute path."""
    encoder = encoder_on(lm, lm.name)
    expected = encoder.encode_query(TEXTS)
    encoder.save_pretrained(str(tmp_path / "encoder"))
    assert [file.name for file in (tmp_path / "encoder").rglob("*.safetensors")] == ["adapter_model.safetensors"]
    config = json.loads((tmp_path / "encoder" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(Path(lm.name).absolute())
    loaded = SentenceTransformer(str(tmp_path / "encoder"), device="cpu")
    np.testing.assert_allclose(loaded.encode_query(TEXTS), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["base", "start/base", "./base", "../base"])
def test_an_adapter_names_a_relative_base_as_a_path(
    lm: FrozenLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Reference: embeddings before, loaded from the same working directory; no Hub id begins with a dot."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    shutil.copytree(lm.name, name)
    encoder = load_encoder(name, pooling="lasttoken", lora={"r": 2, "target_modules": "all-linear"}, device="cpu")
    encoder.save_pretrained("encoder")
    config = json.loads(Path("encoder", "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == {"../base": "./../base"}.get(name, f"./{name.removeprefix('./')}")
    loaded = SentenceTransformer("encoder", device="cpu")
    np.testing.assert_allclose(loaded.encode_query(TEXTS), encoder.encode_query(TEXTS), atol=1e-5)


def test_a_merged_encoder_stands_alone_and_the_llm_stays_as_it_was(lm: FrozenLM, tmp_path: Path) -> None:
    """Reference: embeddings with the adapter, logits before merging."""
    encoder, before = encoder_on(lm, lm.name), logits(lm)
    expected = encoder.encode(TEXTS)
    merge_lora(encoder)
    assert torch.equal(logits(lm), before)
    encoder.save_pretrained(str(tmp_path / "encoder"))
    assert not list((tmp_path / "encoder").rglob("adapter*"))
    alone = SentenceTransformer(str(tmp_path / "encoder"), device="cpu")
    np.testing.assert_allclose(alone.encode(TEXTS), expected, atol=1e-5)


def test_a_bfloat16_backbone_has_a_float32_adapter(llm_folder: Path) -> None:
    """Reference: the dtypes, and embeddings in float32 within what bfloat16 allows."""
    lm = FrozenLM.from_pretrained(str(llm_folder), dtype="bfloat16", device="cpu")
    encoder, before = encoder_on(lm, lm.name), logits(lm)
    assert {p.dtype for p in encoder.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in encoder.parameters() if not p.requires_grad} == {torch.bfloat16}
    found = encoder.encode(TEXTS, convert_to_tensor=True).float()
    expected = encoder_on(None, lm.name).encode(TEXTS, convert_to_tensor=True)
    assert torch.nn.functional.cosine_similarity(found, expected).min() > 0.99
    assert torch.equal(logits(lm), before)


def test_what_cannot_share_is_refused(lm: FrozenLM, tiny_encoder_folder: Path) -> None:
    """Reference: the names and the remedy in each message."""
    bert = str(tiny_encoder_folder.parent / "bert")
    with pytest.raises(NLTError, match=r"encoder .*bert' and LLM .* are two models; give both the same name"):
        load_encoder(bert, pooling="mean", lora={"r": 2}, backbone=lm)
    for settings in ({"pooling": "lasttoken"}, {"lora": {"r": 2}}):
        with pytest.raises(NLTError, match=r"the encoder is a LoRA adapter on the LLM; set pooling .* and lora"):
            load_encoder(lm.name, backbone=lm, **settings)
    with pytest.raises(NLTError, match=r"has a LlamaModel under its head, .* is a BertModel; set shared_backbone"):
        share_weights(transformer_of(load_encoder(bert, pooling="mean", device="cpu")), lm)
