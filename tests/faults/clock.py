"""Set the clock back by an hour or a day, within a stage and between two calls, and compare with calls undisturbed.

```bash
python tests/faults/clock.py --trials 10
```

The clock is set back at a change of a file. The stage goes on, or is killed at this change so that only the next call
has the new clock, or is killed later. What was written before lies in the future from then on. Nothing stale may be
used, nothing may be lost, and no report may have a negative time.
"""

from __future__ import annotations

import argparse
import random
import signal
from collections.abc import Iterator
from typing import Any

from kills import wrong_end
from trials import STAGES, Action, Ended, Fault, run_preloaded, try_stages

JUMPS = {"an hour": 3600, "a day": 86400}
"""How far the clock is set back, in words -> seconds."""


def main() -> int:
    """Try all stages and print a table; the exit code is 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", default=[*STAGES], choices=STAGES)
    parser.add_argument("--trials", type=int, default=5, help="of each kind and each stage")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    run_preloaded(__file__)

    def faults(name: str, whole: Ended) -> Iterator[Fault]:
        draw = random.Random(f"{options.seed} {name}")
        for i in range(options.trials):
            words = [*JUMPS][i % len(JUMPS)]
            back: dict[str, Any] = {"at": draw.randint(1, max(whole.changes, 1)), "amount": JUMPS[words]}
            place, seconds = f"{words} back at change {back['at']}", draw.uniform(0, whole.seconds)
            yield Fault(place, back | {"action": Action.BACK})
            yield Fault(f"{place}, killed there", back | {"action": Action.BACK_KILL})
            kill = {"kill_after": (seconds, signal.SIGKILL)}
            yield Fault(f"{place}, killed after {seconds:.3f} s", back | kill | {"action": Action.BACK})

    return try_stages(options.stages, faults=faults, check=wrong_end)


if __name__ == "__main__":
    raise SystemExit(main())
