"""What reading costs a transformer, against closed cases and counters of others."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig

from nlt_trainer.choices import DocumentLayout
from nlt_trainer.injection.attention import enable_document_attention
from nlt_trainer.injection.document_prompts import build_prompts
from nlt_trainer.injection.document_reader import DocumentReader
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.lm.prompt_tokens import PromptTokens
from nlt_trainer.plan.models import Model, Work
from nlt_trainer.plan.stages import prompt_work
from nlt_trainer.prompts import PromptTemplate

LAYER = 8 * 24 + 2 * 8 * 12 + 24 * 8 + 3 * 8 * 16 + 2 * 8
"""Weights of a layer of `llama`: queries, keys and values, output, feed-forward part, two norms."""


def llama(*, tied: bool = False) -> Model:
    """A Llama without weights: 3 layers of 4 heads of 6 on 2 key-value heads, width 8, 50 tokens."""
    config = LlamaConfig(
        vocab_size=50, hidden_size=8, intermediate_size=16, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=6, tie_word_embeddings=tied,
    )  # fmt: skip
    with torch.device("meta"):
        return Model(AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16))


@pytest.mark.parametrize("tied", [True, False])
def test_weights_that_tokens_are_multiplied_with(tied: bool) -> None:
    """Reference: weights by hand, with and without a vocabulary projection of its own; 2 bytes each."""
    model = llama(tied=tied)
    assert model.multiplied == 3 * LAYER + 8
    assert model.weight_bytes == 2 * (3 * LAYER + 8 + (1 if tied else 2) * 50 * 8)


def test_flops_forward_and_backward() -> None:
    """Reference: 2 FLOPs a weight and token, 4 a layer, pair and unit of width; backward once and twice that."""
    model, pairs = llama(), sum(1 for i in range(10) for j in range(7 + 10) if j <= 7 + i)
    linear, attention, projection = 2 * (3 * LAYER + 8) * 10, 4 * 3 * 24 * pairs, 2 * 8 * 50 * 4
    read = partial(model.read, 10, after=7, targets=4)
    assert read() == Work(10, linear + attention + projection)
    assert read(gradients=1).flops == 2 * linear + 3 * attention + 2 * projection
    assert read(gradients=2).flops == 3 * linear + 3 * attention + 2 * projection
    assert Model(None).read(10, gradients=1) == Work()  # a table of token embeddings
    assert model.read_all([(1, 2), (3,)]) * 3 == model.read(2) * 3 + model.read(1) * 3


def test_flops_are_those_that_torch_counts(tiny_lm: FrozenLM) -> None:
    """Reference: torch's counter, which counts masked pairs and leaves norms out."""
    ids = torch.arange(9)[None]
    tiny_lm.model.set_attn_implementation("eager")  # whose products it counts
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        tiny_lm.model(ids, use_cache=False)
    read = Model(tiny_lm.model).read(9, after=4, targets=9)  # 9 * 4 + 9 * 10 / 2 = 81 pairs
    assert read.flops == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize("layout", ["sequential", "independent"])
def test_a_prompt_is_read_as_the_reader_reads_it(tiny_lm: FrozenLM, layout: DocumentLayout) -> None:
    """Reference: the reader's own counts; of documents that do not see each other two are equal."""
    tokens = PromptTokens(tiny_lm.tokenizer, PromptTemplate(), max_document_tokens=24)
    prompts = build_prompts(
        tokens,
        ["why does bread rise"],
        [["Yeast makes bread rise.", "The moon pulls the sea.", "Yeast makes bread rise."]],
        target="query",
        context_length=tiny_lm.context_length,
        layout=layout,
    )
    enable_document_attention(tiny_lm)
    reader = DocumentReader(tiny_lm)
    cache = reader.read_documents(prompts)
    texts, work = prompt_work(Model(tiny_lm.model), prompts, times=2)
    assert sum(map(len, texts)) == reader.lm_tokens
    with torch.no_grad():
        reader.read_suffix(prompts, cache)
    assert work.tokens == reader.lm_tokens + int(prompts.suffix_mask.sum())
