"""A corpus on disk, for collections whose documents do not fit into memory.

The documents are in an Arrow file, and beside it the hashes of their ids in ascending order, each with the number of
its row. All of it is mapped, so that the memory of a process does not grow with the corpus.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import ItemsView, Iterable, Iterator, Mapping, Sequence, ValuesView
from itertools import islice
from pathlib import Path
from typing import overload

import numpy as np
import pyarrow as pa

from nlt_trainer.data.document import Document, doubled_id
from nlt_trainer.data.kept_folder import kept_folder
from nlt_trainer.file_hashes import file_hash
from nlt_trainer.text_files import read_jsonl

FORMAT = 1
"""Part of the folders' names; to be raised when their files change, or what is read of a line of `corpus.jsonl`."""
BATCH = 4096
"""Documents in each batch of the Arrow file, which are in memory at the same time when all of them are read."""
SCHEMA = pa.schema([(name, pa.large_string()) for name in ("id", "title", "text")])
DOCUMENTS, HASHES, ROWS = "documents.arrow", "hashes.npy", "rows.npy"


class StoredCorpus(Mapping[str, Document]):
    """Document id -> document, in file order, as the dict of the same corpus.

    Args:
        folder: what `stored` has written.
        content: names the content of the corpus, for what is made of it.
    """

    def __init__(self, folder: Path, content: str) -> None:
        self.content = content
        self.batches = _batches(folder / DOCUMENTS)
        self.rows = StoredRows(folder, StoredIds(self.batches))

    def __getitem__(self, document_id: str) -> Document:
        row = self.rows[document_id]
        batch = self.batches[row // BATCH]
        return Document(*(column[row % BATCH].as_py() for column in batch.columns))

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, document_id: object) -> bool:
        return document_id in self.rows

    def values(self) -> ValuesView[Document]:
        """The documents, of which one batch after another is in memory."""
        return _Documents(self)

    def items(self) -> ItemsView[str, Document]:
        """Ids with their documents; see `values`."""
        return _Items(self)


class StoredIds(Sequence[str]):
    """The ids of a stored corpus in its order; slices are lists."""

    def __init__(self, batches: Sequence[pa.RecordBatch]) -> None:
        self.columns = [batch.column("id") for batch in batches]
        self.number = sum(map(len, self.columns))

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(self.number))]
        row = range(self.number)[row]
        value: str = self.columns[row // BATCH][row % BATCH].as_py()
        return value

    def __iter__(self) -> Iterator[str]:
        for column in self.columns:
            yield from column.to_pylist()

    def __len__(self) -> int:
        return self.number


class StoredRows(Mapping[str, int]):
    """Document id -> number of its row in a stored corpus."""

    def __init__(self, folder: Path, ids: StoredIds) -> None:
        self.ids = ids
        self.hashes, self.numbers = (np.load(folder / name, mmap_mode="r") for name in (HASHES, ROWS))

    def __getitem__(self, document_id: str) -> int:
        if isinstance(document_id, str):
            sought = np.uint64(id_hash(document_id))
            first, last = (int(np.searchsorted(self.hashes, sought, side)) for side in ("left", "right"))
            for row in self.numbers[first:last].tolist():  # ids that differ may have the same hash
                if self.ids[row] == document_id:
                    return int(row)
        raise KeyError(document_id)

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    def __len__(self) -> int:
        return len(self.ids)


class _Documents(ValuesView[Document]):
    def __init__(self, corpus: StoredCorpus) -> None:
        super().__init__(corpus)
        self.corpus = corpus

    def __iter__(self) -> Iterator[Document]:
        for batch in self.corpus.batches:
            yield from map(Document, *(column.to_pylist() for column in batch.columns))


class _Items(ItemsView[str, Document]):
    def __init__(self, corpus: StoredCorpus) -> None:
        super().__init__(corpus)
        self.corpus = corpus

    def __iter__(self) -> Iterator[tuple[str, Document]]:
        return ((document.id, document) for document in self.corpus.values())


def id_hash(document_id: str) -> int:
    """A hash of 64 bits, which is the same in every process."""
    return int.from_bytes(hashlib.blake2b(document_id.encode(), digest_size=8).digest(), "little")


def stored(path: Path, documents: Iterable[Document]) -> StoredCorpus:
    """The corpus of a file, from the user's cache; what the cache lacks is written there first.

    Args:
        path: `corpus.jsonl`, by whose content the cache is named.
        documents: its documents, which are read only if the cache lacks them.

    Raises:
        DataError: an id is doubled, which is found when all documents were read, or what reading them raises.
    """
    content = f"{file_hash(path)}-{FORMAT}"
    folder = kept_folder("corpora", content, lambda partial: _write(partial, path, documents))
    return StoredCorpus(folder, content)


def _batches(file: Path) -> list[pa.RecordBatch]:
    """The batches of an Arrow file, which is mapped as long as one of them is there."""
    reader = pa.ipc.open_file(pa.memory_map(str(file)))
    return [reader.get_batch(i) for i in range(reader.num_record_batches)]


def _write(folder: Path, path: Path, documents: Iterable[Document]) -> None:
    found, every = array("Q"), iter(documents)
    with pa.OSFile(str(folder / DOCUMENTS), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        while some := list(islice(every, BATCH)):
            found.extend(id_hash(document.id) for document in some)
            columns = ([getattr(document, name) for document in some] for name in SCHEMA.names)
            writer.write_batch(pa.record_batch([pa.array(c, pa.large_string()) for c in columns], SCHEMA))
    hashes = np.array(found, np.uint64)
    rows = np.argsort(hashes, kind="stable")
    hashes = hashes[rows]
    _check_distinct(path, StoredIds(_batches(folder / DOCUMENTS)), hashes, rows)
    np.save(folder / HASHES, hashes)
    np.save(folder / ROWS, rows)


def _check_distinct(path: Path, ids: StoredIds, hashes: np.ndarray, rows: np.ndarray) -> None:
    """Raise `DataError` for the first line whose id an earlier one has; `hashes` ascend, and `rows` belong to them."""
    same, seen = np.flatnonzero(hashes[1:] == hashes[:-1]), set[str]()
    for row in np.unique(rows[np.concatenate([same, same + 1])]).tolist():
        if ids[row] in seen:
            line, _ = next(islice(read_jsonl(path), row, None))
            raise doubled_id(path, ids[row], line=line)
        seen.add(ids[row])
