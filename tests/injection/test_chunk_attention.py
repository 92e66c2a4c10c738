"""Attention between chunks: one layer against the formula in numpy, and decoders of several families."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from transformers import DynamicCache

from nlt_trainer.injection.attention import enable_document_attention
from nlt_trainer.injection.chunk_attention import ChunkAttention
from nlt_trainer.injection.chunks import ChunkGroups, ChunkReader
from nlt_trainer.lm.frozen_lm import FrozenLM

GROUPS, CHUNKS, HEADS, KEY_HEADS, SIZE, LENGTH = 2, 3, 4, 2, 8, 5
LENGTHS = [[5, 2, 4], [3, 5, 1]]
MASK = torch.tensor([[[t < length for t in range(LENGTH)] for length in row] for row in LENGTHS])
WEIGHTS = torch.tensor([[[0, 0.3, 0.7], [0.9, 0, 0.1], [0.5, 0.5, 0]], [[0, 1, 0], [0.2, 0, 0.8], [0.6, 0.4, 0]]])


@pytest.fixture
def projections() -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of the chunks, two query heads a key head."""
    generator = torch.Generator().manual_seed(1)
    shapes = [(GROUPS * CHUNKS, h, LENGTH, SIZE) for h in (HEADS, KEY_HEADS, KEY_HEADS)]
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)  # type: ignore[return-value]


def numpy_added(
    projections: tuple[Tensor, Tensor, Tensor], weights: Tensor, *, softcap: float | None = None
) -> np.ndarray:
    """The reference in float64, chunk by chunk, head by head and row by row: `(G * C, S, H, size)`."""
    q, k, v = (x.double().numpy().reshape(GROUPS, CHUNKS, -1, LENGTH, SIZE) for x in projections)
    added = np.zeros((GROUPS, CHUNKS, LENGTH, HEADS, SIZE))
    for g, i, j, h, s in np.ndindex(GROUPS, CHUNKS, CHUNKS, HEADS, LENGTH):
        if i != j:
            keys, values = (x[g, j, h // 2, : LENGTHS[g][j]] for x in (k, v))
            logits = keys @ q[g, i, h, s] * 0.3
            p = np.exp(logits if softcap is None else softcap * np.tanh(logits / softcap))
            p /= p.sum()
            normaliser = p @ np.linalg.norm(values, axis=1)
            added[g, i, s, h] += float(weights[g, i, j]) * (p @ values) / normaliser
    return added.reshape(GROUPS * CHUNKS, LENGTH, HEADS, SIZE)


def attention_of(key: Tensor, value: Tensor, weights: Tensor = WEIGHTS) -> ChunkAttention:
    cache = DynamicCache()
    cache.update(key, value, 0)
    return ChunkAttention(weights, MASK, cache)


@pytest.mark.parametrize("softcap", [None, 0.5])
def test_one_layer_equals_the_formula(projections: tuple[Tensor, Tensor, Tensor], softcap: float | None) -> None:
    """Reference: the sum over the other chunks in numpy float64, with padding and grouped-query heads."""
    query, key, value = projections
    found = attention_of(key, value).added(query, 0, scaling=0.3, softcap=softcap)
    np.testing.assert_allclose(found.numpy(), numpy_added(projections, WEIGHTS, softcap=softcap), atol=1e-5)


def test_padding_and_the_scale_of_values_do_not_matter(projections: tuple[Tensor, Tensor, Tensor]) -> None:
    """Reference: the same chunks with other padding, and with values ten times as large."""
    query, key, value = projections
    expected = attention_of(key, value).added(query, 0, scaling=0.3)
    padding = ~MASK.flatten(0, 1)[:, None, :, None]
    padded = attention_of(key.masked_fill(padding, 7.0), value.masked_fill(padding, -9.0)).added(query, 0, scaling=0.3)
    torch.testing.assert_close(padded, expected)
    torch.testing.assert_close(attention_of(key, value * 10).added(query, 0, scaling=0.3), expected)


def test_equal_values_add_their_direction(projections: tuple[Tensor, Tensor, Tensor]) -> None:
    """Reference: a closed case; all values alike give a unit vector whatever the weights. Zero values give zero."""
    query, key, value = projections
    same = value[:1, :1, :1].expand_as(value)
    found = attention_of(key, same).added(query, 0, scaling=0.3)
    torch.testing.assert_close(found, (same[0, 0, 0] / same[0, 0, 0].norm()).expand_as(found))
    assert attention_of(key, torch.zeros_like(value)).added(query, 0, scaling=0.3).abs().max() == 0


def test_the_gradient_is_that_of_finite_differences(projections: tuple[Tensor, Tensor, Tensor]) -> None:
    """Reference: `gradcheck` in float64 with respect to weights, queries, keys and values."""
    tensors = [x.double().requires_grad_() for x in (WEIGHTS, *projections)]

    def added(weights: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attention_of(key, value, weights).added(query, 0, scaling=0.3)

    assert torch.autograd.gradcheck(added, tensors)


SETTINGS: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.2, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "settings"),
    [
        *((family, {}) for family in ("Llama", "Qwen2", "Qwen3", "Mistral", "Phi3", "GPTNeoX", "Olmo2", "Granite")),
        ("Gemma2", {"head_dim": 8, "attn_logit_softcapping": 2.0}),
        ("GptOss", {"head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1}),
    ],
)
def test_families(tiny_lm: FrozenLM, family: str, settings: dict[str, Any]) -> None:
    """Reference: the model's own loss of each chunk, which no weight means; weights change it."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SETTINGS, **settings)
    lm = FrozenLM(getattr(transformers, f"{family}ForCausalLM")(config), tiny_lm.tokenizer, family, {})
    ids = torch.arange(3, 33).reshape(2, 3, 5)
    target = MASK.clone()
    target[:, :, 0] = False
    lm.model.set_attn_implementation("eager")
    logits = lm.model(input_ids=ids.flatten(0, 1)).logits.unflatten(0, (2, 3))[:, :, :-1]
    loss = torch.nn.functional.cross_entropy(logits.permute(0, 3, 1, 2), ids[:, :, 1:], reduction="none")
    expected = (loss * target[:, :, 1:]).sum((1, 2)) / target.sum((1, 2))
    enable_document_attention(lm)
    reader = ChunkReader(lm, trained=False)
    groups = ChunkGroups(ids, MASK, target)
    torch.testing.assert_close(reader.losses(torch.zeros_like(WEIGHTS), groups), expected, rtol=1e-3, atol=1e-3)
    assert (reader.losses(WEIGHTS, groups) - expected).abs().min() > 1e-3
