"""LOOP: its mathematics, the leave-one-out losses against one pass each without a cache, and what is left alone."""

from __future__ import annotations

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
from nlt_trainer.objectives.loop import LOOPLoss
from nlt_trainer.prompts import PromptTemplate

QUERIES = ["how is tea made", "which bird hunts at night"]
ANSWERS = ["from leaves that were heated soon", "an owl"]
DOCUMENTS = [
    ["Green tea is made from leaves.", "An owl hunts.", "The moon pulls the sea."],
    ["An owl hunts at night and hears a mouse.", "Silk is spun by the larva of a moth.", "Bread."],
]
SCORES = torch.tensor([[0.5, -1.0, 0.2], [2.0, 0.1, -0.3]])
LEFT_OUT = torch.tensor([[3.1, 2.9, 3.0], [1.0, 1.4, 1.1]])


def loss_of(encoder: SentenceTransformer, lm: FrozenLM, *, micro_batch_size: int = 2) -> LOOPLoss:
    return LOOPLoss(encoder, lm, temperature=0.3, teacher_temperature=0.1, micro_batch_size=micro_batch_size)


def prompts_of(lm: FrozenLM, layout: DocumentLayout = "sequential") -> DocumentPrompts:
    tokens = PromptTokens(lm.tokenizer, PromptTemplate(), max_document_tokens=32)
    return build_prompts(
        tokens, QUERIES, DOCUMENTS, target="joint", context_length=256, layout=layout, answers=ANSWERS
    )


def features(encoder: SentenceTransformer) -> list[dict[str, Tensor]]:
    return [encoder.preprocess(QUERIES), encoder.preprocess([text for row in DOCUMENTS for text in row])]


@pytest.fixture
def loss(tiny_static_encoder: SentenceTransformer, tiny_lm: FrozenLM) -> LOOPLoss:
    return loss_of(tiny_static_encoder, tiny_lm)


def test_the_loss_is_the_divergence_of_teacher_and_student(loss: LOOPLoss) -> None:
    """Reference: KL(teacher || student) in numpy float64."""
    teacher, student = np.exp(LEFT_OUT.double().numpy() / 0.1), np.exp(SCORES.double().numpy())
    teacher, student = teacher / teacher.sum(1, keepdims=True), student / student.sum(1, keepdims=True)
    expected = (teacher * np.log(teacher / student)).sum(1).mean()
    found = loss.compute_loss_from_scores(SCORES.double(), LEFT_OUT)
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_closed_cases(loss: LOOPLoss) -> None:
    """Reference: a constant cancels; teacher and student alike: 0; one document missed alone: -log of its share."""
    found = loss.compute_loss_from_scores(SCORES, LEFT_OUT)
    torch.testing.assert_close(loss.compute_loss_from_scores(SCORES, LEFT_OUT + torch.tensor([[7.0], [-1.0]])), found)
    assert float(loss.compute_loss_from_scores(SCORES, SCORES * 0.1)) == pytest.approx(0, abs=1e-6)
    missed = torch.tensor([[50.0, 0.0, 0.0], [0.0, 0.0, 50.0]])
    expected = -(SCORES.log_softmax(-1)[0, 0] + SCORES.log_softmax(-1)[1, 2]) / 2
    torch.testing.assert_close(loss.compute_loss_from_scores(SCORES, missed), expected)


def test_the_gradient_is_that_of_finite_differences(loss: LOOPLoss) -> None:
    """Reference: `gradcheck` in float64."""
    scores = SCORES.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: loss.compute_loss_from_scores(s, LEFT_OUT.double()), scores)


def plain_loss(lm: FrozenLM, b: int, *, left_out: int, start: list[int], layout: DocumentLayout) -> Tensor:
    """The reference: one prompt alone in one pass, no cache, no padding, a mask written token by token; a scalar."""

    def ids(text: str) -> list[int]:
        return list(lm.tokenizer(text, add_special_tokens=False).input_ids)

    before, after, independent = ids("Document: "), ids("\n\n"), layout == "independent"
    tokens, positions, parts = [*start, *before], list(range(len(start) + len(before))), [-1] * len([*start, *before])
    for k, document in enumerate(DOCUMENTS[b]):
        own = [*ids(document), *after, *(before if k < 2 and not independent else ())]
        at = len(start) + len(before) if independent else len(tokens)
        tokens, parts = tokens + own, parts + [k] * len(own)
        positions += range(at, at + len(own))
    first_row = len(tokens)
    marks: list[int] = []
    for text, mark in (("Question:", 0), (f" {QUERIES[b]}", 1), ("\nAnswer:", 0), (f" {ANSWERS[b]}", 1)):
        tokens, marks = tokens + ids(text), marks + [mark] * len(ids(text))
    begin = max(positions) + 1
    positions += range(begin, begin + len(marks))
    mask = torch.ones(len(tokens), len(tokens), dtype=torch.bool).tril()
    part = torch.tensor(parts)
    if independent:
        mask[:first_row, :first_row] &= (part == -1) | (part == part[:, None])
    mask[first_row:, :first_row] &= part != left_out
    row = torch.tensor([tokens])
    with torch.no_grad():
        logits = lm.model(
            input_ids=row, attention_mask=mask[None, None], position_ids=torch.tensor([positions]), use_cache=False
        ).logits[0]
    at_target = first_row + torch.tensor(marks).nonzero()[:, 0]
    return torch.nn.functional.cross_entropy(logits[at_target - 1], row[0, at_target])


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("layout", ["sequential", "independent"])
@pytest.mark.parametrize("micro_batch_size", [1, 2])
def test_documents_are_left_out_one_by_one(
    tiny_static_encoder: SentenceTransformer,
    tiny_lm: FrozenLM,
    tiny_bos_lm: FrozenLM,
    bos: bool,
    layout: DocumentLayout,
    micro_batch_size: int,
) -> None:
    """Reference: each prompt without each document in a pass of its own; padding and micro-batches change
    nothing."""
    lm = tiny_bos_lm if bos else tiny_lm
    lm.model.set_attn_implementation("sdpa")
    start = [1] if bos else []
    expected = [[plain_loss(lm, b, left_out=k, start=start, layout=layout) for k in range(3)] for b in range(2)]
    loss = loss_of(tiny_static_encoder, lm, micro_batch_size=micro_batch_size)
    found = loss.teacher_scores(prompts_of(lm, layout), 3)
    reference = torch.tensor(expected)
    torch.testing.assert_close(found, reference, rtol=1e-5, atol=1e-5)
    assert (reference.max(1).values - reference.min(1).values).min() > 1e-2


@pytest.mark.parametrize(("layout", "blind"), [("sequential", [2]), ("independent", [0, 1, 2])])
def test_what_nobody_has_seen_does_not_matter(
    loss: LOOPLoss, tiny_lm: FrozenLM, layout: DocumentLayout, blind: list[int]
) -> None:
    """Reference: a left-out document's text replaced by another; in a sequential prompt later ones have seen it."""
    prompts = prompts_of(tiny_lm, layout)
    expected = loss.teacher_scores(prompts, 3)
    for k in range(3):
        other = prompts_of(tiny_lm, layout)
        for b in range(2):
            at = prompts.documents[b] == k
            other.prompt_ids[b, at] = prompts.prompt_ids[b, at].flip(0) + 1
        change = (loss.teacher_scores(other, 3) - expected).abs()  # (B, K)
        assert (change[:, k].max() < 1e-5) == (k in blind)
        assert change[:, [j for j in range(3) if j != k]].min() > 1e-4


def test_only_the_encoder_changes(tiny_encoder: SentenceTransformer, tiny_lm: FrozenLM) -> None:
    """Reference: copies of all parameters before the step; names in the loss; the value from its two parts."""
    loss = loss_of(tiny_encoder, tiny_lm)
    assert {id(p) for p in loss.parameters()} == {id(p) for p in tiny_encoder.parameters()}
    frozen = {name: p.clone() for name, p in tiny_lm.model.named_parameters()}
    trained = {name: p.detach().clone() for name, p in tiny_encoder.named_parameters()}
    optimizer = torch.optim.SGD(loss.parameters(), lr=1.0)
    labels = prompts_of(tiny_lm).as_dict()
    first = loss(features(tiny_encoder), labels)["loop"]
    first.backward()
    optimizer.step()
    for name, parameter in tiny_lm.model.named_parameters():
        assert parameter.grad is None
        torch.testing.assert_close(parameter, frozen[name], rtol=0, atol=0)
    moved = [name for name, p in tiny_encoder.named_parameters() if not torch.equal(p, trained[name])]
    assert any("layer.0" in name for name in moved)
    assert loss(features(tiny_encoder), labels)["loop"].item() < first.item()


def test_wrong_settings_are_refused(tiny_static_encoder: SentenceTransformer, tiny_lm: FrozenLM) -> None:
    """Reference: the value and the remedy in each message."""
    for name in ("temperature", "teacher_temperature"):
        with pytest.raises(NLTError, match=rf"^{name} is 0; it must be greater than 0"):
            LOOPLoss(tiny_static_encoder, tiny_lm, **{name: 0})
    with pytest.raises(NLTError, match=r"micro_batch_size is 0; it must be at least 1"):
        LOOPLoss(tiny_static_encoder, tiny_lm, micro_batch_size=0)


def test_settings_for_the_card(loss: LOOPLoss, tiny_lm: FrozenLM) -> None:
    """Reference: the settings that the loss was made with."""
    assert loss.get_config_dict() == {"temperature": 0.3, "teacher_temperature": 0.1, "llm": tiny_lm.name}
