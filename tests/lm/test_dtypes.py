"""What `auto` means on which machine, and that gains in bfloat16 rank candidates as those in float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from nlt_trainer.choices import LLMDtype
from nlt_trainer.lm.dtypes import resolved_dtype
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.lm.scoring import LikelihoodScorer


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx2": True}, "float32"),
        ({"avx512_f": True, "avx512_bf16": False}, "float32"),
        ({"avx512_bf16": True}, "bfloat16"),
        ({"amx_bf16": True}, "bfloat16"),
        ({}, "float32"),
    ],
)
def test_auto_asks_the_processor(monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, Any], expected: str) -> None:
    """Reference: the processors by hand; what a recipe names stays."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert resolved_dtype("auto", "cpu") == expected
    named: tuple[LLMDtype, ...] = ("float32", "bfloat16", "float16")
    assert [resolved_dtype(dtype, "cpu") for dtype in named] == [*named]


@pytest.mark.parametrize("supported", [True, False])
def test_auto_asks_the_gpu(monkeypatch: pytest.MonkeyPatch, supported: bool) -> None:
    """Reference: what torch says of the GPU; one that only emulates bfloat16 gets float32."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation or supported)
    assert resolved_dtype("auto", "cuda") == ("bfloat16" if supported else "float32")


def test_gains_in_bfloat16_rank_as_those_in_float32(tiny_llm_folder: Any) -> None:
    """Reference: the float32 scorer; where two gains are further apart than rounding, their order is the same."""
    queries = ["which animal is the largest", "why does bread rise"]
    documents = [["The blue whale is the largest animal.", "Yeast makes bread rise.", "Tea leaves are heated."]] * 2
    gains = {}
    dtypes: tuple[LLMDtype, ...] = ("float32", "bfloat16")
    for dtype in dtypes:
        lm = FrozenLM.from_pretrained(str(tiny_llm_folder), dtype=dtype, device="cpu")
        assert lm.fingerprint["dtype"] == dtype
        gains[dtype] = LikelihoodScorer(lm, target="query").gain(queries, documents)
    np.testing.assert_allclose(gains["bfloat16"], gains["float32"], atol=0.05)
    apart = np.abs(gains["float32"][:, :, None] - gains["float32"][:, None, :]) > 0.1
    order = [np.sign(g[:, :, None] - g[:, None, :]) for g in gains.values()]
    assert (order[0] == order[1])[apart].all()
