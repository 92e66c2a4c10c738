"""LOOP: its mathematics, the leave-one-out losses against one pass each without a cache, and what is left alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from nlt_trainer.errors import NLTError
from nlt_trainer.models.document_prompts import DocumentPrompts, build_prompts
from nlt_trainer.models.frozen_lm import FrozenLM
from nlt_trainer.models.prompt_tokens import PromptTokens
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


def prompts_of(lm: FrozenLM, documents: list[list[str]] = DOCUMENTS) -> DocumentPrompts:
    tokens = PromptTokens(lm.tokenizer, PromptTemplate(), max_document_tokens=32)
    return build_prompts(tokens, QUERIES, documents, target="joint", context_length=256, answers=ANSWERS)


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


def plain_loss(lm: FrozenLM, b: int, *, left_out: int, start: list[int]) -> Tensor:
    """The reference: one prompt alone in one pass, no cache, no padding, a mask written token by token; a scalar."""

    def ids(text: str) -> list[int]:
        return list(lm.tokenizer(text, add_special_tokens=False).input_ids)

    segments: list[tuple[list[int], int | None, bool]] = [(start, None, False), (ids("Document: "), None, False)]
    for k, document in enumerate(DOCUMENTS[b]):
        segments += [(ids(document), k, False), (ids("\n\n"), k, False)]
        segments += [(ids("Document: "), k, False)] if k < 2 else []
    first_row = sum(len(segment) for segment, _, _ in segments)
    segments += [(ids("Question:"), None, False), (ids(f" {QUERIES[b]}"), None, True)]
    segments += [(ids("\nAnswer:"), None, False), (ids(f" {ANSWERS[b]}"), None, True)]
    tokens = torch.tensor([[i for segment, _, _ in segments for i in segment]])
    hidden = torch.tensor([part == left_out for segment, part, _ in segments for _ in segment])
    at = torch.tensor([mark for segment, _, mark in segments for _ in segment]).nonzero()[:, 0]
    mask = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).tril()
    mask[first_row:, hidden] = False
    with torch.no_grad():
        logits = lm.model(input_ids=tokens, attention_mask=mask[None, None], use_cache=False).logits[0]
    return torch.nn.functional.cross_entropy(logits[at - 1], tokens[0, at])


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("micro_batch_size", [1, 2])
def test_documents_are_left_out_one_by_one(
    tiny_static_encoder: SentenceTransformer,
    tiny_lm: FrozenLM,
    tiny_bos_lm: FrozenLM,
    bos: bool,
    micro_batch_size: int,
) -> None:
    """Reference: each prompt without each document in a pass of its own; padding and micro-batches change nothing."""
    lm = tiny_bos_lm if bos else tiny_lm
    lm.model.set_attn_implementation("sdpa")
    expected = [[plain_loss(lm, b, left_out=k, start=[1] if bos else []) for k in range(3)] for b in range(2)]
    loss = loss_of(tiny_static_encoder, lm, micro_batch_size=micro_batch_size)
    found = loss.left_out_losses(prompts_of(lm), 3)
    reference = torch.tensor(expected)
    torch.testing.assert_close(found, reference, rtol=1e-5, atol=1e-5)
    assert (reference.max(1).values - reference.min(1).values).min() > 1e-2


def test_what_is_left_out_last_does_not_matter(loss: LOOPLoss, tiny_lm: FrozenLM) -> None:
    """Reference: the last document's text replaced by its own tokens in another order; nothing else has seen it."""
    prompts = prompts_of(tiny_lm)
    other = prompts_of(tiny_lm)
    for b in range(2):
        at = prompts.documents[b] == 2
        other.prompt_ids[b, at] = prompts.prompt_ids[b, at].flip(0) + 1
    change = (loss.left_out_losses(other, 3) - loss.left_out_losses(prompts, 3)).abs()
    assert change[:, 2].max() < 1e-5
    assert change[:, :2].min() > 1e-4


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
