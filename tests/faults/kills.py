"""Kill stages at random instants and at every change of a file, run them again, and compare with calls undisturbed.

```bash
python tests/faults/kills.py --random 60
python tests/faults/kills.py --every_change 1 --stages mine score
```

After a kill no file under a final name may be half-written. After the second call everything that the stage writes
must be as an undisturbed call writes it: data byte by byte, the encoder and the losses bit by bit. Nothing of the
killed process may be left.
"""

from __future__ import annotations

import argparse
import random
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trials import STAGES, Action, Bench, Ended, Tally, run_preloaded

STOPPED = (-signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM)
"""Exit codes of a process that was killed, or that has ended because it was asked to."""


def kill_and_repeat(bench: Bench, name: str, before: Path, *, whole: Ended, options: argparse.Namespace) -> Tally:
    """Kill a stage in all the ways that were asked for."""
    reference, tally = bench.content(), Tally()
    for what, fault in faults(name, whole, options):
        bench.reset(before)
        killed = bench.run(STAGES[name], **fault)
        tally.trials += 1
        tally.hit += killed.code in STOPPED
        found = [f"half-written: {path}" for path in bench.broken()]
        if killed.code not in (*STOPPED, whole.code):
            found.append(f"exit code {killed.code}: {last_line(killed)}")
        again = bench.run(STAGES[name])
        if again.code != whole.code:
            found.append(f"the second call ended with {again.code}: {last_line(again)}")
        content = bench.content()
        different = [p for p in sorted({*reference, *content}) if reference.get(p) != content.get(p)]
        found += [
            f"different: {path}{first_difference(reference.get(path, ''), content.get(path, ''))}"
            for path in different
        ]
        found += [f"left over: {path}" for path in bench.left_over()]
        for fault_found in found:
            tally.faults.append(f"{name}, {what}: {fault_found}")
            print(f"  {tally.faults[-1]}", flush=True)
    return tally


def faults(name: str, whole: Ended, options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """The faults of a stage, each with words for it."""
    draw = random.Random(f"{options.seed} {name}")
    for i in range(options.random):
        number = signal.SIGTERM if i % 2 else signal.SIGKILL
        seconds = draw.uniform(0, whole.seconds)
        yield f"{number.name} after {seconds:.3f} s", {"kill_after": (seconds, number)}
    if options.every_change:
        for at in range(1, whole.changes + 1, options.every_change):
            yield f"killed at change {at} of {whole.changes}", {"action": Action.KILL, "at": at}


def first_difference(expected: str, found: str) -> str:
    """Where two texts part, with what stands there."""
    at = next((i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), 0)
    return f" ({expected[max(0, at - 60) : at + 60]!r} is {found[max(0, at - 60) : at + 60]!r})"


def last_line(ended: Ended) -> str:
    return next((line for line in reversed(ended.output.splitlines()) if line.strip()), "")[:200]


def main() -> int:
    """Try all stages and print a table; the exit code is 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", default=[*STAGES], choices=STAGES)
    parser.add_argument("--random", type=int, default=0, help="kills of each stage at random instants")
    parser.add_argument("--every_change", type=int, default=0, help="1: at every change of a file; n: at every n-th")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    run_preloaded(__file__)
    lines, lost = [], 0
    with tempfile.TemporaryDirectory(prefix="nlt_faults") as root:
        bench = Bench(Path(root, "bench"))
        last = max([*STAGES].index(name) for name in options.stages)
        for name in [*STAGES][: last + 1]:
            with bench.stage(name) as (before, whole):
                if name not in options.stages:
                    continue
                if whole.code not in (0, 3):
                    print(whole.output)
                    return 2
                print(whole.output[-500:]) if not whole.changes else 0
                print(f"{name}: {whole.seconds:.1f} s, {whole.changes} changes of files", flush=True)
                tally = kill_and_repeat(bench, name, before, whole=whole, options=options)
            lost += len(tally.faults)
            lines.append(f"| {name} | {whole.changes} | {tally.trials} | {tally.hit} | {len(tally.faults)} |")
    print("\n| stage | changes of files | trials | met it running | faults |\n|---|---|---|---|---|")
    print("\n".join(lines))
    return int(lost > 0)


if __name__ == "__main__":
    raise SystemExit(main())
