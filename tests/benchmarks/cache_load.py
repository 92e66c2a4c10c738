"""A score cache with many entries: its size, how long it takes to open, to read and to write, and a kill in a write.

```bash
python tests/benchmarks/cache_load.py --entries 10000000 --folder runs/bench/cache
```

Entries have random keys, as hashes of texts are, and a target of seven tokens. The table has a row for each size. In
the end a process is killed while it writes. The next one must then find every entry that was there before, and of the
write all or nothing. A folder that is named is kept, and a later call goes on with the entries that it holds.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from measuring import MIB, parser, record, show

from nlt_trainer.lm.score_cache import KEY, ScoreCache, key_bytes

DESCRIPTION = {"of": "tests/benchmarks/cache_load.py"}
PARTS, TOKENS = 10, 7
"""Writes that fill the cache, and tokens of each entry's target."""
BATCHES = (32, 1024)
"""Entries that are read or written at once where speed is measured; scoring writes about 32 at a time."""

Entries = tuple[dict[bytes, tuple[float, int, bool]], dict[bytes, np.ndarray]]


def entries(part: int, number: int) -> Entries:
    """Scores and scores of tokens, the same ones for the same `part`, in the order of their random keys."""
    draw = np.random.default_rng(part)
    keys = sorted(key_bytes(np.frombuffer(draw.bytes(KEY.itemsize * number), KEY)))
    values, tokens = draw.normal(size=number).tolist(), draw.normal(size=(number, TOKENS)).astype(np.float32)
    return {key: (value, TOKENS, False) for key, value in zip(keys, values, strict=True)}, dict(
        zip(keys, tokens, strict=True)
    )


def check(cache: ScoreCache, scores: dict[bytes, tuple[float, int, bool]]) -> None:
    """Read scores and compare them with what was written."""
    keys = np.unique(np.frombuffer(b"".join(scores), KEY))
    found, known = cache.get(keys)
    assert known.all(), f"{np.count_nonzero(~known)} of {len(keys)} entries are lost"
    assert found["log_likelihood"].tolist() == [scores[key][0] for key in key_bytes(keys)]


def rate(call: Callable[[], None], size: int, *, seconds: float) -> float:
    """Entries a second of a call that handles `size` of them; it is repeated for some seconds."""
    begin, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - begin) < seconds:
        call()
        count += 1
    return count * size / elapsed


def opened(folder: Path) -> tuple[ScoreCache, float]:
    """The cache and the milliseconds that it took to open it."""
    begin = time.perf_counter()
    cache = ScoreCache(folder, DESCRIPTION)
    return cache, (time.perf_counter() - begin) * 1000


def point(folder: Path, parts: int, *, size: int, seconds: float) -> dict[str, Any]:
    """The row of a cache into which `parts` parts of `size` entries were written."""
    cache, milliseconds = opened(folder)
    held, draw = len(cache), np.random.default_rng(time.monotonic_ns())
    file = cache.path.stat().st_size
    row = {"entries": held, "MiB": file / MIB, "bytes an entry": file / held, "open, ms": milliseconds}
    stored = list(entries(int(draw.integers(parts)), size)[0].items())
    for at_once in BATCHES:

        def read(number: int = at_once) -> None:
            check(cache, dict(stored[i] for i in draw.integers(len(stored), size=number)))

        def write(number: int = at_once) -> None:
            cache.put(*entries(int(draw.integers(1 << 40, 1 << 62)), number))

        row[f"read {at_once} at once, entries/s"] = rate(read, at_once, seconds=seconds)
        row[f"write {at_once} at once, entries/s"] = rate(write, at_once, seconds=seconds)
    return row


def killed_write(folder: Path, size: int) -> dict[str, Any]:
    """Kill a process in the middle of writing a part, open the cache again, and check what it holds."""
    cache, new = ScoreCache(folder, DESCRIPTION), entries(PARTS, size)
    before, journal = len(cache), Path(f"{cache.path}-journal")
    child = os.fork()
    if not child:
        cache.put(*new)
        os._exit(0)
    while not journal.is_file() and not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        time.sleep(0.001)
    time.sleep(size * 2e-6)  # about a third of what the write takes
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    left = journal.stat().st_size if journal.is_file() else 0
    cache, milliseconds = opened(folder)
    held = len(cache)
    assert held in (before, before + size)
    for part in range(PARTS):
        check(cache, entries(part, size)[0])
    cache.put(*new)
    check(cache, new[0])
    assert len(cache) == before + size
    return {
        "signal": -os.waitstatus_to_exitcode(status),
        "MiB to undo": left / MIB,
        "open after the kill, ms": milliseconds,
        "entries lost": max(0, before - held),
    }


def fill(folder: Path, *, size: int, seconds: float) -> list[dict[str, Any]]:
    """Write all parts of `size` entries; returns the rows after the first and after the last."""
    rows, cache = [], ScoreCache(folder, DESCRIPTION)
    for part in range(PARTS):
        begin = time.perf_counter()
        scores, tokens = entries(part, size)
        first = np.frombuffer(next(iter(scores)), KEY)
        if not cache.stored(first).all():  # a part is written whole or not at all
            cache.put(scores, tokens)
        print(f"part {part + 1} of {PARTS}: {time.perf_counter() - begin:.1f} s", file=sys.stderr, flush=True)
        if part in (0, PARTS - 1):
            rows.append(point(folder, part + 1, size=size, seconds=seconds))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def main(argv: list[str] | None = None) -> None:
    """Fill a cache, measure it at a tenth and at all of its size, and kill a process that writes."""
    flags = parser(__doc__)
    flags.add_argument("--entries", type=int, default=10_000_000)
    flags.add_argument("--seconds", type=float, default=10.0, help="of each measurement of speed")
    flags.add_argument("--folder", type=Path, help="where the cache is made and kept; unset: a temporary folder")
    options = flags.parse_args(argv)
    size = options.entries // PARTS
    with nullcontext(options.folder) if options.folder else tempfile.TemporaryDirectory() as folder:
        rows = fill(Path(folder), size=size, seconds=options.seconds)
        killed = killed_write(Path(folder), size)
    show(rows)
    show([killed])
    figures = {f"cache_load_{key}": round(rows[-1][name]) for key, name in (("entries", "entries"), ("mib", "MiB"))}
    record(options.json, "cache_load", figures, {"sizes": rows, "kill": killed})


if __name__ == "__main__":
    main()
