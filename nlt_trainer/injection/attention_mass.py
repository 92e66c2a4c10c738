"""How much attention each document gets, recorded while an LLM reads."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class AttentionMass:
    """Record the attention that every head spends on each document, averaged over chosen rows.

    Args:
        documents: `(B, T)` int64, as for `ScoreInjection`.
        rows: `(B, S)` bool, the query rows to average over.
        num_documents: K.
        mass: filled in layer by layer: layer to `(B, H, K)` float32.
    """

    documents: Tensor
    rows: Tensor
    num_documents: int
    mass: dict[int, Tensor] = field(default_factory=dict)

    def heads_of(self, layer: int) -> None:
        return None

    def record(self, log_attention: Tensor, value: Tensor, layer: int) -> None:
        """Record one layer's attention.

        Args:
            log_attention: `(B, H, S, T)`, logarithms of the attention.
            value: `(B, key-value heads, T, head size)`.
            layer: the layer.
        """
        share = log_mass(log_attention, self.documents, self.num_documents).exp()
        rows = self.rows[:, None, :, None]
        self.mass[layer] = (share * rows).sum(2) / rows.sum(2)  # (B, H, K)


@dataclass(frozen=True)
class ValueMass(AttentionMass):
    """Record attention times the norm of what is attended to: the sum of p_t |v_t| over each document's tokens.

    Args are those of `AttentionMass`; `mass` holds the sums, averaged over `rows`.
    """

    def record(self, log_attention: Tensor, value: Tensor, layer: int) -> None:
        rows = self.rows[:, None, :, None]
        share = (log_attention.exp() * rows).sum(2) / rows.sum(2)  # (B, H, T)
        norm = value.float().norm(dim=-1)  # (B, key-value heads, T)
        weighted = share * norm.repeat_interleave(share.shape[1] // norm.shape[1], dim=1)  # (B, H, T)
        total = weighted.new_zeros(*weighted.shape[:2], self.num_documents + 1)
        index = self.documents[:, None, :].expand_as(weighted)
        self.mass[layer] = total.scatter_add(-1, index, weighted)[..., : self.num_documents]  # (B, H, K)


def log_mass(logits: Tensor, documents: Tensor, num_documents: int) -> Tensor:
    """Log-sum-exp of attention logits over each document's keys: `(B, h, S, T)` and `(B, T)` to `(B, h, S, K)`."""
    index = documents[:, None, None, :].expand_as(logits)
    shape = (*logits.shape[:-1], num_documents + 1)
    peak = logits.new_full(shape, -torch.inf).scatter_reduce(-1, index, logits.detach(), "amax")
    total = logits.new_zeros(shape).scatter_add(-1, index, (logits - peak.gather(-1, index)).exp())
    return total[..., :num_documents].log() + peak[..., :num_documents]
