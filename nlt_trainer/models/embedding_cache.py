"""Embeddings of documents on disk, by content: what was embedded once is read the next time."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from tqdm.auto import tqdm

from nlt_trainer.files import atomic_write_bytes
from nlt_trainer.models.locations import cache_folder

PART = 512
"""Documents in one file: as many are lost by a kill, and embedded anew after a change of one of them."""


class EmbeddingCache:
    """Embeds documents with an encoder and keeps the embeddings, one `.npy` file for each `PART` of them.

    A file's name is a hash of its texts, its folder's a hash of everything of the encoder that an embedding depends
    on: neither another checkpoint under the same name nor a changed corpus is ever served old embeddings.

    Args:
        encoder: the encoder; documents are embedded with its `document` prompt.
        folder: created when missing; `None` means `embeddings` in the user's cache (`NLT_CACHE`).

    Example:
        ```python
        embeddings = EmbeddingCache(SentenceTransformer("runs/demo/dream/encoder")).documents(["A text.", "Another."])
        ```
    """

    def __init__(self, encoder: SentenceTransformer, folder: str | Path | None = None) -> None:
        root = cache_folder() / "embeddings" if folder is None else Path(folder).expanduser()
        self.encoder = encoder
        self.folder = root / encoder_fingerprint(encoder)

    def documents(self, texts: Sequence[str], *, batch_size: int = 32) -> np.ndarray:
        """Embeddings of texts: `(N, H)` float32, in their order; shows progress where some are not there yet."""
        return np.concatenate([np.load(file) for file in self.files(texts, batch_size=batch_size)])

    def files(self, texts: Sequence[str], *, batch_size: int = 32, process: int = 0, processes: int = 1) -> list[Path]:
        """The same as files of `PART` documents each; of several processes each embeds its share of the files."""
        parts = [list(texts[start : start + PART]) for start in range(0, len(texts), PART)]
        files = [self.folder / f"{_hash_texts(part)}.npy" for part in parts]
        share = list(zip(parts, files, strict=True))[process::processes]  # drawn first: others' files appear meanwhile
        missing = [(part, file) for part, file in share if not file.is_file()]
        total = sum(len(part) for part, _ in missing)
        with tqdm(total=total, unit="doc", desc="embedding documents", disable=not missing) as bar:
            for part, file in missing:
                with atomic_write_bytes(file) as handle:
                    np.save(handle, self._embed(part, batch_size))
                bar.update(len(part))
        return files

    def _embed(self, texts: list[str], batch_size: int) -> np.ndarray:
        options: dict[str, Any] = {"batch_size": batch_size, "convert_to_tensor": True, "show_progress_bar": False}
        with torch.inference_mode():
            return self.encoder.encode_document(texts, **options).float().cpu().numpy()


def encoder_fingerprint(encoder: SentenceTransformer) -> str:
    """Hash of an encoder's weights, modules, tokenizer and prompts (16 hex digits)."""
    digest = hashlib.blake2b(digest_size=8)
    prompts = (encoder.prompts, encoder.default_prompt_name)
    digest.update(repr((str(encoder), encoder.max_seq_length, encoder.truncate_dim, prompts)).encode())
    tokenizer: Any = encoder.tokenizer  # of a `StaticEmbedding` the bare one of the tokenizers library
    bare = tokenizer if isinstance(tokenizer, Tokenizer) else tokenizer.backend_tokenizer
    digest.update(bare.to_str().encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _hash_texts(texts: Sequence[str]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        data = text.encode()
        digest.update(b"%d:" % len(data) + data)
    return digest.hexdigest()
