"""The cache of embeddings against embedding everything: what is computed again, and what never is."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from nlt_trainer import embedding_cache
from nlt_trainer.embedding_cache import CachedEncoder, EmbeddingCache

TEXTS = [f"text {i}" for i in range(10)]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_cache, "CHUNK_TEXTS", 4)


class Embedder:
    """Embeds a text as its length and its last character, and remembers what it was asked."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, texts: list[str]) -> np.ndarray:
        self.seen += texts
        return np.array([[len(text), ord(text[-1])] for text in texts], dtype=np.float32)


def test_a_text_is_embedded_once(tmp_path: Path) -> None:
    """Reference: the embeddings themselves; a changed text costs its chunk, another key costs all of them."""
    cache, embed = EmbeddingCache(tmp_path), Embedder()
    expected = Embedder()(TEXTS)
    for _ in range(2):
        np.testing.assert_array_equal(cache.embed(TEXTS, embed, key="a"), expected)
    assert embed.seen == TEXTS
    changed = [*TEXTS[:5], "another", *TEXTS[6:]]
    np.testing.assert_array_equal(cache.embed(changed, embed, key="a"), Embedder()(changed))
    assert embed.seen[10:] == changed[4:8]
    cache.embed(TEXTS, embed, key="b")
    assert len(embed.seen) == 24


def test_a_single_chunk_is_mapped_and_not_read(tmp_path: Path) -> None:
    """Reference: the type that numpy gives a mapped file."""
    found = EmbeddingCache(tmp_path).embed(TEXTS[:3], Embedder(), key="a")
    assert isinstance(found, np.memmap)


def test_a_killed_run_goes_on_at_its_chunk(tmp_path: Path) -> None:
    """Reference: the texts of the chunks that were not stored; nothing half-written is left."""

    def killed(texts: list[str]) -> np.ndarray:
        if texts[0] == TEXTS[4]:
            raise KeyboardInterrupt
        return Embedder()(texts)

    cache, embed = EmbeddingCache(tmp_path), Embedder()
    with pytest.raises(KeyboardInterrupt):
        cache.embed(TEXTS, killed, key="a")
    cache.embed(TEXTS, embed, key="a")
    assert embed.seen == TEXTS[4:]
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("damage", [b"", b"not an array", None])
def test_a_damaged_file_is_made_again(damage: bytes | None, tmp_path: Path) -> None:
    """Reference: the embeddings of the texts; `None` stands for an array of another length."""
    cache = EmbeddingCache(tmp_path)
    cache.embed(TEXTS[:4], Embedder(), key="a")
    (path,) = tmp_path.rglob("*.npy")
    if damage is None:
        np.save(path, np.zeros((2, 2), np.float32))
    else:
        path.write_bytes(damage)
    for embed in (Embedder(), Embedder()):
        np.testing.assert_array_equal(cache.embed(TEXTS[:4], embed, key="a"), Embedder()(TEXTS[:4]))
    assert embed.seen == []


def test_several_processes_share_the_chunks(tmp_path: Path) -> None:
    """Reference: every text is embedded by one of them alone, and each gets all embeddings."""
    barrier, embedders, found = threading.Barrier(2, timeout=20), [Embedder(), Embedder()], {}

    def work(rank: int) -> None:
        cache = EmbeddingCache(tmp_path, rank=rank, num_processes=2, wait=lambda: (barrier.wait(), None)[1])
        found[rank] = cache.embed(TEXTS, embedders[rank], key="a")

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [embedder.seen for embedder in embedders] == [TEXTS[:4] + TEXTS[8:], TEXTS[4:8]]
    for rank in range(2):
        np.testing.assert_array_equal(found[rank], Embedder()(TEXTS))


def test_what_was_not_used_for_longest_is_removed(tmp_path: Path) -> None:
    """Reference: sizes and times of the files; what was read last stays."""
    cache = EmbeddingCache(tmp_path)
    cache.embed(TEXTS, Embedder(), key="a")
    files = sorted(tmp_path.rglob("*.npy"))
    for age, path in enumerate(files):
        os.utime(path, (1_000_000 - age, 1_000_000 - age))
    size = sum(path.stat().st_size for path in files)
    assert cache.trim(size) == 0
    assert cache.trim(size - 1) == 1
    assert not files[-1].exists()
    assert cache.trim(0) == 2
    assert cache.trim(0) == 0


def test_role_prompt_and_encoder_are_kept_apart(tiny_static_encoder: SentenceTransformer, tmp_path: Path) -> None:
    """Reference: what the encoder itself gives for each of them."""
    encoder = tiny_static_encoder
    encoder.prompts = {"query": "ask: ", "document": "read: "}
    cached = CachedEncoder(encoder, fingerprint="one", cache=EmbeddingCache(tmp_path))
    calls: list[tuple[Any, Any, dict[str, Any]]] = [
        (cached.encode_query, encoder.encode_query, {}),
        (cached.encode_document, encoder.encode_document, {}),
        (cached.encode_query, encoder.encode_query, {"prompt": "other: "}),
    ]
    for _ in range(2):
        for found, expected, options in calls:
            np.testing.assert_allclose(found(TEXTS, **options), expected(TEXTS, **options), atol=1e-6)
    assert len(list(tmp_path.iterdir())) == 3
    encoder.prompts = {"query": "changed: ", "document": "read: "}
    np.testing.assert_allclose(cached.encode_query(TEXTS), encoder.encode_query(TEXTS), atol=1e-6)
    CachedEncoder(encoder, fingerprint="two", cache=EmbeddingCache(tmp_path)).encode_query(TEXTS)
    assert len(list(tmp_path.iterdir())) == 5
