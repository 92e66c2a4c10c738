"""The cache of embeddings against the encoder itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from nlt_trainer.models import embedding_cache
from nlt_trainer.models.embedding_cache import EmbeddingCache, encoder_fingerprint

TEXTS = ["whale", "a bee and its flowers", "green tea", "tea", "the moon pulls the sea"]


@pytest.fixture
def embedded(tiny_encoder: SentenceTransformer, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that the encoder has embedded since the test began, in parts of two."""
    seen: list[str] = []
    real = tiny_encoder.encode_document

    def encode(texts: list[str], **options: Any) -> Any:
        seen.extend(texts)
        return real(texts, **options)

    monkeypatch.setattr(tiny_encoder, "encode_document", encode)
    monkeypatch.setattr(embedding_cache, "PART", 2)
    return seen


def test_embeddings_are_the_encoders_and_are_computed_once(
    tiny_encoder: SentenceTransformer, embedded: list[str], tmp_path: Path
) -> None:
    """Reference: `encode_document`; afterwards only the part with a changed text is embedded again."""
    tiny_encoder.prompts = {"query": "", "document": "text: "}
    expected = tiny_encoder.encode(TEXTS, prompt="text: ")
    found = EmbeddingCache(tiny_encoder, tmp_path).documents(TEXTS)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found.dtype == np.float32
    assert embedded == TEXTS
    np.testing.assert_array_equal(EmbeddingCache(tiny_encoder, tmp_path).documents(TEXTS), found)
    assert embedded == TEXTS
    EmbeddingCache(tiny_encoder, tmp_path).documents([*TEXTS[:3], "coffee", TEXTS[4]])
    assert embedded == [*TEXTS, "green tea", "coffee"]


def test_a_killed_run_goes_on(
    tiny_encoder: SentenceTransformer, embedded: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: the parts that were whole are not embedded again, and no half file is left."""
    cache = EmbeddingCache(tiny_encoder, tmp_path)
    real = cache._embed

    def stop(texts: list[str], batch_size: int) -> np.ndarray:
        if "green tea" in texts:
            raise KeyboardInterrupt
        return real(texts, batch_size)

    monkeypatch.setattr(cache, "_embed", stop)
    with pytest.raises(KeyboardInterrupt):
        cache.documents(TEXTS)
    monkeypatch.setattr(cache, "_embed", real)
    assert cache.documents(TEXTS).shape == (5, 32)
    assert embedded == TEXTS
    assert sorted(path.suffix for path in tmp_path.rglob("*") if path.is_file()) == [".npy"] * 3


def test_processes_share_the_files(tiny_encoder: SentenceTransformer, embedded: list[str], tmp_path: Path) -> None:
    """Reference: each file is written once, also where one process begins when the other is done."""
    cache = EmbeddingCache(tiny_encoder, tmp_path)
    files = cache.files(TEXTS, process=0, processes=2)
    assert [file.is_file() for file in files] == [True, False, True]
    assert cache.files(TEXTS, process=1, processes=2) == files
    assert sorted(embedded) == sorted(TEXTS)
    np.testing.assert_array_equal(np.concatenate([np.load(file) for file in files]), cache.documents(TEXTS))


def change_weight(encoder: SentenceTransformer) -> None:
    next(encoder.parameters()).data[0] += 1


def change_prompt(encoder: SentenceTransformer) -> None:
    encoder.prompts = {"query": "", "document": "text: "}


def change_length(encoder: SentenceTransformer) -> None:
    encoder.max_seq_length = 5


def change_dtype(encoder: SentenceTransformer) -> None:
    encoder.to(torch.bfloat16)


@pytest.mark.parametrize("change", [change_weight, change_prompt, change_length, change_dtype])
def test_another_encoder_has_another_fingerprint(
    change: Callable[[SentenceTransformer], None], tiny_encoder_folder: Path
) -> None:
    """Reference: the same folder loaded again has the same one."""
    first, second, changed = (SentenceTransformer(str(tiny_encoder_folder), device="cpu") for _ in range(3))
    change(changed)
    assert encoder_fingerprint(first) == encoder_fingerprint(second) != encoder_fingerprint(changed)


def test_a_static_encoder_has_a_fingerprint_of_its_weights(tiny_static_encoder: SentenceTransformer) -> None:
    """Reference: a changed weight; its tokenizer is of another class than a transformer's."""
    before = encoder_fingerprint(tiny_static_encoder)
    change_weight(tiny_static_encoder)
    assert encoder_fingerprint(tiny_static_encoder) != before
