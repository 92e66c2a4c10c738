"""What a CPU alone needs to read an LLM fast: fused attention without copies, packed weights, memory that is kept.

- Attention under a mask runs without a copy of the keys and values that heads share.
- While nothing is differentiated, a float32 model on x86 keeps its weights in the order in which oneDNN wants them.
- What is freed between two layers stays in the process, and goes back to the system between batches.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from nlt_trainer.lm.forward_check import FORWARD_ERRORS, readings_agree

FUSED_ATTENTION = "nlt_fused_attention"


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
        AttentionInterface.register(FUSED_ATTENTION, fused_attention)
        AttentionMaskInterface.register(FUSED_ATTENTION, sdpa_mask)
        model.set_attn_implementation(FUSED_ATTENTION)


PACKED_FOR_TOKENS = 2048
"""Rows of the products that the layout is chosen for; others use it too."""

KEPT_PRODUCTS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "8", "LRU_CACHE_CAPACITY": "8"}
"""Products of different shapes whose code oneDNN, and what torch has around it, keep, for the whole process.

By default both keep 1,024, each about half a MiB with AVX2, and batches differ in their number of tokens. A plain
decoder has up to seven products, which all layers share; the more are kept beyond them, the more holes those of
earlier batches leave between freed tensors. Both variables are read at the first use of oneDNN in a process; what a
user has set stays.
"""

for _name, _number in KEPT_PRODUCTS.items():
    os.environ.setdefault(_name, _number)


@contextmanager
def packed_weights(model: PreTrainedModel) -> Iterator[None]:
    """Let the linear layers of an LLM's decoder keep their weights in the order in which oneDNN multiplies them.

    torch takes another library for float32 on x86, which orders the weights anew at every product. Weights are moved
    layer by layer and moved back at the end, the same to the last bit. That takes no more memory than before, but for
    weights that another model shares, and for those that were mapped from a file, whose pages stay until the system
    needs them. Nothing changes on other processors, for layers of another dtype, and where the LLM then reads
    otherwise, as Mamba, which multiplies some weights by itself.

    Args:
        model: a decoder; no graph is made with it meanwhile, since packed layers have no gradient.
    """
    expected = _read(model)
    with ExitStack() as stack:
        try:
            stack.enter_context(packed_layers(model.base_model))
            unchanged = readings_agree(_read(model), expected)
        except FORWARD_ERRORS:
            unchanged = False
        if not unchanged:
            stack.close()
        yield


@torch.inference_mode()
def _read(model: PreTrainedModel) -> Tensor:
    ids = torch.arange(4, device=model.device)[None]
    hidden: Tensor = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    return hidden


@contextmanager
def packed_layers(module: nn.Module) -> Iterator[None]:
    """The same for any module whose linear layers' weights are read by their `forward` alone."""
    packed: list[tuple[nn.Linear, Tensor]] = []
    try:
        for layer in module.modules():
            if type(layer) is nn.Linear and is_packable(layer.weight):
                packed.append(
                    (layer, torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), PACKED_FOR_TOKENS))
                )
                _use(*packed[-1])
        yield
    finally:
        with torch.inference_mode(False):  # else no graph could hold the weights afterwards
            while packed:
                layer, weight = packed.pop()
                layer.weight.data = weight.to_dense()
                vars(layer).pop("forward", None)
                del weight


def is_packable(weight: Tensor) -> bool:
    """Whether a linear layer's weight like this one is packed; one that is packed already is empty."""
    supported = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX")
    return supported and weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.numel() > 0


def _use(layer: nn.Linear, weight: Tensor) -> None:
    """Multiply with a packed weight, `(out, in)`, in place of the layer's own, as torch.compile does."""
    bias = layer.bias

    def forward(hidden: Tensor) -> Tensor:
        output: Tensor = torch.ops.mkldnn._linear_pointwise(hidden, weight, bias, "none", [], "")
        return output

    vars(layer)["forward"] = forward
    layer.weight.data = torch.empty(0)


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
