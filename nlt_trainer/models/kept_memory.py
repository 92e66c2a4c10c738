"""Keeps memory that is freed between two layers of a model inside the process."""

from __future__ import annotations

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
