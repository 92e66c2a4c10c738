"""Compute a decoder's last feed-forward network only at the positions whose hidden states are used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def last_feed_forward(decoder: nn.Module) -> nn.Module | None:
    """The last submodule named `mlp`, the name that most transformers decoders use; `None` where there is none."""
    found = [module for name, module in decoder.named_modules() if name.rpartition(".")[2] == "mlp"]
    return found[-1] if found else None


@contextmanager
def computed_only_at(mlp: nn.Module | None, rows: Tensor, columns: Tensor) -> Iterator[None]:
    """Let a feed-forward network compute only at some positions, and give zeros elsewhere, while the block runs.

    The network must treat each token by itself. Nothing reads what the last layer computes for other tokens, so the
    LLM's hidden states at the given positions do not change.

    Args:
        mlp: from `(B, L, hidden)` to the same shape; `None` changes nothing.
        rows: `(T,)` index into B of each position.
        columns: `(T,)` index into L of each position.

    Raises:
        TypeError: inside the block, when the network gives more than hidden states, such as router scores of a mixture
            of experts.
    """
    if mlp is None:
        yield
        return
    plain, earlier = mlp.forward, vars(mlp).get("forward")

    def forward(hidden: Tensor) -> Tensor:
        found = plain(hidden[rows, columns][None])  # (B, L, hidden) -> (1, T, hidden)
        if not isinstance(found, Tensor):
            raise TypeError(f"{type(mlp).__name__} gives a {type(found).__name__} where hidden states were expected")
        output = torch.zeros_like(hidden)
        output[rows, columns] = found[0]
        return output

    vars(mlp)["forward"] = forward
    try:
        yield
    finally:
        del vars(mlp)["forward"]
        if earlier is not None:
            vars(mlp)["forward"] = earlier
