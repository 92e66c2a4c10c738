"""In-batch attention of Revela: rows of one chunk attend to other chunks, weighted by the encoder's similarities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache
from transformers.integrations.sdpa_attention import repeat_kv


@dataclass(frozen=True)
class ChunkAttention:
    r"""What the other chunks of a group add to each head's output (Revela, arXiv 2506.16552).

    A row s of chunk i gets :math:`\sum_{j \ne i} a_{ij} \, o_{ij}(s) / n_{ij}(s)` with the cross-attention
    :math:`o_{ij}(s) = \sum_{t \in j} p_t v_t`, p the softmax over all tokens t of chunk j, and the normaliser
    :math:`n_{ij}(s) = \sum_{t \in j} p_t \lVert v_t \rVert_2`. Queries and keys keep the positions that they have in
    their own chunks.

    Args:
        weights: `(G, C, C)` float32, a_ij of G groups of C chunks; 0 where i = j.
        mask: `(G, C, T)` bool, True at tokens.
        cache: keys and values of the chunks, each read alone; row `g * C + c`.
    """

    weights: Tensor
    mask: Tensor
    cache: DynamicCache

    def added(self, query: Tensor, layer: int, *, scaling: float, softcap: float | None = None) -> Tensor:
        """What other chunks add to a layer's heads: `(G * C, S, H, head size)` for queries `(G * C, H, S, head size)`.

        A head's sink scales all p by one factor, which cancels in the quotient.

        Args:
            query: rotated to their positions.
            layer: the layer.
            scaling: factor of the attention logits.
            softcap: the logits are bent to `softcap * tanh(logits / softcap)` (Gemma 2).
        """
        cached: Any = self.cache.layers[layer]
        # Weights of C * S rows over C * T keys would fill the memory if all layers kept theirs, so the backward pass
        # computes them again.
        return checkpoint(
            self._added,
            query,
            cached.keys,
            cached.values,
            scaling=scaling,
            softcap=softcap,
            use_reentrant=False,
            preserve_rng_state=False,
        )

    def _added(self, query: Tensor, key: Tensor, value: Tensor, *, scaling: float, softcap: float | None) -> Tensor:
        c, t = self.mask.shape[1:]
        repeats = query.shape[1] // key.shape[1]
        q = self._by_group(query)  # (G, H, C * S, head size)
        k, v = (self._by_group(repeat_kv(x, repeats)) for x in (key, value))  # (G, H, C * T, head size)
        precision = torch.promote_types(query.dtype, torch.float32)
        logits = (q @ k.transpose(2, 3)).to(precision) * scaling  # (G, H, C * S, C * T)
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        logits = logits.masked_fill(~self.mask.flatten(1)[:, None, None, :], -torch.inf)
        p = logits.unflatten(-1, (c, t)).softmax(-1)  # (G, H, C * S, C, T)
        norms = v.to(precision).norm(dim=-1).unflatten(-1, (c, t))  # (G, H, C, T)
        normaliser = torch.einsum("ghsct,ghct->ghsc", p, norms).clamp(min=1e-6)  # values may all be 0
        weights = self.weights.repeat_interleave(query.shape[2], dim=1)[:, None]  # (G, 1, C * S, C)
        shares = (p * (weights / normaliser)[..., None]).flatten(3)  # (G, H, C * S, C * T)
        added = shares.to(v.dtype) @ v  # (G, H, C * S, head size)
        return added.unflatten(2, (c, -1)).permute(0, 2, 3, 1, 4).flatten(0, 1)  # (G * C, S, H, head size)

    def _by_group(self, x: Tensor) -> Tensor:
        """`(G * C, H, T, head size)` to `(G, H, C * T, head size)`."""
        return x.unflatten(0, self.mask.shape[:2]).transpose(1, 2).flatten(2, 3)
