"""Kill workers of Ray, whole nodes, and the program that drives them, while candidates are mined and scored.

```bash
python tests/faults/ray_kills.py --trials 50
```

A cluster of three nodes runs on this machine: a head without workers, and two nodes with a worker each. The stages
`mine` and `score` run with `engine: ray`. At a random instant a worker, a node with its worker, or the program itself
gets SIGKILL. A killed program is called again; otherwise the same call has to end. Candidates must be equal byte by
byte to those of a call without Ray and without a fault, and gains up to the rounding of another division into batches.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

DOCUMENTS, QUERIES, CANDIDATES = 3000, 240, 8
ROUNDING = 1e-5
"""How far a gain may lie from that of another division into batches, nats per token."""
STAGES = "import sys; from nlt_trainer.scripts import mine, score; mine.main(sys.argv[1:]); score.main(sys.argv[1:])"
LIMIT = 300
"""Seconds after which a call counts as hanging."""


def write_inputs(folder: Path) -> None:
    """Write a tiny encoder, a tiny LLM, and a collection of random words."""
    from tiny import DOCUMENTS as TEXTS
    from tiny import save_encoder, save_llm

    from nlt_trainer.data.beir import Document, Query, write_collection

    draw = random.Random(0)
    known = sorted({word for title, text in TEXTS.values() for word in f"{title} {text}".split()})
    save_llm(folder / "llm")
    save_encoder(folder / "encoder", parts=folder / "bert")

    def text(length: int) -> str:
        return " ".join(draw.choice(known) for _ in range(length))

    documents = [Document(f"d{i}", "", text(60)) for i in range(DOCUMENTS)]
    queries = [Query(f"q{i}", text(6), text(3)) for i in range(QUERIES)]
    write_collection(folder / "collection", corpus=documents, queries=queries, qrels={}, stage="nlt build_corpus")


def words(folder: Path, out: Path, *engine: str) -> list[str]:
    """The command line of both stages."""
    given = {
        "encoder": folder / "encoder", "max_seq_length": 64, "llm": folder / "llm", "llm_dtype": "float32",
        "collection": folder / "collection", "candidates": out / "candidates.jsonl", "gains": out / "gains.jsonl",
        "score_cache": out / "scores", "num_candidates": CANDIDATES, "miner": "fused", "max_document_tokens": 64,
        "use_cpu": "true", "disable_tqdm": "true", "output_dir": out / "run",
    }  # fmt: skip
    return [*(word for key, value in given.items() for word in (f"--{key}", str(value))), *engine]


def start(given: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start both stages, which write what they say into a file."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    with log.open("ab") as handle:
        return subprocess.Popen([sys.executable, "-c", STAGES, *given], stdout=handle, stderr=handle, env=environment)


def worker_processes() -> list[int]:
    """The processes of this machine that are workers of Ray with a function of this package."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                name = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if name.startswith(b"ray::Worker"):
                found.append(int(folder.name))
    return found


class Nodes:
    """A cluster on this machine."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        self.nodes = [self.cluster.add_node(num_cpus=1) for _ in range(2)]
        self.cluster.wait_for_nodes()

    def kill_one(self, draw: random.Random) -> None:
        """Kill a node and all that runs on it; another one takes its place."""
        node = self.nodes.pop(draw.randrange(len(self.nodes)))
        self.cluster.remove_node(node, allow_graceful=False)
        self.nodes.append(self.cluster.add_node(num_cpus=1, wait=False))


def fault_in(nodes: Nodes, program: subprocess.Popen[bytes], kind: str, draw: random.Random) -> bool:
    """Bring about a fault of a kind; returns whether it met anything."""
    if kind == "none":
        return True
    if program.poll() is not None:
        return False
    if kind == "program":
        program.kill()
        program.wait()
    elif kind == "node":
        nodes.kill_one(draw)
    else:
        processes = worker_processes()
        if not processes:
            return False
        os.kill(draw.choice(processes), signal.SIGKILL)
    return True


def differences(found: Path, expected: Path) -> list[str]:
    """What is not as in an undisturbed call."""
    if (found / "candidates.jsonl").read_bytes() != (expected / "candidates.jsonl").read_bytes():
        return ["other candidates"]
    gains = [
        np.array([json.loads(line)["gain"] for line in (folder / "gains.jsonl").read_text().splitlines()])
        for folder in (found, expected)
    ]
    if gains[0].shape != gains[1].shape:
        return ["another number of gains"]
    far = float(np.abs(gains[0] - gains[1]).max())
    return [f"a gain differs by {far:.1e}"] if far > ROUNDING else []


def trial(nodes: Nodes, folder: Path, kind: str, draw: random.Random, *, seconds: float) -> tuple[bool, list[str]]:
    """Disturb one call; returns whether the fault met it running, and what is wrong afterwards."""
    out = folder / "trial"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    engine = ["--engine", "ray", "--ray_address", nodes.cluster.address, "--ray_workers", "2"]
    program = start(words(folder, out, *engine), out / "log")
    time.sleep(draw.uniform(0.2, 1.0) * seconds)  # before that it only imports
    met = fault_in(nodes, program, kind, draw)
    if kind == "program" and met:
        program = start(words(folder, out, *engine), out / "log")
    try:
        code = program.wait(LIMIT)
    except subprocess.TimeoutExpired:
        program.kill()
        return met, [f"it hung; the last lines are in {out / 'log'}"]
    if code:
        return met, [f"exit code {code}: {(out / 'log').read_text().splitlines()[-1]}"]
    return met, differences(out, folder / "expected")


def main(argv: list[str] | None = None) -> None:
    """Run the trials, and print how many were met and what was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    draw, met, faults = random.Random(options.seed), Counter[str](), []
    with tempfile.TemporaryDirectory(prefix="nlt_ray_") as name:
        folder = Path(name)
        write_inputs(folder)
        (folder / "expected").mkdir()
        if start(words(folder, folder / "expected"), folder / "log").wait():
            sys.exit((folder / "log").read_text())
        nodes = Nodes()
        begin = time.monotonic()
        kinds = ["none", *(["worker", "node", "program"] * options.trials)[: options.trials]]
        seconds = 0.0
        for number, kind in enumerate(kinds):
            hit, wrong = trial(nodes, folder, kind, draw, seconds=seconds)  # the first one only says how long it takes
            seconds = seconds or time.monotonic() - begin
            met[kind] += hit
            faults += [f"trial {number}, {kind}: {line}" for line in wrong]
            print(f"{number} of {options.trials}: {kind}, {'met' if hit else 'too late'}", *wrong, flush=True)
        nodes.cluster.shutdown()
    print("\n| what was killed | trials | met it running |\n|---|---|---|")
    for kind in ("worker", "node", "program"):
        print(f"| {kind} | {kinds.count(kind)} | {met[kind]} |")
    sys.exit("\n".join(faults) or 0)


if __name__ == "__main__":
    main()
