"""The score cache against a dict: keys, files, several writers, damage."""

from __future__ import annotations

import multiprocessing
import sqlite3
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pytest

from nlt_trainer.errors import DataError, NLTError
from nlt_trainer.lm.score_cache import KEY, ScoreCache

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
    """Reference: the arrays, bit by bit; what was put without them, or before there was a table of them, has none."""
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
    with sqlite3.connect(cache.path) as connection:
        connection.execute("DROP TABLE tokens")
    connection.close()
    old = ScoreCache(tmp_path, DESCRIPTION)
    assert old.get_tokens(keys) == {}
    assert found(old, [with_tokens, without]) == {with_tokens: (-4.5, 3, False), without: (-2.0, 1, False)}


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
    """Reference: the message names the file and the remedy."""
    path = ScoreCache(tmp_path, DESCRIPTION).path
    path.write_bytes(b"this is not a database" * 100)
    with pytest.raises(DataError, match=r"not a readable score cache .* remove the file") as caught:
        ScoreCache(tmp_path, DESCRIPTION)
    assert caught.value.path == path
    with pytest.raises(DataError, match=r"is a file, and the score cache is a folder; name a folder"):
        ScoreCache(path, DESCRIPTION)


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
        barrier.wait(timeout=60)
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
        process.join(timeout=60)
        assert process.exitcode == 0
    keys = [ScoreCache.key(f"own {part} {i}") for part in range(2) for i in range(10)]
    keys += [ScoreCache.key(f"shared {i}") for i in range(10)]
    together = found(ScoreCache(tmp_path / "together", DESCRIPTION), keys)
    assert len(together) == 25
    assert together == found(ScoreCache(tmp_path / "alone", DESCRIPTION), keys)
