"""Packed weights: the products of the plain ones, and the plain ones themselves afterwards."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from nlt_trainer.lm import cpu, scoring
from nlt_trainer.lm.candidate_pairs import Pair
from nlt_trainer.lm.cpu import KEPT_PRODUCTS, packed_layers, packed_weights
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.lm.scoring import LikelihoodScorer

PACKS = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX")


@pytest.mark.parametrize("bias", [True, False])
def test_products_are_those_of_plain_weights(bias: bool) -> None:
    """Reference: the layer itself; the weights come back to the last bit and can stand in a graph."""
    torch.manual_seed(0)
    layer, hidden = nn.Linear(48, 80, bias=bias), torch.randn(3, 7, 48)
    expected, weight = layer(hidden), layer.weight.detach().clone()
    with torch.inference_mode(), packed_layers(layer):
        assert (layer.weight.numel() == 0) == PACKS
        torch.testing.assert_close(layer(hidden), expected)
        with packed_layers(layer):
            torch.testing.assert_close(layer(hidden), expected)
        assert (layer.weight.numel() == 0) == PACKS  # the outer one goes on
    assert torch.equal(layer.weight, weight)
    layer(hidden).sum().backward()
    assert layer.weight.grad is not None
    assert "forward" not in vars(layer)


def test_what_is_not_float32_stays_plain() -> None:
    """Reference: the definition; torch has oneDNN multiply bfloat16 by itself."""
    layer = nn.Linear(48, 80, dtype=torch.bfloat16)
    with packed_layers(layer):
        assert layer.weight.numel() == 48 * 80


@pytest.mark.parametrize("layers", [0, 3])
def test_weights_come_back_after_an_error(tiny_lm: FrozenLM, layers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: the weights before; it stops once they are packed, and while they are."""
    before = {name: value.clone() for name, value in tiny_lm.model.state_dict().items()}
    use, used = cpu._use, 0

    def stop(*given: Any) -> None:
        nonlocal used
        use(*given)
        used += 1
        if used == layers:
            raise KeyboardInterrupt

    monkeypatch.setattr(cpu, "_use", stop)
    with pytest.raises(KeyboardInterrupt), packed_weights(tiny_lm.model):
        raise KeyboardInterrupt
    assert used == layers or layers == 0 or not PACKS
    after = tiny_lm.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not any("forward" in vars(module) for module in tiny_lm.model.modules())


def test_a_model_that_multiplies_weights_itself_stays_plain(
    tiny_lm: FrozenLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: its scores before."""
    mlp: Any = tiny_lm.model.get_submodule("model.layers.0.mlp")
    monkeypatch.setattr(mlp, "forward", lambda hidden: nn.functional.linear(hidden, mlp.up_proj.weight)[..., :32])
    scorer = LikelihoodScorer(tiny_lm, target="query")
    expected = scorer.log_likelihood([(None, "which bird hunts", None)])
    with packed_weights(tiny_lm.model):
        assert mlp.up_proj.weight.numel() > 0
        found = scorer.log_likelihood([(None, "which bird hunts", None)])
    assert found.log_likelihood == expected.log_likelihood


def test_many_pairs_are_scored_with_packed_weights(tiny_lm: FrozenLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: the same scorer with plain weights, 1e-4 nats a token."""
    documents = ["An owl hunts at night.", "The moon pulls the water of the sea and so makes the tides."]
    pairs: list[Pair] = [(d, q, None) for d in documents for q in ("which bird hunts", "what makes the tides")]
    scorer = LikelihoodScorer(tiny_lm, target="query")
    expected = scorer.log_likelihood(pairs)
    packed, score = [], scorer._score
    monkeypatch.setattr(scoring, "PACKING_PAIRS", len(pairs))

    def noted(rows: Any) -> Any:
        layer: Any = tiny_lm.model.get_submodule("model.layers.0.mlp.up_proj")
        packed.append(layer.weight.numel() == 0)
        return score(rows)

    monkeypatch.setattr(scorer, "_score", noted)
    found = scorer.log_likelihood(pairs)
    assert set(packed) == {PACKS}
    difference = abs(found.log_likelihood - expected.log_likelihood) / expected.target_tokens
    assert difference.max() < 1e-4
    packed.clear()
    scorer.log_likelihood(pairs[1:])
    assert not any(packed)


SHAPES = """
import ctypes
import torch
from nlt_trainer.lm.cpu import packed_layers

class Heap(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split())]

libc = ctypes.CDLL("libc.so.6")
libc.mallinfo2.restype = Heap
torch.nn.functional.gelu(torch.randn(8, 8))  # oneDNN's, too
layer = torch.nn.Linear(576, 1536)
used = []
with torch.inference_mode(), packed_layers(layer):
    for tokens in range(64, 192):
        layer(torch.randn(tokens, 576))
        used.append(libc.mallinfo2().uordblks / 2**20)
print(used[-1] - used[31])
"""


@pytest.mark.skipif(not PACKS, reason="needs float32 products of oneDNN")
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33")
def test_products_of_many_shapes_are_not_all_kept() -> None:
    """Reference: what the heap of a new process holds after 128 shapes and after 32; what a user sets stays."""

    def grown(given: dict[str, str]) -> float:
        environment = {name: value for name, value in os.environ.items() if name not in KEPT_PRODUCTS} | given
        return float(subprocess.check_output([sys.executable, "-c", SHAPES], env=environment, text=True))

    assert grown({}) < grown(dict.fromkeys(KEPT_PRODUCTS, "1024")) / 4
