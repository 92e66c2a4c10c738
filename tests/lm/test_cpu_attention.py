"""Fused attention: which models get it, and that they read as before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from nlt_trainer.lm.cpu import FUSED_ATTENTION, enable_fused_attention, float32_attention, fused_attention
from nlt_trainer.lm.frozen_lm import FrozenLM


@torch.no_grad()
def test_a_loaded_llm_reads_padded_rows_as_with_sdpa(tiny_lm: FrozenLM, tmp_path: Path) -> None:
    """Reference: the same weights under transformers' sdpa, rows padded on the left."""
    tiny_lm.model.save_pretrained(tmp_path)
    tiny_lm.tokenizer.save_pretrained(tmp_path)
    lm = FrozenLM.from_pretrained(str(tmp_path), device="cpu")
    assert lm.model.config._attn_implementation == FUSED_ATTENTION
    ids = torch.arange(24).reshape(2, 12)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    found = lm.model(input_ids=ids, attention_mask=mask).logits[mask.bool()]
    lm.model.set_attn_implementation("sdpa")
    expected = lm.model(input_ids=ids, attention_mask=mask).logits[mask.bool()]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_only_sdpa_is_replaced(tiny_lm: FrozenLM, attention: str) -> None:
    """Reference: the definition; eager attention has what fused attention lacks, soft caps and sinks."""
    tiny_lm.model.set_attn_implementation(attention)
    enable_fused_attention(tiny_lm.model)
    assert tiny_lm.model.config._attn_implementation == {"eager": "eager", "sdpa": FUSED_ATTENTION}[attention]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gradients_come_from_the_fused_kernel_in_float32(dtype: torch.dtype) -> None:
    """Reference: gradients of the formula in float64 under a mask, with two query heads a key head.

    Which kernel ran, and in what dtype, is read from the graph.
    """
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(2, heads, 9, 8, generator=generator).to(dtype).requires_grad_() for heads in (4, 2, 2)]
    ours, keys_of_ours, values_of_ours = states
    mask = torch.ones(9, 9, dtype=torch.bool).tril().expand(2, 1, -1, -1).clone()
    mask[0, :, 3:, 1] = False
    output, _ = fused_attention(torch.nn.Module(), ours, keys_of_ours, values_of_ours, mask, scaling=0.3)
    query, key, value = (x.detach().double().requires_grad_() for x in states)
    keys, values = (x.repeat_interleave(2, dim=1) for x in (key, value))
    logits = (query @ keys.transpose(2, 3) * 0.3).masked_fill(~mask, -torch.inf)
    expected = (logits.softmax(-1) @ values).transpose(1, 2)
    found = torch.autograd.grad(output.float().square().sum(), states, retain_graph=True)
    known = torch.autograd.grad(expected.square().sum(), (query, key, value))
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-4
    for gradient, theirs in zip(found, known, strict=True):
        torch.testing.assert_close(gradient.double(), theirs, rtol=tolerance, atol=tolerance)
    assert output.dtype == dtype
    (kernel,) = (node for node in nodes_of(output) if "Flash" in node.name())
    assert kernel._saved_query.dtype == torch.float32


def nodes_of(tensor: torch.Tensor) -> list[Any]:
    """The nodes of a graph."""
    found, nodes = [], [tensor.grad_fn]
    while nodes:
        if (node := nodes.pop()) is not None:
            found.append(node)
            nodes += [parent for parent, _ in node.next_functions]
    return found


def test_attention_under_autocast_is_computed_in_float32() -> None:
    """Reference: the same call in float32. The result has autocast's dtype; outside the context nothing changes."""
    states = [x.requires_grad_() for x in torch.randn(3, 2, 4, 9, 8, generator=torch.Generator().manual_seed(0))]
    exact = F.scaled_dot_product_attention(*(x.detach().bfloat16().float() for x in states))
    with torch.autocast("cpu", torch.bfloat16):
        with float32_attention():
            output = F.scaled_dot_product_attention(*states)
        outside = F.scaled_dot_product_attention(*states)
    assert {node._saved_query.dtype for node in nodes_of(output) if "Flash" in node.name()} == {torch.float32}
    assert {node._saved_query.dtype for node in nodes_of(outside) if "Flash" in node.name()} == {torch.bfloat16}
    torch.testing.assert_close(output.float(), exact, rtol=0.01, atol=0.01)
