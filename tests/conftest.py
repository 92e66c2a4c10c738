"""Fixtures: tiny models that are built in process and a tiny BEIR folder; nothing comes from a network."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tiny import build_tokenizer, save_encoder, save_llm, write_collection
from transformers import GPT2Config, GPT2LMHeadModel

from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.ray_workers import RayWorkers


@pytest.fixture(autouse=True)
def _reproducible() -> Iterator[None]:
    """Give every test the same random state and one thread: more make models this small slower."""
    torch.set_num_threads(1)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    yield


@pytest.fixture(autouse=True)
def _plain_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `llm_dtype: auto` mean float32 on every machine, so that tests compare the same numbers."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the user's cache out of the tests, and one test's results out of another."""
    monkeypatch.setenv("NLT_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def tiny_llm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The LLM of `save_llm`."""
    folder = tmp_path_factory.mktemp("tiny_llm")
    save_llm(folder)
    return folder


@pytest.fixture(scope="session")
def ray_workers() -> Iterator[RayWorkers]:
    """Two workers of Ray on this machine, those of all stages with `ray_workers: 2` and `use_cpu: true`."""
    pytest.importorskip("ray")
    from nlt_trainer.assembly.parts import ray_workers_at

    found = ray_workers_at(None, 2, True)
    yield found
    found.ray.shutdown()


@pytest.fixture(scope="session")
def tiny_encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The encoder of `save_encoder`."""
    root = tmp_path_factory.mktemp("tiny_encoder")
    save_encoder(root / "encoder", parts=root / "bert")
    return root / "encoder"


@pytest.fixture
def tiny_encoder(tiny_encoder_folder: Path) -> SentenceTransformer:
    """The encoder of `tiny_encoder_folder`, loaded afresh for each test."""
    return SentenceTransformer(str(tiny_encoder_folder), device="cpu")


@pytest.fixture
def tiny_static_encoder() -> SentenceTransformer:
    """A random `StaticEmbedding` of 32 dimensions, built afresh for each test."""
    tokenizer = build_tokenizer(wrap=False)
    weights = np.random.default_rng(0).normal(size=(len(tokenizer), 32)).astype(np.float32)
    module = StaticEmbedding(tokenizer.backend_tokenizer, embedding_weights=weights)
    return SentenceTransformer(modules=[module], device="cpu")


@pytest.fixture
def tiny_collection_folder(tmp_path: Path) -> Path:
    """The BEIR folder of `write_collection`."""
    folder = tmp_path / "collection"
    write_collection(folder)
    return folder


@pytest.fixture
def tiny_lm(tiny_llm_folder: Path) -> FrozenLM:
    """The LLM of `tiny_llm_folder`, loaded afresh for each test; its tokenizer adds nothing to a text."""
    return FrozenLM.from_pretrained(str(tiny_llm_folder), device="cpu")


@pytest.fixture
def tiny_bos_lm(tiny_llm_folder: Path) -> FrozenLM:
    """The same LLM with a tokenizer that puts `<s>` before each text and `</s>` after it."""
    lm = FrozenLM.from_pretrained(str(tiny_llm_folder), device="cpu")
    return dataclasses.replace(
        lm, tokenizer=build_tokenizer(wrap=True), fingerprint={**lm.fingerprint, "tokenizer": "bos"}
    )


@pytest.fixture
def planted_lm() -> FrozenLM:
    """A GPT-2 without positions in which head 2 of layer 1 alone attends to equal tokens; the others look anywhere."""
    tokenizer = build_tokenizer(wrap=False)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=512, pad_token_id=0)
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        model.transformer.wpe.weight.zero_()
        model.transformer.wte.weight.normal_()
        projection = torch.linalg.qr(torch.randn(32, 8))[0] * 1.5
        attention = model.get_parameter("transformer.h.1.attn.c_attn.weight")  # (32, 96): queries, keys, values
        attention[:, 16:24], attention[:, 48:56] = projection, projection
    return FrozenLM(model, tokenizer, "planted", {"weights": "org/planted@c0ffee"})
