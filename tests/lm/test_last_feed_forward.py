"""The last feed-forward network at some positions, against the whole one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
)

from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.lm.last_feed_forward import computed_only_at, last_feed_forward
from nlt_trainer.lm.scoring import LikelihoodScorer

SIZE: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32}
ROWS, COLUMNS = torch.tensor([0, 0, 2]), torch.tensor([1, 4, 3])


def test_positions_are_those_of_the_whole(tiny_lm: FrozenLM) -> None:
    """Reference: hidden states of the plain decoder; the network is as it was afterwards."""
    decoder: Any = tiny_lm.model.base_model
    mlp = last_feed_forward(decoder)
    assert mlp is decoder.layers[-1].mlp
    ids = torch.arange(15).reshape(3, 5)
    with torch.inference_mode():
        expected = decoder(input_ids=ids, use_cache=False).last_hidden_state
        with computed_only_at(mlp, ROWS, COLUMNS):
            found = decoder(input_ids=ids, use_cache=False).last_hidden_state
        again = decoder(input_ids=ids, use_cache=False).last_hidden_state
    torch.testing.assert_close(found[ROWS, COLUMNS], expected[ROWS, COLUMNS])
    assert not torch.allclose(found[1], expected[1])
    torch.testing.assert_close(again, expected, rtol=0, atol=0)


def test_a_forward_that_was_there_before_comes_back() -> None:
    """Reference: the instance's own forward; after an error too."""
    mlp = nn.Linear(4, 4)

    def own(hidden: torch.Tensor) -> torch.Tensor:
        return hidden * 2

    vars(mlp)["forward"] = own
    hidden = torch.ones(3, 5, 4)
    with pytest.raises(RuntimeError, match="stop"), computed_only_at(mlp, ROWS, COLUMNS):
        found = mlp(hidden)
        raise RuntimeError("stop")
    assert found.sum() == 2 * 3 * 4
    assert (found[ROWS, COLUMNS] == 2).all()
    assert vars(mlp)["forward"] is own


def test_a_network_that_gives_more_is_refused() -> None:
    """Reference: the documented error, by which the scorer leaves such a network alone."""

    class Mixture(nn.Module):
        def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return hidden, hidden[..., :1]

    mlp = Mixture()
    with pytest.raises(TypeError, match="Mixture gives a tuple"), computed_only_at(mlp, ROWS, COLUMNS):
        mlp(torch.ones(3, 5, 4))


HEADS = {"n_layer": 2, "n_head": 2}
MIXTURE = {"num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 16, "num_key_value_heads": 2}
DECODERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "beside attention": (GPTNeoXForCausalLM, GPTNeoXConfig, SIZE | {"intermediate_size": 64}),
    "after attention": (GPT2LMHeadModel, GPT2Config, HEADS | {"n_embd": 32}),
    "gives router scores too": (GptOssForCausalLM, GptOssConfig, SIZE | MIXTURE | {"intermediate_size": 64}),
    "takes the residual": (BloomForCausalLM, BloomConfig, HEADS | {"hidden_size": 32, "max_position_embeddings": 256}),
}


@pytest.mark.parametrize("name", DECODERS)
def test_other_decoders(tiny_lm: FrozenLM, name: str) -> None:
    """Reference: the same scorer with the whole network, which is kept where it takes or gives more than states."""
    model, config, size = DECODERS[name]
    torch.manual_seed(0)
    dtype = torch.bfloat16 if name == "gives router scores too" else torch.float32
    decoder = model(config(**size, vocab_size=len(tiny_lm.tokenizer))).to(dtype)
    lm = FrozenLM(decoder, tiny_lm.tokenizer, name, {"weights": name})
    scorer = LikelihoodScorer(lm, target="query")
    assert (scorer._last_feed_forward is None) == (name in ("takes the residual", "gives router scores too"))
    pairs = [("An owl hunts at night.", "which bird hunts", None), (None, "what makes the tides", None)]
    found = scorer.log_likelihood(pairs).log_likelihood
    scorer._last_feed_forward = None
    assert found == pytest.approx(scorer.log_likelihood(pairs).log_likelihood, abs=1e-4)
