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
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding, Transformer
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from nlt_trainer.files import write_jsonl
from nlt_trainer.lm.frozen_lm import FrozenLM

DOCUMENTS = {
    "d01": ("Whale", "The blue whale is the largest animal that ever lived on the earth."),
    "d02": ("Bee", "A honey bee visits many flowers and carries pollen back to the hive."),
    "d03": ("Volcano", "A volcano opens where hot molten rock breaks through the crust."),
    "d04": ("Tea", "Green tea is made from leaves that were heated soon after the harvest."),
    "d05": ("Bridge", "A suspension bridge hangs its road from steel cables between two towers."),
    "d06": ("Clock", "A pendulum clock keeps time with a weight that swings from side to side."),
    "d07": ("Bread", "Yeast makes bread rise because it turns sugar into gas and alcohol."),
    "d08": ("Moon", "The moon pulls the water of the sea and so makes the tides."),
    "d09": ("Glass", "Glass is made by melting sand with soda and lime in a furnace."),
    "d10": ("Owl", "An owl hunts at night and hears a mouse under the snow."),
    "d11": ("Compass", "A compass needle turns to the north because the earth is a magnet."),
    "d12": ("Silk", "Silk is spun by the larva of a moth that eats mulberry leaves."),
}
QUERIES = {
    "q1": ("which animal is the largest of all", "the blue whale", "d01", "train"),
    "q2": ("why does bread rise", "yeast turns sugar into gas", "d07", "train"),
    "q3": ("what makes the tides of the sea", "the pull of the moon", "d08", "train"),
    "q4": ("how is glass made", "by melting sand with soda and lime", "d09", "train"),
    "q5": ("who carries pollen to the hive", "a honey bee", "d02", "dev"),
    "q6": ("how does a clock keep time", "with a weight that swings", "d06", "dev"),
    "q7": ("why does a compass needle turn to the north", "the earth is a magnet", "d11", "test"),
    "q8": ("which bird hunts at night", "an owl", "d10", "test"),
}
SPECIAL_TOKENS = ["<pad>", "<s>", "</s>", "<unk>"]


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


def _build_tokenizer(*, wrap: bool) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on the tiny collection.

    Args:
        wrap: put `<s>` and `</s>` around each text, as an encoder's tokenizer does; a causal model's adds nothing.
    """
    tokenizer = Tokenizer(BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [text for document in DOCUMENTS.values() for text in document]
    texts += [text for query in QUERIES.values() for text in query[:2]]
    tokenizer.train_from_iterator(texts, trainer)
    if wrap:
        tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=256,
    )


@pytest.fixture(scope="session")
def tiny_llm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama with four query heads on two key heads, and its tokenizer, as a model folder."""
    folder = tmp_path_factory.mktemp("tiny_llm")
    tokenizer = _build_tokenizer(wrap=False)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer BERT with mean pooling, as a Sentence-Transformers folder."""
    root = tmp_path_factory.mktemp("tiny_encoder")
    tokenizer = _build_tokenizer(wrap=True)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.2,
        pad_token_id=tokenizer.pad_token_id,
    )
    BertModel(config).save_pretrained(root / "bert")
    tokenizer.save_pretrained(root / "bert")
    transformer = Transformer(str(root / "bert"), max_seq_length=64)
    pooling = Pooling(32, pooling_mode="mean")
    SentenceTransformer(modules=[transformer, pooling], device="cpu").save_pretrained(str(root / "encoder"))
    return root / "encoder"


@pytest.fixture
def tiny_encoder(tiny_encoder_folder: Path) -> SentenceTransformer:
    """The encoder of `tiny_encoder_folder`, loaded afresh for each test."""
    return SentenceTransformer(str(tiny_encoder_folder), device="cpu")


@pytest.fixture
def tiny_static_encoder() -> SentenceTransformer:
    """A random `StaticEmbedding` of 32 dimensions, built afresh for each test."""
    tokenizer = _build_tokenizer(wrap=False)
    weights = np.random.default_rng(0).normal(size=(len(tokenizer), 32)).astype(np.float32)
    module = StaticEmbedding(tokenizer.backend_tokenizer, embedding_weights=weights)
    return SentenceTransformer(modules=[module], device="cpu")


@pytest.fixture
def tiny_collection_folder(tmp_path: Path) -> Path:
    """A BEIR folder: 12 documents, 8 queries with answers, qrels of 4 train, 2 dev and 2 test queries."""
    folder = tmp_path / "collection"
    write_jsonl(
        folder / "corpus.jsonl",
        ({"_id": key, "title": title, "text": text} for key, (title, text) in DOCUMENTS.items()),
    )
    write_jsonl(
        folder / "queries.jsonl",
        ({"_id": key, "text": text, "answer": answer} for key, (text, answer, _, _) in QUERIES.items()),
    )
    (folder / "qrels").mkdir()
    for split in ("train", "dev", "test"):
        rows = [f"{key}\t{gold}\t1\n" for key, (_, _, gold, part) in QUERIES.items() if part == split]
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(rows))
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
        lm, tokenizer=_build_tokenizer(wrap=True), fingerprint={**lm.fingerprint, "tokenizer": "bos"}
    )


@pytest.fixture
def planted_lm() -> FrozenLM:
    """A GPT-2 without positions in which head 2 of layer 1 alone attends to equal tokens; the others look anywhere."""
    tokenizer = _build_tokenizer(wrap=False)
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
