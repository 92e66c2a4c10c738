"""Score injection against the formula in numpy, against stock attention and against finite differences."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import MistralConfig, MistralForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from nlt_trainer.choices import DocumentMass
from nlt_trainer.injection.attention import (
    MASKED,
    ScoreInjection,
    document_attention,
    enable_document_attention,
)
from nlt_trainer.injection.attention_mass import AttentionMass, ValueMass, log_mass
from nlt_trainer.injection.document_pool import DocumentPool
from nlt_trainer.lm.frozen_lm import FrozenLM

HEADS, KEY_HEADS, SIZE, LENGTH, K = 4, 2, 8, 9, 2
DOCUMENTS = torch.tensor([[2, 0, 0, 1, 1, 1, 2, 2, 2], [2, 2, 0, 1, 1, 1, 0, 2, 2]])
ROWS = torch.arange(LENGTH).expand(2, -1) >= 7
LAYER = SimpleNamespace(layer_idx=0, num_key_value_groups=HEADS // KEY_HEADS, is_causal=True)


@pytest.fixture
def projections() -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of one layer with two query heads a key head."""
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(2, h, LENGTH, SIZE, generator=generator) for h in (HEADS, KEY_HEADS, KEY_HEADS))  # type: ignore[return-value]


def numpy_attention(
    projections: tuple[Tensor, Tensor, Tensor], log_weights: Tensor, heads: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """The reference in float64: p' = p * w * (sum of m) / m_k; outputs `(B, S, H, size)`, weights `(B, H, S, T)`."""
    q, k, v = (x.double().numpy() for x in projections)
    w = np.exp(log_weights.double().detach().numpy())
    weights, outputs = np.zeros((2, HEADS, LENGTH, LENGTH)), np.zeros((2, LENGTH, HEADS, SIZE))
    for b in range(2):
        for h in range(HEADS):
            for s in range(LENGTH):
                logits = k[b, h // 2, : s + 1] @ q[b, h, s] * SIZE**-0.5
                p = np.exp(logits - logits.max())
                p /= p.sum()
                if h in heads and ROWS[b, s]:
                    owners = DOCUMENTS[b, : s + 1].numpy()
                    mass = np.array([p[owners == d].sum() for d in range(K)])
                    for d in range(K):
                        p[owners == d] *= w[b, d] * mass.sum() / mass[d]
                weights[b, h, s, : s + 1] = p
                outputs[b, s, h] = p @ v[b, h // 2, : s + 1]
    return outputs, weights


def inject(projections: tuple[Tensor, Tensor, Tensor], log_weights: Tensor, heads: list[int]) -> np.ndarray:
    """Ours."""
    injection = ScoreInjection(log_weights, DOCUMENTS, ROWS, {0: torch.tensor(heads)})
    mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()[None, None]
    options: dict[str, Any] = {"scaling": SIZE**-0.5, "document_attention": injection}
    output, _ = document_attention(LAYER, *projections, mask, **options)  # type: ignore[arg-type]
    return output.double().numpy()


LOG_WEIGHTS = torch.tensor([[0.9, 0.1], [0.02, 0.98]]).log()


def test_one_layer_equals_the_formula(projections: tuple[Tensor, Tensor, Tensor]) -> None:
    """Reference: p' in numpy float64, head by head and row by row, with grouped-query heads."""
    heads = [0, 3]
    expected, weights = numpy_attention(projections, LOG_WEIGHTS, heads)
    stock, _ = numpy_attention(projections, LOG_WEIGHTS, [])
    found = inject(projections, LOG_WEIGHTS, heads)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-12)
    np.testing.assert_allclose(found[:, :, [1, 2]], stock[:, :, [1, 2]], atol=1e-5)  # heads outside `heads`
    np.testing.assert_allclose(found[:, :7], stock[:, :7], atol=1e-5)  # rows outside `rows`
    assert np.abs(found - stock)[:, 7:, heads].min(axis=(0, 1, 3)).max() > 0
    assert np.abs(found - stock)[:, 7:, heads].max() > 0.05


def test_shared_keys_are_not_copied_for_each_head(projections: tuple[Tensor, Tensor, Tensor]) -> None:
    """Reference: transformers' sdpa under a mask, forward and backward; the graph holds keys and values once."""
    mask = torch.rand(2, 1, LENGTH, LENGTH, generator=torch.Generator().manual_seed(2)).tril() > 0.1
    mask |= torch.eye(LENGTH, dtype=torch.bool)
    held: list[tuple[int, ...]] = []
    query, key, value = leaves = [x.clone().requires_grad_() for x in projections]
    layer: Any = LAYER

    def hold(x: Tensor) -> Tensor:
        held.append(tuple(x.shape))
        return x

    with torch.autograd.graph.saved_tensors_hooks(hold, lambda x: x):
        output, _ = document_attention(layer, query, key, value, mask, scaling=SIZE**-0.5)
    assert held.count((2, KEY_HEADS, LENGTH, SIZE)) == 2
    found = torch.autograd.grad(output.square().sum(), leaves)
    stock, _ = sdpa_attention_forward(layer, query, key, value, mask, scaling=SIZE**-0.5)
    torch.testing.assert_close(output, stock)
    torch.testing.assert_close(found, torch.autograd.grad(stock.square().sum(), leaves))


def test_documents_may_get_all_of_the_attention() -> None:
    """Reference: p' = p * w_k / m_k in float64, nothing elsewhere; rows outside `rows` and rows without documents."""
    logits = torch.randn(2, 3, LENGTH, LENGTH, dtype=torch.float64) * 3
    logits[1, :, 7, DOCUMENTS[1] < K] = MASKED  # this row sees no document
    log_weights = LOG_WEIGHTS.double().log_softmax(-1)
    found = ScoreInjection(log_weights, DOCUMENTS, ROWS, {}, "one").attend(logits.log_softmax(-1), 0).exp()
    p, expected = logits.softmax(-1), torch.zeros_like(logits)
    for b in range(2):
        for d in range(K):
            own = DOCUMENTS[b] == d
            mass = p[b, :, :, own].sum(-1, keepdim=True)
            expected[b, :, :, own] = p[b, :, :, own] * log_weights[b, d].exp() / mass
    expected = torch.where(ROWS[:, None, :, None], expected, p)
    expected[1, :, 7] = p[1, :, 7]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 3, LENGTH, dtype=torch.float64))


@pytest.mark.parametrize("mass", ["kept", "one"])
def test_heads_choose_among_pooled_documents(projections: tuple[Tensor, Tensor, Tensor], mass: DocumentMass) -> None:
    """Reference: numpy float64, for one head in two: the pool shares what a head gives the prompt's own documents."""
    generator = torch.Generator().manual_seed(2)
    documents = torch.tensor([0, 0, 1, 1, 1, 2, 0])
    keys, values = (torch.randn(len(documents), KEY_HEADS, SIZE, generator=generator) for _ in range(2))
    pool = DocumentPool({0: (keys, values)}, documents, K, LENGTH)
    shares = torch.tensor([[0.7, 0.1, 0.2], [0.05, 0.9, 0.05]])
    heads = torch.tensor([0, 3])
    injection = ScoreInjection(shares.log(), DOCUMENTS, ROWS, {0: heads}, mass, pool)
    mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()[None, None]
    options: dict[str, Any] = {"scaling": SIZE**-0.5, "document_attention": injection}
    found = document_attention(LAYER, *projections, mask, **options)[0].double().numpy()  # type: ignore[arg-type]
    stock, _ = numpy_attention(projections, LOG_WEIGHTS, [])
    q, k, v = (x.double().numpy() for x in projections)
    for b in range(2):
        for h in (0, 3):
            pool_k, pool_v = (x[:, h // 2].double().numpy() for x in (keys, values))
            for s in (7, 8):
                p = np.exp(k[b, h // 2, : s + 1] @ q[b, h, s] * SIZE**-0.5)
                p /= p.sum()
                is_document = (DOCUMENTS[b, : s + 1] < K).numpy()
                total = p[is_document].sum() if mass == "kept" else 1.0
                others = np.where(is_document, 0.0, p) if mass == "kept" else np.zeros_like(p)
                expected = others @ v[b, h // 2, : s + 1]
                for d in range(3):
                    own = documents.numpy() == d
                    within = np.exp(pool_k[own] @ q[b, h, s] * SIZE**-0.5)
                    expected = expected + float(shares[b, d]) * total * (within / within.sum()) @ pool_v[own]
                np.testing.assert_allclose(found[b, s, h], expected, atol=1e-5)
    np.testing.assert_allclose(found[:, :, [1, 2]], stock[:, :, [1, 2]], atol=1e-5)  # they read the prompt's own
    np.testing.assert_allclose(found[:, :7], stock[:, :7], atol=1e-5)  # rows outside `rows` do, too


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("softcap", [None, 50.0])
def test_documents_can_be_hidden_from_the_other_heads(
    projections: tuple[Tensor, Tensor, Tensor], explicit: bool, softcap: float | None
) -> None:
    """Reference: the injected heads of the plain injection, and stock attention under a mask without documents."""
    mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril().expand(2, 1, -1, -1)
    given: dict[str, Any] = {"scaling": SIZE**-0.5, "softcap": softcap}
    layer: Any = LAYER

    def inject(others: Tensor | None, heads: dict[int, Tensor]) -> Tensor:
        injection = ScoreInjection(LOG_WEIGHTS, DOCUMENTS, ROWS, heads, others=others)
        own_mask = mask if explicit else None
        return document_attention(layer, *projections, own_mask, document_attention=injection, **given)[0]

    selected, rest = torch.tensor([0, 3]), torch.tensor([1, 2])
    apart = DOCUMENTS == K
    stock = document_attention(layer, *projections, mask & apart[:, None, None, :], **given)[0]
    found, open_to_all = (inject(others, {0: selected}) for others in (apart, None))
    torch.testing.assert_close(found[:, 7:, selected], open_to_all[:, 7:, selected])
    torch.testing.assert_close(found[:, 7:, rest], stock[:, 7:, rest])
    assert (found - open_to_all)[:, 7:, rest].abs().max() > 0.01
    torch.testing.assert_close(inject(apart, {1: selected})[:, 7:], stock[:, 7:])  # a layer without injected heads


def test_keys_that_no_other_head_sees_are_not_multiplied(projections: tuple[Tensor, Tensor, Tensor]) -> None:
    """Reference: the keys that some prompt's other heads see, counted; a graph holds no more of them."""
    _, key, value = projections
    others = torch.zeros(2, LENGTH, dtype=torch.bool)
    others[0, [0, 7]] = others[1, [1, 7]] = True
    injection = ScoreInjection(LOG_WEIGHTS, DOCUMENTS, ROWS, {}, others=others)
    keys, values, seen = injection.read_by_others(key, value, None, rows=2)
    assert torch.equal(keys, key[:, :, [0, 1, 7]])
    assert torch.equal(values, value[:, :, [0, 1, 7]])
    expected = [[[True, False, True]] * 2, [[False, True, True]] * 2]
    assert seen is not None
    assert seen[:, 0].tolist() == expected


@pytest.mark.parametrize("softcap", [None, 50.0])
def test_half_precision_is_multiplied_in_float32_on_a_cpu(
    projections: tuple[Tensor, Tensor, Tensor], softcap: float | None
) -> None:
    """Reference: the same numbers in float32. Products in bfloat16 would be further off than the output's rounding."""
    query, key, value = (x.bfloat16() for x in projections)
    injection = ScoreInjection(LOG_WEIGHTS, DOCUMENTS, ROWS, {0: torch.tensor([0, 3])})
    given: dict[str, Any] = {"scaling": SIZE**-0.5, "softcap": softcap, "document_attention": injection}
    layer: Any = LAYER
    found, _ = document_attention(layer, query, key, value, None, **given)
    exact, _ = document_attention(layer, query.float(), key.float(), value.float(), None, **given)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found[:, :, [0, 3]], exact[:, :, [0, 3]].bfloat16(), rtol=0, atol=0)


def attend(logits: Tensor, log_weights: Tensor, rows: Tensor = ROWS) -> Tensor:
    """Attention weights after injection, `(B, h, S, T)`."""
    return ScoreInjection(log_weights, DOCUMENTS, rows, {}).attend(logits, 0).softmax(-1)


def test_shares_are_the_weights_and_rows_sum_to_one() -> None:
    """Reference: the definition of p' in float64: shares among documents equal w, other tokens keep p."""
    logits = torch.randn(2, 3, LENGTH, LENGTH, dtype=torch.float64) * 3
    log_weights = LOG_WEIGHTS.double().log_softmax(-1)
    weights = attend(logits, log_weights, torch.ones_like(ROWS))
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, LENGTH, dtype=torch.float64))
    own = [(weights * (DOCUMENTS == d)[:, None, None]).sum(-1) for d in range(K)]
    share = torch.stack(own, -1) / torch.stack(own, -1).sum(-1, keepdim=True)
    torch.testing.assert_close(share, log_weights.exp()[:, None, None].expand_as(share), rtol=1e-9, atol=1e-12)
    outside = (DOCUMENTS == K)[:, None, None].expand_as(logits)
    torch.testing.assert_close(weights[outside], logits.softmax(-1)[outside])


def test_natural_shares_change_nothing() -> None:
    """Reference: stock softmax; the weights are those that the row already has."""
    logits = torch.randn(2, 1, LENGTH, LENGTH, dtype=torch.float64)
    mass = log_mass(logits, DOCUMENTS, K)[:, 0, -1]  # (B, K) of the last row
    rows = torch.zeros_like(ROWS)
    rows[:, -1] = True
    torch.testing.assert_close(attend(logits, mass.log_softmax(-1), rows), logits.softmax(-1))


def hide(logits: Tensor, document: int) -> Tensor:
    """Mask a document in the last row, as a sliding window does."""
    hidden = (DOCUMENTS == document)[:, None, None, :] & (torch.arange(LENGTH) == LENGTH - 1)[:, None]
    return logits.masked_fill(hidden, MASKED)


def test_a_document_that_a_row_does_not_see_gets_nothing() -> None:
    """Reference: closed cases of two documents: the one that is left has share 1, so its row is stock softmax."""
    logits = torch.randn(2, 3, LENGTH, LENGTH, requires_grad=True)
    log_weights = LOG_WEIGHTS.clone().requires_grad_()
    everything = torch.ones_like(ROWS)
    weights = attend(hide(logits, 0), log_weights, everything)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, LENGTH))
    assert (weights * (DOCUMENTS == 0)[:, None, None])[:, :, -1].abs().max() == 0
    torch.testing.assert_close(weights[:, :, -1], hide(logits, 0).softmax(-1)[:, :, -1])
    torch.testing.assert_close(weights[:, :, :-1], attend(logits, log_weights, everything)[:, :, :-1])
    none = attend(hide(hide(logits, 0), 1), log_weights, everything)[:, :, -1]  # of both documents
    torch.testing.assert_close(none, hide(hide(logits, 0), 1).softmax(-1)[:, :, -1])
    (weights.square().sum() + none.square().sum()).backward()
    for tensor in (logits, log_weights):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
        assert tensor.grad.abs().max() > 0


def test_shares_among_three_documents_leave_out_the_hidden_one() -> None:
    """Reference: w of the two documents that are seen, divided by their sum."""
    documents = torch.tensor([[0, 0, 1, 1, 2, 3]])
    logits = torch.randn(1, 1, 1, 6, dtype=torch.float64).masked_fill(documents == 1, MASKED)
    injection = ScoreInjection(torch.tensor([[0.2, 0.5, 0.3]]).log(), documents, torch.ones(1, 1).bool(), {})
    weights = injection.attend(logits, 0).softmax(-1)[0, 0, 0]
    mass = torch.stack([weights[documents[0] == d].sum() for d in range(4)])
    torch.testing.assert_close((mass[:3] / mass[:3].sum()).float(), torch.tensor([0.4, 0.0, 0.6]))
    torch.testing.assert_close(mass[3], logits.softmax(-1)[0, 0, 0, -1])


@torch.no_grad()
def test_a_sliding_window_hides_documents(tiny_lm: FrozenLM) -> None:
    """Reference: stock attention in rows whose window of eight keys holds no document, or one alone."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.2, sliding_window=8,
    )  # fmt: skip
    lm = FrozenLM(MistralForCausalLM(config), tiny_lm.tokenizer, "windowed", {})
    ids = torch.arange(20, 44)[None]
    documents = torch.full_like(ids, K)
    documents[:, 1:4], documents[:, 4:12] = 0, 1
    stock = states(lm, ids)
    enable_document_attention(lm)
    injection = ScoreInjection(LOG_WEIGHTS[:1], documents, torch.arange(24)[None] >= 14, all_heads(lm))
    torch.testing.assert_close(states(lm, ids, document_attention=injection), stock, rtol=1e-4, atol=1e-4)


def test_log_mass_is_a_grouped_log_sum_exp() -> None:
    """Reference: `logsumexp` over each document's columns; a document without keys has none."""
    logits = torch.randn(2, 3, 4, LENGTH, dtype=torch.float64) * 50
    found = log_mass(logits, DOCUMENTS, 3 if K == 2 else K + 1)[..., :K]
    for b in range(2):
        for d in range(K):
            torch.testing.assert_close(found[b, ..., d], logits[b][..., DOCUMENTS[b] == d].logsumexp(-1))
    assert log_mass(logits, torch.full_like(DOCUMENTS, 2), 3)[..., :2].isneginf().all()


def states(lm: FrozenLM, ids: Tensor, **kwargs: Any) -> Tensor:
    return lm.model.base_model(input_ids=ids, **kwargs).last_hidden_state


def all_heads(lm: FrozenLM) -> dict[int, Tensor]:
    return {layer: torch.arange(lm.num_heads) for layer in range(lm.num_layers)}


IDS = torch.arange(20, 20 + 2 * LENGTH).reshape(2, LENGTH)


@torch.no_grad()
@pytest.mark.parametrize("score", [0.0, -20.0, 3.0])
def test_one_document_is_stock_attention_whatever_its_score(tiny_lm: FrozenLM, score: float) -> None:
    """Reference: the model before the switch; log-softmax of a single score is 0."""
    stock = states(tiny_lm, IDS)
    enable_document_attention(tiny_lm)
    torch.testing.assert_close(states(tiny_lm, IDS), stock, rtol=1e-4, atol=1e-4)
    log_weights = torch.full((2, 1), score).log_softmax(-1)
    injection = ScoreInjection(log_weights, (DOCUMENTS == 2).long(), ROWS, all_heads(tiny_lm))
    torch.testing.assert_close(states(tiny_lm, IDS, document_attention=injection), stock, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_only_injected_rows_react(tiny_lm: FrozenLM) -> None:
    """Reference: hidden states of stock attention in all rows before the first injected one."""
    enable_document_attention(tiny_lm)
    stock = states(tiny_lm, IDS)
    injection = ScoreInjection(LOG_WEIGHTS, DOCUMENTS, ROWS, {1: torch.tensor([2])})
    found = states(tiny_lm, IDS, document_attention=injection)
    torch.testing.assert_close(found[:, :7], stock[:, :7], rtol=1e-4, atol=1e-5)
    assert ((found - stock)[:, 7:].abs().amax(-1) > 1e-3).all()


@torch.no_grad()
def test_padding_on_the_left_changes_nothing(tiny_lm: FrozenLM) -> None:
    """Reference: the same prompts without padding."""
    enable_document_attention(tiny_lm)
    injection = ScoreInjection(LOG_WEIGHTS, DOCUMENTS, ROWS, all_heads(tiny_lm))
    expected = states(tiny_lm, IDS, document_attention=injection)

    def pad(tensor: Tensor, value: int) -> Tensor:
        return torch.nn.functional.pad(tensor, (3, 0), value=value)

    mask = pad(torch.ones_like(IDS), 0)
    padded = ScoreInjection(LOG_WEIGHTS, pad(DOCUMENTS, K), pad(ROWS.long(), 0).bool(), all_heads(tiny_lm))
    found = states(
        tiny_lm,
        pad(IDS, 0),
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        document_attention=padded,
    )
    torch.testing.assert_close(found[:, 3:], expected, rtol=1e-4, atol=1e-4)


def test_the_gradient_of_the_injection_is_exact() -> None:
    """Reference: `gradcheck` in float64, with respect to weights and logits."""
    logits = torch.randn(2, 2, LENGTH, LENGTH, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(attend, (logits, LOG_WEIGHTS.double().requires_grad_()))


def test_the_gradient_through_the_model_is_that_of_finite_differences(tiny_lm: FrozenLM) -> None:
    """Reference: central differences of the float64 model; its attention logits are float32, hence the wide step."""
    tiny_lm.model.double()
    enable_document_attention(tiny_lm)
    heads = {0: torch.tensor([1, 2]), 1: torch.tensor([0])}
    direction = torch.randn(tiny_lm.model.config.hidden_size, dtype=torch.float64)

    def value(log_weights: Tensor) -> Tensor:
        injection = ScoreInjection(log_weights, DOCUMENTS, ROWS, heads)
        return (states(tiny_lm, IDS, document_attention=injection)[:, -1] @ direction).sum()

    point = LOG_WEIGHTS.double().requires_grad_()
    (gradient,) = torch.autograd.grad(value(point), point)
    step = 1e-2
    for b in range(2):
        for d in range(K):
            shift = torch.zeros(2, K, dtype=torch.float64)
            shift[b, d] = step
            with torch.no_grad():
                slope = (value(point + shift) - value(point - shift)) / (2 * step)
            assert float(gradient[b, d]) == pytest.approx(float(slope), rel=1e-2, abs=1e-4)
    assert gradient.abs().min() > 1e-3


@torch.no_grad()
def test_recorded_mass_is_that_of_eager_attention(tiny_lm: FrozenLM) -> None:
    """Reference: `output_attentions` of eager attention."""
    tiny_lm.model.set_attn_implementation("eager")
    attentions = tiny_lm.model(input_ids=IDS, output_attentions=True).attentions
    enable_document_attention(tiny_lm)
    recorder = AttentionMass(DOCUMENTS, ROWS, K)
    states(tiny_lm, IDS, document_attention=recorder)
    for layer in range(tiny_lm.num_layers):
        for d in range(K):
            own = (attentions[layer] * (DOCUMENTS == d)[:, None, None]).sum(-1)[:, :, 7:].mean(-1)  # (B, H)
            torch.testing.assert_close(recorder.mass[layer][..., d], own, rtol=1e-4, atol=1e-5)


def test_recorded_values_are_those_of_the_formula(projections: tuple[Tensor, Tensor, Tensor]) -> None:
    """Reference: attention times norm of the value in numpy float64, token by token, with grouped-query heads."""
    _, weights = numpy_attention(projections, LOG_WEIGHTS, [])
    norms = np.linalg.norm(projections[2].double().numpy(), axis=-1)  # (B, key heads, T)
    rows = ROWS[0].numpy()
    expected = np.zeros((2, HEADS, K))
    for b in range(2):
        for h in range(HEADS):
            for t in range(LENGTH):
                if (d := int(DOCUMENTS[b, t])) < K:
                    expected[b, h, d] += weights[b, h, rows, t].mean() * norms[b, h // 2, t]
    recorder = ValueMass(DOCUMENTS, ROWS, K)
    options: dict[str, Any] = {"scaling": SIZE**-0.5, "document_attention": recorder}
    document_attention(LAYER, *projections, None, **options)  # type: ignore[arg-type]
    np.testing.assert_allclose(recorder.mass[0].numpy(), expected, rtol=1e-5)


def test_half_precision(tiny_lm: FrozenLM) -> None:
    """Reference: the float32 model, to the precision of bfloat16; the gradient is finite."""
    enable_document_attention(tiny_lm)
    weights = LOG_WEIGHTS.clone().requires_grad_()
    injection = ScoreInjection(weights, DOCUMENTS, ROWS, all_heads(tiny_lm))
    expected = states(tiny_lm, IDS, document_attention=injection).detach()
    tiny_lm.model.bfloat16()
    enable_document_attention(tiny_lm)
    found = states(tiny_lm, IDS, document_attention=injection)
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).abs().mean() < 0.1 * expected.abs().mean()
    found[:, -1].float().sum().backward()
    assert weights.grad is not None
    assert weights.grad.isfinite().all()
    assert weights.grad.abs().min() > 0
