"""ADist: its mathematics, the attention that it reads against eager attention in float64, and what is left alone."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from nlt_trainer.choices import DocumentLayout
from nlt_trainer.errors import NLTError
from nlt_trainer.injection.document_prompts import DocumentPrompts, build_prompts
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.lm.prompt_tokens import PromptTokens
from nlt_trainer.objectives.adist import ADistLoss
from nlt_trainer.prompts import PromptTemplate

QUERIES = ["how is tea made", "which bird hunts at night"]
ANSWERS = ["from leaves that were heated soon", "an owl"]
DOCUMENTS = [
    ["Green tea is made from leaves.", "An owl hunts.", "The moon pulls the sea."],
    ["An owl hunts at night and hears a mouse.", "Silk is spun by the larva of a moth.", "Bread."],
]
SCORES = torch.tensor([[0.5, -1.0, 0.2], [2.0, 0.1, -0.3]])
ATTENTION = torch.tensor([[0.02, 0.01, 0.03], [1.0, 1.4, 1.1]])


def loss_of(encoder: SentenceTransformer, lm: FrozenLM, *, micro_batch_size: int = 2) -> ADistLoss:
    return ADistLoss(encoder, lm, temperature=0.3, teacher_temperature=0.4, micro_batch_size=micro_batch_size)


def prompts_of(lm: FrozenLM, layout: DocumentLayout = "sequential") -> DocumentPrompts:
    tokens = PromptTokens(lm.tokenizer, PromptTemplate(), max_document_tokens=32)
    return build_prompts(
        tokens, QUERIES, DOCUMENTS, target="joint", context_length=256, layout=layout, answers=ANSWERS
    )


def features(encoder: SentenceTransformer) -> list[dict[str, Tensor]]:
    return [encoder.preprocess(QUERIES), encoder.preprocess([text for row in DOCUMENTS for text in row])]


@pytest.fixture
def loss(tiny_static_encoder: SentenceTransformer, tiny_lm: FrozenLM) -> ADistLoss:
    return loss_of(tiny_static_encoder, tiny_lm)


def test_the_loss_is_the_divergence_of_teacher_and_student(loss: ADistLoss) -> None:
    """Reference: KL(teacher || student) in numpy float64."""
    attention = ATTENTION.double().numpy()
    teacher = np.exp(attention / attention.mean(1, keepdims=True) / 0.4)
    student = np.exp(SCORES.double().numpy())
    teacher, student = teacher / teacher.sum(1, keepdims=True), student / student.sum(1, keepdims=True)
    expected = (teacher * np.log(teacher / student)).sum(1).mean()
    found = loss.compute_loss_from_scores(SCORES.double(), ATTENTION.double())
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_closed_cases(loss: ADistLoss) -> None:
    """Reference: the scale of the values cancels; equal attention is a uniform teacher, met by equal scores."""
    found = loss.compute_loss_from_scores(SCORES, ATTENTION)
    scaled = ATTENTION * torch.tensor([[100.0], [0.1]])
    torch.testing.assert_close(loss.compute_loss_from_scores(SCORES, scaled), found)
    equal = torch.full((2, 3), 0.3)
    uniform = loss.compute_loss_from_scores(SCORES, equal)
    torch.testing.assert_close(uniform, -SCORES.log_softmax(-1).mean() - float(np.log(3)))
    assert float(loss.compute_loss_from_scores(equal, equal)) == pytest.approx(0, abs=1e-6)


def test_the_gradient_is_that_of_finite_differences(loss: ADistLoss) -> None:
    """Reference: `gradcheck` in float64."""
    scores = SCORES.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: loss.compute_loss_from_scores(s, ATTENTION.double()), scores)


@torch.no_grad()
def plain_attention(lm: FrozenLM, b: int, *, start: list[int], layout: DocumentLayout) -> np.ndarray:
    """The reference in float64: one prompt alone in one eager pass; values from hooks on `v_proj`; `(K,)`."""

    def ids(text: str) -> list[int]:
        return list(lm.tokenizer(text, add_special_tokens=False).input_ids)

    before, after, independent = ids("Document: "), ids("\n\n"), layout == "independent"
    tokens = [*start, *(before if independent else ())]
    positions, parts, owners = list(range(len(tokens))), [-1] * len(tokens), [3] * len(tokens)
    for k, document in enumerate(DOCUMENTS[b]):
        front = () if independent else before
        own = [*front, *ids(document), *after]
        at = len(start) + len(before) if independent else len(tokens)
        tokens, parts = tokens + own, parts + [k] * len(own)
        owners += [3] * len(front) + [k] * len(ids(document)) + [3] * len(after)
        positions += range(at, at + len(own))
    first_row, rows = len(tokens), []
    for text, mark in (("Question:", False), (f" {QUERIES[b]}", True), ("\nAnswer:", False), (f" {ANSWERS[b]}", True)):
        rows += [len(tokens) + i - 1 for i in range(len(ids(text)))] if mark else []
        tokens = tokens + ids(text)
    begin = max(positions) + 1
    positions += range(begin, begin + len(tokens) - first_row)
    mask = torch.ones(len(tokens), len(tokens), dtype=torch.bool).tril()
    if independent:
        part = torch.tensor(parts)
        mask[:first_row, :first_row] &= (part == -1) | (part == part[:, None])
    model = copy.deepcopy(lm.model).double()
    model.set_attn_implementation("eager")
    values: list[Tensor] = []
    for layer in model.model.layers:
        layer.self_attn.v_proj.register_forward_hook(lambda _module, _input, output: values.append(output))
    attentions = model(
        input_ids=torch.tensor([tokens]),
        attention_mask=torch.where(mask, 0.0, -torch.inf).double()[None, None],
        position_ids=torch.tensor([positions]),
        output_attentions=True,
        use_cache=False,
    ).attentions
    found, documents = np.zeros(3), np.array(owners + [3] * (len(tokens) - first_row))
    for layer in range(2):
        norms = values[layer][0].unflatten(-1, (2, 8)).norm(dim=-1).numpy()  # (T, key-value heads)
        for head in range(4):
            weighted = attentions[layer][0, head].numpy() * norms[:, head // 2]  # (S, T)
            found += [weighted[rows][:, documents == k].sum(1).mean() / 8 for k in range(3)]
    return found


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("layout", ["sequential", "independent"])
@pytest.mark.parametrize("micro_batch_size", [1, 2])
def test_attention_is_that_of_one_eager_pass(
    tiny_static_encoder: SentenceTransformer,
    tiny_lm: FrozenLM,
    tiny_bos_lm: FrozenLM,
    bos: bool,
    layout: DocumentLayout,
    micro_batch_size: int,
) -> None:
    """Reference: each prompt in a pass of its own in float64; padding and micro-batches change nothing."""
    lm = tiny_bos_lm if bos else tiny_lm
    expected = np.stack([plain_attention(lm, b, start=[1] if bos else [], layout=layout) for b in range(2)])
    loss = loss_of(tiny_static_encoder, lm, micro_batch_size=micro_batch_size)
    found = loss.teacher_scores(prompts_of(lm, layout), 3)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4)
    assert np.ptp(expected, axis=1).min() > 1e-2


def test_only_the_encoder_changes(tiny_encoder: SentenceTransformer, tiny_lm: FrozenLM) -> None:
    """Reference: copies of all parameters before the step; names in the loss; the loss falls."""
    loss = loss_of(tiny_encoder, tiny_lm)
    assert {id(p) for p in loss.parameters()} == {id(p) for p in tiny_encoder.parameters()}
    frozen = {name: p.clone() for name, p in tiny_lm.model.named_parameters()}
    trained = {name: p.detach().clone() for name, p in tiny_encoder.named_parameters()}
    optimizer = torch.optim.SGD(loss.parameters(), lr=1.0)
    labels = prompts_of(tiny_lm).as_dict()
    first = loss(features(tiny_encoder), labels)["adist"]
    first.backward()
    optimizer.step()
    for name, parameter in tiny_lm.model.named_parameters():
        assert parameter.grad is None
        torch.testing.assert_close(parameter, frozen[name], rtol=0, atol=0)
    moved = [name for name, p in tiny_encoder.named_parameters() if not torch.equal(p, trained[name])]
    assert any("layer.0" in name for name in moved)
    assert loss(features(tiny_encoder), labels)["adist"].item() < first.item()


def test_wrong_settings_are_refused(tiny_static_encoder: SentenceTransformer, tiny_lm: FrozenLM) -> None:
    """Reference: the value and the remedy in each message."""
    for name in ("temperature", "teacher_temperature"):
        with pytest.raises(NLTError, match=rf"^{name} is 0; it must be greater than 0"):
            ADistLoss(tiny_static_encoder, tiny_lm, **{name: 0})
    with pytest.raises(NLTError, match=r"micro_batch_size is 0; it must be at least 1"):
        ADistLoss(tiny_static_encoder, tiny_lm, micro_batch_size=0)


def test_settings_for_the_card(loss: ADistLoss, tiny_lm: FrozenLM) -> None:
    """Reference: the settings that the loss was made with."""
    assert loss.get_config_dict() == {"temperature": 0.3, "teacher_temperature": 0.4, "llm": tiny_lm.name}
