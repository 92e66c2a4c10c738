"""Freed memory stays in the process, as glibc itself reports it."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, sys
import torch
from nlt_trainer.models.kept_memory import keep_freed_memory

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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have other limits")
def test_large_blocks_come_from_memory_that_stays() -> None:
    """Reference: a process in which nothing was kept, whose block of 31 MiB is mapped for itself."""

    def mapped(how: str) -> int:
        return int(subprocess.run([sys.executable, "-c", SCRIPT, how], check=True, capture_output=True).stdout)

    assert mapped("kept") == 0
    assert mapped("given back") >= 31 << 20
