"""Rankings of a corpus by an encoder's cosines: exact, with what is computed on disk and memory that does not grow.

The corpus is encoded and searched in shards; a document's embedding needs 4 bytes a dimension on disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import faiss
import numpy as np
import torch
from faiss.contrib.exhaustive_search import knn_ground_truth
from sentence_transformers import SentenceTransformer
from torch import nn
from tqdm.auto import tqdm

from nlt_trainer.data.beir import Collection, Query
from nlt_trainer.errors import NLTError
from nlt_trainer.files import atomic_write_bytes

SHARD_DOCUMENTS = 4096
COSINE_ERROR = 1e-5
"""Above what float32 makes of the cosine of two unit vectors; cosines that are nearer are told apart in float64."""


class CorpusEmbeddings:
    """Unit-length embeddings of a corpus, in shards on disk; a hash of encoder and texts names their folder.

    Args:
        encoder: the encoder; its `document` and `query` prompts are used.
        collection: the corpus.
        folder: where the hash's folder stands; a call that was killed goes on in it.

    Example:
        ```python
        embeddings = CorpusEmbeddings(encoder, collection, "embeddings")
        embeddings.compute()
        rankings = embeddings.rank(queries, top_k=8)  # indices into the corpus
        ```
    """

    def __init__(self, encoder: SentenceTransformer, collection: Collection, folder: str | Path) -> None:
        self.encoder = encoder
        self.contents = [document.content for document in collection.corpus.values()]
        self.folder = Path(folder, _content_key(encoder, self.contents))

    @property
    def files(self) -> list[Path]:
        """The shards, in corpus order, whether they are there or not."""
        return [self.folder / f"{start}.npy" for start in range(0, len(self.contents), SHARD_DOCUMENTS)]

    def compute(self, *, process: int = 0, processes: int = 1) -> None:
        """Encode the shards that are missing; of several processes each takes its part.

        Raises:
            NLTError: an embedding is not finite.
        """
        share = list(enumerate(self.files))[process::processes]  # drawn first: others' files appear meanwhile
        missing = [(i, file) for i, file in share if not file.is_file()]
        with tqdm(total=len(missing), unit="shard", desc="encoding", disable=len(missing) < 2) as bar:
            for i, file in missing:
                texts = self.contents[i * SHARD_DOCUMENTS : (i + 1) * SHARD_DOCUMENTS]
                with atomic_write_bytes(file) as handle:
                    np.save(handle, self._encode(texts, document=True))
                bar.update()

    def rank(self, queries: Sequence[Query], *, top_k: int) -> list[list[int]]:
        """For each query the indices of the `top_k` documents of the highest cosine, best first, ties in corpus order.

        Raises:
            NLTError: an embedding is not finite.
        """
        shards = [np.load(file, mmap_mode="r") for file in self.files]
        return nearest(self._encode([query.text for query in queries], document=False), shards, top_k=top_k)

    @torch.inference_mode()
    def _encode(self, texts: list[str], *, document: bool) -> np.ndarray:
        encode = self.encoder.encode_document if document else self.encoder.encode_query
        found = encode(texts, convert_to_tensor=True, show_progress_bar=False)
        unit = nn.functional.normalize(found.float(), dim=-1).cpu().numpy()  # (N, D)
        if not np.isfinite(unit).all():
            bad = texts[int((~np.isfinite(unit)).any(1).argmax())]
            raise NLTError(f"the encoder's embedding of {bad[:60]!r} is infinite or NaN; mine with another encoder")
        return unit


def nearest(queries: np.ndarray, shards: Sequence[np.ndarray], *, top_k: int) -> list[list[int]]:
    """Exact search by inner product; one shard at a time is in memory.

    Args:
        queries: `(B, D)` float32, of unit length.
        shards: `(n, D)` float32 each, of unit length; all but the last have as many rows as the first.
        top_k: documents a query, at most as many as there are.

    Returns:
        B lists of row numbers counted over all shards, best first, ties in their order. Rows are compared in float64,
        so that neither the other queries nor the shards change an order.
    """
    total = sum(map(len, shards))
    rankings: list[list[int]] = [[] for _ in queries]
    open_queries, width = np.arange(len(queries)), min(2 * top_k, total)
    while len(open_queries):
        cosines, found = knn_ground_truth(
            queries[open_queries], iter(shards), width, metric_type=faiss.METRIC_INNER_PRODUCT
        )  # (B, width) each
        # what ties with the last one that is wanted may lie outside: such queries are searched again, twice as wide
        whole = (cosines[:, -1] < cosines[:, top_k - 1] - COSINE_ERROR) | (width == total)
        for b, rows in zip(open_queries[whole], found[whole], strict=True):
            rankings[b] = _in_order(queries[b], np.sort(rows), shards)[:top_k]
        open_queries, width = open_queries[~whole], min(2 * width, total)
    return rankings


def _in_order(query: np.ndarray, rows: np.ndarray, shards: Sequence[np.ndarray]) -> list[int]:
    """Sorted row numbers by their cosine in float64, the highest first."""
    vectors = np.stack([shards[row // len(shards[0])][row % len(shards[0])] for row in rows])  # (width, D)
    cosines = (vectors.astype(np.float64) * query).sum(1)  # no matrix product: equal rows get equal sums
    return rows[np.argsort(-cosines, kind="stable")].tolist()


def _content_key(encoder: SentenceTransformer, contents: Sequence[str]) -> str:
    """Hash of weights, settings and texts (16 hex digits)."""
    settings = (str(encoder), encoder.prompts, encoder.max_seq_length, encoder.truncate_dim, SHARD_DOCUMENTS)
    digest = hashlib.blake2b(repr(settings).encode(), digest_size=8)
    for name, weight in encoder.state_dict().items():
        digest.update(name.encode())
        digest.update(weight.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    for content in contents:
        digest.update(repr(content).encode())
    return digest.hexdigest()
