"""Packed weights: the products of the plain ones, and the plain ones themselves afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nlt_trainer.models.frozen_lm import FrozenLM
from nlt_trainer.models.packed_weights import packed_weights
from nlt_trainer.models.scoring import LikelihoodScorer, Pair

PACKS = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX")


@pytest.mark.parametrize("bias", [True, False])
def test_products_are_those_of_plain_weights(bias: bool) -> None:
    """Reference: the layer itself; the weights come back to the last bit and can stand in a graph."""
    torch.manual_seed(0)
    layer, hidden = nn.Linear(48, 80, bias=bias), torch.randn(3, 7, 48)
    expected, weight = layer(hidden), layer.weight.detach().clone()
    with torch.inference_mode(), packed_weights(layer):
        assert (layer.weight.numel() == 0) == PACKS
        torch.testing.assert_close(layer(hidden), expected)
    assert torch.equal(layer.weight, weight)
    layer(hidden).sum().backward()
    assert layer.weight.grad is not None
    assert "forward" not in vars(layer)


def test_what_is_not_float32_stays_plain() -> None:
    """Reference: the definition; torch has oneDNN multiply bfloat16 by itself."""
    layer = nn.Linear(48, 80, dtype=torch.bfloat16)
    with packed_weights(layer):
        assert layer.weight.numel() == 48 * 80


def test_weights_come_back_after_an_error(tiny_lm: FrozenLM) -> None:
    """Reference: the weights before."""
    before = {name: value.clone() for name, value in tiny_lm.model.state_dict().items()}
    with pytest.raises(KeyboardInterrupt), packed_weights(tiny_lm.model.base_model):
        raise KeyboardInterrupt
    after = tiny_lm.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_scores_are_those_of_plain_weights(tiny_lm: FrozenLM) -> None:
    """Reference: the same scorer with plain weights, 1e-4 nats a token."""
    documents = ["An owl hunts at night.", "The moon pulls the water of the sea and so makes the tides."]
    pairs: list[Pair] = [(d, q, None) for d in documents for q in ("which bird hunts", "what makes the tides")]
    scorer = LikelihoodScorer(tiny_lm, target="query")
    expected = scorer.log_likelihood(pairs)
    with packed_weights(tiny_lm.model.base_model):
        found = scorer.log_likelihood(pairs)
    difference = abs(found.log_likelihood - expected.log_likelihood) / expected.target_tokens
    assert difference.max() < 1e-4
