"""Let the disk fail under stages: full, read-only, no right to write, no rename to another disk; then run them again.

```bash
python tests/faults/disk.py --trials 10
```

The error must be one line with a remedy and exit code 2, nothing under a final name may be half-written, and after the
second call, with a disk that works, everything must be as an undisturbed call writes it.
"""

from __future__ import annotations

import argparse
import errno
import random
from collections.abc import Iterator

from trials import STAGES, Action, Ended, Fault, last_line, run_preloaded, try_stages

KINDS = {
    "the disk is full": (Action.FULL, errno.ENOSPC),
    "the quota is used up": (Action.FULL, errno.EDQUOT),
    "the file system is read-only": (Action.DENIED, errno.EROFS),
    "nothing may be written": (Action.DENIED, errno.EACCES),
    "one change fails": (Action.FAIL, errno.EIO),
    "every folder is a disk of its own": (Action.APART, errno.EXDEV),
}
"""What is wrong with the disk, in words -> what happens at a change of a file, and the error."""


def wrong_end(ended: Ended, whole: Ended) -> str | None:
    """A stage whose disk fails ends with one line, or as ever if the failing change does not matter."""
    if "Traceback" in ended.output:
        return f"a traceback: {last_line(ended)}"
    if ended.code not in (2, whole.code):
        return f"exit code {ended.code}: {last_line(ended)}"
    return None if ended.code == whole.code or "; " in last_line(ended) else f"no remedy: {last_line(ended)}"


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
        for kind, (action, error) in KINDS.items():
            for at in sorted(draw.randint(1, max(whole.changes, 1)) for _ in range(options.trials)):
                yield Fault(f"{kind} at change {at}", {"action": action, "at": at, "amount": error})

    return try_stages(options.stages, faults=faults, check=wrong_end)


if __name__ == "__main__":
    raise SystemExit(main())
