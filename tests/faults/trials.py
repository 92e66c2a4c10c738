"""Stages on a tiny collection, run again and again with a fault in one of them, and what is compared afterwards.

A trial forks a process that has imported everything already, so that it takes a second and not ten.
"""

from __future__ import annotations

import copy
import ctypes
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from threading import Thread
from typing import Any

from contents import CACHES, INPUTS, LEFT, content_hash, differences, is_whole
from tqdm import tqdm

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # hub_server and tiny are imported where they are used
PRELOADED = "NLT_FAULTS_LIBRARY"

STAGES: dict[str, list[str]] = {
    "build_collection": ["build_collection", "--folder", "built", "--beir", "collection"],
    "make_encoder": ["make_encoder", "--config", "recipe.yaml", "--encoder", "start"],
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
    "report": ["report", "run"],
    "export": ["export", "--config", "recipe.yaml", "--output_dir", "refreshed", "--form", "merged"],
    "push": ["push", "--config", "recipe.yaml", "--repo", "org/name", "--gains_repo", "org/name-gains"],
    "pull": ["pull", "--repo", "org/name", "--folder", "pulled"],
    "adapt": [
        "adapt", "documents", "--encoder", "encoder", "--llm", "llm", "--output", "adapted", "--num_candidates", "3",
        "--max_document_tokens", "8", "--train_max_length", "8", "--use_cpu", "true", "--disable_tqdm", "true",
        "--per_device_train_batch_size", "4", "--num_queries", "80", "--held_out", "20", "--save_steps", "4",
    ],
}  # fmt: skip
"""Name of a stage -> its command line after `nlt`, in an order in which each finds what it reads."""
READS: dict[str, tuple[str, ...]] = {
    "make_queries": ("build_corpus",),
    "score": ("mine",),
    "detect_heads": ("score",),
    "adapt_scorer": ("score",),
    "train": ("score",),
    "train with refresh": ("score",),
    "evaluate": ("train",),
    "report": ("evaluate",),
    "export": ("train with refresh",),
    "push": ("train",),
    "pull": ("push",),
}
"""Name of a stage -> the stages that have written what it reads, besides those that these read."""

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
  save_total_limit: 2
  eval_strategy: epoch
  report_to: none
  use_cpu: true
  disable_tqdm: true
"""


class Action(IntEnum):
    """What happens at a change of a file, as faults.c knows it."""

    COUNT = 0
    KILL = 1
    FAIL = 2
    FULL = 3
    DENIED = 4
    BACK = 5
    BACK_KILL = 6
    APART = 7


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


@dataclass(frozen=True)
class Started:
    """A stage that runs in a process of its own.

    Args:
        child: number of the process.
        log: file of what it prints.
        counted: file in which it says how many changes to files it has made, once it has ended by itself.
        begin: when it was started.
    """

    child: int
    log: Path
    counted: Path
    begin: float


class Bench:
    """A folder, and a Hub on the loopback, on which stages are run from the same beginning, again and again.

    Args:
        root: an empty folder.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.work = root, root / "work"
        self.kept: dict[Path, Any] = {}
        self.started = 0
        self.library = ctypes.CDLL(os.environ[PRELOADED])
        self.library.faults_count.restype = ctypes.c_long
        child = os.fork()  # torch must not have begun threads here, because those do not survive later forks
        if not child:
            self._build()
            os._exit(0)
        assert not os.waitpid(child, 0)[1]
        from hub_server import TOKEN, Hub

        self.hub = Hub()
        Thread(target=self.hub.serve_forever, args=(0.01,), daemon=True).start()
        os.environ |= {
            "HF_ENDPOINT": self.hub.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(self.work / "cache" / "hub"),
        }  # fmt: skip
        import_everything()

    def _build(self) -> None:
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
        """Run a stage as it should run; yields where `reset` finds the state before it, and how it ended.

        After the block the folder and the Hub are as the stage has left them.
        """
        before, after = self.root / "before", self.root / "after"
        self.keep(before)
        whole = self.run(STAGES[name])
        self.keep(after)
        try:
            yield before, whole
        finally:
            self.reset(after)
            for kept in (before, after):
                shutil.rmtree(kept)

    def keep(self, place: Path) -> None:
        """Copy the folder to a place, and keep the Hub with it."""
        shutil.copytree(self.work, place)
        self.kept[place] = copy.deepcopy(self.hub.repos)

    def reset(self, place: Path) -> None:
        """Put folder and Hub back to what was kept."""
        shutil.rmtree(self.work)
        shutil.copytree(place, self.work)
        self.hub.repos, self.hub.large = copy.deepcopy(self.kept.get(place, {})), {}

    def run(
        self, command: list[str], *, kill_after: tuple[float, signal.Signals] | None = None, **fault: Any
    ) -> Ended:
        """Run a stage in a process of its own until it has ended.

        Args:
            command: its words after `nlt`.
            kill_after: seconds after which the process gets a signal, and the signal.
            **fault: as `start` takes it.
        """
        started = self.start(command, **fault)
        if kill_after is not None:
            self.kill(started, *kill_after)
        return self.ended(started)

    def start(self, command: list[str], *, action: Action = Action.COUNT, at: int = 0, amount: int = 0) -> Started:
        """Start a stage in a process of its own.

        Args:
            command: its words after `nlt`.
            action: what happens at a change of a file.
            at: the number of this change, from 1.
            amount: number of the error with which a change fails, or seconds by which the clock is set back.
        """
        self.started += 1
        log, counted = self.root / f"{self.started}.log", self.root / f"{self.started}.changes"
        log.touch()  # the process may be killed before it says a word
        counted.write_text("0")
        begin = time.monotonic()
        child = os.fork()
        if not child:
            self._be_stage(command, log, counted, (action, at, amount))
        return Started(child, log, counted, begin)

    def kill(self, started: Started, seconds: float, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to a process some seconds after this call, or when it has ended by itself."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.has_ended(started):
            time.sleep(0.002)
        os.kill(started.child, number)

    def has_ended(self, started: Started) -> bool:
        return os.waitid(os.P_PID, started.child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def ended(self, started: Started) -> Ended:
        """Wait until a stage has ended, and the Hub has answered it."""
        _, status = os.waitpid(started.child, 0)
        seconds = time.monotonic() - started.begin
        self.hub.finish()
        output = started.log.read_text(errors="replace")
        changes = int(started.counted.read_text() or 0)
        started.log.unlink()
        started.counted.unlink()
        return Ended(os.waitstatus_to_exitcode(status), output, seconds, changes)

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

            action, at, amount = fault
            self.library.faults_arm(str(self.work).encode(), ctypes.c_long(at), int(action), amount)
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

    def content(self, *, without: str = "") -> dict[str, str]:
        """What the stages have written, also to the Hub: path -> a hash of all in it that is the same at any time.

        One path may be left out.
        """
        found = {}
        for path in sorted(self.work.rglob("*")):
            name = path.relative_to(self.work)
            in_checkpoint = any(part.startswith("checkpoint-") for part in name.parts)
            if not path.is_file() or str(name) == without:
                continue
            if name.parts[0] not in INPUTS and not CACHES & {*name.parts} and not in_checkpoint:
                found[str(name)] = content_hash(path, path.read_bytes())
        for key, repo in self.hub.repos.items():
            order = [*repo.commits]
            tags = {tag: order.index(commit) for tag, commit in repo.tags.items()}
            found[f"hub: {key}"] = json.dumps([len(order), tags, repo.private])
            found |= {f"hub: {key}/{name}": content_hash(Path(name), file) for name, file in repo.files.items()}
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
    for fault in tqdm([*faults], desc=name, mininterval=5, leave=False):
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
        for name in with_earlier(stages):
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


def with_earlier(stages: Iterable[str]) -> list[str]:
    """The stages, and before them those that write what they read."""
    needed = {*stages}
    for name in reversed(STAGES):
        needed |= {*READS.get(name, ())} if name in needed else set()
    return [name for name in STAGES if name in needed]


def last_line(ended: Ended) -> str:
    """The last line that a trial has printed."""
    return next((line for line in reversed(ended.output.splitlines()) if line.strip()), "")[:500]


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
