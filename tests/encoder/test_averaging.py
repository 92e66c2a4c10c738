"""Averages of weights: against the sum by hand, for adapters against the average of merged weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from nlt_trainer.encoder.averaging import average_weights, start_weights, weights_of
from nlt_trainer.encoder.loading import load_encoder
from nlt_trainer.encoder.lora import merge_lora
from nlt_trainer.errors import NLTError
from nlt_trainer.lm.frozen_lm import FrozenLM

LORA = {"r": 2, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"]}


def changed(encoder: SentenceTransformer) -> dict[str, Tensor]:
    """Change every trained weight, as training does; returns a copy of all weights."""
    generator = torch.Generator().manual_seed(3)
    for parameter in encoder.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return {name: weight.clone() for name, weight in encoder.state_dict().items()}


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_weights_are_a_weighted_sum(tiny_encoder: SentenceTransformer, share: float) -> None:
    """Reference: the sum in float64; the share 0 and the share 1 leave every bit of one of the two."""
    start = start_weights(tiny_encoder)
    trained = changed(tiny_encoder)
    average_weights(tiny_encoder, start, share)
    assert set(start) == {name for name, _ in tiny_encoder.named_parameters()}
    for name, parameter in tiny_encoder.named_parameters():
        expected = share * start[name].double() + (1 - share) * trained[name].double()
        torch.testing.assert_close(parameter.detach().double(), expected, rtol=0, atol=0 if share in (0, 1) else 1e-7)
    assert max((start[name] - trained[name]).abs().max() for name in start) > 0.1


@pytest.mark.parametrize("shared", [False, True], ids=["copy", "shared backbone"])
def test_an_adapter_is_scaled(tiny_llm_folder: Path, tiny_lm: FrozenLM, shared: bool) -> None:
    """Reference: the average of the start's weights and of the merged trained ones; the LLM stays as it is."""

    def encoder() -> SentenceTransformer:
        backbone = tiny_lm if shared else None
        return load_encoder(tiny_lm.name, pooling="lasttoken", lora=LORA, device="cpu", backbone=backbone)

    llm = {name: weight.clone() for name, weight in tiny_lm.model.state_dict().items()}
    base = load_encoder(tiny_lm.name, pooling="lasttoken", device="cpu").state_dict()
    averaged, merged = encoder(), encoder()
    for name, weight in averaged.state_dict().items():
        merged.state_dict()[name].copy_(weight)  # the first factors are random
    start = start_weights(averaged)
    for trained in (averaged, merged):
        changed(trained)
    average_weights(averaged, start, 0.3)
    for trained in (averaged, merged):
        merge_lora(trained)
    for name, weight in averaged.state_dict().items():
        torch.testing.assert_close(weight, 0.3 * base[name] + 0.7 * merged.state_dict()[name], rtol=0, atol=1e-6)
    assert max((base[name] - weight).abs().max() for name, weight in merged.state_dict().items()) > 0.01
    assert all(torch.equal(weight, llm[name]) for name, weight in tiny_lm.model.state_dict().items())


def test_other_weights_come_back(tiny_llm_folder: Path) -> None:
    """Reference: the trained weights before other shares were tried, bit by bit."""
    encoder = load_encoder(str(tiny_llm_folder), pooling="lasttoken", lora=LORA, device="cpu")
    start = start_weights(encoder)
    expected = changed(encoder)
    trained = weights_of(encoder)
    average_weights(encoder, start, 0.5)
    assert any(not torch.equal(weight, expected[name]) for name, weight in encoder.state_dict().items())
    average_weights(encoder, trained, 1.0)
    assert all(torch.equal(weight, expected[name]) for name, weight in encoder.state_dict().items())


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"use_dora": True}, r"average_with_start: DoRA's weights are no sum .*; leave use_dora out"),
        ({"init_lora_weights": False}, r"average_with_start: the adapter's .*lora_B.* leave init_lora_weights out"),
    ],
)
def test_an_adapter_that_no_scale_averages_is_refused(
    tiny_llm_folder: Path, lora: dict[str, object], message: str
) -> None:
    """Reference: the option and the remedy in the message."""
    encoder = load_encoder(str(tiny_llm_folder), pooling="lasttoken", lora={**LORA, **lora}, device="cpu")
    with pytest.raises(NLTError, match=message):
        start_weights(encoder)
