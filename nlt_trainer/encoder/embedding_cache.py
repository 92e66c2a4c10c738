"""Keep embeddings on disk, so that texts which were embedded once are read the next time.

Files are named by the content of encoder and texts, so they are never out of date. Each ends in a checksum, so that
damaged embeddings are never used. Any file can be removed at any time, and `trim` limits their total size.
"""

from __future__ import annotations

import hashlib
import io
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor
from tqdm.auto import tqdm

from nlt_trainer.content import encoder_content
from nlt_trainer.encoder.embedding import EncoderForWorkers, Role, Texts, embed
from nlt_trainer.files import atomic_write_bytes, cache_folder, sweep
from nlt_trainer.lm.score_cache import ScoreCache
from nlt_trainer.ray_workers import RayWorkers

logger = logging.getLogger(__name__)

PART = 512
"""Texts in one file. A kill loses at most so many, and a change of one text means that so many are embedded again."""

OWN = re.compile(r"[0-9a-f]+(-bf16)?/[0-9a-f]{32}\.(npy|faiss)")
"""Names of the cache's files, with their folders: embeddings, and indexes of them."""


class Processes(Protocol):
    """The processes that share the work, as `accelerate.PartialState` describes them; all must see the folder."""

    @property
    def process_index(self) -> int: ...

    @property
    def num_processes(self) -> int: ...

    def wait_for_everyone(self) -> None: ...


class EmbeddingCache:
    """Embeds texts with an encoder and keeps the embeddings, one `.npy` file for each `PART` texts.

    The name of a file is a hash of the prompt and the texts. The name of its folder is a hash of everything in the
    encoder on which an embedding depends. Another checkpoint with the same name, or a changed corpus, therefore never
    gets old embeddings. Embeddings that were computed in bfloat16 have a folder of their own.

    Args:
        encoder: the encoder.
        folder: folder of the files, which is created if missing; `None` means `embeddings` in the user's cache
            (`NLT_CACHE`).
        processes: the processes that share the work; each must call the same methods with the same texts. `None` means
            this process alone.
        workers: workers of Ray, which embed in the place of this process; `None` means that it embeds itself.
        bf16: whether the encoder multiplies in bfloat16, under autocast. A CPU with AMX embeds three times as fast,
            and the embeddings of all-MiniLM-L6-v2 keep a cosine of 0.9999 with those of float32.
        progress: title of the progress bar that is shown while texts are embedded; `None` shows no bar.
        name: what an error calls the encoder.

    Example:
        ```python
        cache = EmbeddingCache(SentenceTransformer("runs/demo/dream/encoder"))
        embeddings = cache.encode_document(["A text.", "Another."])
        ```
    """

    def __init__(
        self,
        encoder: SentenceTransformer,
        folder: str | Path | None = None,
        *,
        processes: Processes | None = None,
        workers: RayWorkers | None = None,
        bf16: bool = False,
        progress: str | None = "embedding",
        name: str = "the encoder",
    ) -> None:
        root = cache_folder() / "embeddings" if folder is None else Path(folder).expanduser()
        self.encoder, self.processes, self.workers = encoder, processes, workers
        self.bf16, self.progress, self.name = bf16, progress, name
        self.folder = root / (encoder_content(encoder) + ("-bf16" if bf16 else ""))

    def encode_query(
        self, texts: Sequence[str], *, prompt: str | None = None, batch_size: int = 32, **options: Any
    ) -> np.ndarray:
        """Embeddings of queries: `(N, H)` float32, in the order of the queries.

        Args:
            texts: the queries.
            prompt: text before each query; `None` means the encoder's own prompt for queries.
            batch_size: texts embedded at once.
            **options: ignored; they are accepted so that this method can replace the encoder's own.
        """
        return self._encode("query", texts, prompt, batch_size)

    def encode_document(
        self, texts: Sequence[str], *, prompt: str | None = None, batch_size: int = 32, **options: Any
    ) -> np.ndarray:
        """Embeddings of documents; see `encode_query`."""
        return self._encode("document", texts, prompt, batch_size)

    def similarity(self, queries: Any, documents: Any) -> Tensor:
        """Similarities `(number of queries, number of documents)`, computed by the encoder's own function."""
        return self.encoder.similarity(torch.as_tensor(queries), torch.as_tensor(documents))

    def document_files(self, texts: Iterable[str], *, batch_size: int = 32) -> list[Path]:
        """Files with the embeddings of `PART` documents each, `(n, H)` float32, in the order of the documents.

        Args:
            texts: the documents, such as `Contents`; they are iterated over twice, and `PART` of them are kept.
            batch_size: texts embedded at once.
        """
        return self._files("document", texts, None, batch_size)

    def _encode(self, role: Role, texts: Sequence[str], prompt: str | None, batch_size: int) -> np.ndarray:
        files = self._files(role, texts, prompt, batch_size)
        first = np.load(files[0], mmap_mode="c")  # mode c: callers may change the array, but not the file
        if len(files) == 1:
            return first
        found = np.empty((len(texts), first.shape[1]), first.dtype)
        for i, file in enumerate(files):  # one after another, because a process may map only so many files at once
            found[i * PART : (i + 1) * PART] = np.load(file)
        return found

    def _files(self, role: Role, texts: Iterable[str], prompt: str | None, batch_size: int) -> list[Path]:
        """The files of all texts. Those that are missing or damaged are made."""
        named = self.encoder.prompts.get(role) if prompt is None else prompt
        files, missing = list[Path](), dict[int, int]()
        for i, part in enumerate(_parts(texts)):
            files.append(self.folder / f"{ScoreCache.key(role, named or '', *part).hex()}.npy")
            if not _is_whole(files[i], len(part)):
                missing[i] = len(part)
        mine = missing
        if self.processes is not None:
            self.processes.wait_for_everyone()  # all must list what is missing before one writes: they divide one list
            mine = {i: missing[i] for i in [*missing][self.processes.process_index :: self.processes.num_processes]}
        with tqdm(
            total=sum(mine.values()),
            unit="text",
            desc=f"{self.progress}: {'queries' if role == 'query' else 'documents'}",
            disable=self.progress is None or not mine,
        ) as bar:
            parts = enumerate(_parts(texts))
            asked = ((i, Texts(role, part, prompt, batch_size)) for i, part in parts if i in mine)
            for i, array in self._embedded(asked) if mine else ():
                _write(files[i], array)
                bar.update(len(array))
        if self.processes is not None:
            self.processes.wait_for_everyone()
        return files

    def _embedded(self, parts: Iterable[tuple[int, Texts]]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the number of each part with its embeddings, as this process or workers of Ray make them."""
        if self.workers is None:
            yield from ((i, self._embed(part)) for i, part in parts)
            return
        numbers: list[int] = []

        def blocks() -> Iterator[Texts]:
            for i, part in parts:
                numbers.append(i)
                yield part

        make = EncoderForWorkers(self.encoder, bf16=self.bf16, name=self.name)
        for place, array in self.workers.task(make).results(blocks()):
            yield numbers[place], array

    def _embed(self, texts: Texts) -> np.ndarray:
        return embed(self.encoder, texts, bf16=self.bf16, name=self.name)


def _parts(texts: Iterable[str]) -> Iterator[list[str]]:
    every = iter(texts)
    while part := list(islice(every, PART)):
        yield part


def _write(file: Path, array: np.ndarray) -> None:
    """Write a `.npy` file with a checksum behind its array, where `np.load` reads nothing."""
    npy = io.BytesIO()
    np.save(npy, array)
    with atomic_write_bytes(file) as handle:
        handle.write(npy.getvalue() + _checksum(npy.getvalue()))


def _checksum(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _is_whole(file: Path, number: int) -> bool:
    """Whether a file has so many embeddings and is as it was written; marks it as just used.

    A file that an older version wrote has no checksum, and may have embeddings that are not finite.
    """
    if not file.is_file():
        return False
    try:
        array, data = np.load(file, mmap_mode="r"), file.read_bytes()
        end = array.offset + array.nbytes
        whole = len(array) == number and data[end:] in (b"", _checksum(data[:end])) and bool(np.isfinite(array).all())
    except Exception:  # numpy raises errors without a common base for a damaged header
        whole = False
    if whole:
        file.touch()
    else:
        logger.warning("%s is damaged, and its texts are embedded again", file)
    return whole


def remove_cache(folder: str | Path) -> None:
    """Remove a cache's folder, but for files in it that no `EmbeddingCache` has written."""
    sweep(folder, below=True)
    trim(folder, 0)
    for place in (*Path(folder).glob("*/"), Path(folder)):
        with suppress(OSError):  # it is not empty, or there is none
            place.rmdir()


def trim(folder: str | Path, max_bytes: float) -> int:
    """Remove the embeddings in a cache's folder that were used longest ago, until at most `max_bytes` are left.

    Indexes of embeddings count and are removed like them.

    Files whose names an `EmbeddingCache` does not give stay, and do not count.

    Returns:
        The number of files that were removed.
    """
    own = (path for path in Path(folder).glob("*/*.*") if OWN.fullmatch("/".join(path.parts[-2:])))
    files = sorted(((path.stat(), path) for path in own), key=lambda f: f[0].st_mtime)
    excess, removed = sum(stat.st_size for stat, _ in files) - max_bytes, 0
    for stat, path in files:
        if excess <= 0:
            break
        path.unlink(missing_ok=True)
        excess, removed = excess - stat.st_size, removed + 1
    return removed
