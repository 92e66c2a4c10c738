"""A part of the programs in this folder, in processes of their own; `make faults` runs the whole."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CALLS = {
    "kills": [
        "kills.py", "--random", "2", "--every_change", "70", "--stages", "build_corpus", "mine", "score",
        "detect_heads", "train", "evaluate", "push", "pull",
    ],
    "disk": ["disk.py", "--trials", "1", "--stages", "score", "train"],
    "damage": [
        "damage.py", "--trials", "2", "--files", "candidates", "scores", "checkpoint", "encoder", "release", "heads",
    ],
    "clock": ["clock.py", "--trials", "1", "--stages", "train"],
    "several": ["several.py", "--trials", "1"],
}  # fmt: skip


@pytest.mark.skipif(shutil.which("cc") is None, reason="faults.c needs a C compiler")
@pytest.mark.parametrize("call", CALLS)
def test_nothing_is_lost(call: str) -> None:
    """Reference: calls that nothing disturbs; the programs end with 1 and say what was lost."""
    program, *options = CALLS[call]
    words = [sys.executable, str(Path(__file__).with_name(program)), *options]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.splitlines()[-1].endswith("| 0 |")
