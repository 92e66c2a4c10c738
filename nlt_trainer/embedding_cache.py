"""Embeddings on disk, by content: what was embedded once is read from a file the next time.

A file holds one chunk of texts of one encoder, under a hash of the encoder's content, the prompt and the texts.
Nothing in it can be stale, a killed run loses the chunk that it was at, and any file can be removed at any time.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor
from tqdm.auto import tqdm

CHUNK_TEXTS = 512
"""Texts of a file; also what several processes divide among themselves."""


class EmbeddingCache:
    """A folder of embeddings.

    Args:
        folder: created when something is stored.
        rank: of this process; it embeds every `num_processes`-th chunk.
        num_processes: how many processes share the work; all of them see `folder`.
        wait: waits until every process has called it.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        rank: int = 0,
        num_processes: int = 1,
        wait: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder = Path(folder)
        self.rank, self.num_processes, self.wait = rank, num_processes, wait

    def embed(
        self, texts: Sequence[str], embed: Callable[[list[str]], np.ndarray], *, key: str, progress: str | None = None
    ) -> np.ndarray:
        """Return embeddings of texts, from the folder where it has them.

        Args:
            texts: the texts; several processes give the same.
            embed: texts -> float32 `(n, H)`; called for the chunks that are missing.
            key: names the encoder and the prompt by content.
            progress: what a progress bar says; `None` shows none.

        Returns:
            float32 `(len(texts), H)`; mapped into memory, not read, where it is a single chunk.
        """
        chunks = [list(texts[start : start + CHUNK_TEXTS]) for start in range(0, len(texts), CHUNK_TEXTS)]
        paths = [self._path(key, chunk) for chunk in chunks]
        missing = [i for i, path in enumerate(paths) if not path.is_file()]
        self.wait()  # until every process has listed what is missing: all divide the same list
        mine = missing[self.rank :: self.num_processes]
        for i in tqdm(mine, desc=progress, unit="chunk", disable=progress is None or not mine):
            _store(paths[i], embed(chunks[i]))
        self.wait()
        parts = [self._load(path, chunk, embed) for path, chunk in zip(paths, chunks, strict=True)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def trim(self, max_bytes: float) -> int:
        """Remove the files that were used longest ago until at most `max_bytes` are left; returns how many."""
        files = sorted(((path.stat(), path) for path in self.folder.rglob("*.npy")), key=lambda f: f[0].st_mtime)
        excess, removed = sum(stat.st_size for stat, _ in files) - max_bytes, 0
        for stat, path in files:
            if excess <= 0:
                break
            path.unlink(missing_ok=True)
            excess, removed = excess - stat.st_size, removed + 1
        return removed

    def _path(self, key: str, chunk: list[str]) -> Path:
        digest = hashlib.blake2b(digest_size=16)
        for text in chunk:
            data = text.encode()
            digest.update(b"%d:" % len(data) + data)
        folder = hashlib.blake2b(key.encode(), digest_size=8).hexdigest()
        return self.folder / folder / f"{digest.hexdigest()}.npy"

    def _load(self, path: Path, chunk: list[str], embed: Callable[[list[str]], np.ndarray]) -> np.ndarray:
        """A chunk's file, mapped; one that is damaged is made again."""
        try:
            array = np.load(path, mmap_mode="c")  # read only as long as nobody writes into it
            path.touch()  # used now: `trim` removes the oldest
        except (OSError, ValueError, EOFError):
            array = np.empty((0, 0), np.float32)
        if len(array) != len(chunk):
            _store(path, embed(chunk))
            array = np.load(path, mmap_mode="c")
        return array


def _store(path: Path, array: np.ndarray) -> None:
    """Write an array beside its name, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with partial.open("wb") as handle:
            np.save(handle, np.ascontiguousarray(array, dtype=np.float32))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


class CachedEncoder:
    """An encoder whose embeddings of queries and documents go through the cache.

    It has the three methods of `SentenceTransformer` that mteb's wrapper calls.

    Args:
        encoder: the encoder; its own similarity function compares embeddings.
        fingerprint: of the encoder's content and settings.
        cache: where embeddings are kept.
        progress: what a progress bar names the encoder.
    """

    def __init__(
        self,
        encoder: SentenceTransformer,
        *,
        fingerprint: str,
        cache: EmbeddingCache,
        progress: str | None = None,
    ) -> None:
        self.encoder = encoder
        self.fingerprint, self.cache, self.progress = fingerprint, cache, progress

    def encode_query(self, texts: Sequence[str], *, prompt: str | None = None, **options: Any) -> np.ndarray:
        """Embeddings `(n, H)` of queries."""
        return self._encode("query", texts, prompt, options)

    def encode_document(self, texts: Sequence[str], *, prompt: str | None = None, **options: Any) -> np.ndarray:
        """Embeddings `(n, H)` of documents."""
        return self._encode("document", texts, prompt, options)

    def similarity(self, queries: Any, documents: Any) -> Tensor:
        """Similarities `(number of queries, number of documents)` by the encoder's own function."""
        return self.encoder.similarity(torch.as_tensor(queries), torch.as_tensor(documents))

    def _encode(self, role: str, texts: Sequence[str], prompt: str | None, options: dict[str, Any]) -> np.ndarray:
        encode = self.encoder.encode_query if role == "query" else self.encoder.encode_document

        def embed(chunk: list[str]) -> np.ndarray:
            return encode(chunk, prompt=prompt, **{**options, "show_progress_bar": False})

        key = f"{self.fingerprint} {role} {prompt!r} {self.encoder.prompts if prompt is None else None}"
        progress = (
            None if self.progress is None else f"{self.progress}, {'queries' if role == 'query' else 'documents'}"
        )
        return self.cache.embed(texts, embed, key=key, progress=progress)
