"""Fused attention: which models get it, and that they read as before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nlt_trainer.lm.cpu import FUSED_ATTENTION, enable_fused_attention
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
