"""Likelihoods of targets from one token to 4,096, in every dtype."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny import build_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from nlt_trainer.lm.candidate_pairs import Pair
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.lm.scorer import likelihood_gain
from nlt_trainer.lm.scoring import LikelihoodScorer

LENGTHS = [1, 2, 511, 512, 513, 4096]
"""Tokens of a target: the least, those around the length of a shared row, and more than a batch has."""
DOCUMENT = "Green tea is made from leaves that were heated soon after the harvest."


@pytest.fixture
def long_lm() -> FrozenLM:
    """A random two-layer Llama that reads 8,192 tokens."""
    tokenizer = build_tokenizer(wrap=False)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=8192,
        initializer_range=0.2,
    )
    return FrozenLM(LlamaForCausalLM(config).eval().requires_grad_(False), tokenizer, "long", {"weights": "long"})


@torch.no_grad()
def plain_log_likelihood(scorer: LikelihoodScorer, model: Any, pair: Pair) -> float:
    """The reference: one pair alone, all logits, log-softmax in float64, the sum over the target."""
    document, query, answer = pair
    suffix = scorer.tokens.suffix(query, answer, "query")
    prefix, _ = scorer._prefix(document, suffix, query)
    ids = torch.tensor([[*prefix, *suffix.ids]])
    log_p = model(input_ids=ids).logits[0].double().log_softmax(-1)
    places = [len(prefix) + n for n, marked in enumerate(suffix.target) if marked]
    return float(sum(log_p[place - 1, ids[0, place]] for place in places))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_targets_of_every_length(long_lm: FrozenLM, dtype: torch.dtype) -> None:
    """Reference: the model in float64, one pair after the other, to the precision of the dtype."""
    queries = [" ".join(["a"] * length) for length in LENGTHS]
    pairs: list[Pair] = [(document, query, None) for query in queries for document in (DOCUMENT, None)]
    torch.nn.Module.to(long_lm.model, dtype)
    scorer = LikelihoodScorer(long_lm, target="query")
    found = scorer.log_likelihood(pairs)
    gain = likelihood_gain(*scorer.candidate_likelihoods(queries, [[DOCUMENT]] * len(queries)))
    long_lm.model.double()
    expected = np.array([plain_log_likelihood(scorer, long_lm.model, pair) for pair in pairs])
    assert found.target_tokens[::2].tolist() == LENGTHS
    tolerance = 1e-4 if dtype == torch.float32 else 0.1  # nats a token
    np.testing.assert_allclose(
        found.log_likelihood / found.target_tokens, expected / found.target_tokens, rtol=0, atol=tolerance
    )
    right = (expected[::2] - expected[1::2]) / LENGTHS
    np.testing.assert_allclose(gain[:, 0], right, rtol=0, atol=tolerance)
    assert np.abs(right).max() > tolerance
