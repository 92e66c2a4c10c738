"""Several processes at once: on one score cache, where they are killed, and in one folder, where only one may train.

```bash
python tests/faults/several.py --trials 20
```

Four processes score the same pairs with one cache, and each is killed at a random instant. Afterwards the cache must
be whole, every score in it must be the one that an undisturbed call stores, and four processes that nobody kills must
write equal gains. Of two trainings in one folder the second must be refused in a line while the first one lives; when
the first was killed, the second must end as a training that was never disturbed.
"""

from __future__ import annotations

import argparse
import random
import sqlite3
import tempfile
import time
from contextlib import closing
from pathlib import Path

from contents import differences
from trials import STAGES, Bench, Ended, last_line, run_preloaded

PROCESSES = 4
REFUSED = "another process is working in run; wait until it has ended, or name another"


def scoring(number: int) -> list[str]:
    """The stage `score` with gains of its own and the common cache."""
    return [*STAGES["score"], "--gains", f"gains-{number}.jsonl"]


def stored(bench: Bench) -> dict[str, set[tuple[object, ...]]]:
    """The rows of each table of the score cache, if there is one.

    Raises:
        sqlite3.DatabaseError: the file is damaged.
    """
    rows: dict[str, set[tuple[object, ...]]] = {}
    for file in (bench.work / "scores").glob("*.sqlite"):
        with closing(sqlite3.connect(file)) as connection:
            if (state := connection.execute("PRAGMA integrity_check").fetchall()) != [("ok",)]:
                raise sqlite3.DatabaseError(str(state))
            names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
            rows |= {name: {*connection.execute(f"SELECT * FROM {name}")} for (name,) in names}
    return rows


def try_cache(bench: Bench, before: Path, draw: random.Random, *, whole: Ended) -> tuple[int, list[str]]:
    """Kill four processes on one cache, then let four go on; returns how many the kill met, and what is wrong."""
    reference, gains = stored(bench), (bench.work / "gains.jsonl").read_bytes()
    bench.reset(before)
    started = [bench.start(scoring(i)) for i in range(PROCESSES)]
    for process in sorted(started, key=lambda _: draw.random()):
        bench.kill(process, draw.uniform(0, 2 * whole.seconds / PROCESSES))
    killed = [bench.ended(process).code for process in started]
    faults = [f"a process ended with {code}" for code in killed if code not in (0, -9)]
    for table, rows in stored(bench).items():
        faults += [f"{table}: a row that no undisturbed call stores" for _ in rows - reference[table]]
    for ended in [bench.ended(process) for process in [bench.start(scoring(i)) for i in range(PROCESSES)]]:
        faults += [f"exit code {ended.code}: {last_line(ended)}"] if ended.code else []
    for i in range(PROCESSES):
        file = bench.work / f"gains-{i}.jsonl"
        faults += [] if file.is_file() and file.read_bytes() == gains else [f"other gains in {file.name}"]
    faults += [] if stored(bench) == reference else ["the cache does not hold what an undisturbed call stores"]
    return killed.count(-9), faults + [f"left over: {path}" for path in bench.left_over()]


def try_folder(bench: Bench, before: Path, draw: random.Random, *, whole: Ended) -> tuple[int, list[str]]:
    """Train twice in one folder; returns whether the second met the first one running, and what is wrong.

    The first training is killed after the second has ended, and then a third one goes on.
    """
    reference = bench.content()
    bench.reset(before)
    first = bench.start(STAGES["train"])
    while not (bench.work / "run").is_dir() and not bench.has_ended(first):
        time.sleep(0.002)
    second = bench.run(STAGES["train"])
    met = not bench.has_ended(first)
    faults = []
    if met and (second.code != 2 or not last_line(second).endswith(REFUSED)):
        faults.append(f"the second was not refused but ended with {second.code}: {last_line(second)}")
    bench.kill(first, draw.uniform(0, whole.seconds / 2))
    bench.ended(first)
    third = bench.run(STAGES["train"])
    faults += [f"after the kill: exit code {third.code}: {last_line(third)}"] if third.code else []
    return int(met), faults + differences(reference, bench.content())


KINDS = {"score": try_cache, "train": try_folder}
"""Stage -> what several processes of it do."""


def main() -> int:
    """Try both and print a table; the exit code is 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    run_preloaded(__file__)
    table, lost = [], 0
    with tempfile.TemporaryDirectory(prefix="nlt_faults") as root:
        bench = Bench(Path(root, "bench"))
        for stage in ("mine", *KINDS):
            with bench.stage(stage) as (before, whole):
                assert whole.code == 0, whole.output
                if stage not in KINDS:
                    continue
                after, draw = bench.root / f"after {stage}", random.Random(f"{options.seed} {stage}")
                bench.keep(after)
                hit, faults = 0, list[str]()
                for _ in range(options.trials):
                    bench.reset(after)
                    met, found = KINDS[stage](bench, before, draw, whole=whole)
                    hit, faults = hit + met, faults + found
                    for line in found:
                        print(f"  {stage}: {line}", flush=True)
                lost += len(faults)
                table.append(f"| {stage} | {options.trials} | {hit} | {len(faults)} |")
    print("\n| stage | trials | processes met running | faults |\n|---|---|---|---|")
    print("\n".join(table))
    return int(lost > 0)


if __name__ == "__main__":
    raise SystemExit(main())
