"""The cache of embeddings against the encoder itself: what is computed again, and what never is."""

from __future__ import annotations

import errno
import os
import resource
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from nlt_trainer.data.document import Contents, Document
from nlt_trainer.encoder import embedding_cache
from nlt_trainer.encoder.embedding import Texts
from nlt_trainer.encoder.embedding_cache import EmbeddingCache, remove_cache, trim

TEXTS = ["whale", "a bee and its flowers", "green tea", "tea", "the moon pulls the sea"]


@pytest.fixture
def embedded(tiny_encoder: SentenceTransformer, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that the encoder has embedded as documents since the test began, in parts of two."""
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
    found = EmbeddingCache(tiny_encoder, tmp_path).encode_document(TEXTS)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found.dtype == np.float32
    assert embedded == TEXTS
    np.testing.assert_array_equal(EmbeddingCache(tiny_encoder, tmp_path).encode_document(TEXTS), found)
    assert embedded == TEXTS
    EmbeddingCache(tiny_encoder, tmp_path).encode_document([*TEXTS[:3], "coffee", TEXTS[4]])
    assert embedded == [*TEXTS, "green tea", "coffee"]


def test_the_contents_of_a_corpus_are_embedded_as_they_come(
    tiny_encoder: SentenceTransformer, embedded: list[str], tmp_path: Path
) -> None:
    """Reference: the files of a list of the same texts; what is there is not embedded again."""
    corpus = {text: Document(text, "", text) for text in TEXTS}
    files = EmbeddingCache(tiny_encoder, tmp_path).document_files(Contents(corpus))
    assert embedded == TEXTS
    assert EmbeddingCache(tiny_encoder, tmp_path).document_files(TEXTS) == files
    files[1].unlink()
    assert EmbeddingCache(tiny_encoder, tmp_path).document_files(Contents(corpus)) == files
    assert embedded == [*TEXTS, *TEXTS[2:4]]


def test_embeddings_in_bfloat16_are_close_and_kept_apart(
    tiny_encoder: SentenceTransformer, embedded: list[str], tmp_path: Path
) -> None:
    """Against float32: a cosine of 0.999 at least, float32 arrays, and files that the other precision never reads."""
    exact = EmbeddingCache(tiny_encoder, tmp_path).encode_document(TEXTS)
    rounded = EmbeddingCache(tiny_encoder, tmp_path, bf16=True).encode_document(TEXTS)
    assert embedded == [*TEXTS, *TEXTS]
    assert rounded.dtype == np.float32
    assert 0 < np.abs(rounded - exact).max() < 0.05 * np.abs(exact).max()
    cosine = (rounded * exact).sum(1) / np.linalg.norm(rounded, axis=1) / np.linalg.norm(exact, axis=1)
    assert cosine.min() > 0.999


def test_a_killed_run_goes_on(
    tiny_encoder: SentenceTransformer, embedded: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: the parts that were whole are not embedded again, and no half file is left."""
    cache = EmbeddingCache(tiny_encoder, tmp_path)
    real = cache._embed

    def stop(given: Texts) -> np.ndarray:
        if "green tea" in given.texts:
            raise KeyboardInterrupt
        return real(given)

    monkeypatch.setattr(cache, "_embed", stop)
    with pytest.raises(KeyboardInterrupt):
        cache.encode_document(TEXTS)
    monkeypatch.setattr(cache, "_embed", real)
    assert cache.encode_document(TEXTS).shape == (5, 32)
    assert embedded == TEXTS
    assert sorted(path.suffix for path in tmp_path.rglob("*") if path.is_file()) == [".npy"] * 3


def test_role_and_prompt_are_kept_apart(tiny_static_encoder: SentenceTransformer, tmp_path: Path) -> None:
    """Reference: what the encoder itself gives for each; its own prompt and the same one given are one."""
    encoder = tiny_static_encoder
    encoder.prompts = {"query": "ask: ", "document": "read: "}
    cache = EmbeddingCache(encoder, tmp_path, progress=None)
    calls: list[tuple[Any, Any, dict[str, Any]]] = [
        (cache.encode_query, encoder.encode_query, {}),
        (cache.encode_document, encoder.encode_document, {}),
        (cache.encode_query, encoder.encode_query, {"prompt": "other: "}),
        (cache.encode_query, encoder.encode_query, {"prompt": "ask: "}),
        (cache.encode_document, encoder.encode_document, {"prompt": "ask: "}),
    ]
    for _ in range(2):
        for found, expected, options in calls:
            np.testing.assert_allclose(found(TEXTS, **options), expected(TEXTS, **options), atol=1e-6)
    assert len(list(tmp_path.rglob("*.npy"))) == 4


def test_a_single_part_is_mapped_and_may_be_written_into(tiny_encoder: SentenceTransformer, tmp_path: Path) -> None:
    """Reference: the type that numpy gives a mapped file; the file keeps what it had."""
    cache = EmbeddingCache(tiny_encoder, tmp_path)
    found = cache.encode_document(TEXTS)
    assert isinstance(found, np.memmap)
    before = found.copy()
    torch.from_numpy(found).zero_()
    np.testing.assert_array_equal(cache.encode_document(TEXTS), before)


def test_more_parts_than_a_process_may_open_files(
    tiny_static_encoder: SentenceTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: the encoder itself, where the process may open 200 files and the texts lie in 400."""
    monkeypatch.setattr(embedding_cache, "PART", 1)
    texts = [f"text {i}" for i in range(400)]
    cache = EmbeddingCache(tiny_static_encoder, tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    try:
        found = cache.encode_document(texts)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    np.testing.assert_allclose(found, tiny_static_encoder.encode_document(texts), atol=1e-6)


@pytest.mark.parametrize("damage", [b"", b"not an array", None])
def test_a_damaged_file_is_made_again(
    damage: bytes | None, tiny_encoder: SentenceTransformer, embedded: list[str], tmp_path: Path
) -> None:
    """Reference: the embeddings from before; `None` stands for an array of another length."""
    cache = EmbeddingCache(tiny_encoder, tmp_path)
    expected = np.array(cache.encode_document(TEXTS[:2]))
    (path,) = tmp_path.rglob("*.npy")
    if damage is None:
        np.save(path, np.zeros((3, 2), np.float32))
    else:
        path.write_bytes(damage)
    for _ in range(2):
        np.testing.assert_array_equal(cache.encode_document(TEXTS[:2]), expected)
    assert embedded == TEXTS[:2] * 2


def test_no_flipped_bit_is_used(
    tiny_encoder: SentenceTransformer, embedded: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Reference: the embeddings from before, whichever byte of the file is damaged; the file in the warning."""
    cache = EmbeddingCache(tiny_encoder, tmp_path)
    expected = np.array(cache.encode_document(TEXTS[:2]))
    (path,) = tmp_path.rglob("*.npy")
    content = path.read_bytes()
    flipped = [*range(128), *range(128, len(content), 41), len(content) - 1]  # the header has 128 bytes
    for at in flipped:
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << at % 7]) + content[at + 1 :])
        np.testing.assert_array_equal(cache.encode_document(TEXTS[:2]), expected)
        assert path.read_bytes() == content
        assert f"{path} is damaged, and its texts are embedded again" in caplog.text
        caplog.clear()
    assert embedded == TEXTS[:2] * (1 + len(flipped))


def test_a_file_that_cannot_be_written_has_the_systems_error(
    tiny_encoder: SentenceTransformer, tmp_path: Path
) -> None:
    """Reference: the number of the error, which numpy loses, where a file may have 256 bytes; no half file is left."""
    cache = EmbeddingCache(tiny_encoder, tmp_path, progress=None)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (256, hard))
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)) as caught:
            cache.encode_document(TEXTS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_embeddings_without_a_checksum_are_read(
    tiny_encoder: SentenceTransformer, embedded: list[str], tmp_path: Path
) -> None:
    """Reference: the file as numpy alone writes it and an older version wrote it."""
    cache = EmbeddingCache(tiny_encoder, tmp_path)
    expected = np.array(cache.encode_document(TEXTS[:2]))
    (path,) = tmp_path.rglob("*.npy")
    np.save(path, expected)
    np.testing.assert_array_equal(cache.encode_document(TEXTS[:2]), expected)
    assert embedded == TEXTS[:2]


class _Process:
    """One of two threads that stand for two processes."""

    num_processes = 2

    def __init__(self, process_index: int, barrier: threading.Barrier) -> None:
        self.process_index, self.barrier = process_index, barrier

    def wait_for_everyone(self) -> None:
        self.barrier.wait()


def test_several_processes_share_the_parts(
    tiny_encoder: SentenceTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: every text is embedded by one of them alone, and each gets all embeddings."""
    monkeypatch.setattr(embedding_cache, "PART", 2)
    barrier, seen, found = threading.Barrier(2, timeout=120), ([], []), {}  # type: ignore[var-annotated]

    def work(rank: int) -> None:
        cache = EmbeddingCache(tiny_encoder, tmp_path, processes=_Process(rank, barrier))
        real = cache._embed

        def embed(given: Texts) -> np.ndarray:
            seen[rank].extend(given.texts)
            return real(given)

        cache._embed = embed  # type: ignore[assignment, method-assign]
        found[rank] = cache.encode_document(TEXTS)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == ([*TEXTS[:2], TEXTS[4]], TEXTS[2:4])
    files = EmbeddingCache(tiny_encoder, tmp_path).document_files(TEXTS)
    np.testing.assert_array_equal(np.concatenate([np.load(file) for file in files]), found[0])
    for rank in range(2):
        np.testing.assert_allclose(found[rank], tiny_encoder.encode_document(TEXTS), atol=1e-6)


def test_what_was_not_used_for_longest_is_removed(
    tiny_encoder: SentenceTransformer, embedded: list[str], tmp_path: Path
) -> None:
    """Reference: sizes and times of the files; what was read last stays."""
    cache = EmbeddingCache(tiny_encoder, tmp_path)
    cache.encode_document(TEXTS)
    files = sorted(tmp_path.rglob("*.npy"))
    for path in files:
        os.utime(path, (1_000_000, 1_000_000))
    cache.encode_document(TEXTS[:2])
    (used,) = [path for path in files if path.stat().st_mtime > 1_000_000]
    size = sum(path.stat().st_size for path in files)
    assert trim(tmp_path, size) == 0
    assert trim(tmp_path, size - 1) == 1
    assert trim(tmp_path, used.stat().st_size) == 1
    assert list(tmp_path.rglob("*.npy")) == [used]
    (tmp_path / "mine").mkdir()
    foreign = [tmp_path / "vectors.npy", tmp_path / "mine" / "vectors.npy", used.with_name("vectors.npy")]
    for path in foreign:
        np.save(path, np.zeros(3))
    assert trim(tmp_path, 0) == 1
    assert sorted(tmp_path.rglob("*.npy")) == sorted(foreign)
    assert trim(tmp_path / "nothing", 0) == 0


def test_a_cache_removes_nothing_of_others(
    tiny_encoder: SentenceTransformer, embedded: list[str], tmp_path: Path
) -> None:
    """Reference: the folder of a collection that has the name of a cache, with a cache in it; and a cache alone."""
    for name in ("theirs", "own"):
        EmbeddingCache(tiny_encoder, tmp_path / name).encode_document(TEXTS)
    (tmp_path / "theirs" / "corpus.jsonl").write_text("{}")
    for name in ("theirs", "own", "nothing"):
        remove_cache(tmp_path / name)
    assert [path.name for path in tmp_path.rglob("*")] == ["theirs", "corpus.jsonl"]


def test_another_encoder_is_embedded_anew(
    tiny_encoder: SentenceTransformer, tiny_encoder_folder: Path, tmp_path: Path
) -> None:
    """Reference: the encoder itself, whose texts are cut on the other side; see also `test_content.py`."""
    cut = SentenceTransformer(str(tiny_encoder_folder), device="cpu")
    for encoder in (tiny_encoder, cut):
        encoder.max_seq_length = 5
    cut.tokenizer.truncation_side = "left"
    for encoder in (tiny_encoder, cut, tiny_encoder):
        found = EmbeddingCache(encoder, tmp_path).encode_document(TEXTS)
        np.testing.assert_allclose(found, encoder.encode_document(TEXTS), atol=1e-6)
    assert len(list(tmp_path.rglob("*.npy"))) == 2
