"""Freed memory stays in the process until it is given back, as glibc and Linux report it."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, sys
import torch
from nlt_trainer.lm.cpu import keep_freed_memory

class Info(ctypes.Structure):  # struct mallinfo2
    _fields_ = [(n, ctypes.c_size_t) for n in
                "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]

libc = ctypes.CDLL("libc.so.6")
libc.mallinfo2.restype = Info
if sys.argv[1] == "kept":
    keep_freed_memory()
before = libc.mallinfo2().hblkhd  # bytes in blocks that go back to the system when they are freed
block = torch.empty(31 << 20, dtype=torch.uint8)
print(libc.mallinfo2().hblkhd - before)
"""


HOLES = """
import sys
from pathlib import Path
import torch
from nlt_trainer.lm.cpu import give_back_freed_memory, keep_freed_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

keep_freed_memory()
blocks = [torch.ones(size) for _ in range(32) for size in (1 << 18, 64)]  # 1 MiB each and a small one between
before = resident()
del blocks[::2]
give_back_freed_memory()
print(before - resident())
"""

only_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have other limits")


@only_glibc
def test_memory_between_blocks_that_stay_is_given_back() -> None:
    """Reference: 32 MiB were freed; but for the pages at their ends the resident set is smaller by them."""
    freed = int(subprocess.run([sys.executable, "-c", HOLES], check=True, capture_output=True).stdout)
    assert freed > 30 << 20


@only_glibc
def test_large_blocks_come_from_memory_that_stays() -> None:
    """Reference: a process in which nothing was kept, whose block of 31 MiB is mapped for itself."""

    def mapped(how: str) -> int:
        return int(subprocess.run([sys.executable, "-c", SCRIPT, how], check=True, capture_output=True).stdout)

    assert mapped("kept") == 0
    assert mapped("given back") >= 31 << 20
