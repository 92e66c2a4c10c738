"""Faster products of a float32 model on an x86 CPU, for as long as nothing is differentiated."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from nlt_trainer.lm.frozen_lm import FORWARD_ERRORS, FrozenLM, readings_agree

TOKENS = 2048
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
def packed_weights(lm: FrozenLM) -> Iterator[None]:
    """Let the linear layers of an LLM's decoder keep their weights in the order in which oneDNN multiplies them.

    torch takes another library for float32 on x86, which orders the weights anew at every product. Weights are moved
    layer by layer and moved back at the end, the same to the last bit. That takes no more memory than before, but for
    weights that another model shares, and for those that were mapped from a file, whose pages stay until the system
    needs them. Nothing changes on other processors, for layers of another dtype, and where the LLM then reads
    otherwise, as Mamba, which multiplies some weights by itself.

    Args:
        lm: no graph is made with it meanwhile, since packed layers have no gradient.
    """
    expected = _read(lm)
    with ExitStack() as stack:
        try:
            stack.enter_context(packed_layers(lm.model.base_model))
            unchanged = readings_agree(_read(lm), expected)
        except FORWARD_ERRORS:
            unchanged = False
        if not unchanged:
            stack.close()
        yield


@torch.inference_mode()
def _read(lm: FrozenLM) -> Tensor:
    ids = torch.arange(4, device=lm.device)[None]
    hidden: Tensor = lm.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    return hidden


@contextmanager
def packed_layers(model: nn.Module) -> Iterator[None]:
    """The same for any module whose linear layers' weights are read by their `forward` alone."""
    packed: list[tuple[nn.Linear, Tensor]] = []
    try:
        for layer in model.modules():
            if type(layer) is nn.Linear and is_packable(layer.weight):
                packed.append((layer, torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), TOKENS)))
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
