"""Embeddings on disk, by content: what was embedded once is read the next time.

Nothing that is kept can be stale: any file can be removed at any time, and `trim` bounds their size.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor
from tqdm.auto import tqdm

from nlt_trainer.content import encoder_content
from nlt_trainer.files import atomic_write_bytes, cache_folder
from nlt_trainer.lm.score_cache import ScoreCache

PART = 512
"""Texts in one file: as many are lost by a kill, and embedded anew after a change of one of them."""

Role = Literal["query", "document"]


class Processes(Protocol):
    """Those among which parts are divided, as `accelerate.PartialState` has them; all of them see the folder."""

    @property
    def process_index(self) -> int: ...

    @property
    def num_processes(self) -> int: ...

    def wait_for_everyone(self) -> None: ...


class EmbeddingCache:
    """Embeds with an encoder and keeps the embeddings, one `.npy` file for each `PART` of the texts.

    A file's name is a hash of prompt and texts, its folder's a hash of everything of the encoder that an embedding
    depends on: neither another checkpoint under the same name nor a changed corpus is ever served old embeddings.

    Args:
        encoder: the encoder.
        folder: created when missing; `None` means `embeddings` in the user's cache (`NLT_CACHE`).
        processes: that share the work, each calling the same methods with the same texts; `None` means this one alone.
        progress: what a bar says where something is not there yet; `None` shows no bar.

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
        progress: str | None = "embedding",
    ) -> None:
        root = cache_folder() / "embeddings" if folder is None else Path(folder).expanduser()
        self.encoder, self.processes, self.progress = encoder, processes, progress
        self.folder = root / encoder_content(encoder)

    def encode_query(
        self, texts: Sequence[str], *, prompt: str | None = None, batch_size: int = 32, **options: Any
    ) -> np.ndarray:
        """Embeddings of queries: `(N, H)` float32, in their order.

        Args:
            texts: the queries.
            prompt: put before each; `None` means the encoder's own for queries.
            batch_size: texts embedded at once.
            **options: taken and not used, so that this can stand for the encoder's own method.
        """
        return self._encode("query", texts, prompt, batch_size)

    def encode_document(
        self, texts: Sequence[str], *, prompt: str | None = None, batch_size: int = 32, **options: Any
    ) -> np.ndarray:
        """Embeddings of documents; see `encode_query`."""
        return self._encode("document", texts, prompt, batch_size)

    def similarity(self, queries: Any, documents: Any) -> Tensor:
        """Similarities `(number of queries, number of documents)` by the encoder's own function."""
        return self.encoder.similarity(torch.as_tensor(queries), torch.as_tensor(documents))

    def document_files(self, texts: Sequence[str], *, batch_size: int = 32) -> list[Path]:
        """Files with the embeddings of `PART` documents each, `(n, H)` float32, in their order."""
        return self._files("document", texts, None, batch_size)

    def _encode(self, role: Role, texts: Sequence[str], prompt: str | None, batch_size: int) -> np.ndarray:
        files = self._files(role, texts, prompt, batch_size)
        first = np.load(files[0], mmap_mode="c")  # c: it may be written into, the file stays
        if len(files) == 1:
            return first
        found = np.empty((len(texts), first.shape[1]), first.dtype)
        for i, file in enumerate(files):  # one after another: a process may not have all of them mapped at once
            found[i * PART : (i + 1) * PART] = np.load(file)
        return found

    def _files(self, role: Role, texts: Sequence[str], prompt: str | None, batch_size: int) -> list[Path]:
        """Files that are there are mapped, not read; one that is damaged is made again."""
        parts = [list(texts[start : start + PART]) for start in range(0, len(texts), PART)]
        named = self.encoder.prompts.get(role) if prompt is None else prompt
        files = [self.folder / f"{ScoreCache.key(role, named or '', *part).hex()}.npy" for part in parts]
        missing = [i for i, (part, file) in enumerate(zip(parts, files, strict=True)) if _read(file, part) is None]
        mine = missing
        if self.processes is not None:
            self.processes.wait_for_everyone()  # until each has listed what is missing: all divide the same list
            mine = missing[self.processes.process_index :: self.processes.num_processes]
        with tqdm(
            total=sum(len(parts[i]) for i in mine),
            unit="text",
            desc=f"{self.progress}: {'queries' if role == 'query' else 'documents'}",
            disable=self.progress is None or not mine,
        ) as bar:
            for i in mine:
                with atomic_write_bytes(files[i]) as handle:
                    np.save(handle, self._embed(role, parts[i], prompt, batch_size))
                bar.update(len(parts[i]))
        if self.processes is not None:
            self.processes.wait_for_everyone()
        return files

    @torch.inference_mode()
    def _embed(self, role: Role, texts: list[str], prompt: str | None, batch_size: int) -> np.ndarray:
        encode = self.encoder.encode_query if role == "query" else self.encoder.encode_document
        options: dict[str, Any] = {"batch_size": batch_size, "convert_to_tensor": True, "show_progress_bar": False}
        return encode(texts, prompt=prompt, **options).float().cpu().numpy()


def _read(file: Path, texts: list[str]) -> np.ndarray | None:
    """A file's embeddings, mapped, and the file marked as used now; `None` where it is not there, or damaged."""
    try:
        array = np.load(file, mmap_mode="r")
        file.touch()
    except (OSError, ValueError, EOFError):
        return None
    return array if len(array) == len(texts) else None


def trim(folder: str | Path, max_bytes: float) -> int:
    """Remove the embeddings under a folder that were used longest ago, until at most `max_bytes` are left.

    Returns:
        How many files were removed.
    """
    files = sorted(((path.stat(), path) for path in Path(folder).rglob("*.npy")), key=lambda f: f[0].st_mtime)
    excess, removed = sum(stat.st_size for stat, _ in files) - max_bytes, 0
    for stat, path in files:
        if excess <= 0:
            break
        path.unlink(missing_ok=True)
        excess, removed = excess - stat.st_size, removed + 1
    return removed
