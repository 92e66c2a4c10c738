"""Damage files that stages have written, and run the stages that read them.

```bash
python tests/faults/damage.py --trials 20
```

A file loses its end, a bit of it is flipped, or 64 bytes of it become zeros. The stage must refuse the file by its
name, or make again what it lacks and end as if nothing had been damaged. It must not use what is damaged.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from contents import differences
from trials import STAGES, Bench, Ended, last_line, run_preloaded


@dataclass(frozen=True)
class Reading:
    """A stage, the files that it reads, and its own output, which is removed so that it works at all.

    Args:
        stage: its name.
        files: patterns of the files that are damaged.
        output: what is removed before the stage runs.
    """

    stage: str
    files: tuple[str, ...]
    output: tuple[str, ...]


READINGS = {
    "candidates": Reading("score", ("candidates.jsonl",), ("gains.jsonl", "gains.audit.json", "scores")),
    "scores": Reading("score", ("scores/*.sqlite",), ("gains.jsonl", "gains.audit.json")),
    "gains": Reading("train", ("gains.jsonl", "gains.audit.json"), ("run",)),
    "checkpoint": Reading("train", ("run/checkpoint-*/**/*",), ("run/encoder", "run/training.json")),
    "settings": Reading("train", ("run/settings.json",), ("run/encoder", "run/training.json")),
    "run": Reading("evaluate", ("run/settings.json", "run/training.json"), ("run/evaluation", "run/results.json")),
    "encoder": Reading("evaluate", ("run/encoder/**/*.safetensors", "run/encoder/**/*.json"), ("run/evaluation",)),
    "release": Reading("push", ("run/encoder/**/*.safetensors", "run/encoder/**/*.json", "gains*.json*"), ()),
    "kept corpora": Reading("mine", ("cache/**/*",), ("candidates.jsonl",)),
    "kept embeddings": Reading("evaluate", ("cache/**/*",), ("run/evaluation", "run/results.json")),
    "heads": Reading("train dream", ("heads.json",), ("dream",)),
}
"""What is damaged -> who reads it."""

CHAIN = ("mine", "score", "detect_heads", "train", "evaluate")
"""The stages that write all of this."""
DREAM = [
    *STAGES["train"], "--objective", "dream", "--output_dir", "dream", "--eval_strategy", "no",
]  # fmt: skip


def place_in(content: bytes, draw: random.Random) -> int:
    """A place in a file: anywhere, or in the 128 bytes at its beginning or end, where headers and checksums stand."""
    edge = min(128, len(content))
    return draw.choice([draw.randrange(len(content)), draw.randrange(edge), len(content) - 1 - draw.randrange(edge)])


def cut(content: bytes, draw: random.Random) -> bytes:
    return content[: place_in(content, draw)]


def flipped(content: bytes, draw: random.Random) -> bytes:
    place = place_in(content, draw)
    return content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :]


def zeroed(content: bytes, draw: random.Random) -> bytes:
    place = place_in(content, draw)
    return content[:place] + bytes(min(64, len(content) - place)) + content[place + 64 :]


KINDS: dict[str, Callable[[bytes, random.Random], bytes]] = {"cut": cut, "flipped": flipped, "zeroed": zeroed}


def try_reading(bench: Bench, name: str, before: Path, *, trials: int, seed: int) -> tuple[int, int, int, list[str]]:
    """Damage what a stage reads; returns how often it was refused, made again or did not matter, and the faults."""
    reading, draw = READINGS[name], random.Random(f"{seed} {name}")
    command = DREAM if reading.stage == "train dream" else STAGES[reading.stage]

    def begin() -> None:
        bench.reset(before)
        for output in reading.output:
            path = bench.work / output
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    begin()
    whole = bench.run(command)
    reference = bench.content()
    refused, mended, faults = 0, 0, list[str]()
    for i in range(trials):
        begin()
        files = sorted({path for pattern in reading.files for path in bench.work.glob(pattern) if path.is_file()})
        files = [path for path in files if path.stat().st_size]
        path, kind = files[draw.randrange(len(files))], [*KINDS][i % len(KINDS)]
        content = path.read_bytes()
        path.write_bytes(KINDS[kind](content, draw))
        if path.read_bytes() == content:
            continue
        shown = str(path.relative_to(bench.work))
        ended = bench.run(command)
        fault = wrong_end(ended, whole, reference, bench, shown)
        refused += ended.code == 2
        mended += ended.code == whole.code and fault is None
        if fault:
            faults.append(f"{name}, {shown} {kind}: {fault}")
            print(f"  {faults[-1]}", flush=True)
    return len(files), refused, mended, faults


def wrong_end(ended: Ended, whole: Ended, reference: dict[str, str], bench: Bench, damaged: str) -> str | None:
    """What is wrong with how a stage has ended that read a damaged file."""
    if "Traceback" in ended.output:
        return f"a traceback: {last_line(ended)}"
    if ended.code == 2:
        name = Path(damaged).name
        return (
            None if name in ended.output or Path(damaged).parts[0] in ended.output else f"no name: {last_line(ended)}"
        )
    if ended.code != whole.code:
        return f"exit code {ended.code}: {last_line(ended)}"
    expected = {path: content for path, content in reference.items() if path != damaged}
    other = differences(expected, bench.content(without=damaged))
    return f"used: {other[0]}" if other else None


def main() -> int:
    """Damage each kind of file and print a table; the exit code is 1 if anything damaged was used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", nargs="+", default=[*READINGS], choices=READINGS, help="what is damaged")
    parser.add_argument("--trials", type=int, default=12, help="of each kind of file")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    run_preloaded(__file__)
    rows, lost = [], 0
    with tempfile.TemporaryDirectory(prefix="nlt_faults") as root:
        bench = Bench(Path(root, "bench"))
        for stage in CHAIN:
            assert bench.run(STAGES[stage]).code == 0, stage
        before = bench.root / "before"
        shutil.copytree(bench.work, before)
        for name in options.files:
            print(name, flush=True)
            files, refused, mended, faults = try_reading(bench, name, before, trials=options.trials, seed=options.seed)
            lost += len(faults)
            rows.append(f"| {name} | {files} | {options.trials} | {refused} | {mended} | {len(faults)} |")
    print("\n| damaged | files | trials | refused | as undamaged | faults |\n|---|---|---|---|---|---|")
    print("\n".join(rows))
    return int(lost > 0)


if __name__ == "__main__":
    raise SystemExit(main())
