"""A decoder's last feed-forward network, computed only where what comes out of the decoder is used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def last_feed_forward(decoder: nn.Module) -> nn.Module | None:
    """The last submodule that is named `mlp`, as in most decoders of transformers; `None` where there is none."""
    found = [module for name, module in decoder.named_modules() if name.rpartition(".")[2] == "mlp"]
    return found[-1] if found else None


@contextmanager
def computed_only_at(mlp: nn.Module | None, rows: Tensor, columns: Tensor) -> Iterator[None]:
    """Let a network that treats each token by itself compute at some positions and give zeros elsewhere.

    Nothing reads the last layer's other tokens, so an LLM's hidden states at these positions stay what they are.

    Args:
        mlp: from `(B, L, hidden)` to the same shape; `None` changes nothing.
        rows: `(T,)` index into B of each position.
        columns: `(T,)` its index into L.

    Raises:
        TypeError: inside, when the network gives more than hidden states, such as a mixture's router scores.
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
