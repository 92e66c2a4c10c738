"""A cache of log-likelihoods on disk. It survives a killed run, and several processes may use it at once."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from nlt_trainer.errors import DataError, NLTError

KEY = np.dtype("S16")
"""Type of a `ScoreCache.key` in an array. A numpy scalar of it loses zero bytes at its end; `key_bytes` keeps them."""

SCORE_COLUMNS = ("log_likelihood", "target_tokens", "truncated")
SCORE = np.dtype(list(zip(SCORE_COLUMNS, (np.float64, np.int64, np.bool_), strict=True)))
"""Type of a pair's score: nats summed over the target's tokens, their number, and whether the document was cut."""

SQLITE_VARIABLES = 500  # keys in one SELECT; every SQLite build takes 999
FETCHED_ROWS = 4096  # rows that are fetched at a time


def key_bytes(keys: np.ndarray) -> list[bytes]:
    """The keys of an array of dtype `KEY`, 16 bytes each."""
    data = keys.tobytes()
    return [data[i : i + KEY.itemsize] for i in range(0, len(data), KEY.itemsize)]


class ScoreCache:
    """One SQLite file for each scorer. Keys are hashes of texts, values `(log-likelihood, target tokens, truncated)`.

    A second table holds the log-likelihood of each target token under the same keys. A file that an older version
    wrote lacks them; its pairs are computed again only where tokens are asked for.

    Each `put` is one transaction. A killed run loses at most the batch that it was computing, and processes that write
    at the same time wait for one another. The file's name is a hash of `description`, which holds everything besides
    the texts that a score depends on. A score is therefore never read for another LLM, adapter, template, target kind
    or dtype.

    Many keys are read at once as an array of dtype `KEY`, and `get` returns their values as one of dtype `SCORE`.

    Args:
        folder: created when missing.
        description: JSON-serialisable; kept readable inside the file.

    Raises:
        DataError: the folder is a file, or the file in it is not a score cache of this description.
    """

    def __init__(self, folder: str | Path, description: Mapping[str, Any]) -> None:
        text = json.dumps(description, sort_keys=True)
        name = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        self.path = Path(folder).expanduser() / f"scores-{name}.sqlite"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise DataError(self.path.parent, "is a file, and the score cache is a folder; name a folder") from error
        try:
            with self._transaction() as connection:
                connection.execute(
                    "CREATE TABLE IF NOT EXISTS scores (key BLOB PRIMARY KEY, log_likelihood REAL, "
                    "target_tokens INTEGER, truncated INTEGER) WITHOUT ROWID"
                )
                connection.execute(
                    "CREATE TABLE IF NOT EXISTS tokens (key BLOB PRIMARY KEY, log_likelihoods BLOB) WITHOUT ROWID"
                )
                connection.execute("CREATE TABLE IF NOT EXISTS description (text TEXT PRIMARY KEY)")
                connection.execute("INSERT OR IGNORE INTO description VALUES (?)", (text,))
                found = connection.execute("SELECT text FROM description").fetchall()
        except sqlite3.DatabaseError as error:
            raise DataError(
                self.path, f"not a readable score cache ({error}); remove the file to compute again"
            ) from error
        if found != [(text,)]:
            raise DataError(self.path, "belongs to another scorer (names collide); choose another cache folder")

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        # Each call opens a connection of its own: data loader workers are forked and pickled, and a connection
        # survives neither.
        connection = sqlite3.connect(self.path, timeout=120)
        try:
            with connection:
                yield connection
        finally:
            connection.close()

    @staticmethod
    def key(*texts: str | None) -> bytes:
        """Hash of texts. `None` differs from the empty text, and "ab", "c" differs from "a", "bc"."""
        digest = hashlib.blake2b(digest_size=16)
        for text in texts:
            data = b"" if text is None else text.encode()
            digest.update(b"%d:" % (-1 if text is None else len(data)))
            digest.update(data)
        return digest.digest()

    def get(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Read the scores of keys.

        Args:
            keys: `(N,)` of dtype `KEY`, sorted and distinct, as `numpy.unique` returns them.

        Returns:
            `(N,)` of dtype `SCORE`, zero where nothing is stored, and `(N,)` bool, True where something is.

        Raises:
            NLTError: keys are not sorted, or a key appears twice.
        """
        scores, known = np.zeros(len(keys), SCORE), np.zeros(len(keys), bool)
        for at, *columns in self._columns("scores", SCORE_COLUMNS, keys):
            known[at] = True
            for name, column in zip(SCORE_COLUMNS, columns, strict=True):
                scores[name][at] = list(column)
        return scores, known

    def get_tokens(self, keys: np.ndarray) -> dict[int, np.ndarray]:
        """Read log-likelihoods of target tokens, `(T,)` float32 each, by the index of each key that has them.

        Args:
            keys: as for `get`.

        Raises:
            NLTError: as `get`.
        """
        found = self._columns("tokens", ("log_likelihoods",), keys)
        return {int(i): np.frombuffer(b, "<f4") for at, blobs in found for i, b in zip(at, blobs, strict=True)}

    def stored(self, keys: np.ndarray, *, tokens: bool = False) -> np.ndarray:
        """Whether each key has a score or, with `tokens`, scores of its tokens: `(N,)` bool; `keys` as for `get`.

        Raises:
            NLTError: as `get`.
        """
        known = np.zeros(len(keys), bool)
        for (at,) in self._columns("tokens" if tokens else "scores", (), keys):
            known[at] = True
        return known

    def _columns(self, table: str, names: Sequence[str], keys: np.ndarray) -> Iterator[list[Any]]:
        """Yield stored rows column by column, some rows at a time; the first column has the indices of their keys."""
        if (keys[1:] <= keys[:-1]).any():
            raise NLTError("keys of a score cache must be sorted and distinct; pass them through numpy.unique")
        select = f"SELECT {', '.join(['key', *names])} FROM {table}"
        with self._transaction() as connection:
            up_to = f"SELECT COUNT(*) FROM (SELECT 1 FROM {table} LIMIT ?)"
            parts: Iterable[tuple[str, list[bytes]]]
            if connection.execute(up_to, (2 * len(keys),)).fetchone()[0] < 2 * len(keys):
                # Most of the table is wanted, and reading it from end to end is twice as fast as reading by key.
                parts = [(select, [])]
            else:
                # Sorted keys follow the table's B-tree, so neighbours are read together: 1.7 times as fast.
                wanted = (key_bytes(keys[i : i + SQLITE_VARIABLES]) for i in range(0, len(keys), SQLITE_VARIABLES))
                parts = ((f"{select} WHERE key IN ({','.join('?' * len(part))})", part) for part in wanted)
            for statement, part in parts:
                cursor = connection.execute(statement, part)
                while rows := cursor.fetchmany(FETCHED_ROWS):
                    stored, *columns = zip(*rows, strict=True)
                    found = np.frombuffer(b"".join(stored), KEY)
                    at = np.searchsorted(keys, found)
                    hit = keys[np.minimum(at, len(keys) - 1)] == found
                    yield [at[hit], *(compress(column, hit) for column in columns)]

    def put(
        self, values: Mapping[bytes, tuple[float, int, bool]], tokens: Mapping[bytes, np.ndarray] | None = None
    ) -> None:
        """Store values, and the log-likelihoods of their tokens, `(T,)` each, in one transaction."""
        rows = [(key, value, count, int(cut)) for key, (value, count, cut) in values.items()]
        blobs = [(key, array.astype("<f4").tobytes()) for key, array in (tokens or {}).items()]
        with self._transaction() as connection:
            connection.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?)", rows)
            connection.executemany("INSERT OR REPLACE INTO tokens VALUES (?, ?)", blobs)

    def __len__(self) -> int:
        with self._transaction() as connection:
            return int(connection.execute("SELECT COUNT(*) FROM scores").fetchone()[0])
