"""Stages on a tiny collection, run again and again with a fault in one of them, and what is compared afterwards.

A trial forks a process that has imported everything already, so that it takes a second and not ten.
"""

from __future__ import annotations

import ctypes
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PRELOADED = "NLT_FAULTS_LIBRARY"

STAGES: dict[str, list[str]] = {
    "build_corpus": ["build_corpus", "--documents", "documents", "--corpus", "passages"],
    "make_queries": [
        "make_queries", "--config", "recipe.yaml", "--corpus", "passages", "--collection", "made",
        "--kind", "crop", "--score_cache", "made_scores",
    ],
    "mine": ["mine", "--config", "recipe.yaml"],
    "score": ["score", "--config", "recipe.yaml"],
    "detect_heads": ["detect_heads", "--config", "recipe.yaml"],
    "adapt_scorer": ["adapt_scorer", "--config", "recipe.yaml", "--output_dir", "scorer", "--max_steps", "4"],
    "train": ["train", "--config", "recipe.yaml"],
    "train with refresh": [
        "train", "--config", "recipe.yaml", "--refresh", "0-9:3", "--output_dir", "refreshed",
        "--lora", '{"r": 2, "target_modules": "all-linear"}', "--merge_lora", "false",
    ],
    "evaluate": ["evaluate", "--config", "recipe.yaml"],
    "export": ["export", "--config", "recipe.yaml", "--output_dir", "refreshed", "--form", "merged"],
    "adapt": [
        "adapt", "documents", "--encoder", "encoder", "--llm", "llm", "--output", "adapted", "--num_candidates", "3",
        "--max_document_tokens", "8", "--train_max_length", "8", "--use_cpu", "true", "--disable_tqdm", "true",
        "--per_device_train_batch_size", "4", "--num_queries", "80", "--held_out", "20", "--save_steps", "4",
    ],
}  # fmt: skip
"""Name of a stage -> its command line after `nlt`, in an order in which each finds what it reads."""

RECIPE = """
model:
  encoder: encoder
  llm: llm
  heads: heads.json
  num_heads: 3
data:
  collection: collection
  train_split: train
  dev_split: dev
  eval_split: test
  candidates: candidates.jsonl
  gains: gains.jsonl
  score_cache: scores
  miner: fused
  num_candidates: 4
  max_document_tokens: 24
trainer:
  output_dir: run
  num_train_epochs: 4
  per_device_train_batch_size: 2
  learning_rate: 0.01
  logging_steps: 3
  save_steps: 2
  eval_strategy: epoch
  report_to: none
  use_cpu: true
  disable_tqdm: true
"""

TIMES = {"second", "seconds", "time", "runtime", "memory", "date", "phases"}
"""Words in the names of values that differ from call to call."""
PAGES = (".md", ".html", ".log")
"""Endings of pages for people, which say how long a stage took. That they are there is compared, their text is not."""
INPUTS = {"documents", "llm", "encoder", "parts", "collection"}
CACHES = {"cache", "scores", "made_scores", "stamps", "embeddings"}
"""Folders that are not compared, wherever they lie: databases whose pages depend on the order of writing, and hashes
of files that say how long something took."""
LEFT = (".partial", ".previous")


class Action(IntEnum):
    """What happens at a change of a file, as faults.c knows it."""

    COUNT = 0
    KILL = 1
    FAIL = 2
    FULL = 3
    DENIED = 4


@dataclass(frozen=True)
class Fault:
    """One trial.

    Args:
        name: in words.
        options: how `Bench.run` brings it about.
    """

    name: str
    options: dict[str, Any]


@dataclass
class Ended:
    """How a trial's process ended.

    Args:
        code: exit code; minus the signal where a signal has killed it.
        output: what it has printed.
        seconds: how long it ran.
        changes: how many changes to files it made; unknown where it was killed.
    """

    code: int
    output: str
    seconds: float
    changes: int = 0


@dataclass
class Tally:
    """What was tried on a stage and what came of it.

    Args:
        trials: how many there were.
        hit: how many of them met a stage that was still running.
        faults: what should not be, one line each.
    """

    trials: int = 0
    hit: int = 0
    faults: list[str] = field(default_factory=list)


Check = Callable[[Ended, Ended], "str | None"]
"""What is wrong with how a trial has ended, given how an undisturbed call ends; `None` where nothing is."""


def build_library(folder: Path) -> Path:
    """Compile faults.c."""
    library = folder / "faults.so"
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, HERE / "faults.c", "-ldl"], check=True)
    return library


def run_preloaded(program: str) -> None:
    """Run a program of this folder again with the library of faults.c in it, unless it is there; returns if it is."""
    if PRELOADED in os.environ:
        return
    with tempfile.TemporaryDirectory(prefix="nlt_faults_library") as folder:
        library = str(build_library(Path(folder)))
        offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
        environment = {**os.environ, **offline, "LD_PRELOAD": library, PRELOADED: library}
        raise SystemExit(subprocess.run([sys.executable, program, *sys.argv[1:]], env=environment).returncode)


class Bench:
    """A folder in which stages are run from the same beginning, again and again.

    Args:
        root: an empty folder.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.work = root, root / "work"
        self.library = ctypes.CDLL(os.environ[PRELOADED])
        self.library.faults_count.restype = ctypes.c_long
        child = os.fork()  # torch must not have begun threads here, because those do not survive later forks
        if not child:
            self._build()
            os._exit(0)
        assert not os.waitpid(child, 0)[1]
        import_everything()

    def _build(self) -> None:
        sys.path.insert(0, str(HERE.parent))
        from tiny import DOCUMENTS, save_encoder, save_llm, write_collection

        self.work.mkdir(parents=True)
        save_llm(self.work / "llm")
        save_encoder(self.work / "encoder", parts=self.work / "parts")
        write_collection(self.work / "collection")
        (self.work / "documents").mkdir()
        for i in range(60):
            texts = [text for _, text in DOCUMENTS.values()]
            sentences = [texts[(i * k + 5 * k + i) % len(texts)].replace(".", f" {i}.") for k in range(1, 5)]
            (self.work / "documents" / f"{i:02d}.{'md' if i % 2 else 'txt'}").write_text(" ".join(sentences))
        (self.work / "recipe.yaml").write_text(RECIPE)

    @contextmanager
    def stage(self, name: str) -> Iterator[tuple[Path, Ended]]:
        """Run a stage as it should run; yields a copy of the folder before it, and how it ended.

        After the block the folder is as the stage has left it.
        """
        before = self.root / "before"
        shutil.copytree(self.work, before)
        whole = self.run(STAGES[name])
        after = self.root / "after"
        shutil.copytree(self.work, after)
        try:
            yield before, whole
        finally:
            shutil.rmtree(self.work)
            after.rename(self.work)
            shutil.rmtree(before)

    def reset(self, before: Path) -> None:
        """Put the folder back to a copy of it."""
        shutil.rmtree(self.work)
        shutil.copytree(before, self.work)

    def run(
        self,
        command: list[str],
        *,
        action: Action = Action.COUNT,
        at: int = 0,
        error: int = 0,
        kill_after: tuple[float, signal.Signals] | None = None,
    ) -> Ended:
        """Run a stage in a process of its own.

        Args:
            command: its words after `nlt`.
            action: what happens at a change of a file.
            at: the number of this change, from 1.
            error: number of the error with which a change fails.
            kill_after: seconds after which the process gets a signal, and the signal.
        """
        log, counted = self.root / "output.log", self.root / "changes"
        counted.write_text("0")
        begin = time.monotonic()
        child = os.fork()
        if not child:
            self._be_stage(command, log, counted, (action, at, error))
        if kill_after is not None:
            self._wait(child, kill_after[0])
            os.kill(child, kill_after[1])
        _, status = os.waitpid(child, 0)
        seconds = time.monotonic() - begin
        output = log.read_text(errors="replace")
        return Ended(os.waitstatus_to_exitcode(status), output, seconds, int(counted.read_text() or 0))

    def _wait(self, child: int, seconds: float) -> None:
        """Wait, but not longer than the process runs."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            time.sleep(0.002)

    def _be_stage(self, command: list[str], log: Path, counted: Path, fault: tuple[Action, int, int]) -> None:
        """Be the process of a stage, and end."""
        code = 1
        try:
            with log.open("wb") as handle:
                for standard in (1, 2):
                    os.dup2(handle.fileno(), standard)
            sys.stdout, sys.stderr = io.TextIOWrapper(open(1, "wb", 0)), io.TextIOWrapper(open(2, "wb", 0))
            os.chdir(self.work)
            os.environ["NLT_CACHE"] = str(self.work / "cache")
            from nlt_trainer.scripts import cli

            action, at, error = fault
            self.library.faults_arm(str(self.work).encode(), ctypes.c_long(at), int(action), error)
            try:
                cli.main(command)
                code = 0
            except SystemExit as left:
                code = left.code if isinstance(left.code, int) else 1
            self.library.faults_arm(b"", ctypes.c_long(0), 0, 0) if action == Action.KILL else None
            counted.write_text(str(self.library.faults_count()))
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def content(self) -> dict[str, str]:
        """What the stages have written: path -> a hash of all in it that does not depend on the time."""
        found = {}
        for path in sorted(self.work.rglob("*")):
            name = path.relative_to(self.work)
            in_checkpoint = any(part.startswith("checkpoint-") for part in name.parts)
            if path.is_file() and name.parts[0] not in INPUTS and not CACHES & {*name.parts} and not in_checkpoint:
                found[str(name)] = content_hash(path)
        return found

    def left_over(self) -> list[str]:
        """Files and folders that a killed process has left and no later call has removed."""
        return [str(p.relative_to(self.work)) for p in self.work.rglob("*") if p.name.endswith(LEFT)]

    def broken(self) -> list[str]:
        """Files under a final name that are not whole."""
        return [
            str(path.relative_to(self.work))
            for path in self.work.rglob("*")
            if path.is_file()
            and not any(part.endswith(LEFT) or part.startswith("checkpoint-") for part in path.parts)
            and not is_whole(path)
        ]


def try_stage(bench: Bench, name: str, before: Path, *, whole: Ended, faults: Iterable[Fault], check: Check) -> Tally:
    """Run a stage with each fault, then without, and say what is not as an undisturbed call leaves it."""
    reference, tally = bench.content(), Tally()
    for fault in faults:
        bench.reset(before)
        ended = bench.run(STAGES[name], **fault.options)
        tally.trials += 1
        tally.hit += ended.code != whole.code
        found = [wrong for wrong in (check(ended, whole),) if wrong]
        found += [f"half-written: {path}" for path in bench.broken()]
        if ended.code == whole.code:
            found += differences(reference, bench.content())
        again = bench.run(STAGES[name])
        if again.code != whole.code:
            found.append(f"the second call ended with {again.code}: {last_line(again)}")
        found += differences(reference, bench.content())
        found += [f"left over: {path}" for path in bench.left_over()]
        tally.faults += [f"{name}, {fault.name}: {line}" for line in found]
        for line in tally.faults[-len(found) :] if found else ():
            print(f"  {line}", flush=True)
    return tally


def try_stages(stages: Sequence[str], *, faults: Callable[[str, Ended], Iterable[Fault]], check: Check) -> int:
    """Try stages one after the other and print a table; returns the exit code, 1 if anything was lost."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="nlt_faults") as root:
        bench = Bench(Path(root, "bench"))
        last = max([*STAGES].index(name) for name in stages)
        for name in [*STAGES][: last + 1]:
            with bench.stage(name) as (before, whole):
                if name not in stages:
                    continue
                if whole.code not in (0, 3):
                    print(whole.output)
                    return 2
                print(f"{name}: {whole.seconds:.1f} s, {whole.changes} changes of files", flush=True)
                tally = try_stage(bench, name, before, whole=whole, faults=faults(name, whole), check=check)
                rows.append((name, whole.changes, tally))
    print("\n| stage | changes of files | trials | met it running | faults |\n|---|---|---|---|---|")
    for name, changes, tally in rows:
        print(f"| {name} | {changes} | {tally.trials} | {tally.hit} | {len(tally.faults)} |")
    return int(any(tally.faults for _, _, tally in rows))


def differences(expected: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """The files that two calls have left differently, with what differs first."""
    paths = sorted({*expected, *found})
    return [
        f"different: {path}{first_difference(expected.get(path, ''), found.get(path, ''))}"
        for path in paths
        if expected.get(path) != found.get(path)
    ]


def first_difference(expected: str, found: str) -> str:
    """Where two texts part, with what stands there."""
    at = next((i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), 0)
    return f" ({expected[max(0, at - 60) : at + 60]!r} is {found[max(0, at - 60) : at + 60]!r})"


def last_line(ended: Ended) -> str:
    """The last line that a trial has printed."""
    return next((line for line in reversed(ended.output.splitlines()) if line.strip()), "")[:200]


def import_everything() -> None:
    """Import what the stages import, and let torch begin nothing that a fork would lose."""
    import importlib

    from nlt_trainer.scripts import cli

    for stage in cli.STAGES:
        importlib.import_module(f"nlt_trainer.scripts.{stage}")
    import mteb  # noqa: F401
    import torch

    for name in (
        "adapt.pipeline", "assembly.corpus", "assembly.queries", "assembly.mining", "assembly.scoring",
        "assembly.head_detection", "assembly.scorer_adaptation", "assembly.training", "assembly.evaluation",
    ):  # fmt: skip
        importlib.import_module(f"nlt_trainer.{name}")
    torch.set_num_threads(1)


def content_hash(path: Path) -> str:
    """Hash of a file without what differs from call to call."""
    if path.suffix in PAGES:
        return "a page"
    if path.suffix == ".json":
        return json.dumps(timeless(json.loads(path.read_text())), sort_keys=True)
    return path.read_text() if path.suffix == ".yaml" else digest(path.read_bytes())


def digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def timeless(value: Any) -> Any:
    """A JSON value without times and what else is not the same in a second call."""
    if isinstance(value, Mapping):
        return {k: timeless(v) for k, v in value.items() if not TIMES & {*k.split("_")}}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def is_whole(path: Path) -> bool:
    """Whether a file can be read to its end, as far as its format says."""
    readers: dict[str, Callable[[bytes], Any]] = {
        ".json": json.loads,
        ".jsonl": lambda content: [json.loads(line) for line in content.splitlines()],
        ".safetensors": read_safetensors,
    }
    try:
        readers.get(path.suffix, len)(path.read_bytes())
    except (ValueError, RuntimeError):
        return False
    return path.suffix != ".jsonl" or not path.stat().st_size or path.read_bytes().endswith(b"\n")


def read_safetensors(content: bytes) -> None:
    import safetensors.torch

    try:
        safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise ValueError(str(error)) from error
