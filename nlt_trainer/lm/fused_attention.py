"""Fused attention that copies no shared keys on a CPU."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

IMPLEMENTATION = "nlt_fused_attention"


def fused_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers' `sdpa`, for `AttentionInterface`.

    Under a mask transformers gives each head a copy of the keys and values that it shares with others, because the
    kernels of CUDA want that. That of a CPU does not: without copies, which a graph would hold on to, it takes a third
    of the memory and two thirds of the time.

    Args:
        module: the model's attention layer.
        query: `(B, H, S, head size)`.
        key: `(B, key-value heads, T, head size)`.
        value: shaped as `key`.
        attention_mask: `(B, 1, S, T)` bool, True where a key is seen; `None` means causal.
        scaling: factor of the attention logits; default one over the root of the head size.
        **kwargs: passed on to transformers' function.

    Returns:
        `(B, S, H, head size)` and `None`, the interface's unused attention weights.
    """
    if query.device.type != "cpu" or attention_mask is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    output = nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, scale=scaling, enable_gqa=True
    )
    return output.transpose(1, 2).contiguous(), None


def enable_fused_attention(model: PreTrainedModel) -> None:
    """Switch a model from `sdpa` to `fused_attention`; one with another attention stays as it is."""
    if model.config._attn_implementation == "sdpa":
        AttentionInterface.register(IMPLEMENTATION, fused_attention)
        AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
        model.set_attn_implementation(IMPLEMENTATION)
