"""Prompts of several documents: token by token, and the two-part reading against one pass with a graph."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nlt_trainer.choices import DocumentLayout, TargetKind
from nlt_trainer.errors import NLTError
from nlt_trainer.injection.attention import ScoreInjection, enable_document_attention
from nlt_trainer.injection.document_prompts import DocumentPrompts, build_prompts
from nlt_trainer.injection.document_reader import DocumentReader
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.lm.prompt_tokens import PromptTokens
from nlt_trainer.prompts import PromptTemplate

QUERIES = ["how is tea made", "which bird hunts at night"]
ANSWERS = ["from leaves that were heated soon", "an owl"]
DOCUMENTS = [
    ["Green tea is made from leaves.", "An owl hunts.", "The moon pulls the sea."],
    ["An owl hunts at night and hears a mouse.", "Silk is spun by the larva of a moth.", "Bread."],
]
HEADS = {0: torch.tensor([0, 2]), 1: torch.tensor([3])}


def tokens_of(lm: FrozenLM, *, max_document_tokens: int = 32) -> PromptTokens:
    return PromptTokens(lm.tokenizer, PromptTemplate(), max_document_tokens=max_document_tokens)


def prompts_of(lm: FrozenLM, *, target: TargetKind = "joint") -> DocumentPrompts:
    return build_prompts(tokens_of(lm), QUERIES, DOCUMENTS, target=target, context_length=256, answers=ANSWERS)


def one_pass_losses(lm: FrozenLM, log_weights: Tensor, *, start: list[int], target: TargetKind = "joint") -> Tensor:
    """The reference: each prompt alone, without padding, cache or cut, everything with a graph; `(B,)`."""

    def ids(text: str) -> list[int]:
        return list(lm.tokenizer(text, add_special_tokens=False).input_ids)

    losses = []
    for b, query in enumerate(QUERIES):
        segments: list[tuple[list[int], int, bool]] = [(start, 3, False)]
        for k, document in enumerate(DOCUMENTS[b]):
            segments += [(ids("Document: "), 3, False), (ids(document), k, False), (ids("\n\n"), 3, False)]
        first_row = sum(len(segment) for segment, _, _ in segments)
        segments += [(ids("Question:"), 3, False), (ids(f" {query}"), 3, target != "answer")]
        segments += [(ids("\nAnswer:"), 3, False), (ids(f" {ANSWERS[b]}"), 3, True)] if target != "query" else []
        tokens = torch.tensor([[i for segment, _, _ in segments for i in segment]])
        owners = torch.tensor([[owner for segment, owner, _ in segments for _ in segment]])
        marked = torch.tensor([mark for segment, _, mark in segments for _ in segment])
        rows = torch.arange(tokens.shape[1])[None] >= first_row
        injection = ScoreInjection(log_weights[b : b + 1], owners, rows, HEADS)
        logits = lm.model(input_ids=tokens, document_attention=injection).logits[0]
        at = marked.nonzero()[:, 0]
        losses.append(torch.nn.functional.cross_entropy(logits[at - 1].float(), tokens[0, at]))
    return torch.stack(losses)


def two_part_losses(lm: FrozenLM, log_weights: Tensor, prompts: DocumentPrompts) -> Tensor:
    """Ours: documents without a graph into a cache, then query and target."""
    reader = DocumentReader(lm)
    cache = reader.read_documents(prompts)
    injection = ScoreInjection(log_weights, prompts.key_documents(3), prompts.suffix_mask, HEADS)
    return reader.target_losses(reader.read_suffix(prompts, cache, injection), prompts)


@pytest.mark.parametrize("target", ["answer", "query", "joint"])
def test_two_parts_equal_one_pass_with_a_graph(tiny_lm: FrozenLM, target: TargetKind) -> None:
    """Reference: every prompt alone in one pass with a graph; loss and gradient with respect to scores."""
    enable_document_attention(tiny_lm)
    scores = torch.tensor([[1.0, -0.5, 0.2], [0.3, 2.0, -1.0]], requires_grad=True)
    expected = one_pass_losses(tiny_lm, scores.log_softmax(-1), start=[], target=target)
    found = two_part_losses(tiny_lm, scores.log_softmax(-1), prompts_of(tiny_lm, target=target))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(found.sum(), scores)
    (reference,) = torch.autograd.grad(expected.sum(), scores)
    torch.testing.assert_close(gradient, reference, rtol=1e-4, atol=1e-5 * float(reference.abs().max()))
    assert reference.abs().max() > 1e-3


def test_a_beginning_of_sequence_stands_once(tiny_bos_lm: FrozenLM) -> None:
    """Reference: the same pass with `<s>` in front."""
    enable_document_attention(tiny_bos_lm)
    log_weights = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]).log()
    with torch.no_grad():
        expected = one_pass_losses(tiny_bos_lm, log_weights, start=[1])
        found = two_part_losses(tiny_bos_lm, log_weights, prompts_of(tiny_bos_lm))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_each_token_knows_its_document(tiny_lm: FrozenLM) -> None:
    """Reference: decoding the tokens of one document gives its text, and only padding lies outside the masks."""
    prompts = prompts_of(tiny_lm)
    tokenizer = tiny_lm.tokenizer
    for b in range(2):
        for k in range(3):
            assert tokenizer.decode(prompts.prompt_ids[b][prompts.documents[b] == k]) == DOCUMENTS[b][k]
        text = tokenizer.decode(prompts.prompt_ids[b][prompts.prompt_mask[b]])
        assert text == "".join(f"Document: {document}\n\n" for document in DOCUMENTS[b])
        assert tokenizer.decode(prompts.suffix_ids[b][prompts.suffix_mask[b]]) == (
            f"Question: {QUERIES[b]}\nAnswer: {ANSWERS[b]}"
        )
        assert tokenizer.decode(prompts.suffix_ids[b][prompts.suffix_target[b]]) == f" {QUERIES[b]} {ANSWERS[b]}"
        assert prompts.prompt_mask[b].tolist() == sorted(prompts.prompt_mask[b].tolist())  # padded on the left
        assert prompts.suffix_mask[b].tolist() == sorted(prompts.suffix_mask[b].tolist(), reverse=True)
    assert (prompts.documents[~prompts.prompt_mask] == 3).all()
    keys = prompts.key_documents(3)
    assert keys.shape == (2, prompts.prompt_ids.shape[1] + prompts.suffix_ids.shape[1])
    assert (keys[:, prompts.prompt_ids.shape[1] :] == 3).all()


def test_tokens_are_counted_without_padding(tiny_lm: FrozenLM) -> None:
    """Reference: the sum over prompts of one."""
    enable_document_attention(tiny_lm)
    prompts = prompts_of(tiny_lm)
    assert prompts.num_tokens < prompts.prompt_ids.numel() + prompts.suffix_ids.numel()
    alone = [
        build_prompts(tokens_of(tiny_lm), [q], [d], target="joint", context_length=256, answers=[a]).num_tokens
        for q, d, a in zip(QUERIES, DOCUMENTS, ANSWERS, strict=True)
    ]
    reader = DocumentReader(tiny_lm)
    injection = ScoreInjection(torch.zeros(2, 3), prompts.key_documents(3), prompts.suffix_mask, HEADS)
    reader.read_suffix(prompts, reader.read_documents(prompts), injection)
    assert prompts.num_tokens == sum(alone) == reader.lm_tokens


def test_rows_and_dict_are_round_trips(tiny_lm: FrozenLM) -> None:
    """Reference: the prompts themselves."""
    prompts = prompts_of(tiny_lm)
    again = DocumentPrompts.from_dict({**prompts.as_dict(), "gain": torch.zeros(2, 3)})
    parts = [again.rows(slice(0, 1)), again.rows(slice(1, 2))]
    for name, tensor in prompts.as_dict().items():
        torch.testing.assert_close(torch.cat([part.as_dict()[name] for part in parts]), tensor)
    assert [len(part) for part in parts] == [1, 1]


@pytest.mark.parametrize("prompt", [True, False])
def test_padding_goes_and_losses_stay(tiny_lm: FrozenLM, prompt: bool) -> None:
    """Reference: the padded prompts' losses; columns of padding alone, counted by hand."""
    enable_document_attention(tiny_lm)
    prompts = prompts_of(tiny_lm)
    log_weights = torch.randn(2, 3).log_softmax(-1)
    expected = two_part_losses(tiny_lm, log_weights, prompts)
    for b in range(2):
        row = prompts.rows(torch.tensor([b])).without_padding(prompt=prompt)
        tokens = int(prompts.prompt_mask[b].sum()) if prompt else prompts.prompt_ids.shape[1]
        assert row.prompt_ids.shape == row.documents.shape == (1, tokens)
        assert row.suffix_ids.shape == row.suffix_target.shape == (1, int(prompts.suffix_mask[b].sum()))
        found = two_part_losses(tiny_lm, log_weights[b : b + 1], row)
        torch.testing.assert_close(found, expected[b : b + 1], atol=1e-5, rtol=1e-5)
    costs = (prompts.prompt_mask.sum(1) + 2 * prompts.suffix_mask.sum(1)).tolist()
    assert prompts.by_cost.tolist() == sorted(range(2), key=costs.__getitem__)


@pytest.mark.parametrize("lengths", [[20, 20, 20], [20, 1, 1], [1, 9, 3]])
def test_a_prompt_longer_than_the_context_names_a_length_that_fits(tiny_lm: FrozenLM, lengths: list[int]) -> None:
    """Reference: the proposed `max_document_tokens` is accepted for all prompts, the one above it is not."""
    documents = [["the moon makes the tides of the sea " * n for n in lengths], ["an owl", "silk", "tea " * 30]]

    def build(max_document_tokens: int) -> DocumentPrompts:
        tokens = tokens_of(tiny_lm, max_document_tokens=max_document_tokens)
        return build_prompts(tokens, QUERIES, documents, target="query", context_length=100)

    with pytest.raises(
        NLTError, match=r"the prompt of query 'how is tea made' has .* max_document_tokens (\d+)"
    ) as caught:
        build(200)
    fits = int(str(caught.value).split("max_document_tokens ")[1].split()[0])
    build(fits)
    with pytest.raises(NLTError, match=r"use fewer candidates"):
        build(fits + 1)


def test_a_prompt_that_no_length_makes_fit(tiny_lm: FrozenLM) -> None:
    """Reference: frames and query alone exceed the context, so that no `max_document_tokens` is proposed."""
    with pytest.raises(NLTError, match=r"context 20; use fewer candidates or a shorter query and target$"):
        build_prompts(tokens_of(tiny_lm), QUERIES, DOCUMENTS, target="query", context_length=20)


@pytest.mark.parametrize("layout", ["sequential", "independent"])
def test_what_is_outside_documents(tiny_lm: FrozenLM, layout: DocumentLayout) -> None:
    """Reference: the tokens of the template and of the suffix, counted; padding is not among them."""
    tokens = tokens_of(tiny_lm)
    prompts = build_prompts(
        tokens, QUERIES, DOCUMENTS, target="joint", context_length=256, layout=layout, answers=ANSWERS
    )
    before, after = map(len, tokens.document_frame)
    around = len(tokens.start) + (before if layout == "independent" else 3 * before) + 3 * after
    outside = prompts.outside_documents(3)
    assert outside.sum(1).tolist() == [around + int(own.sum()) for own in prompts.suffix_mask]
    assert not (outside & (prompts.key_documents(3) < 3)).any()
