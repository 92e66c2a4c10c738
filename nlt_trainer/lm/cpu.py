"""Speed-ups for an LLM that is read on a CPU.

- Attention under a mask runs without a copy of the keys and values that several heads share.
- Attention in half precision that needs a gradient is computed in float32.
- While no gradient is needed, a float32 model on x86 keeps its weights in the memory order of oneDNN.
- Memory that one layer frees stays in the process for the next layer. It goes back to the system between batches.
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

from nlt_trainer.lm.forward_check import FORWARD_ERRORS, probe_ids, readings_agree

FUSED_ATTENTION = "nlt_fused_attention"


_fused = nn.functional.scaled_dot_product_attention


def attention_in_float32(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """torch's fused attention, computed in float32 on a CPU; the result has the dtype that it would have had.

    The arguments are those of `scaled_dot_product_attention`. Its kernel for CPUs has a backward pass that is slow in
    bfloat16: for 32 texts of 128 tokens, all-MiniLM-L6-v2 took 3.6 seconds backward on one core with AMX, and 1.6 with
    attention in float32.
    """
    if query.device.type != "cpu":
        return _fused(query, *args, **kwargs)
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    with torch.autocast("cpu", enabled=False):  # which would take the arguments back to half precision
        exact = {name: _in_float32(value) for name, value in kwargs.items()}
        return _fused(*map(_in_float32, (query, *args)), **exact).to(dtype)


def in_float32_on_cpu(tensor: Tensor) -> Tensor:
    """A tensor in float32, if it is one in half precision on a CPU.

    oneDNN compiles a product of half precision for each shape, in 5 milliseconds or more, and of the few products that
    each layer has for some of its heads, every one has a shape of its own. They take less than one in float32.
    """
    return _in_float32(tensor) if tensor.device.type == "cpu" else tensor


def _in_float32(value: Any) -> Any:
    is_half = isinstance(value, Tensor) and value.is_floating_point() and value.dtype.itemsize < 4
    return value.float() if is_half else value


@contextmanager
def float32_attention() -> Iterator[None]:
    """Replace torch's fused attention by `attention_in_float32` while the block runs, in all threads.

    A `TorchFunctionMode` would not do, because gradient checkpointing computes again where no mode is on.
    """
    nn.functional.scaled_dot_product_attention = attention_in_float32
    try:
        yield
    finally:
        nn.functional.scaled_dot_product_attention = _fused


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
    """Compute the same attention as transformers' `sdpa`; the function is made for `AttentionInterface`.

    Under a mask, transformers gives each head a copy of the keys and values that it shares with others, because the
    kernels of CUDA need it. The kernel of a CPU does not. Without the copies, which a graph would hold on to,
    attention takes a third of the memory and two thirds of the time.

    Args:
        module: the model's attention layer.
        query: `(B, H, S, head size)`.
        key: `(B, key-value heads, T, head size)`.
        value: shaped as `key`.
        attention_mask: `(B, 1, S, T)` bool, True where a key is seen; `None` means causal.
        scaling: factor of the attention logits; the default is one over the root of the head size.
        **kwargs: passed on to transformers' function.

    Returns:
        `(B, S, H, head size)` and `None`, the interface's unused attention weights.
    """
    if query.device.type != "cpu" or attention_mask is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    in_graph = torch.is_grad_enabled() and query.requires_grad
    attend = attention_in_float32 if in_graph else _fused
    output = attend(query, key, value, attn_mask=attention_mask, scale=scaling, enable_gqa=True)
    return output.transpose(1, 2).contiguous(), None


def enable_fused_attention(model: PreTrainedModel) -> None:
    """Switch a model from `sdpa` to `fused_attention`. A model with another attention stays as it is."""
    if model.config._attn_implementation == "sdpa":
        AttentionInterface.register(FUSED_ATTENTION, fused_attention)
        AttentionMaskInterface.register(FUSED_ATTENTION, sdpa_mask)
        model.set_attn_implementation(FUSED_ATTENTION)


PACKED_FOR_TOKENS = 2048
"""Number of rows for which oneDNN chooses the layout of packed weights. Other numbers of rows use the same layout."""

KEPT_PRODUCTS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "8", "LRU_CACHE_CAPACITY": "8"}
"""Environment variables that limit how many compiled matrix products oneDNN and torch's wrapper of it keep.

Each shape of a product has compiled code of its own, about half a MiB with AVX2. Both keep 1,024 of them by default,
and new shapes keep coming, because batches differ in their number of tokens. A plain decoder has up to seven products,
which all layers share. Code that earlier batches needed only leaves holes between freed tensors. Both variables are
read when a process first uses oneDNN. A value that the user has set stays.
"""

for _name, _number in KEPT_PRODUCTS.items():
    os.environ.setdefault(_name, _number)


@contextmanager
def packed_weights(model: PreTrainedModel) -> Iterator[None]:
    """Keep the weights of a decoder's linear layers in the memory order of oneDNN while the block runs.

    Without this, torch uses another library for float32 on x86, which reorders the weights at every product. The
    weights are converted layer by layer and converted back at the end, the same to the last bit. This takes extra
    memory only for weights that another model shares, and for weights that are mapped from a file, whose pages stay
    until the system needs them. Nothing is packed on other processors, in layers of another dtype, or where the packed
    LLM gives other hidden states. Mamba is such a case, because it multiplies some weights by itself.

    Args:
        model: a decoder. Packed layers have no gradient, so no graph may be made with it inside the block.
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
    hidden: Tensor = model.base_model(input_ids=probe_ids(model, 4), use_cache=False).last_hidden_state
    return hidden


@contextmanager
def packed_layers(module: nn.Module) -> Iterator[None]:
    """Pack the weights of any module's linear layers. Nothing but a layer's own `forward` may read its weights."""
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
        with torch.inference_mode(False):  # a weight that inference mode makes could never be part of a graph
            while packed:
                layer, weight = packed.pop()
                layer.weight.data = weight.to_dense()
                vars(layer).pop("forward", None)
                del weight


def is_packable(weight: Tensor) -> bool:
    """Whether a linear layer's weight can be packed. A layer that is packed already has an empty weight."""
    supported = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX")
    return supported and weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.numel() > 0


def _use(layer: nn.Linear, weight: Tensor) -> None:
    """Let a layer multiply with a packed weight, `(out, in)`, in place of its own, as torch.compile does."""
    bias = layer.bias

    def forward(hidden: Tensor) -> Tensor:
        output: Tensor = torch.ops.mkldnn._linear_pointwise(hidden, weight, bias, "none", [], "")
        return output

    vars(layer)["forward"] = forward
    layer.weight.data = torch.empty(0)


BLOCK_BYTES = (32 << 20) - (64 << 10)
"""A size a little below the largest block to which glibc's allocator adapts (`DEFAULT_MMAP_THRESHOLD_MAX`,
mallopt(3))."""


def keep_freed_memory() -> None:
    """Let glibc keep up to 64 MiB of freed memory instead of giving it back to the system.

    A layer's largest tensors are made and freed again and again. If glibc returns their memory each time, the system
    has to clear the pages anew, which costs a small LLM on a CPU a tenth of its speed. How much glibc keeps follows
    the largest block that was ever freed, so this function frees one large block. The block is never touched, so it
    takes no memory. With another C library nothing changes.
    """
    torch.empty(BLOCK_BYTES, dtype=torch.uint8)


def give_back_freed_memory() -> None:
    """Let glibc return the pages of all freed memory to the system. A scorer calls this after each batch on a CPU.

    Each batch has tensors of other sizes, which do not fit into the gaps that earlier batches have left between small
    blocks that stay. Without this call the process would hold more and more memory that nothing uses. Other C
    libraries have no such function.
    """
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
