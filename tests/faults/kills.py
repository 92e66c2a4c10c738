"""Kill stages at random instants and at every change of a file, run them again, and compare with calls undisturbed.

```bash
python tests/faults/kills.py --random 50
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
from collections.abc import Iterator

from trials import STAGES, Action, Ended, Fault, last_line, run_preloaded, try_stages

STOPPED = (-signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM)
"""Exit codes of a process that was killed, or that has ended because it was asked to."""


def wrong_end(ended: Ended, whole: Ended) -> str | None:
    """A killed stage has ended by the signal, or as ever if the signal came too late."""
    return None if ended.code in (*STOPPED, whole.code) else f"exit code {ended.code}: {last_line(ended)}"


def main() -> int:
    """Try all stages and print a table; the exit code is 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", default=[*STAGES], choices=STAGES)
    parser.add_argument("--random", type=int, default=0, help="kills of each stage at random instants")
    parser.add_argument("--every_change", type=int, default=0, help="1: at every change of a file; n: at every n-th")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    run_preloaded(__file__)

    def faults(name: str, whole: Ended) -> Iterator[Fault]:
        draw = random.Random(f"{options.seed} {name}")
        for i in range(options.random):
            number, seconds = (signal.SIGKILL, signal.SIGTERM)[i % 2], draw.uniform(0, whole.seconds)
            yield Fault(f"{number.name} after {seconds:.3f} s", {"kill_after": (seconds, number)})
        if options.every_change:
            for at in range(1, whole.changes + 1, options.every_change):
                yield Fault(f"killed at change {at} of {whole.changes}", {"action": Action.KILL, "at": at})

    return try_stages(options.stages, faults=faults, check=wrong_end)


if __name__ == "__main__":
    raise SystemExit(main())
