"""DREAM: micro-batches, the encoder's gradient from known score gradients, and what is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from nlt_trainer.choices import DocumentMass
from nlt_trainer.encoder.similarity import embed, own_cosines
from nlt_trainer.errors import NLTError
from nlt_trainer.injection.document_pool import DocumentPool
from nlt_trainer.injection.document_prompts import DocumentPrompts, build_prompts
from nlt_trainer.injection.heads import HeadSet
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.lm.prompt_tokens import PromptTokens
from nlt_trainer.objectives.dream import DREAMLoss
from nlt_trainer.prompts import PromptTemplate

QUERIES = ["how is tea made", "which bird hunts at night", "what makes the tides"]
DOCUMENTS = [
    ["Green tea is made from leaves.", "An owl hunts."],
    ["Silk is spun by the larva of a moth.", "An owl hunts at night and hears a mouse."],
    ["The moon pulls the water of the sea.", "Bread rises."],
]


def heads_of(lm: FrozenLM) -> HeadSet:
    scores = ((0.5,) * lm.num_heads,) * lm.num_layers
    return HeadSet(((1, 2), (0, 3), (1, 0)), scores, lm.name, lm.fingerprint, {})


def loss_of(encoder: SentenceTransformer, lm: FrozenLM, *, micro_batch_size: int = 2) -> DREAMLoss:
    return DREAMLoss(encoder, lm, heads=heads_of(lm), temperature=0.3, micro_batch_size=micro_batch_size)


@pytest.fixture
def prompts(tiny_lm: FrozenLM) -> DocumentPrompts:
    tokens = PromptTokens(tiny_lm.tokenizer, PromptTemplate(), max_document_tokens=32)
    return build_prompts(tokens, QUERIES, DOCUMENTS, target="query", context_length=256)


def features(encoder: SentenceTransformer) -> list[dict[str, Tensor]]:
    return [encoder.preprocess(QUERIES), encoder.preprocess([text for row in DOCUMENTS for text in row])]


SCORES = torch.tensor([[0.5, -1.0], [2.0, 0.1], [-0.4, 0.3]])


def joint_graph(loss: DREAMLoss, scores: Tensor, prompts: DocumentPrompts) -> Tensor:
    """The reference: one graph from the scores through the LLM to the mean loss, no micro-batches."""
    return loss.read(scores.log_softmax(-1), prompts).mean()


@pytest.mark.parametrize("micro_batch_size", [1, 2, 3, 8])
def test_micro_batches_change_nothing(
    tiny_encoder: SentenceTransformer, tiny_lm: FrozenLM, prompts: DocumentPrompts, micro_batch_size: int
) -> None:
    """Reference: one graph over the whole batch; loss and gradient with respect to scores, an upstream factor too."""
    loss = loss_of(tiny_encoder, tiny_lm, micro_batch_size=micro_batch_size)
    ours, theirs = SCORES.clone().requires_grad_(), SCORES.clone().requires_grad_()
    found, expected = loss.compute_loss_from_scores(ours, prompts), joint_graph(loss, theirs, prompts)
    (3 * found).backward()
    (3 * expected).backward()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert ours.grad is not None
    assert theirs.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5 * float(theirs.grad.abs().max()))
    assert theirs.grad.abs().min() > 1e-5


def test_the_encoders_gradient_is_that_of_the_joint_graph(
    tiny_encoder: SentenceTransformer, tiny_lm: FrozenLM, prompts: DocumentPrompts
) -> None:
    """Reference: backward through LLM and encoder in one graph."""
    loss = loss_of(tiny_encoder, tiny_lm)
    parameters = [p for p in tiny_encoder.parameters() if p.requires_grad]
    value = loss(features(tiny_encoder), prompts.as_dict())["dream"]
    found = torch.autograd.grad(value, parameters, allow_unused=True)
    scores = own_cosines(*embed(tiny_encoder, features(tiny_encoder))) / 0.3
    expected = torch.autograd.grad(joint_graph(loss, scores, prompts), parameters, allow_unused=True)
    largest = max(float(e.abs().max()) for e in expected if e is not None)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * largest)
    assert largest > 1e-5


def test_only_the_encoder_changes(
    tiny_encoder: SentenceTransformer, tiny_lm: FrozenLM, prompts: DocumentPrompts, tmp_path: Path
) -> None:
    """Reference: copies of all parameters before the step; names in the loss and in what is saved."""
    loss = loss_of(tiny_encoder, tiny_lm)
    assert {id(p) for p in loss.parameters()} == {id(p) for p in tiny_encoder.parameters()}
    assert set(loss.state_dict()) == {f"model.{name}" for name in tiny_encoder.state_dict()}
    frozen = {name: p.clone() for name, p in tiny_lm.model.named_parameters()}
    trained = {name: p.detach().clone() for name, p in tiny_encoder.named_parameters()}
    optimizer = torch.optim.SGD(loss.parameters(), lr=10.0)
    loss(features(tiny_encoder), prompts.as_dict())["dream"].backward()
    optimizer.step()
    for name, parameter in tiny_lm.model.named_parameters():
        assert parameter.grad is None
        torch.testing.assert_close(parameter, frozen[name], rtol=0, atol=0)
    moved = [name for name, p in tiny_encoder.named_parameters() if not torch.equal(p, trained[name])]
    assert any("layer.0" in name for name in moved)
    assert any("word_embeddings" in name for name in moved)
    tiny_encoder.save_pretrained(str(tmp_path / "saved"))
    size = sum(file.stat().st_size for file in (tmp_path / "saved").rglob("*.safetensors"))
    assert size < 4.2 * sum(p.numel() for p in tiny_encoder.parameters())


def test_steps_lower_the_loss(tiny_encoder: SentenceTransformer, tiny_lm: FrozenLM, prompts: DocumentPrompts) -> None:
    """Reference: the loss before; a gradient of the wrong sign would raise it."""
    loss = loss_of(tiny_encoder, tiny_lm)
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.05)
    values = []
    for _ in range(4):
        value = loss(features(tiny_encoder), prompts.as_dict())["dream"]
        values.append(value.item())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert values[-1] < values[0]


def test_without_a_graph_the_loss_is_the_same(
    tiny_encoder: SentenceTransformer, tiny_lm: FrozenLM, prompts: DocumentPrompts
) -> None:
    """Reference: the loss with a graph, as evaluation inside a trainer needs it."""
    loss = loss_of(tiny_encoder, tiny_lm)
    expected = loss.compute_loss_from_scores(SCORES.clone().requires_grad_(), prompts)
    with torch.no_grad():
        found = loss.compute_loss_from_scores(SCORES, prompts)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-6, atol=1e-6)
    assert not found.requires_grad


def test_wrong_settings_are_refused(tiny_encoder: SentenceTransformer, tiny_lm: FrozenLM) -> None:
    """Reference: the value and the remedy in each message; heads of another LLM."""
    heads = heads_of(tiny_lm)
    with pytest.raises(NLTError, match=r"temperature is 0; it must be greater than 0"):
        DREAMLoss(tiny_encoder, tiny_lm, heads=heads, temperature=0)
    with pytest.raises(NLTError, match=r"micro_batch_size is 0; it must be at least 1"):
        DREAMLoss(tiny_encoder, tiny_lm, heads=heads, micro_batch_size=0)
    with pytest.raises(NLTError, match=r"document_cache_gib is -1; it must be at least 0"):
        DREAMLoss(tiny_encoder, tiny_lm, heads=heads, document_cache_gib=-1)
    with pytest.raises(NLTError, match=r"document_mass 'two' is unknown; choose one of kept, one"):
        DREAMLoss(tiny_encoder, tiny_lm, heads=heads, document_mass="two")  # type: ignore[arg-type]
    other = HeadSet(heads.heads, heads.scores, "org/other", {**heads.llm_fingerprint, "weights": "x"}, {})
    with pytest.raises(NLTError, match=r"found in LLM 'org/other', not in .*run `nlt detect_heads`"):
        DREAMLoss(tiny_encoder, tiny_lm, heads=other)


def test_settings_for_the_card(tiny_encoder: SentenceTransformer, tiny_lm: FrozenLM) -> None:
    """Reference: the settings that the loss was made with."""
    settings = loss_of(tiny_encoder, tiny_lm).get_config_dict()
    assert settings == {
        "temperature": 0.3,
        "document_mass": "one",
        "hide_documents": True,
        "in_batch_candidates": False,
        "llm": tiny_lm.name,
        "heads": [[0, 3], [1, 0], [1, 2]],
    }


def features_of(encoder: SentenceTransformer, documents: list[list[str]]) -> list[dict[str, Tensor]]:
    return [encoder.preprocess(QUERIES), encoder.preprocess([text for row in documents for text in row])]


SHARED = [
    ["Tea.", "An owl hunts."],
    ["The moon pulls the water of the sea.", "Tea."],
    ["Silk is spun.", "An owl hunts."],
]
"""Documents of several lengths; two of them stand in two rows."""


@pytest.mark.parametrize("micro_batch_size", [1, 2])
def test_in_batch_candidates_are_one_large_prompt(
    tiny_encoder: SentenceTransformer, tiny_lm: FrozenLM, micro_batch_size: int
) -> None:
    """Reference: every head injected, prompts of all four different documents, in one graph; also the gradient.

    The documents get all of the attention, because else a head gives a larger prompt more than a smaller one.
    """
    everything = tuple((layer, head) for layer in range(tiny_lm.num_layers) for head in range(tiny_lm.num_heads))
    heads = HeadSet(everything, heads_of(tiny_lm).scores, tiny_lm.name, tiny_lm.fingerprint, {})
    loss = DREAMLoss(
        tiny_encoder,
        tiny_lm,
        heads=heads,
        temperature=0.3,
        document_mass="one",
        in_batch_candidates=True,
        micro_batch_size=micro_batch_size,
    )
    template = PromptTemplate(document_suffix="")  # what stands between documents is no part of the pool
    tokens = PromptTokens(tiny_lm.tokenizer, template, max_document_tokens=32)

    def prompts_of(documents: list[list[str]]) -> DocumentPrompts:
        return build_prompts(tokens, QUERIES, documents, target="query", context_length=256, layout="independent")

    different = sorted({text for row in SHARED for text in row})
    keys = torch.tensor([[different.index(text) for text in row] for row in SHARED])
    labels = {**prompts_of(SHARED).as_dict(), "candidate_keys": keys}
    queries, documents = embed(tiny_encoder, features_of(tiny_encoder, [different] * 3))
    scores = own_cosines(queries, documents) / 0.3  # (3, 4)
    expected = loss.read(scores.log_softmax(-1), prompts_of([different] * 3)).mean()
    found = loss(features_of(tiny_encoder, SHARED), labels)["dream"]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    parameters = [p for p in tiny_encoder.parameters() if p.requires_grad]
    ours, theirs = (torch.autograd.grad(x, parameters, allow_unused=True) for x in (found, expected))
    largest = max(float(g.abs().max()) for g in theirs if g is not None)
    for a, b in zip(ours, theirs, strict=True):
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * largest)
    assert largest > 1e-5


@pytest.mark.parametrize("mass", ["kept", "one"])
@pytest.mark.parametrize("hidden", [False, True])
def test_other_queries_candidates_without_a_share_change_nothing(
    tiny_encoder: SentenceTransformer, tiny_lm: FrozenLM, mass: DocumentMass, hidden: bool
) -> None:
    """Reference: the loss over the query's own candidates; so a head's attention does not grow with the batch.

    All documents are cut to the same length, behind which queries begin.
    """
    tokens = PromptTokens(tiny_lm.tokenizer, PromptTemplate(), max_document_tokens=3)
    prompts = build_prompts(tokens, QUERIES, DOCUMENTS, target="query", context_length=256, layout="independent")
    loss = DREAMLoss(
        tiny_encoder, tiny_lm, heads=heads_of(tiny_lm), document_mass=mass, hide_documents=hidden, micro_batch_size=2
    )
    read = loss.reader.read_documents(prompts)
    pool = DocumentPool.of_batch(prompts, read, num_candidates=2, layers=loss.heads)
    everything = torch.full((3, 6), -1e4)
    for b in range(3):
        everything[b, 2 * b : 2 * b + 2] = SCORES[b]
    found = loss.compute_loss_from_scores(everything, prompts, read=read, pool=pool)
    torch.testing.assert_close(found, loss.compute_loss_from_scores(SCORES, prompts), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mass", ["kept", "one"])
def test_what_is_no_negative_has_no_share(
    tiny_encoder: SentenceTransformer, tiny_lm: FrozenLM, mass: DocumentMass
) -> None:
    """Reference: the loss over the query's own candidates and its gradient, if no others may be its negatives.

    A candidate of the query's own that is no negative keeps its share.
    """
    tokens = PromptTokens(tiny_lm.tokenizer, PromptTemplate(), max_document_tokens=3)
    prompts = build_prompts(tokens, QUERIES, DOCUMENTS, target="query", context_length=256, layout="independent")
    keys = torch.arange(6).view(3, 2)
    no_negatives = torch.stack([torch.arange(6)[torch.arange(6) != 2 * b] for b in range(3)])
    labels = {**prompts.as_dict(), "candidate_keys": keys, "no_negatives": no_negatives}
    queries, documents = torch.nn.functional.normalize(torch.randn(2, 3, 2, 8), dim=-1)
    found = []
    for in_batch in (True, False):
        embeddings = documents.clone().requires_grad_()
        loss = DREAMLoss(
            tiny_encoder, tiny_lm, heads=heads_of(tiny_lm), document_mass=mass, in_batch_candidates=in_batch
        )
        value = loss.compute_loss_from_embeddings(queries[:, 0], embeddings, labels)["dream"]
        found.append((value, torch.autograd.grad(value, embeddings)[0]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)
    assert found[0][1].abs().max() > 1e-6


def test_in_batch_candidates_need_independent_documents(
    tiny_encoder: SentenceTransformer, tiny_lm: FrozenLM, prompts: DocumentPrompts
) -> None:
    """Reference: the remedy in the message."""
    loss = DREAMLoss(tiny_encoder, tiny_lm, heads=heads_of(tiny_lm), in_batch_candidates=True)
    with pytest.raises(NLTError, match=r"set document_layout: independent"):
        loss(features(tiny_encoder), {**prompts.as_dict(), "candidate_keys": torch.arange(6).view(3, 2)})
