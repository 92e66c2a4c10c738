"""Tiny random models of many families: injection, detection and scoring against plain loops; refusals with reasons."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, AutoModelForCausalLM
from transformers.masking_utils import sdpa_mask

from nlt_trainer.choices import DocumentMass
from nlt_trainer.errors import NLTError
from nlt_trainer.injection.attention import ScoreInjection, enable_document_attention
from nlt_trainer.injection.attention_mass import AttentionMass
from nlt_trainer.injection.detection import detect_query_focused_heads
from nlt_trainer.injection.document_prompts import DocumentPrompts, build_prompts
from nlt_trainer.injection.document_reader import DocumentReader
from nlt_trainer.lm import scoring
from nlt_trainer.lm.candidate_pairs import Pair
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.lm.prompt_tokens import PromptTokens
from nlt_trainer.lm.scoring import LikelihoodScorer
from nlt_trainer.prompts import PromptTemplate

SETTINGS: dict[str, Any] = {
    "vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.2, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
EXPERTS = {"moe_intermediate_size": 32, "num_experts_per_tok": 2}
TWO_KINDS = {"head_dim": 8, "sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"]}
SOFTCAP = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0, "query_pre_attn_scalar": 8}
WINDOWED: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 24},
    "gemma2": {**TWO_KINDS, **SOFTCAP},
    "gemma3_text": {**TWO_KINDS, "query_pre_attn_scalar": 8},
    "gpt_oss": {**TWO_KINDS, "num_local_experts": 4, "num_experts_per_tok": 2},
}
DECODERS: dict[str, dict[str, Any]] = {
    **WINDOWED,
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "phi3": {},
    "olmo2": {},
    "gpt_neox": {},
    "granite": {"attention_multiplier": 0.5, "residual_multiplier": 0.7, "logits_scaling": 7.0},
    "smollm3": {},
    "gpt2": {},
    "cohere": {"logit_scale": 0.25},
    "starcoder2": {"sliding_window": None},
    "qwen3_moe": {"head_dim": 8, "num_experts": 4, **EXPERTS},
}
K = 3
QUERIES = ["how is tea made", "which bird hunts at night and hears a mouse", "what makes the tides of the sea"]
ANSWERS = ["from leaves that were heated soon", "an owl", "the moon"]
DOCUMENTS = [
    ["Green tea is made from leaves.", "An owl hunts.", "The moon pulls the sea."],
    ["An owl hunts at night and hears a mouse.", "Silk is spun by the larva of a moth.", "Bread."],
    ["Glass is made by melting sand.", "Yeast makes bread rise.", "The moon makes the tides."],
]
HEADS = {0: torch.tensor([0, 3]), 1: torch.tensor([1, 2])}
LOG_WEIGHTS = torch.tensor([[0.7, 0.2, 0.1], [0.05, 0.05, 0.9], [0.3, 0.5, 0.2]], dtype=torch.float64).log()

every_decoder = pytest.mark.parametrize("family", DECODERS)


def build(lm: FrozenLM, family: str, **settings: Any) -> FrozenLM:
    """A random model of a family in float32, with the tokenizer of `lm`."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SETTINGS, **DECODERS.get(family, {}), **settings})
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if "sinks" in name or name.endswith("bias"):  # are zero or nearly so in a new model
            torch.nn.init.normal_(parameter)
    return FrozenLM(model, lm.tokenizer, family, {"weights": family})


def tokens_of(lm: FrozenLM) -> PromptTokens:
    return PromptTokens(lm.tokenizer, PromptTemplate(), max_document_tokens=32)


def prompts_of(lm: FrozenLM, part: slice = slice(None)) -> DocumentPrompts:
    return build_prompts(
        tokens_of(lm), QUERIES[part], DOCUMENTS[part], target="joint", context_length=256, answers=ANSWERS[part]
    )


def plain_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, scaling: float, **given: Any
) -> tuple[Tensor, None]:
    """The reference: p' of the definition, head by head, with soft cap and sink as the models' papers have them."""
    output = torch.empty_like(query[..., : value.shape[-1]])
    injection: ScoreInjection | None = given.get("document_attention")
    group = query.shape[1] // key.shape[1]
    if mask is None:
        mask = torch.ones(1, 1, query.shape[2], key.shape[2], dtype=torch.bool).tril()
    for b in range(len(query)):
        for h in range(query.shape[1]):
            logits = query[b, h] @ key[b, h // group].T * scaling
            if given.get("softcap") is not None:
                logits = given["softcap"] * torch.tanh(logits / given["softcap"])
            p = logits.exp() * mask[b % len(mask), 0]  # (S, T), not yet normalised
            sink = given["s_aux"][h].exp() if given.get("s_aux") is not None else 0
            p = p / (p.sum(-1, keepdim=True) + sink).clamp(min=1e-30)
            if injection is not None and h in injection.heads[module.layer_idx]:
                own = torch.stack([(p * (injection.documents[b] == k)).sum(-1) for k in range(K)], -1)  # (S, K)
                seen_weights = injection.log_weights[b].exp() * (own > 0)
                share = seen_weights / seen_weights.sum(-1, keepdim=True)
                total = own.sum(-1) if injection.mass == "kept" else torch.ones(len(own))
                injected = injection.rows[b] & (own.sum(-1) > 0)
                for k in range(K):
                    factor = torch.where(own[:, k] > 0, share[:, k] * total / own[:, k], 1.0)
                    p = torch.where(injected[:, None] & (injection.documents[b] == k), p * factor[:, None], p)
                if injection.mass == "one":
                    p = p.masked_fill(injected[:, None] & (injection.documents[b] == K), 0)
            output[b, h] = p @ value[b, h // group]
    return output.transpose(1, 2).contiguous(), None


def use_plain_attention(lm: FrozenLM) -> None:
    AttentionInterface.register("plain_document_attention", plain_attention)
    AttentionMaskInterface.register("plain_document_attention", sdpa_mask)
    lm.model.set_attn_implementation("plain_document_attention")


def one_pass_loss(lm: FrozenLM, b: int, log_weights: Tensor | None, mass: DocumentMass = "kept") -> Tensor:
    """Target loss of one prompt alone, in one pass without padding or cache."""
    prompts = prompts_of(lm, slice(b, b + 1))
    ids = torch.cat([prompts.prompt_ids, prompts.suffix_ids], 1)
    rows = torch.arange(ids.shape[1])[None] >= prompts.prompt_ids.shape[1]
    given: dict[str, Any] = {}
    if log_weights is not None:
        documents = prompts.key_documents(K)
        given["document_attention"] = ScoreInjection(log_weights[b : b + 1], documents, rows, HEADS, mass)
    logits = lm.model(input_ids=ids, use_cache=False, **given).logits[0]
    at = prompts.suffix_target[0].nonzero()[:, 0] + prompts.prompt_ids.shape[1]
    return torch.nn.functional.cross_entropy(logits[at - 1], ids[0, at])


def two_part_losses(
    lm: FrozenLM, log_weights: Tensor, prompts: DocumentPrompts, mass: DocumentMass = "kept"
) -> Tensor:
    """Ours: prompts of different lengths in one batch, documents into a cache, then query and target."""
    reader = DocumentReader(lm)
    cache = reader.read_documents(prompts)
    injection = ScoreInjection(log_weights, prompts.key_documents(K), prompts.suffix_mask, HEADS, mass)
    return reader.target_losses(reader.read_suffix(prompts, cache, injection), prompts)


@torch.no_grad()
@pytest.mark.parametrize("mass", ["kept", "one"])
@every_decoder
def test_injection_equals_the_formula(tiny_lm: FrozenLM, family: str, mass: DocumentMass) -> None:
    """Reference: `plain_attention`, each prompt alone; ours reads them padded on both ends, in two parts."""
    lm = build(tiny_lm, family)
    use_plain_attention(lm)
    expected = torch.stack([one_pass_loss(lm, b, LOG_WEIGHTS.float(), mass) for b in range(3)])
    enable_document_attention(lm)
    prompts = prompts_of(lm)
    assert not prompts.prompt_mask.all()
    assert not prompts.suffix_mask.all()
    found = two_part_losses(lm, LOG_WEIGHTS.float(), prompts, mass)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    shifted = two_part_losses(lm, LOG_WEIGHTS.float().flip(1), prompts)
    assert (shifted - expected).abs().max() > 1e-3


@torch.no_grad()
@every_decoder
def test_a_heads_own_shares_change_nothing(tiny_lm: FrozenLM, family: str) -> None:
    """Reference: eager attention of the model: its weights give the shares, its hidden states must come out."""
    lm = build(tiny_lm, family)
    prompts = prompts_of(lm, slice(0, 1))
    ids, documents = torch.cat([prompts.prompt_ids, prompts.suffix_ids], 1), prompts.key_documents(K)
    lm.model.set_attn_implementation("eager")
    stock = lm.model(input_ids=ids, use_cache=False, output_attentions=True, output_hidden_states=True)
    last = torch.arange(ids.shape[1])[None] == ids.shape[1] - 1
    enable_document_attention(lm)

    def states(attention: ScoreInjection | AttentionMass) -> Tensor:
        return lm.model.base_model(input_ids=ids, use_cache=False, document_attention=attention).last_hidden_state

    recorder = AttentionMass(documents, last, K)
    states(recorder)
    for layer in range(2):
        own = torch.stack([(stock.attentions[layer][:, :, -1] * (documents == k)).sum(-1) for k in range(K)], -1)
        torch.testing.assert_close(recorder.mass[layer], own, rtol=1e-3, atol=1e-5)  # (1, H, K)
        for head in range(4):
            log_weights = own[:, head].log().log_softmax(-1)
            injection = ScoreInjection(log_weights, documents, last, {layer: torch.tensor([head])})
            torch.testing.assert_close(states(injection), stock.hidden_states[-1], rtol=1e-3, atol=1e-3)


@torch.no_grad()
@every_decoder
def test_one_document_changes_nothing(tiny_lm: FrozenLM, family: str) -> None:
    """Reference: eager attention without injection; a single document has share 1 whatever its score."""
    lm = build(tiny_lm, family)
    lm.model.set_attn_implementation("eager")
    expected = torch.stack([one_pass_loss(lm, b, None) for b in range(3)])
    enable_document_attention(lm)
    prompts = prompts_of(lm)
    prompts.documents.clamp_(min=K - 1).sub_(K - 1)  # 0 where there was a document, 1 elsewhere
    reader = DocumentReader(lm)
    injection = ScoreInjection(torch.zeros(3, 1), prompts.key_documents(1), prompts.suffix_mask, HEADS)
    hidden = reader.read_suffix(prompts, reader.read_documents(prompts), injection)
    torch.testing.assert_close(reader.target_losses(hidden, prompts), expected, rtol=1e-4, atol=1e-4)


@every_decoder
def test_the_gradient_is_that_of_finite_differences(tiny_lm: FrozenLM, family: str) -> None:
    """Reference: central differences of the float64 model's loss."""
    lm = build(tiny_lm, family)
    lm.model.double()
    if family in ("gpt_oss", "qwen3_moe"):
        lm.model.set_experts_implementation("eager")  # the fused one has no float64
    enable_document_attention(lm)
    prompts = prompts_of(lm)
    point = LOG_WEIGHTS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(two_part_losses(lm, point, prompts).sum(), point)
    slopes, step = torch.zeros_like(point), 3e-3
    with torch.no_grad():
        for k in range(K):
            shift = step * torch.eye(K, dtype=torch.float64)[k]
            slopes[:, k] = two_part_losses(lm, point + shift, prompts) - two_part_losses(lm, point - shift, prompts)
    tolerance = 1e-6 if family in ("gpt2", "gpt_neox", "starcoder2") else 3e-5  # these alone are float64 throughout
    torch.testing.assert_close(gradient, slopes / (2 * step), rtol=1e-3, atol=tolerance)
    assert gradient.abs().max() > 1e-3


@every_decoder
def test_half_precision(tiny_lm: FrozenLM, family: str) -> None:
    """Reference: the float32 model, to the precision of bfloat16; the gradient is finite."""
    lm = build(tiny_lm, family)
    enable_document_attention(lm)
    expected = two_part_losses(lm, LOG_WEIGHTS.float(), prompts_of(lm)).detach()
    lm.model.bfloat16()
    enable_document_attention(lm)
    weights = LOG_WEIGHTS.float().requires_grad_()
    found = two_part_losses(lm, weights, prompts_of(lm))
    assert ((found - expected).abs() / expected).max() < 0.05
    found.sum().backward()
    assert weights.grad is not None
    assert weights.grad.isfinite().all()
    assert weights.grad.abs().max() > 0


def plain_log_likelihood(lm: FrozenLM, pair: Pair) -> float:
    """The reference: log p(query | document) of one pair alone, from all logits."""
    prompts = build_prompts(tokens_of(lm), [pair[1]], [[pair[0] or ""]], target="query", context_length=256)
    ids = torch.cat([prompts.prompt_ids, prompts.suffix_ids], 1)
    with torch.no_grad():
        log_p = lm.model(input_ids=ids, use_cache=False).logits[0].double().log_softmax(-1)
    at = prompts.suffix_target[0].nonzero()[:, 0] + prompts.prompt_ids.shape[1]
    return float(log_p[at - 1, ids[0, at]].sum())


SCORED: dict[str, dict[str, Any]] = {
    "falcon": {"alibi": False},
    "bloom": {"alibi": True},
    "mamba": {},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "attention_window_size": 12},
    "qwen3_next": {"head_dim": 8, "num_experts": 4, **EXPERTS, "layer_types": ["linear_attention", "full_attention"]},
}
"""Families that are scored, and cannot be injected."""


@pytest.mark.parametrize("family", [*DECODERS, *SCORED])
@pytest.mark.filterwarnings("ignore")
def test_scores_equal_the_plain_loop(tiny_lm: FrozenLM, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: one pair at a time; documents are shared by queries, in one row where the model can do that."""
    monkeypatch.setattr(scoring, "PACKING_PAIRS", 1)
    lm = build(tiny_lm, family, **SCORED.get(family, {}))
    pairs: list[Pair] = [(d, q, None) for d in DOCUMENTS[0] for q in QUERIES]
    expected = [plain_log_likelihood(lm, pair) for pair in pairs]
    scorer = LikelihoodScorer(lm, target="query", max_document_tokens=32)
    found = scorer.log_likelihood(pairs)
    difference = np.abs(found.log_likelihood - expected) / found.target_tokens
    assert difference.max() < 1e-4
    alone = {*WINDOWED, *SCORED} - {"falcon"}
    assert len(scorer._rows(enumerate(pairs))) == (9 if family in alone else 3)


def test_long_pairs_do_not_change_the_frequencies_of_short_ones(tiny_lm: FrozenLM) -> None:
    """Reference: one pair at a time, on both sides of the length at which LongRoPE turns to other frequencies."""
    pairs: list[Pair] = [(d, q, None) for d in DOCUMENTS[0] for q in QUERIES]
    limit = 36
    rope = {"rope_type": "longrope", "rope_theta": 10_000.0, "short_factor": [1.0] * 4, "long_factor": [8.0] * 4}
    lm = build(tiny_lm, "phi3", rope_parameters=rope, original_max_position_embeddings=limit)
    assert lm.rope_limit == limit
    expected = [plain_log_likelihood(lm, pair) for pair in pairs]
    scorer = LikelihoodScorer(lm, target="query", max_document_tokens=32)
    rows = scorer._rows(enumerate(pairs))
    assert {row.span > limit for row in rows} == {True, False}
    assert limit not in [row.span for row in rows]  # the plain loop reads one more
    found = scorer.log_likelihood(pairs)
    assert (np.abs(found.log_likelihood - expected) / found.target_tokens).max() < 1e-4


@every_decoder
def test_heads_do_not_depend_on_the_batch(tiny_lm: FrozenLM, family: str) -> None:
    """Reference: detection with one query at a time."""
    lm = build(tiny_lm, family)
    relevant = np.eye(3, dtype=bool)
    found = [
        detect_query_focused_heads(
            lm, QUERIES, documents=DOCUMENTS, relevant=relevant, max_document_tokens=32, num_heads=3, batch_size=size
        )
        for size in (1, 3)
    ]
    assert found[0].scores == found[1].scores
    assert found[0].heads == found[1].heads
    assert len({score for row in found[0].scores for score in row}) > 1


@pytest.mark.parametrize(
    ("family", "settings", "reason"),
    [
        ("falcon", {}, "it should have 2 layers of 4 attention heads, the interface reaches none"),
        ("bloom", {}, "the interface reaches none"),
        ("mamba", {}, "the interface reaches none"),
        ("recurrent_gemma", SCORED["recurrent_gemma"], "the interface reaches 4 in layer 1"),
        ("qwen3_next", SCORED["qwen3_next"], "the interface reaches 4 in layer 1"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_families_that_cannot_be_injected(
    tiny_lm: FrozenLM, family: str, settings: dict[str, Any], reason: str
) -> None:
    """Reference: no interface, no attention at all, attention in some layers; the message names what is supported."""
    lm = build(tiny_lm, family, **settings)
    with pytest.raises(NLTError, match=rf"LLM '{family}' \(\w+\): .*{reason}\. Score injection needs.*Llama, SmolLM"):
        enable_document_attention(lm)


@pytest.mark.filterwarnings("ignore")
def test_a_cache_of_its_own_is_refused(tiny_lm: FrozenLM) -> None:
    """Reference: MiniMax takes no DynamicCache even where all its layers have attention."""
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1}
    lm = build(tiny_lm, "minimax", head_dim=8, layer_types=["full_attention"] * 2, **experts)
    with pytest.raises(NLTError, match=r"LLM 'minimax' .*MiniMax uses cache of its own.*DynamicCache"):
        enable_document_attention(lm)


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("bert-generation", "what it makes of a token changes with the tokens after it"),
        ("electra", "it cannot be read"),
        ("modernbert-decoder", "its logits are not its output embedding"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_models_that_are_no_plain_decoder_are_refused(tiny_lm: FrozenLM, family: str, reason: str) -> None:
    """Reference: an encoder with a head, a head on other than the last states, and a head that does more."""
    with pytest.raises(NLTError, match=rf"LLM '{family}' \(\w+\): {reason}.*Choose a decoder"):
        build(tiny_lm, family)


@pytest.mark.filterwarnings("ignore")
def test_a_configuration_without_heads_is_refused(tiny_lm: FrozenLM) -> None:
    """Reference: Mamba's configuration, which has no number of attention heads."""
    lm = build(tiny_lm, "mamba")
    del lm.model.config.num_attention_heads
    with pytest.raises(NLTError, match=r"LLM 'mamba' .*num_attention_heads.*AttentionInterface"):
        enable_document_attention(lm)
