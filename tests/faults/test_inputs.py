"""A part of inputs.py, in a process of its own; `make faults` runs the whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_odd_inputs_are_read_or_refused() -> None:
    """Reference: the project's own errors; the program ends with 1 and says which other exception has come."""
    words = [sys.executable, str(Path(__file__).with_name("inputs.py")), "--inputs", "32", "--derandomize"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    rows = [line.split("|")[2:4] for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 11
    assert all(int(drawn) == 32 for drawn, _ in rows)
    assert sum(int(read) for _, read in rows) > 50, "inputs that look right are read"
