"""BM25's score of each word in each document, made in blocks, so that neither texts nor tokens are in memory together.

The arrays are those that bm25s makes and stores (Lucene's formula), bit by bit. bm25s makes them of lists with all
tokens of the corpus. Here the documents are read once. What is counted in a block of them goes into a temporary file,
because a score depends on the lengths and the words of all documents. Then one block after another gets its scores.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any

import numpy as np

from nlt_trainer.text_files import read_json, write_json

K1, B = 1.5, 0.75
BLOCK = 1 << 20
"""Tokens after which a block ends. Sorting and scoring them takes about 100 MiB."""
SPOOLED = 64 << 20
"""Bytes of counts from which they go into a file."""
ZEROS = 1 << 20
"""Bytes that are written at once into a file before it is mapped."""
COUNTS = np.dtype([("word", np.int32), ("document", np.int32), ("count", np.int32)])
WORDS = "words.json"


@dataclass(frozen=True)
class BM25Matrix:
    """Scores in compressed columns, a column a word.

    Args:
        vocabulary: word -> number of its column; column 0 is of the empty word and has no score.
        data: `(number of scores,)` float32.
        indices: the documents' numbers of `data`, ascending in each column, int32.
        indptr: `(number of words + 1,)` int64; the scores of column i are `data[indptr[i] : indptr[i + 1]]`.
        num_documents: number of documents.
    """

    vocabulary: dict[str, int]
    data: np.ndarray
    indices: np.ndarray
    indptr: np.ndarray
    num_documents: int

    def scores(self, tokens: Iterable[str]) -> np.ndarray:
        """Sum of the scores of some tokens for each document, float32 of shape `(number of documents,)`."""
        total = np.zeros(self.num_documents, np.float32)
        for word in (self.vocabulary[token] for token in tokens if token in self.vocabulary):
            column = slice(self.indptr[word], self.indptr[word + 1])
            total[self.indices[column]] += self.data[column]  # a document stands in a column once
        return total


def build(documents: Iterable[list[str]], folder: Path | None = None) -> BM25Matrix:
    """Score each word in each document.

    Args:
        documents: the tokens of each document, which are read once.
        folder: where the arrays are written as bm25s names them, and mapped; `None` keeps them in memory.
    """
    vocabulary, lengths, blocks, frequencies = {"": 0}, array("i"), 0, np.zeros(1, np.int64)
    with SpooledTemporaryFile(max_size=SPOOLED, dir=None if folder is None else str(folder)) as spool:
        for counts in _counted(documents, vocabulary, lengths):
            np.save(spool, counts)
            blocks, earlier = blocks + 1, frequencies
            frequencies = np.bincount(counts["word"], minlength=len(vocabulary))
            frequencies[: len(earlier)] += earlier
        indptr = np.concatenate([[0], np.cumsum(frequencies)])
        data, indices = (_array(name, int(indptr[-1]), kind, folder) for name, kind in _STORED.items())
        idf, places = _idf(frequencies, len(lengths)), indptr[:-1].copy()
        lengths_read = np.array(lengths, np.int64)
        mean = lengths_read.mean()
        spool.seek(0)
        for _ in range(blocks):
            counts = np.load(spool)
            word, document, tf = counts["word"], counts["document"], counts["count"].astype(np.float32)
            at = places[word] + np.arange(len(word)) - np.searchsorted(word, word)  # words ascend in a block
            indices[at] = document
            data[at] = idf[word] * (tf / (K1 * ((1 - B) + B * lengths_read[document] / mean) + tf))
            places += np.bincount(word, minlength=len(places))
    if folder is None:
        return BM25Matrix(vocabulary, data, indices, indptr, len(lengths))
    del data, indices  # writes what is mapped
    np.save(folder / _file("indptr"), indptr)
    write_json(folder / WORDS, {"documents": len(lengths), "words": list(vocabulary)})
    return load(folder)


def load(folder: Path) -> BM25Matrix:
    """Map what `build` has written."""
    known = read_json(folder / WORDS)
    arrays: dict[str, Any] = {
        name: np.load(folder / _file(name), mmap_mode="r") for name in ("data", "indices", "indptr")
    }
    return BM25Matrix({word: i for i, word in enumerate(known["words"])}, num_documents=known["documents"], **arrays)


_STORED = {"data": np.float32, "indices": np.int32}


def _file(name: str) -> str:
    return f"{name}.csc.index.npy"


def _array(name: str, length: int, kind: type, folder: Path | None) -> np.ndarray:
    """An array for one number at least, because no empty file can be mapped.

    A mapped file gets all its bytes here: a disk that is full later would kill the process without a word.
    """
    if folder is None:
        return np.empty(length, kind)
    mapped = np.lib.format.open_memmap(folder / _file(name), "w+", kind, (max(1, length),))
    with (folder / _file(name)).open("r+b") as handle:
        handle.seek(mapped.offset)
        for begin in range(0, mapped.nbytes, ZEROS):
            handle.write(bytes(min(ZEROS, mapped.nbytes - begin)))
    return mapped


def _counted(documents: Iterable[list[str]], vocabulary: dict[str, int], lengths: array[int]) -> Iterator[np.ndarray]:
    """Yield what is counted in each block, as `COUNTS` in the order of words and then of documents.

    New words are added to `vocabulary`, and the number of each document's tokens to `lengths`.
    """
    tokens, first = array("i"), 0
    for document in documents:
        tokens.extend(vocabulary.setdefault(token, len(vocabulary)) for token in document)
        lengths.append(len(document))
        if len(tokens) >= BLOCK:
            yield _block(tokens, lengths[first:], first)
            tokens, first = array("i"), len(lengths)
    if tokens:
        yield _block(tokens, lengths[first:], first)


def _block(tokens: array[int], lengths: array[int], first: int) -> np.ndarray:
    own = np.repeat(np.arange(len(lengths)), lengths)
    pairs, number = np.unique(np.array(tokens, np.int64) * len(lengths) + own, return_counts=True)
    counts = np.empty(len(pairs), COUNTS)
    counts["word"], counts["document"] = np.divmod(pairs, len(lengths))
    counts["document"] += first
    counts["count"] = number
    return counts


def _idf(frequencies: np.ndarray, documents: int) -> np.ndarray:
    """Inverse document frequency of each word, float32, from the numbers of documents that have it."""
    different, which = np.unique(frequencies, return_inverse=True)
    # numpy's logarithm and that of the C library, which bm25s takes, may differ in the last bit.
    values = [math.log(1 + (documents - df + 0.5) / (df + 0.5)) for df in different.tolist()]
    return np.array(values, np.float32)[which]
