"""Faster products of a float32 model on an x86 CPU, for as long as nothing is differentiated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

TOKENS = 2048
"""Rows of the products that the layout is chosen for; others use it too."""


@contextmanager
def packed_weights(model: nn.Module) -> Iterator[None]:
    """Let the linear layers of a model keep their weights in the order in which oneDNN multiplies them.

    torch takes another library for float32 on x86, which orders the weights anew at every product. Weights are moved
    layer by layer, so that they need no more memory than before, and moved back at the end, the same to the last bit;
    those that were mapped from a file leave its pages behind, which the system drops when it needs them. Layers of
    another dtype or device stay as they are, and so do all on other processors.

    Args:
        model: nothing in it needs a gradient, and nothing but `forward` reads its linear layers' weights meanwhile.
    """
    packed: list[tuple[nn.Linear, Tensor]] = []
    try:
        for layer in model.modules():
            if type(layer) is nn.Linear and _packs(layer.weight):
                packed.append((layer, _pack(layer)))
        yield
    finally:
        with torch.inference_mode(False):  # else no graph could hold the weights afterwards
            for layer, weight in packed:
                layer.weight.data = weight.to_dense()
                del layer.__dict__["forward"]


def _packs(weight: Tensor) -> bool:
    supported = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX")
    return supported and weight.device.type == "cpu" and weight.dtype == torch.float32


def _pack(layer: nn.Linear) -> Tensor:
    """Move a layer's weight to a packed one, `(out, in)`, which is returned. torch.compile makes the same calls."""
    bias = layer.bias
    weight: Tensor = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), TOKENS)

    def forward(hidden: Tensor) -> Tensor:
        output: Tensor = torch.ops.mkldnn._linear_pointwise(hidden, weight, bias, "none", [], "")
        return output

    layer.__dict__["forward"] = forward
    layer.weight.data = torch.empty(0)
    return weight
