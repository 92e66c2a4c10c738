"""Give the readers of files and every command odd inputs, drawn at random.

```bash
python tests/faults/inputs.py --inputs 1200
```

An input is a file, a folder of files or a command line, and mostly something is wrong with it. It must be read, or be
refused by one of this project's errors. No other exception may come, nothing may take longer than a few seconds,
nothing may be written outside the input's own folder, and what was read must be the same after it was written and
read again.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

SECONDS, WAITED = 5, 60
"""The longest time of the processor and the longest time by the clock that an input may take."""
VARIANTS = 8
"""Inputs that are made of what is drawn once."""
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {
    "os.mkdir": 1,
    "os.remove": 1,
    "os.rmdir": 1,
    "os.truncate": 1,
    "os.rename": 2,
    "os.symlink": 2,
    "os.link": 2,
}
"""Event of Python's audit of a change to files -> how many of its arguments are paths. A number among those is a file
that is open already; then the event of opening it has come before."""


class TooSlow(BaseException):
    """An input has taken too long; no handler of the code under test catches this."""


class Fence:
    """Notes what Python writes outside a folder."""

    def __init__(self) -> None:
        self.folder: str | None = None
        self.outside: list[str] = []
        sys.addaudithook(self._see)

    @contextlib.contextmanager
    def around(self, folder: Path) -> Iterator[list[str]]:
        """Yield a list to which every change outside the folder is added until the block ends."""
        self.folder, self.outside = str(folder), []
        try:
            yield self.outside
        finally:
            self.folder = None

    def _see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        paths: tuple[Any, ...] = arguments[: CHANGES.get(event, 0)]
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES:
            paths = arguments[:1]
        if event in ("os.remove", "os.rmdir") and arguments[-1] != -1:  # a name below a folder that is open
            return
        for path in paths:
            if isinstance(path, str | bytes | os.PathLike):
                absolute = os.path.normpath(Path(os.fsdecode(path)).absolute())
                if absolute != os.devnull and not f"{absolute}/".startswith(f"{self.folder}/"):
                    self.outside.append(f"{event} {absolute}")


@dataclass
class Tally:
    """What came of the inputs of a kind.

    Args:
        inputs: how many there were.
        read: how many of them were read, or how many command lines ended well.
        faults: place and kind of each different fault -> the shortest input that has shown it.
        counts: how often each fault was shown.
        slowest: seconds of the processor that the slowest input took.
    """

    inputs: int = 0
    read: int = 0
    faults: dict[str, str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0


def stop(number: int, frame: Any) -> NoReturn:
    raise TooSlow


def limit(processor: float, clock: float) -> None:
    """Let `stop` be called after so many seconds; 0 for never."""
    signal.setitimer(signal.ITIMER_PROF, processor)
    signal.setitimer(signal.ITIMER_REAL, clock)


def place_of(error: BaseException) -> str:
    """The innermost line of this project that an exception has passed, and what it is."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "nlt_trainer/" in frame.filename or "/faults/using.py" in frame.filename]
    last = (own or frames)[-1]
    place = f"{last.filename.rpartition('nlt_trainer/')[2] or last.filename}:{last.lineno}"
    return f"{place}: {type(error).__name__}"


def attempt(
    use: Callable[[Path, Any], None], folder: Path, drawn: Any, *, fence: Fence
) -> tuple[bool, str | None, str]:
    """Use an input in an empty folder; returns whether it was read, what is wrong, and the error in its own words."""
    from using import NLTError, write_files

    shutil.rmtree(folder, ignore_errors=True)
    inside = folder / "work"
    inside.mkdir(parents=True)
    write_files(inside, drawn.files)
    os.chdir(inside)
    limit(SECONDS, WAITED)
    try:
        with fence.around(folder) as outside, contextlib.redirect_stderr(io.StringIO()):
            use(inside, drawn)
        return True, f"written outside: {outside[0]}" if outside else None, ""
    except NLTError:
        return False, f"written outside: {outside[0]}" if outside else None, ""
    except TooSlow as error:
        return False, f"too slow, {place_of(error)}", ""
    except Exception as error:
        return False, place_of(error), str(error)[:300]
    finally:
        limit(0, 0)


def try_kind(name: str, folder: Path, *, inputs: int, seed: int, derandomize: bool, fence: Fence) -> Tally:
    """Draw inputs of a kind and use each of them, whatever the ones before have shown."""
    import hypothesis
    from spoiling import variants
    from using import KINDS

    strategy, use = KINDS[name]
    tally = Tally()

    def some(drawn: Any) -> None:
        for variant in variants(drawn, number=VARIANTS):
            one(variant)

    def one(drawn: Any) -> None:
        begin = time.process_time()
        read, fault, said = attempt(use, folder, drawn, fence=fence)
        tally.inputs += 1
        tally.read += read
        tally.slowest = max(tally.slowest, time.process_time() - begin)
        if fault:
            tally.counts[fault] += 1
            shown = f"{said}\n    {drawn!r}"
            if fault not in tally.faults:
                print(f"  {name}: {fault}", flush=True)
            tally.faults[fault] = min(tally.faults.get(fault, shown), shown, key=len)

    settings = hypothesis.settings(
        max_examples=max(inputs // VARIANTS, 1), deadline=None, database=None, derandomize=derandomize,
        phases=[hypothesis.Phase.generate], suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    test = hypothesis.given(strategy())(some)
    settings(test if derandomize else hypothesis.seed(f"{seed} {name}")(test))()
    return tally


def main() -> int:
    """Try every kind of input and print a table; the exit code is 1 at any fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", help="kinds of input; unset: all")
    parser.add_argument("--inputs", type=int, default=1200, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--derandomize", action="store_true", help="draw the same inputs in every version of the code")
    options = parser.parse_args()
    rows, lost = [], 0
    with tempfile.TemporaryDirectory(prefix="nlt_inputs") as top:
        root = Path(top).resolve()
        os.environ |= {**ENVIRONMENT, "NLT_CACHE": f"{top}/world/cache", "HF_HOME": f"{top}/world/hub"}
        tempfile.tempdir = top
        signal.signal(signal.SIGALRM, stop)
        signal.signal(signal.SIGPROF, stop)
        from using import KINDS

        os.environ["HOME"] = top  # what libraries keep there for later runs is read where it is
        fence = Fence()
        for name in options.kinds or KINDS:
            begin = time.monotonic()
            tally = try_kind(
                name, root / "world", inputs=options.inputs, seed=options.seed,
                derandomize=options.derandomize, fence=fence,
            )  # fmt: skip
            seconds, lost = time.monotonic() - begin, lost + len(tally.faults)
            print(f"{name}: {seconds:.1f} s", flush=True)
            for fault, drawn in tally.faults.items():
                print(f"  {tally.counts[fault]} times {fault}\n    {drawn[:1500]}", flush=True)
            refused = tally.inputs - tally.read
            cells = (
                name,
                tally.inputs,
                tally.read,
                refused,
                f"{tally.slowest:.1f}",
                f"{seconds:.0f}",
                len(tally.faults),
            )
            rows.append(f"| {' | '.join(map(str, cells))} |")
        os.chdir("/")
    print("\n| input | drawn | read | not read | slowest, s | all, s | faults |\n|---|---|---|---|---|---|---|")
    print("\n".join(rows))
    return int(lost > 0)


if __name__ == "__main__":
    raise SystemExit(main())
