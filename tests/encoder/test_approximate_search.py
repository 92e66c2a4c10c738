"""Approximate search against exact search, and mining with it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from nlt_trainer.data import beir
from nlt_trainer.encoder import approximate_search
from nlt_trainer.encoder.approximate_search import approximate
from nlt_trainer.encoder.embedding_cache import EmbeddingCache, remove_cache
from nlt_trainer.encoder.search import nearest
from nlt_trainer.errors import NLTError
from nlt_trainer.scripts import mine


def embeddings(number: int, width: int, *, seed: int) -> np.ndarray:
    """Random embeddings in 50 clusters, of different lengths."""
    draw = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(50, width))
    return (centres[draw.integers(50, size=number)] + draw.normal(size=(number, width))).astype(np.float32)


def written(documents: np.ndarray, folder: Path) -> list[Path]:
    """Files of 100 embeddings each, under names as an `EmbeddingCache` gives them."""
    folder.mkdir()
    parts = np.split(documents, range(100, len(documents), 100))
    files = [folder / f"{i:032x}.npy" for i in range(len(parts))]
    for file, part in zip(files, parts, strict=True):
        np.save(file, part)
    return files


@pytest.fixture
def exhaustive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an index of any size be made, and propose all documents."""
    for name, value in {"INDEXED_FROM": 0, "PROPOSED": 700, "LISTS_SEARCHED": 700, "QUERIES": 3, "PAIRS": 64}.items():
        monkeypatch.setattr(approximate_search, name, value)


def test_all_documents_proposed_give_the_exact_ranking(
    exhaustive: None, tiny_static_encoder: SentenceTransformer, tmp_path: Path
) -> None:
    """Reference: exact search, with documents that are equal; a second call reads the index and finds the same."""
    documents, queries = embeddings(650, 20, seed=1), torch.from_numpy(embeddings(7, 20, seed=2))
    documents[[3, 400, 649]] = documents[5]
    files, cache = written(documents, tmp_path / "0a"), EmbeddingCache(tiny_static_encoder, tmp_path, progress=None)
    expected = nearest(queries, [torch.from_numpy(documents)], top_k=30, similarity=cache.similarity)[1].tolist()
    for _ in range(2):
        assert approximate(queries, files, cache=cache, top_k=30) == expected
    (index,) = tmp_path.glob("*/*.faiss")
    assert approximate(queries, files, cache=cache, top_k=700)[0][:30] == expected[0]
    remove_cache(tmp_path)
    assert not index.exists()


def test_recall_of_the_nearest_hundred(tiny_static_encoder: SentenceTransformer, tmp_path: Path) -> None:
    """Reference: the 100 nearest documents by exact search, of which 95 % are found."""
    documents, queries = embeddings(10_000, 32, seed=1), torch.from_numpy(embeddings(20, 32, seed=2))
    files, cache = written(documents, tmp_path / "0a"), EmbeddingCache(tiny_static_encoder, tmp_path, progress=None)
    expected = nearest(queries, [torch.from_numpy(documents)], top_k=100, similarity=cache.similarity)[1].tolist()
    found = approximate(queries, files, cache=cache, top_k=100)
    assert len(list(tmp_path.glob("*/*.faiss"))) == 1
    shared = [len(set(own) & set(exact)) / 100 for own, exact in zip(found, expected, strict=True)]
    assert np.mean(shared) >= 0.95


def test_a_damaged_index_is_made_again(
    exhaustive: None, tiny_static_encoder: SentenceTransformer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Reference: the ranking before, whatever part of the file is damaged; the file in the warning."""
    documents, queries = embeddings(300, 8, seed=1), torch.from_numpy(embeddings(2, 8, seed=2))
    files, cache = written(documents, tmp_path / "0a"), EmbeddingCache(tiny_static_encoder, tmp_path, progress=None)
    expected = approximate(queries, files, cache=cache, top_k=10)
    (path,) = tmp_path.glob("*/*.faiss")
    content = path.read_bytes()
    for damaged in (b"", content[:-1], content[:200] + b"~" + content[201:], content[:500]):
        path.write_bytes(damaged)
        assert approximate(queries, files, cache=cache, top_k=10) == expected
        assert path.read_bytes() != damaged
        assert f"{path} is damaged, and is made again" in caplog.text
        caplog.clear()


@pytest.mark.parametrize("miner", ["encoder", "fused"])
def test_mining_a_corpus_on_disk_with_an_index_is_mining_it_in_memory(
    miner: str, exhaustive: None, tiny_encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: the candidates of exact search in a dict, where the index proposes all documents."""
    words = "whale bee tea moon sea owl bread river stone leaf".split()
    draw = np.random.default_rng(0)
    rows = [{"_id": f"d{i}", "text": " ".join(draw.choice(words, 6))} for i in range(300)] + [{"_id": "e", "text": ""}]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    queries = [{"_id": f"q{i}", "text": " ".join(draw.choice(words, 2))} for i in range(4)]
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    flags = ["--collection", str(tmp_path), "--encoder", str(tiny_encoder_folder), "--miner", miner]
    for index in ("exact", "ivf_pq"):
        monkeypatch.setattr(beir, "STORED_FROM", 1 << 30 if index == "exact" else 0)
        mine.main([*flags, "--candidates", str(tmp_path / index), "--index", index, "--use_cpu", "true"])
    assert (tmp_path / "ivf_pq").read_text() == (tmp_path / "exact").read_text()
    assert not list(tmp_path.glob("*.embeddings"))


def test_an_encoder_that_an_index_cannot_serve_is_refused(
    tiny_encoder: SentenceTransformer, tiny_collection_folder: Path, tmp_path: Path
) -> None:
    """Reference: the message, before anything is embedded."""
    tiny_encoder.similarity_fn_name = "manhattan"
    tiny_encoder.save_pretrained(str(tmp_path / "encoder"))
    flags = ["--collection", str(tiny_collection_folder), "--candidates", str(tmp_path / "candidates.jsonl")]
    with pytest.raises(NLTError, match=r"index 'ivf_pq' finds documents by their cosines, .*'manhattan'; set "):
        mine.main([*flags, "--encoder", str(tmp_path / "encoder"), "--miner", "fused", "--index", "ivf_pq"])
    assert not list(tmp_path.glob("*.embeddings"))
