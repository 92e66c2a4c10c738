"""Shards of a score cache against the cache, and damage of every kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_score_cache import DESCRIPTION, Values, found

from nlt_trainer.errors import DataError
from nlt_trainer.file_hashes import file_hash
from nlt_trainer.lm import score_shards
from nlt_trainer.lm.score_cache import KEY, ScoreCache
from nlt_trainer.lm.score_shards import COLUMNS, METADATA, merge_shard, write_shards


def values(names: range) -> Values:
    return {ScoreCache.key(str(i)): (-i / 3, i + 1, i % 2 == 0) for i in names}


def shards(folder: Path, cache: ScoreCache, present: ScoreCache | None = None) -> list[Path]:
    folder.mkdir(exist_ok=True)
    return write_shards(cache, folder, present=present or ScoreCache(folder / "empty", DESCRIPTION))


def test_shards_bring_every_score_and_no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: the cache's own values; several shards, each of several parts, in order of keys over all of them."""
    monkeypatch.setattr(score_shards, "SHARD_ROWS", 100)
    monkeypatch.setattr(score_shards, "READ_ROWS", 30)
    cache, of = ScoreCache(tmp_path / "a", DESCRIPTION), values(range(250))
    cache.put(of, {key: np.ones(2) for key in of})
    written = shards(tmp_path / "shards", cache)
    assert [pq.read_metadata(shard).num_rows for shard in written] == [100, 100, 50]
    assert {shard.stem for shard in written} == {f"scores-{file_hash(shard)}" for shard in written}
    merged = [merge_shard(shard, tmp_path / "b") for shard in written]
    assert [(merge.scores, merge.new, merge.different) for merge in merged] == [
        (100, 100, 0),
        (100, 100, 0),
        (50, 50, 0),
    ]
    other = ScoreCache(tmp_path / "b", DESCRIPTION)
    assert found(other, [*of]) == of
    assert len(other) == len(of)
    assert other.get_tokens(np.array(sorted(of), KEY)) == {}
    assert [merge_shard(shard, tmp_path / "b").new for shard in written] == [0, 0, 0]


def test_two_caches_give_their_union(tmp_path: Path) -> None:
    """Reference: the union of two dicts; scores that the other cache has are in no shard."""
    one, two = ScoreCache(tmp_path / "a", DESCRIPTION), ScoreCache(tmp_path / "b", DESCRIPTION)
    one.put(values(range(60)))
    two.put(values(range(40, 100)))
    (first,) = shards(tmp_path / "shards", one)
    (second,) = shards(tmp_path / "shards", two, present=one)
    assert [pq.read_metadata(shard).num_rows for shard in (first, second)] == [60, 40]
    for folder in (tmp_path / "a", tmp_path / "b", tmp_path / "c"):
        for shard in (second, first):
            merge_shard(shard, folder)
        assert found(ScoreCache(folder, DESCRIPTION), [*values(range(100))]) == values(range(100))
    assert shards(tmp_path / "shards", one, present=two) == []


def test_a_score_that_differs_stays_and_is_counted(tmp_path: Path) -> None:
    """Reference: the tolerance of 0.1 nats a token, by hand; a number of tokens and a cut differ too."""
    here, there = ScoreCache(tmp_path / "a", DESCRIPTION), ScoreCache(tmp_path / "b", DESCRIPTION)
    keys = sorted(ScoreCache.key(str(i)) for i in range(5))
    own = dict.fromkeys(keys, (-9.0, 10, False))
    changed = [(-9.9, 10, False), (-10.1, 10, False), (-9.0, 9, False), (-9.0, 10, True), (-9.0, 10, False)]
    here.put(own)
    there.put(dict(zip(keys, changed, strict=True)))
    (shard,) = shards(tmp_path / "shards", there)
    merge = merge_shard(shard, tmp_path / "a")
    assert (merge.new, merge.different) == (0, 3)
    assert merge.example == f"{keys[1].hex()} with (-9.0, 10, False) here and (-10.1, 10, False) there"
    assert found(here, keys) == own


HEAD = {METADATA: json.dumps({"version": 1, "description": DESCRIPTION})}
ROWS: dict[str, list[Any]] = {
    "key": [b"a" * 16, b"b" * 16],
    "log_likelihood": [-1.0, -2.0],
    "target_tokens": [1, 2],
    "truncated": [False, True],
}


def shard_of(folder: Path, table: pa.Table) -> Path:
    """A shard with the right name, whatever it holds."""
    pq.write_table(table, folder / "table")
    return (folder / "table").rename(folder / f"scores-{file_hash(folder / 'table')}.parquet")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"log_likelihood": [-1.0, float("nan")]}, r"row 2 has log_likelihood nan, which no score has"),
        ({"log_likelihood": [float("-inf"), -1.0]}, r"row 1 has log_likelihood -inf, which no score has"),
        ({"log_likelihood": [-1.0, None]}, r"row 2 has no log_likelihood"),
        ({"target_tokens": [0, 1]}, r"row 1 has target_tokens 0, which no score has"),
        ({"truncated": [None, None]}, r"row 1 has no truncated"),
        ({"key": [b"b" * 16, b"a" * 16]}, r"row 2 has key 6161\w*, which is not above the one before"),
        ({"key": [b"a" * 16, b"a" * 16]}, r"row 2 has key 6161\w*, which is not above the one before"),
    ],
)
def test_a_wrong_value_is_refused_with_its_row(columns: dict[str, list[Any]], message: str, tmp_path: Path) -> None:
    """Reference: the place of the value; nothing is added."""
    shard = shard_of(tmp_path, pa.table({**ROWS, **columns}, COLUMNS.with_metadata(HEAD)))
    with pytest.raises(DataError, match=rf"^{shard}: {message}; take it out of the data set, or push") as caught:
        merge_shard(shard, tmp_path / "cache")
    assert caught.value.path == shard
    assert ScoreCache.all_in(tmp_path / "cache") == []


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (COLUMNS, r"does not say of which scorer its scores are"),
        (COLUMNS.with_metadata({METADATA: b"[1]"}), r"does not say of which scorer its scores are"),
        (COLUMNS.with_metadata({METADATA: b'{"version": 2, "description": {}}'}), r"has version 2 of its format, and"),
        (COLUMNS.set(2, pa.field("target_tokens", pa.int32())), r"has the columns key fixed.*target_tokens int32"),
        (COLUMNS.set(0, pa.field("key", pa.binary())), r"has the columns key binary, "),
        (pa.schema([*COLUMNS, pa.field("text", pa.string())]), r"has the columns .*, text string, where key fixed"),
    ],
)
def test_another_format_is_refused(schema: pa.Schema, message: str, tmp_path: Path) -> None:
    if schema.metadata is None and schema != COLUMNS:
        schema = schema.with_metadata(HEAD)
    table = pa.table({**ROWS, **({"text": ["a", "b"]} if "text" in schema.names else {})}, schema)
    with pytest.raises(DataError, match=message):
        merge_shard(shard_of(tmp_path, table), tmp_path / "cache")


def test_damage_is_refused(tmp_path: Path) -> None:
    """Reference: the name, which has the hash of what was written; half a file under the name that it should have."""
    shard = shard_of(tmp_path, pa.table(ROWS, COLUMNS.with_metadata(HEAD)))
    content = shard.read_bytes()
    shard.write_bytes(content.replace(b"b" * 16, b"c" * 16))
    with pytest.raises(DataError, match=r"is damaged, because its content has another hash than its name says"):
        merge_shard(shard, tmp_path / "cache")
    shard.write_bytes(content[: len(content) // 2])
    half = shard.rename(tmp_path / f"scores-{file_hash(shard)}.parquet")
    with pytest.raises(DataError, match=r"is no readable Parquet file \(.*\); take it out"):
        merge_shard(half, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
