"""The score cache against a dict: keys, files, several writers, damage."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import re
import sqlite3
import struct
import zlib
from contextlib import closing
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nlt_trainer.errors import DataError, NLTError
from nlt_trainer.lm.score_cache import KEY, ScoreCache, key_bytes

Values = dict[bytes, tuple[float, int, bool]]

DESCRIPTION = {"llm": {"weights": "w", "dtype": "float32"}, "target": "query"}


def found(cache: ScoreCache, keys: list[bytes]) -> Values:
    """What the cache holds of keys."""
    ordered = sorted(set(keys))
    scores, known = cache.get(np.array(ordered, KEY))
    return {key: score for key, score, there in zip(ordered, scores.tolist(), known, strict=True) if there}


def test_what_was_put_is_found(tmp_path: Path) -> None:
    """Reference: a dict; more keys than one SELECT takes, few and most of the table, zero bytes at the end."""
    values = {ScoreCache.key(str(i)): (-i / 3, i, i % 2 == 0) for i in range(1200)}
    assert any(key.endswith(b"\0") for key in list(values)[:550])
    ScoreCache(tmp_path, DESCRIPTION).put(values)
    cache = ScoreCache(tmp_path, DESCRIPTION)
    assert len(cache) == 1200
    assert found(cache, [*values, ScoreCache.key("missing")]) == values
    few = list(values)[:550]
    assert found(cache, [*few, ScoreCache.key("missing")]) == {key: values[key] for key in few}
    assert found(cache, []) == {}
    for keys in (few[:2][::-1] if few[0] < few[1] else few[:2], [few[0]] * 2):
        with pytest.raises(NLTError, match=r"sorted and distinct; pass them through numpy.unique"):
            cache.get(np.array(keys, KEY))
    first = next(iter(values))
    cache.put({first: (-9.0, 1, False)})
    assert found(cache, [first]) == {first: (-9.0, 1, False)}
    assert len(cache) == 1200


def test_single_tokens_stand_beside_their_sum(tmp_path: Path) -> None:
    """Reference: the arrays, bit by bit; what was put without them has none."""
    with_tokens, without = ScoreCache.key("a"), ScoreCache.key("b")
    tokens = np.array([-1.25, -1e-7, -3.1415927], np.float32)
    cache = ScoreCache(tmp_path, DESCRIPTION)
    cache.put({with_tokens: (-4.5, 3, False)}, {with_tokens: tokens})
    cache.put({without: (-2.0, 1, False)})
    keys = np.array(sorted([with_tokens, without]), KEY)
    of_tokens = (keys == with_tokens).tolist()
    by_index = ScoreCache(tmp_path, DESCRIPTION).get_tokens(keys)
    assert list(by_index) == [of_tokens.index(True)]
    np.testing.assert_array_equal(by_index[of_tokens.index(True)], tokens)
    assert cache.stored(keys, tokens=True).tolist() == of_tokens
    assert cache.stored(keys).tolist() == [True, True]


def test_a_file_of_an_older_version_is_read(tmp_path: Path) -> None:
    """Reference: rows in the tables of old, without checksums; what is put later has them."""
    path, old, new = ScoreCache(tmp_path, DESCRIPTION).path, ScoreCache.key("old"), ScoreCache.key("new")
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute(
            "CREATE TABLE scores (key BLOB PRIMARY KEY, log_likelihood REAL, target_tokens INTEGER, "
            "truncated INTEGER) WITHOUT ROWID"
        )
        connection.execute("CREATE TABLE description (text TEXT PRIMARY KEY)")
        connection.execute("INSERT INTO description VALUES (?)", (json.dumps(DESCRIPTION, sort_keys=True),))
        connection.execute("INSERT INTO scores VALUES (?, -4.5, 3, 1)", (old,))
    connection.close()
    for _ in range(2):
        cache = ScoreCache(tmp_path, DESCRIPTION)
        assert found(cache, [old]) == {old: (-4.5, 3, True)}
        assert cache.get_tokens(np.array([old], KEY)) == {}
    cache.put({new: (-2.0, 1, False)}, {new: np.array([-2.0])})
    assert found(cache, [old, new]) == {old: (-4.5, 3, True), new: (-2.0, 1, False)}
    with sqlite3.connect(path) as connection:
        checksums = dict(connection.execute("SELECT key, checksum FROM scores"))
    connection.close()
    assert checksums == {old: None, new: zlib.crc32(struct.pack("<dqq", -2.0, 1, 0), zlib.crc32(new))}


def test_a_file_of_a_later_version_is_refused_and_stays(tmp_path: Path) -> None:
    """Reference: the version of the format in the file, which nothing changes."""
    path = ScoreCache(tmp_path, DESCRIPTION).path
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA user_version = 2")
    with pytest.raises(
        DataError, match=rf"^{path}: has version 2 of its format, and this nlt_trainer reads up to 1; "
    ):
        ScoreCache(tmp_path, DESCRIPTION)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)


def test_another_description_is_another_file(tmp_path: Path) -> None:
    """Reference: a score must never be read for another LLM or target; order of keys means nothing."""
    cache = ScoreCache(tmp_path, DESCRIPTION)
    cache.put({ScoreCache.key("a"): (-1.0, 1, False)})
    other = ScoreCache(tmp_path, {**DESCRIPTION, "target": "joint"})
    assert other.path != cache.path
    assert found(other, [ScoreCache.key("a")]) == {}
    assert ScoreCache(tmp_path, dict(reversed(DESCRIPTION.items()))).path == cache.path


def test_keys_tell_texts_apart() -> None:
    """Reference: pairs of texts are equal as tuples or their keys differ."""
    texts = [
        (None, "a"),
        ("", "a"),
        ("a", ""),
        ("a", None),
        ("a",),
        ("ab", "c"),
        ("a", "bc"),
        ("1:a",),
        ("é", ""),
        ("e", ""),
    ]
    assert len({ScoreCache.key(*pair) for pair in texts}) == len(texts)
    assert ScoreCache.key("a", None) == ScoreCache.key("a", None)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    """Reference: the message names the file and the remedy; every second page is damaged, or there is no database."""
    cache = ScoreCache(tmp_path, DESCRIPTION)
    path, keys = cache.path, sorted(ScoreCache.key(str(i)) for i in range(1200))
    cache.put(dict.fromkeys(keys, (-1.0, 1, False)), dict.fromkeys(keys, np.ones(9)))
    content = bytearray(path.read_bytes())
    for page in range(4096, len(content), 8192):
        content[page : page + 60] = b"\xff" * 60
    path.write_bytes(content)
    message = r"scores-\w+.sqlite: is no readable score cache \(.*\); put a copy of it back, or move it away"
    for read in (cache.get, cache.get_tokens, cache.stored):
        with pytest.raises(DataError, match=message) as caught:
            read(np.array(keys, KEY))
        assert caught.value.path == path
    path.write_bytes(b"this is not a database" * 100)
    with pytest.raises(DataError, match=message):
        ScoreCache(tmp_path, DESCRIPTION)
    with pytest.raises(DataError, match=r"is a file, and the score cache is a folder; name a folder"):
        ScoreCache(path, DESCRIPTION)


def test_a_flipped_bit_is_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Reference: only the rows whose number, count, flag or token was changed are missing, until they are put anew."""
    cache, keys = ScoreCache(tmp_path, DESCRIPTION), sorted(ScoreCache.key(str(i)) for i in range(8))
    values = {key: (-i / 3, i + 1, False) for i, key in enumerate(keys)}
    tokens = {key: np.full(i + 1, -1 / 3, np.float32) for i, key in enumerate(keys)}
    cache.put(values, tokens)
    token = bytes([*tokens[keys[4]].tobytes()[:-1], 0])
    for column, value, key in (
        ("log_likelihood", -1 / 3 * (1 + 2**-52), keys[1]),
        ("log_likelihood", None, keys[5]),
        ("target_tokens", 7, keys[2]),
        ("truncated", 1, keys[3]),
        ("log_likelihoods", token, keys[4]),
        ("log_likelihoods", 1, keys[6]),
    ):
        table = "tokens" if column == "log_likelihoods" else "scores"
        with sqlite3.connect(cache.path) as connection:
            connection.execute(f"UPDATE {table} SET {column} = ? WHERE key = ?", (value, key))
        connection.close()
    whole, ordered = [keys[i] for i in (0, 4, 6, 7)], np.array(keys, KEY)
    assert found(cache, keys) == {key: values[key] for key in whole}
    assert f"{cache.path}: 4 damaged scores count as missing" in caplog.text
    assert cache.stored(ordered).tolist() == [key in whole for key in keys]
    assert sorted(cache.get_tokens(ordered)) == [0, 1, 2, 3, 5, 7]
    assert f"{cache.path}: 2 damaged tokens count as missing" in caplog.text
    cache.put(values, tokens)
    assert found(cache, keys) == values


def test_no_negative_zero_is_damage(tmp_path: Path) -> None:
    """Reference: a likelihood of 1, whose logarithm comes as -0.0 and which SQLite keeps as 0.0."""
    cache, key = ScoreCache(tmp_path, DESCRIPTION), ScoreCache.key("a")
    cache.put({key: (-0.0, 1, False)}, {key: np.array([-0.0])})
    assert found(cache, [key]) == {key: (0.0, 1, False)}


def full_disk(path: Path, **options: Any) -> sqlite3.Connection:
    """A connection whose file cannot grow."""
    connection = CONNECT(path, **options)
    connection.execute("PRAGMA max_page_count = 1")
    return connection


def read_only(path: Path, **options: Any) -> sqlite3.Connection:
    return CONNECT(f"file:{path}?mode=ro", uri=True, **options)


def locked(path: Path, **options: Any) -> sqlite3.Connection:
    """A connection to a file in which another process writes."""
    return CONNECT(path, timeout=0)


def elsewhere(path: Path, **options: Any) -> sqlite3.Connection:
    return CONNECT(path / "none", **options)


CONNECT = sqlite3.connect


@pytest.mark.parametrize(
    ("connect", "error", "message"),
    [
        (full_disk, OSError, os.strerror(errno.ENOSPC)),
        (read_only, OSError, os.strerror(errno.EROFS)),
        (elsewhere, OSError, os.strerror(errno.EACCES)),
        (locked, DataError, r"cannot be used now \(database is locked\); its scores are kept, so try again later"),
    ],
)
def test_a_place_that_cannot_be_written_costs_no_score(
    connect: Any, error: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: SQLite's own errors; the message names the file and removes nothing; what is there is read."""
    cache, key = ScoreCache(tmp_path, DESCRIPTION), ScoreCache.key("a")
    cache.put({key: (-1.0, 1, False)})
    more = {ScoreCache.key(str(i)): (-1.0, 1, False) for i in range(1200)}
    writer = CONNECT(cache.path)
    with monkeypatch.context() as patch, closing(writer):
        patch.setattr(sqlite3, "connect", connect)
        if connect is locked:
            writer.execute("BEGIN IMMEDIATE")
        with pytest.raises(error, match=message) as caught:
            cache.put(more)
        assert str(cache.path) in str(caught.value)
        assert not re.search("remove|delete|move", str(caught.value))
        if connect is not elsewhere:
            assert found(ScoreCache(tmp_path, DESCRIPTION), [key]) == {key: (-1.0, 1, False)}
    assert len(cache) == 1


def test_a_file_of_another_scorer_under_this_name_is_refused(tmp_path: Path) -> None:
    """Reference: the description that stands in the file."""
    path = ScoreCache(tmp_path, DESCRIPTION).path
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE description SET text = '{}'")
    connection.close()
    with pytest.raises(DataError, match=r"belongs to another scorer"):
        ScoreCache(tmp_path, DESCRIPTION)


def write_some(folder: str, part: int, barrier: Barrier | None = None) -> None:
    """Write 15 scores, one transaction each: 10 of this part's own and 5 that all parts share."""
    cache = ScoreCache(folder, DESCRIPTION)
    if barrier is not None:
        barrier.wait(timeout=300)
    for i in range(10):
        cache.put({ScoreCache.key(f"own {part} {i}"): (-float(part * 100 + i), i, False)})
        if i % 2:
            cache.put({ScoreCache.key(f"shared {i}"): (-float(i), i, True)})


def test_writers_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    """Reference: the same writes one after the other."""
    context = multiprocessing.get_context("fork")  # a spawned process would import torch first
    barrier = context.Barrier(2)
    arguments = [(str(tmp_path / "together"), part, barrier) for part in range(2)]
    processes = [context.Process(target=write_some, args=given) for given in arguments]
    for process in processes:
        process.start()
    for part in range(2):
        write_some(str(tmp_path / "alone"), part)
    for process in processes:
        process.join(timeout=300)
        assert process.exitcode == 0
    keys = [ScoreCache.key(f"own {part} {i}") for part in range(2) for i in range(10)]
    keys += [ScoreCache.key(f"shared {i}") for i in range(10)]
    together = found(ScoreCache(tmp_path / "together", DESCRIPTION), keys)
    assert len(together) == 25
    assert together == found(ScoreCache(tmp_path / "alone", DESCRIPTION), keys)


def test_a_folder_lists_its_caches_and_each_its_rows(tmp_path: Path) -> None:
    """Reference: what was put; a damaged row is left out, and a file under another's name is refused."""
    assert ScoreCache.all_in(tmp_path / "none") == []
    caches = [ScoreCache(tmp_path, {**DESCRIPTION, "target": target}) for target in ("query", "joint")]
    values = {ScoreCache.key(str(i)): (-i / 3, i, i % 2 == 0) for i in range(1, 10)}
    caches[0].put(values)
    for cache in ScoreCache.all_in(tmp_path):
        rows = [row for keys, scores in cache.rows(4) for row in zip(key_bytes(keys), scores.tolist(), strict=True)]
        assert rows == (sorted(values.items()) if cache.path == caches[0].path else [])
        assert json.loads(cache.description)["target"] == ("query" if rows else "joint")
    damaged = sorted(values)[3]
    with closing(sqlite3.connect(caches[0].path)) as connection, connection:
        connection.execute("UPDATE scores SET target_tokens = 99 WHERE key = ?", (damaged,))
    whole = [key for keys, _ in caches[0].rows(2) for key in key_bytes(keys)]
    assert whole == [key for key in sorted(values) if key != damaged]
    caches[1].path.rename(tmp_path / "scores-0.sqlite")
    with pytest.raises(DataError, match=r"scores-0.sqlite: is not the cache that its name says; move it out"):
        ScoreCache.all_in(tmp_path)
