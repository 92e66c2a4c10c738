"""Log-likelihoods on disk: content-addressed, resumable after a kill, safe for several processes."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from nlt_trainer.errors import DataError

SQLITE_VARIABLES = 500  # keys in one SELECT; every SQLite build takes 999


class ScoreCache:
    """One SQLite file a scorer: keys are hashes of the texts, values `(log-likelihood, target tokens, truncated)`.

    A second table holds the log-likelihood of each target token under the same keys; rows of a file that was written
    before there was such a table lack them and are computed again only where tokens are asked for.

    Each `put` is one transaction: a killed run loses at most the batch it was computing, and processes that write at
    the same time wait for one another. The file's name is a hash of `description`, everything besides the texts that
    a score depends on, so that a score can never be read for another LLM, adapter, template, target kind or dtype.

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
        # A connection a call: SQLite connections survive neither fork nor pickling, and data loader workers do both.
        connection = sqlite3.connect(self.path, timeout=120)
        try:
            with connection:
                yield connection
        finally:
            connection.close()

    @staticmethod
    def key(*texts: str | None) -> bytes:
        """Hash of texts; `None` differs from the empty text, and no two splits of one text collide."""
        digest = hashlib.blake2b(digest_size=16)
        for text in texts:
            data = b"" if text is None else text.encode()
            digest.update(b"%d:" % (-1 if text is None else len(data)))
            digest.update(data)
        return digest.digest()

    def get(self, keys: Iterable[bytes]) -> dict[bytes, tuple[float, int, bool]]:
        """Values of the keys that are stored."""
        return {key: (value, tokens, bool(cut)) for key, value, tokens, cut in self._rows("scores", keys)}

    def get_tokens(self, keys: Iterable[bytes]) -> dict[bytes, np.ndarray]:
        """Log-likelihoods of the target's tokens, `(T,)` float32, of the keys for which they are stored."""
        return {key: np.frombuffer(data, "<f4") for key, data in self._rows("tokens", keys)}

    def _rows(self, table: str, keys: Iterable[bytes]) -> Iterator[tuple[Any, ...]]:
        wanted = set(keys)
        with self._transaction() as connection:
            up_to = f"SELECT COUNT(*) FROM (SELECT 1 FROM {table} LIMIT ?)"
            if connection.execute(up_to, (2 * len(wanted),)).fetchone()[0] < 2 * len(wanted):
                # Most of the table: from end to end twice as many rows come in a second as by key.
                yield from (row for row in connection.execute(f"SELECT * FROM {table}") if row[0] in wanted)
                return
            # In the order of the table's B-tree, neighbours are read together: 1.7 times as many rows a second.
            ordered = sorted(wanted)
            for i in range(0, len(ordered), SQLITE_VARIABLES):
                part = ordered[i : i + SQLITE_VARIABLES]
                marks = ",".join("?" * len(part))
                yield from connection.execute(f"SELECT * FROM {table} WHERE key IN ({marks})", part)

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
