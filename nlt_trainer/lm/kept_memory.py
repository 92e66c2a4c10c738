"""Keeps memory that is freed between two layers of a model inside the process, and gives it back between batches."""

from __future__ import annotations

import ctypes
import platform
from functools import cache

import torch

BLOCK_BYTES = (32 << 20) - (64 << 10)
"""A little below the largest block to which glibc's allocator adapts (`DEFAULT_MMAP_THRESHOLD_MAX`, mallopt(3))."""


def keep_freed_memory() -> None:
    """Let glibc keep up to 64 MiB of freed memory, where it would give them back to the system.

    A layer's largest tensors are made and freed again and again. As long as no larger block has been freed, glibc
    returns their memory each time, and the system has to clear its pages anew, which costs a small LLM on a CPU a
    tenth of its speed. Its limits follow the largest block that was freed; this one is never touched, so it takes no
    memory. Other C libraries ignore it.
    """
    torch.empty(BLOCK_BYTES, dtype=torch.uint8)


def give_back_freed_memory() -> None:
    """Let glibc return the pages of all freed memory to the system, as after a batch on a CPU.

    Each batch has tensors of other sizes, which do not fit into what earlier ones have left between smaller blocks
    that stay: of a heap in which nothing more is used, more and more pages would have been touched. Other C libraries
    have no such function.
    """
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
