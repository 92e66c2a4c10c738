"""Reading in two parts: documents that do not see each other, and their cache."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import MistralConfig, MistralForCausalLM

from nlt_trainer.errors import NLTError
from nlt_trainer.injection.attention import ScoreInjection, enable_document_attention
from nlt_trainer.injection.document_prompts import DocumentPrompts, build_prompts
from nlt_trainer.injection.document_reader import DocumentReader
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.lm.prompt_tokens import PromptTokens
from nlt_trainer.prompts import PromptTemplate

QUERIES = ["how is tea made", "which bird hunts at night", "silk"]
DOCUMENTS = [
    ["Green tea is made from the leaves of a bush.", "An owl hunts.", "Bread rises."],
    ["An owl hunts at night and hears a mouse.", "Silk is spun by the larva of a moth.", "An owl hunts."],
    ["Bread rises.", "Silk is spun by the larva of a moth.", "Bread rises."],  # one text twice in a prompt
]
HEADS = {0: torch.tensor([0, 2]), 1: torch.tensor([3])}
LOG_WEIGHTS = torch.tensor([[0.5, -1.0, 0.2], [2.0, 0.1, 0.0], [-0.4, 0.3, 0.9]]).log_softmax(-1)


@pytest.fixture(autouse=True)
def document_attention(tiny_lm: FrozenLM) -> None:
    enable_document_attention(tiny_lm)


def prompts_of(lm: FrozenLM, *, rows: slice = slice(None)) -> DocumentPrompts:
    tokens = PromptTokens(lm.tokenizer, PromptTemplate(), max_document_tokens=32)
    return build_prompts(
        tokens, QUERIES[rows], DOCUMENTS[rows], target="query", context_length=256, layout="independent"
    )


def losses_of(reader: DocumentReader, prompts: DocumentPrompts, log_weights: Tensor = LOG_WEIGHTS) -> Tensor:
    injection = ScoreInjection(log_weights, prompts.key_documents(3), prompts.suffix_mask, HEADS)
    hidden = reader.read_suffix(prompts, reader.read_documents(prompts), injection)
    return reader.target_losses(hidden, prompts)


def one_pass_loss(lm: FrozenLM, query: str, documents: list[str], log_weights: Tensor) -> Tensor:
    """The reference: one sequence, one dense mask, everything with a graph; no cache, padding or batch."""

    def ids(text: str) -> list[int]:
        return list(lm.tokenizer(text, add_special_tokens=False).input_ids)

    start, before = list(lm.tokenizer("").input_ids), ids("Document: ")
    tokens, positions, segments, owners = [*start, *before], list(range(len(start + before))), [], []
    segments, owners = [0] * len(tokens), [3] * len(tokens)
    begin = len(tokens)
    for k, document in enumerate(documents):
        own, after = ids(document), ids("\n\n")
        tokens += own + after
        positions += range(begin, begin + len(own) + len(after))
        segments += [k + 1] * (len(own) + len(after))
        owners += [k] * len(own) + [3] * len(after)
    asked, target = ids("Question:"), ids(f" {query}")
    first = len(tokens)
    positions += range(max(positions) + 1, max(positions) + 1 + len(asked) + len(target))
    tokens += asked + target
    segments += [-1] * (len(asked) + len(target))  # sees every segment
    owners += [3] * (len(asked) + len(target))
    column, segment = torch.arange(len(tokens)), torch.tensor(segments)
    seen = (segment[:, None] == -1) | (segment == 0) | (segment[:, None] == segment)
    mask = (seen & (column[:, None] >= column))[None, None]
    injection = ScoreInjection(log_weights[None], torch.tensor([owners]), column[None] >= first, HEADS)
    logits = lm.model(
        input_ids=torch.tensor([tokens]),
        position_ids=torch.tensor([positions]),
        attention_mask=mask,
        document_attention=injection,
    ).logits[0]
    return torch.nn.functional.cross_entropy(logits[-len(target) - 1 : -1], torch.tensor(target))


def test_documents_read_once_each_equal_one_masked_pass(tiny_lm: FrozenLM) -> None:
    """Reference: one sequence under a dense mask with a graph everywhere; loss and gradient to the scores."""
    ours, theirs = LOG_WEIGHTS.clone().requires_grad_(), LOG_WEIGHTS.clone().requires_grad_()
    loss = losses_of(DocumentReader(tiny_lm), prompts_of(tiny_lm), ours)
    reference = torch.stack([one_pass_loss(tiny_lm, QUERIES[b], DOCUMENTS[b], theirs[b]) for b in range(3)])
    torch.testing.assert_close(loss, reference, rtol=1e-5, atol=1e-6)
    gradient, expected = torch.autograd.grad(loss.sum(), ours)[0], torch.autograd.grad(reference.sum(), theirs)[0]
    assert expected.norm() > 1e-4
    assert (gradient - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize("cache_bytes", [0, 20_000, 10**9])
def test_kept_documents_change_nothing(tiny_lm: FrozenLM, cache_bytes: int) -> None:
    """Reference: a fresh reader without a cache, whatever was read before and however little fits."""
    reader = DocumentReader(tiny_lm, cache_bytes=cache_bytes)
    expected = losses_of(DocumentReader(tiny_lm), prompts_of(tiny_lm))
    for _ in range(2):
        for b in (0, 2, 1):
            rows = slice(b, b + 1)
            found = losses_of(reader, prompts_of(tiny_lm, rows=rows), LOG_WEIGHTS[rows])
            torch.testing.assert_close(found, expected[rows], rtol=1e-5, atol=1e-6)


def test_a_document_is_read_once(tiny_lm: FrozenLM) -> None:
    """Reference: a count by hand of the start and of each distinct document behind it."""
    prompts, reader = prompts_of(tiny_lm), DocumentReader(tiny_lm, cache_bytes=10**9)
    tokens = PromptTokens(tiny_lm.tokenizer, PromptTemplate(), max_document_tokens=32)
    before, after = map(len, tokens.document_frame)
    distinct = {text for row in DOCUMENTS for text in row}
    alone = before + sum(before + len(tokens.document(text)[0]) + after for text in distinct)
    reader.read_documents(prompts)
    assert reader.lm_tokens == alone
    reader.read_documents(prompts)
    assert reader.lm_tokens == alone


def test_the_least_recently_used_document_goes_first(tiny_lm: FrozenLM) -> None:
    """Reference: which documents are read again when the bound holds all but one of them."""
    everything = DocumentReader(tiny_lm, cache_bytes=10**9)
    everything.read_documents(prompts_of(tiny_lm))
    reader = DocumentReader(tiny_lm, cache_bytes=everything._kept.bytes - 1)
    reader.read_documents(prompts_of(tiny_lm, rows=slice(0, 1)))
    reader.read_documents(prompts_of(tiny_lm, rows=slice(1, 3)))  # has no place for all: something of the first goes
    assert reader._kept.bytes < everything._kept.bytes
    before = reader.lm_tokens
    reader.read_documents(prompts_of(tiny_lm, rows=slice(1, 3)))
    assert reader.lm_tokens == before
    reader.read_documents(prompts_of(tiny_lm, rows=slice(0, 1)))
    assert reader.lm_tokens > before


def test_the_order_of_independent_documents_means_nothing(tiny_lm: FrozenLM) -> None:
    """Reference: the same documents and weights in another order."""
    tokens = PromptTokens(tiny_lm.tokenizer, PromptTemplate(), max_document_tokens=32)
    losses = []
    for order in ([0, 1, 2], [2, 0, 1]):
        texts = [DOCUMENTS[0][k] for k in order]
        prompts = build_prompts(tokens, QUERIES[:1], [texts], target="query", context_length=256, layout="independent")
        losses.append(losses_of(DocumentReader(tiny_lm), prompts, LOG_WEIGHTS[:1, order]))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-6)


def test_a_window_within_the_prompt_is_refused(tiny_lm: FrozenLM) -> None:
    """Reference: the same model and prompts with a window that holds them."""
    config = MistralConfig(
        vocab_size=tiny_lm.model.config.vocab_size,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=24,
    )
    lm = FrozenLM(MistralForCausalLM(config), tiny_lm.tokenizer, "mistral", {"weights": "random"})
    enable_document_attention(lm)
    with pytest.raises(NLTError, match="sees 24 tokens back"):
        losses_of(DocumentReader(lm), prompts_of(lm))
    lm.model.config.sliding_window = 4096
    assert losses_of(DocumentReader(lm), prompts_of(lm)).isfinite().all()
