"""Approximate search: an index of FAISS proposes documents, which are then compared with the query exactly.

Neither the embeddings nor their comparisons with all queries are ever in memory together. What the index holds of a
document is smaller than its embedding, and it is made of the embeddings' files one after another.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from nlt_trainer.encoder.embedding_cache import EmbeddingCache
from nlt_trainer.encoder.search import best, nearest
from nlt_trainer.files import atomic_write_bytes

logger = logging.getLogger(__name__)

INDEXED_FROM = 10_000
"""Number of documents from which an index is made; fewer are compared in less time than training an index takes."""
PROPOSED, SHARE_PROPOSED = 400, 20
"""Documents that the index proposes for each query: so many at least, and so many times those that are wanted."""
QUERIES, PAIRS = 4096, 8192
"""Queries for which the embeddings' files are read at once, and pairs with documents that are compared at once."""
LISTS, LISTS_SEARCHED, SAMPLE = 2.0, 256, 64
"""`ivf_pq` has `LISTS` times the root of the number of documents lists, of which it searches `LISTS_SEARCHED`, and is
trained on `SAMPLE` documents for each list.

The share of the nearest 100 that it finds among 92,090 passages of 17 collections, in embeddings of a table encoder
that was made of an LLM's (576 dimensions), for 170 queries of these collections:

| proposals | lists searched of 607 | found |
|---|---|---|
| 400 | 64 | 0.859 |
| 1,000 | 128 | 0.944 |
| 2,000 | 128 | 0.954 |
| 2,000 | 256 | 0.980 |

HNSW of codes with a byte for each dimension (M 32, efConstruction 80, efSearch as many as proposals) found 0.913 with
2,000 proposals and 0.944 with 4,000, in a larger file, and is therefore no choice here.
"""
CODE_DIMENSIONS = 8
"""Dimensions of an embedding that share a byte in `ivf_pq`, or the next lower power of two that divides its size."""


def approximate(queries: Tensor, files: Sequence[Path], *, cache: EmbeddingCache, top_k: int) -> list[list[int]]:
    """Find documents of nearly the highest similarity to each query; fewer than `INDEXED_FROM` are all compared.

    Args:
        queries: embeddings `(B, H)`, float32 on the CPU.
        files: those of the documents' embeddings, from `EmbeddingCache.document_files`; the index lies beside them.
        cache: what has made them; its encoder must rank documents as the cosine does.
        top_k: documents for each query; fewer if fewer are found.

    Returns:
        The documents' numbers for each query, which count over all files, best first.
    """
    if sum(_lengths(files)) < INDEXED_FROM:
        parts = (torch.from_numpy(np.load(file)) for file in files)
        return nearest(queries, parts, top_k=top_k, similarity=cache.similarity)[1].tolist()
    found, proposing = [], _index(files, progress=cache.progress)
    depth = max(PROPOSED, SHARE_PROPOSED * top_k)
    proposing.nprobe = LISTS_SEARCHED
    for chunk in queries.split(QUERIES):
        _, rows = proposing.search(_unit(chunk.numpy()), depth)  # (b, depth); -1 where there are no more
        scores = _scores(chunk, rows, files, cache)
        _, chosen = best(scores, torch.from_numpy(rows), top_k)
        found += [[row for row in ranking if row >= 0] for ranking in chosen.tolist()]
    return found


def _scores(queries: Tensor, rows: np.ndarray, files: Sequence[Path], cache: EmbeddingCache) -> Tensor:
    """Similarity of each query `(b, H)` with its own documents `(b, depth)`: `(b, depth)` float32, -inf for row -1."""
    order = rows.argsort(axis=None, kind="stable")  # pairs in the order of documents, so that a file is read once
    sought = rows.ravel()[order]
    scores = torch.full((rows.size,), -math.inf)
    begin = 0
    for file in files:
        part = torch.from_numpy(np.load(file))
        own = slice(*np.searchsorted(sought, (begin, begin + len(part))))
        pairs, numbers = torch.from_numpy(order[own]), torch.from_numpy(sought[own] - begin)
        for some, chosen in zip(pairs.split(PAIRS), numbers.split(PAIRS), strict=True):
            asked, documents = queries[some // rows.shape[1]], part[chosen]  # query-major: pair b * depth + i
            scores[some] = cache.encoder.similarity_pairwise(asked.double(), documents.double()).float()
        begin += len(part)
    return scores.view(*rows.shape)


def _index(files: Sequence[Path], *, progress: str | None) -> Any:
    """The index of the embeddings, mapped from its file, which is made if it is missing or damaged."""
    settings = ("ivf_pq", faiss.__version__, LISTS, SAMPLE, CODE_DIMENSIONS)
    name = hashlib.blake2b(repr((settings, [file.stem for file in files])).encode(), digest_size=16).hexdigest()
    file = files[0].with_name(f"{name}.faiss")
    if not _is_whole(file):
        _write(file, _built(files, progress=progress))
    return faiss.read_index(str(file), faiss.IO_FLAG_MMAP_IFC)


def _built(files: Sequence[Path], *, progress: str | None) -> Any:
    number, width = sum(_lengths(files)), np.load(files[0], mmap_mode="r").shape[1]
    lists = round(LISTS * math.sqrt(number))
    dimensions = math.gcd(width, CODE_DIMENSIONS)
    index = faiss.index_factory(width, f"IVF{lists},PQ{width // dimensions}", faiss.METRIC_INNER_PRODUCT)
    index.cp.min_points_per_centroid = index.pq.cp.min_points_per_centroid = 1  # else FAISS writes a warning
    index.pq.cp.max_points_per_centroid = SAMPLE
    step = max(1, number // (SAMPLE * lists))
    index.train(np.concatenate([_unit(np.load(file)[::step]) for file in files]))
    with tqdm(total=number, unit="text", desc=f"{progress}: index", disable=progress is None) as bar:
        for part in map(np.load, files):
            index.add(_unit(part))
            bar.update(len(part))
    return index


def _lengths(files: Iterable[Path]) -> list[int]:
    return [len(np.load(file, mmap_mode="r")) for file in files]


def _unit(embeddings: np.ndarray) -> np.ndarray:
    """Embeddings of unit length `(n, H)`, whose inner products are cosines; zeros stay zeros."""
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return np.ascontiguousarray(embeddings / np.maximum(lengths, np.finfo(np.float32).tiny))


def _write(file: Path, index: Any) -> None:
    """Write an index with a checksum behind it, where FAISS reads nothing."""
    digest = hashlib.blake2b(digest_size=16)
    with atomic_write_bytes(file) as handle:

        def write(data: bytes) -> int:
            digest.update(data)
            return handle.write(data)

        faiss.write_index(index, faiss.PyCallbackIOWriter(write))
        handle.write(digest.digest())


def _is_whole(file: Path) -> bool:
    """Whether an index is as it was written."""
    if not file.is_file():
        return False
    digest, left = hashlib.blake2b(digest_size=16), file.stat().st_size - 16
    with file.open("rb") as handle:
        while left > 0 and (data := handle.read(min(left, 1 << 20))):
            digest.update(data)
            left -= len(data)
        whole = handle.read() == digest.digest()
    if not whole:
        logger.warning("%s is damaged, and is made again", file)
    return whole
