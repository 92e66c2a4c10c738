"""Check whether a model gives the same hidden states when it is read in another way.

If the model cannot be read in that way at all, it raises one of `FORWARD_ERRORS`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

FORWARD_ERRORS = (TypeError, ValueError, LookupError, AttributeError, RuntimeError)
"""Errors that a transformers model raises when it cannot be read as a decoder with one stream of tokens."""


def probe_ids(model: PreTrainedModel, length: int) -> Tensor:
    """Ids `(1, length)` of tokens from all over the vocabulary, on which two readings are compared.

    The first ids of a vocabulary are often special tokens that were never trained. From those, rounding to bfloat16
    makes other hidden states: SmolLM2-135M is then off by 1.35 times their norm, and by 0.015 on ordinary tokens.
    """
    ids = torch.arange(1, length + 1, device=model.device) * model.config.get_text_config().vocab_size // (length + 2)
    return ids[None]


def readings_agree(found: Tensor, expected: Tensor) -> bool:
    """Whether two tensors of hidden states are equal up to the precision of their dtype; NaN equals NaN."""
    precision = 5e-2 if expected.dtype in (torch.bfloat16, torch.float16) else 1e-3
    largest = float(expected.float().nan_to_num(0.0, 0.0, 0.0).abs().max())
    return torch.allclose(found.float(), expected.float(), rtol=0.0, atol=precision * largest, equal_nan=True)
