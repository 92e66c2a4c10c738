"""Score caches as Parquet shards, which other machines can add to theirs. A shard's name is a hash of its content."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow.parquet import ParquetFile, ParquetWriter

from nlt_trainer.errors import DataError
from nlt_trainer.file_hashes import file_hash
from nlt_trainer.lm.score_cache import KEY, SCORE, SCORE_COLUMNS, ScoreCache, key_bytes

SHARD_FILE = "scores-{}.parquet"
COLUMNS = pa.schema(
    [("key", pa.binary(KEY.itemsize)), *zip(SCORE_COLUMNS, (pa.float64(), pa.int64(), pa.bool_()), strict=True)]
)
METADATA = b"nlt_trainer.score_cache"
"""Entry of a shard's metadata with a JSON object: the version of the format, and the description of the cache."""
VERSION = 1
SHARD_ROWS = 1_000_000  # 33 MB
READ_ROWS = 65_536
"""Rows that are in memory at a time."""
ROUNDING = 0.1
"""Nats per target token by which two computations of a score may differ."""
REMEDY = "take it out of the data set, or push the scores again from the machine that has computed them"


@dataclass
class Merge:
    """What adding a shard to a cache has done.

    Args:
        cache: the cache of the shard's scorer.
        scores: number of scores in the shard.
        new: those that the cache did not have.
        different: those that it has with another value, which stays.
        example: the key of one of these and both scores; empty if there is none.
    """

    cache: ScoreCache
    scores: int = 0
    new: int = 0
    different: int = 0
    example: str = ""


def write_shards(cache: ScoreCache, folder: Path, *, present: ScoreCache) -> list[Path]:
    """Write the scores that another cache lacks; those of single tokens are left out.

    Whoever has the LLM could read a query out of the log-likelihoods of its tokens, one after another.

    Args:
        cache: the scores.
        folder: where the files are written.
        present: a cache of the same scorer.

    Returns:
        The files, which hold up to `SHARD_ROWS` scores each, sorted by key.
    """
    metadata = {METADATA: json.dumps({"version": VERSION, "description": json.loads(cache.description)})}
    schema, unnamed = COLUMNS.with_metadata(metadata), folder / SHARD_FILE.format("new")
    shards, writer, room = [], None, 0
    try:
        for keys, scores in cache.rows(READ_ROWS):
            _, known = present.get(keys)
            new = _table(keys[~known], scores[~known], schema)
            while len(new):
                if writer is None:
                    writer, room = ParquetWriter(unnamed, schema), SHARD_ROWS
                writer.write_table(new[:room])
                new, room = new[room:], room - min(room, len(new))
                if not room:
                    writer.close()
                    writer = None
                    shards.append(_named(unnamed))
    finally:
        if writer is not None:
            writer.close()
    return shards if writer is None else [*shards, _named(unnamed)]


def _table(keys: np.ndarray, scores: np.ndarray, schema: pa.Schema) -> pa.Table:
    columns = [pa.array(key_bytes(keys), COLUMNS.field("key").type), *(pa.array(scores[n]) for n in SCORE_COLUMNS)]
    return pa.Table.from_arrays(columns, schema=schema)


def _named(shard: Path) -> Path:
    return shard.rename(shard.with_name(SHARD_FILE.format(file_hash(shard))))


def merge_shard(shard: Path, folder: str | Path) -> Merge:
    """Add the scores of a shard to the cache of its scorer; a score that is there already stays.

    Args:
        shard: the file.
        folder: of the caches; a cache is made where the scorer has none.

    Raises:
        DataError: the shard is damaged or malformed, or of another version. None of its scores is added.
    """
    if SHARD_FILE.format(file_hash(shard)) != shard.name:
        raise DataError(shard, f"is damaged, because its content has another hash than its name says; {REMEDY}")
    try:
        with ParquetFile(shard) as file:
            description = _description(shard, file.schema_arrow)
            for _ in _rows(shard, file):  # all are read before the first is added
                pass
            merge = Merge(ScoreCache(folder, description))
            for keys, scores in _rows(shard, file):
                _add(merge, keys, scores)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.filename is not None:  # of the cache: a full disk
            raise
        raise DataError(shard, f"is no readable Parquet file ({' '.join(str(error).split())}); {REMEDY}") from error
    return merge


def _description(shard: Path, schema: pa.Schema) -> dict[str, Any]:
    """The description of a shard's cache.

    Raises:
        DataError: the shard is of another version, or has other columns than a shard.
    """
    try:
        head = json.loads((schema.metadata or {})[METADATA])
        version, description = int(head["version"]), dict(head["description"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(shard, f"does not say of which scorer its scores are; {REMEDY}") from error
    if version != VERSION:
        raise DataError(
            shard, f"has version {version} of its format, and this nlt_trainer reads {VERSION}; update nlt_trainer"
        )
    if not schema.equals(COLUMNS):
        found = ", ".join(f"{field.name} {field.type}" for field in schema)
        expected = ", ".join(f"{field.name} {field.type}" for field in COLUMNS)
        raise DataError(shard, f"has the columns {found}, where {expected} belong; {REMEDY}")
    return description


def _rows(shard: Path, file: ParquetFile) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield keys, sorted and distinct over the whole file, and scores of some rows at a time.

    Raises:
        DataError: a value is missing or is none that a score has; names the row, counted from 1.
    """
    first, last = 1, b""
    for batch in file.iter_batches(batch_size=READ_ROWS):
        columns = dict(zip(COLUMNS.names, batch.columns, strict=True))
        for name, column in columns.items():
            if column.null_count:
                row = first + column.is_null().to_pylist().index(True)
                raise DataError(shard, f"row {row} has no {name}; {REMEDY}")
        stored = columns["key"].to_pylist()
        scores = np.empty(len(stored), SCORE)
        for name in SCORE_COLUMNS:
            scores[name] = columns[name].to_numpy(zero_copy_only=False)
        wrong = {
            "key": np.array([key <= before for before, key in zip([last, *stored], stored, strict=False)]),
            "log_likelihood": ~np.isfinite(scores["log_likelihood"]),
            "target_tokens": scores["target_tokens"] < 1,
        }
        for name, found in wrong.items():
            if found.any():
                at = int(found.argmax())
                value = stored[at].hex() if name == "key" else scores[name][at]
                why = "which is not above the one before" if name == "key" else "which no score has"
                raise DataError(shard, f"row {first + at} has {name} {value}, {why}; {REMEDY}")
        yield np.frombuffer(b"".join(stored), KEY), scores
        first, last = first + len(stored), stored[-1]


def _add(merge: Merge, keys: np.ndarray, scores: np.ndarray) -> None:
    """Put the scores that the cache lacks into it, and count."""
    own, known = merge.cache.get(keys)
    change = np.abs(own["log_likelihood"] - scores["log_likelihood"]) > ROUNDING * scores["target_tokens"]
    differs = known & (change | (own[["target_tokens", "truncated"]] != scores[["target_tokens", "truncated"]]))
    if differs.any() and not merge.example:
        at = int(differs.argmax())
        key = key_bytes(keys[at : at + 1])[0].hex()
        merge.example = f"{key} with {own[at].item()} here and {scores[at].item()} there"
    new = zip(key_bytes(keys[~known]), scores[~known].tolist(), strict=True)
    merge.cache.put(dict(new))
    merge.scores += len(keys)
    merge.new += int((~known).sum())
    merge.different += int(differs.sum())
