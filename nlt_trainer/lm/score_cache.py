"""A cache of log-likelihoods on disk. It survives a killed run, and several processes may use it at once."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import sqlite3
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from nlt_trainer.errors import DataError, NLTError

logger = logging.getLogger(__name__)

KEY = np.dtype("S16")
"""Type of a `ScoreCache.key` in an array. A numpy scalar of it loses zero bytes at its end; `key_bytes` keeps them."""

SCORE_COLUMNS = ("log_likelihood", "target_tokens", "truncated")
SCORE = np.dtype(list(zip(SCORE_COLUMNS, (np.float64, np.int64, np.bool_), strict=True)))
"""Type of a pair's score: nats summed over the target's tokens, their number, and whether the document was cut."""

TABLES = {
    "scores": dict(zip(SCORE_COLUMNS, ("REAL", "INTEGER", "INTEGER"), strict=True)),
    "tokens": {"log_likelihoods": "BLOB"},
}
"""Table -> its columns between the key and the checksum, with their types."""
NUMBERS = struct.Struct("<dqq")
"""A row of `scores` as the checksum takes it."""

PLACE = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_PERM: errno.EACCES,
    sqlite3.SQLITE_CANTOPEN: errno.EACCES,
}
"""SQLite's error for a place that cannot be written -> that of the file system."""
DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
VERSION = 1  # of the tables, as `PRAGMA user_version` has it
SQLITE_VARIABLES = 500  # keys in one SELECT; every SQLite build takes 999
FETCHED_ROWS = 4096  # rows that are fetched at a time
FILES = "scores-*.sqlite"
"""The files of a folder of caches, one for each scorer."""


def key_bytes(keys: np.ndarray) -> list[bytes]:
    """The keys of an array of dtype `KEY`, 16 bytes each."""
    data = keys.tobytes()
    return [data[i : i + KEY.itemsize] for i in range(0, len(data), KEY.itemsize)]


class ScoreCache:
    """One SQLite file for each scorer. Keys are hashes of texts, values `(log-likelihood, target tokens, truncated)`.

    A second table holds the log-likelihood of each target token under the same keys. Each row has a checksum, and a
    damaged row counts as missing, so that it is computed again. A file that an older version wrote may lack tokens,
    and its rows have no checksum; they are read.

    Each `put` is one transaction. A killed run loses at most the batch that it was computing, and processes that write
    at the same time wait for one another. The file's name is a hash of `description`, which holds everything besides
    the texts that a score depends on. A score is therefore never read for another LLM, adapter, template, target kind
    or dtype.

    Many keys are read at once as an array of dtype `KEY`, and `get` returns their values as one of dtype `SCORE`.

    Args:
        folder: created when missing.
        description: JSON-serialisable; kept readable inside the file.

    Raises:
        DataError: the folder is a file, or the file in it is damaged, is not a score cache of this description or was
            written by a later version. The other methods raise it too where they meet a damaged page.
        OSError: the disk is full, or the file cannot be opened or written. What it holds stays.
    """

    def __init__(self, folder: str | Path, description: Mapping[str, Any]) -> None:
        self.description = text = json.dumps(description, sort_keys=True)
        self.path = Path(folder).expanduser() / _file_name(text)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise DataError(self.path.parent, "is a file, and the score cache is a folder; name a folder") from error
        with _connected(self.path) as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version > VERSION:
                raise DataError(
                    self.path,
                    f"has version {version} of its format, and this nlt_trainer reads up to {VERSION}; update "
                    "nlt_trainer, or name another cache folder",
                )
            if version < VERSION:
                _make_tables(connection, text)
            found = connection.execute("SELECT text FROM description").fetchall()
        if found != [(text.encode(),)]:
            raise DataError(self.path, "belongs to another scorer (names collide); choose another cache folder")

    @classmethod
    def all_in(cls, folder: str | Path) -> list[ScoreCache]:
        """The caches of a folder, sorted by their names; none where it is missing.

        Raises:
            DataError: a file is damaged or is not the cache that its name says.
        """
        caches = []
        for path in sorted(Path(folder).expanduser().glob(FILES)):
            with _connected(path) as connection:
                found = connection.execute("SELECT text FROM description").fetchall()
            texts = [str(text, "utf-8", "replace") for (text,) in found]
            if [_file_name(text) for text in texts] != [path.name]:
                raise DataError(path, "is not the cache that its name says; move it out of the folder")
            caches.append(cls(folder, json.loads(texts[0])))
        return caches

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
        for at, *columns in self._columns("scores", keys):
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
        found = self._columns("tokens", keys)
        return {int(i): np.frombuffer(b, "<f4") for at, blobs in found for i, b in zip(at, blobs, strict=True)}

    def stored(self, keys: np.ndarray, *, tokens: bool = False) -> np.ndarray:
        """Whether each key has a score or, with `tokens`, scores of its tokens: `(N,)` bool; `keys` as for `get`.

        Raises:
            NLTError: as `get`.
        """
        known = np.zeros(len(keys), bool)
        for at, *_ in self._columns("tokens" if tokens else "scores", keys):
            known[at] = True
        return known

    def _columns(self, table: str, keys: np.ndarray) -> Iterator[list[Any]]:
        """Yield whole rows column by column, some rows at a time; the first column has the indices of their keys."""
        if (keys[1:] <= keys[:-1]).any():
            raise NLTError("keys of a score cache must be sorted and distinct; pass them through numpy.unique")
        select = f"SELECT {', '.join(['key', *TABLES[table], 'checksum'])} FROM {table}"
        with _connected(self.path) as connection:
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
                while fetched := cursor.fetchmany(FETCHED_ROWS):
                    rows = [row for row in fetched if _is_whole(row)]
                    if damaged := len(fetched) - len(rows):
                        logger.warning("%s: %d damaged %s count as missing", self.path, damaged, table)
                    if not rows:
                        continue
                    stored, *columns, _ = zip(*rows, strict=True)
                    found = np.frombuffer(b"".join(stored), KEY)
                    at = np.searchsorted(keys, found)
                    hit = keys[np.minimum(at, len(keys) - 1)] == found
                    yield [at[hit], *(compress(column, hit) for column in columns)]

    def put(
        self, values: Mapping[bytes, tuple[float, int, bool]], tokens: Mapping[bytes, np.ndarray] | None = None
    ) -> None:
        """Store values, and the log-likelihoods of their tokens, `(T,)` each, in one transaction."""
        rows: dict[str, list[tuple[Any, ...]]] = {
            # SQLite keeps -0.0 as 0.0, of which the checksum is another
            "scores": [(key, float(value) + 0.0, int(count), int(cut)) for key, (value, count, cut) in values.items()],
            "tokens": [(key, array.astype("<f4").tobytes()) for key, array in (tokens or {}).items()],
        }
        with _connected(self.path) as connection:
            for table, columns in TABLES.items():
                names = ["key", *columns, "checksum"]
                connection.executemany(
                    f"INSERT OR REPLACE INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})",
                    ((*row, _checksum(*row)) for row in rows[table]),
                )

    def rows(self, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield sorted keys of dtype `KEY` and their scores of dtype `SCORE`, at most `size` at a time, `(N,)` each.

        Damaged rows are left out. Each part is read by itself, so that other processes may write in between.
        """
        select = f"SELECT key, {', '.join(SCORE_COLUMNS)}, checksum FROM scores WHERE key > ? ORDER BY key LIMIT ?"
        last = b""
        while True:
            with _connected(self.path) as connection:
                rows = connection.execute(select, (last, size)).fetchall()
            if not rows:
                return
            last = rows[-1][0]
            whole = [row[:-1] for row in rows if _is_whole(row)]
            keys = np.frombuffer(b"".join(key for key, *_ in whole), KEY)
            yield keys, np.array([tuple(values) for _, *values in whole], SCORE)

    def __len__(self) -> int:
        with _connected(self.path) as connection:
            return int(connection.execute("SELECT COUNT(*) FROM scores").fetchone()[0])


@contextmanager
def _connected(path: Path) -> Iterator[sqlite3.Connection]:
    """One transaction in a connection of its own: data loader workers are forked and pickled, and a connection
    survives neither."""
    try:
        with closing(sqlite3.connect(path, timeout=120)) as connection, connection:
            connection.text_factory = bytes  # a damaged text may be no UTF-8
            yield connection
    except sqlite3.DatabaseError as error:
        raise _explained(path, error) from error


def _explained(path: Path, error: sqlite3.DatabaseError) -> Exception:
    """The error that a user can act on. Only a damaged file is of no more use."""
    code = error.sqlite_errorcode & 0xFF  # without the digits that say more
    if code in PLACE:
        return OSError(PLACE[code], os.strerror(PLACE[code]), str(path))
    if code in DAMAGE:
        return DataError(
            path,
            f"is no readable score cache ({error}); put a copy of it back, or move it away to compute again",
        )
    return DataError(path, f"cannot be used now ({error}); its scores are kept, so try again later")


def _make_tables(connection: sqlite3.Connection, description: str) -> None:
    """Make what a file lacks: all tables, or the checksums in a file that an older version wrote."""
    connection.execute("BEGIN IMMEDIATE")  # of several processes one makes them, and the others wait
    for table, columns in TABLES.items():
        types = "".join(f", {name} {kind}" for name, kind in columns.items())
        connection.execute(
            f"CREATE TABLE IF NOT EXISTS {table} (key BLOB PRIMARY KEY{types}, checksum INTEGER) WITHOUT ROWID"
        )
        if b"checksum" not in [name for _, name, *_ in connection.execute(f"PRAGMA table_info({table})")]:
            connection.execute(f"ALTER TABLE {table} ADD COLUMN checksum INTEGER")
    connection.execute("CREATE TABLE IF NOT EXISTS description (text TEXT PRIMARY KEY)")
    connection.execute("INSERT OR IGNORE INTO description VALUES (?)", (description,))
    connection.execute(f"PRAGMA user_version = {VERSION}")


def _file_name(description: str) -> str:
    """The name of the file of a scorer."""
    return FILES.replace("*", hashlib.blake2b(description.encode(), digest_size=8).hexdigest())


def _is_whole(row: tuple[Any, ...]) -> bool:
    """Whether a row is as it was written. One of an older version has no checksum and counts as whole."""
    return row[-1] is None or row[-1] == _checksum(*row[:-1])


def _checksum(key: bytes, *values: Any) -> int | None:
    """CRC-32 of a row; `None` where a damaged row has values of other types."""
    try:
        return zlib.crc32(NUMBERS.pack(*values) if len(values) > 1 else values[0], zlib.crc32(key))
    except (struct.error, TypeError):
        return None
