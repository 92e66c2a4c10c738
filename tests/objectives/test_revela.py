"""Revela: a plain Llama in float64 as reference, micro-batches, what the loss may not see, and what is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from nlt_trainer.encoder.lora import add_llm_lora
from nlt_trainer.encoder.similarity import embed, pairwise_cosines
from nlt_trainer.errors import NLTError
from nlt_trainer.injection.chunks import ChunkGroups, build_chunks
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.lm.prompt_tokens import PromptTokens
from nlt_trainer.objectives.revela import RevelaLoss
from nlt_trainer.prompts import PromptTemplate

QUERIES = ["how is tea made", "which bird hunts at night", "what makes the tides"]
DOCUMENTS = [
    ["Green tea is made from leaves.", "An owl hunts."],
    ["Silk is spun by the larva of a moth.", "An owl hunts at night and hears a mouse."],
    ["The moon pulls the water of the sea.", "Bread rises."],
]
SCORES = torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(3))
LORA = {"r": 2, "lora_alpha": 8, "target_modules": "all-linear"}


def loss_of(encoder: SentenceTransformer, lm: FrozenLM, **settings: Any) -> RevelaLoss:
    return RevelaLoss(encoder, lm, **{"temperature": 0.3, "micro_batch_size": 2, **settings})


def groups_of(lm: FrozenLM, rows: slice = slice(None)) -> ChunkGroups:
    tokens = PromptTokens(lm.tokenizer, PromptTemplate(), max_document_tokens=10)
    return build_chunks(tokens, QUERIES[rows], DOCUMENTS[rows], target="query", context_length=256)


def features(encoder: SentenceTransformer) -> list[dict[str, Tensor]]:
    return [encoder.preprocess(QUERIES), encoder.preprocess([text for row in DOCUMENTS for text in row])]


def scramble(trained: dict[str, torch.nn.Parameter]) -> None:
    """Random numbers instead of the zeros that an adapter starts with."""
    for parameter in trained.values():
        torch.nn.init.normal_(parameter, std=0.1)


# A Llama written out, one chunk at a time


def normed(x: Tensor, module: Any) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + module.variance_epsilon).sqrt() * module.weight


def rotated(x: Tensor) -> Tensor:
    """Rotary positions 0, 1, ... of `(T, H, size)`, theta 10,000."""
    half = x.shape[-1] // 2
    angle = torch.arange(len(x), dtype=x.dtype)[:, None] / 10_000 ** (torch.arange(half, dtype=x.dtype) / half)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    return torch.cat([x[..., :half] * cos - x[..., half:] * sin, x[..., half:] * cos + x[..., :half] * sin], dim=-1)


Memory = list[tuple[Tensor, Tensor]]  # keys and values `(T, key heads, size)` of each layer


def plain_read(model: Any, ids: Tensor, others: list[tuple[Tensor, Memory]]) -> tuple[Tensor, Memory]:
    """Logits `(T, vocabulary)` of one chunk, with the other chunks' weights and memories, and its own memory."""
    x, memory = model.model.embed_tokens.weight[ids], []
    for number, layer in enumerate(model.model.layers):
        attention, y = layer.self_attn, normed(x, layer.input_layernorm)
        q, k, v = (p(y).unflatten(-1, (-1, 8)) for p in (attention.q_proj, attention.k_proj, attention.v_proj))
        q, k = rotated(q), rotated(k)
        memory.append((k, v))
        heads = []
        for h in range(4):
            logits = q[:, h] @ k[:, h // 2].T / 8**0.5
            visible = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
            head = logits.masked_fill(~visible, -torch.inf).softmax(-1) @ v[:, h // 2]
            for weight, other in others:
                keys, values = other[number][0][:, h // 2], other[number][1][:, h // 2]
                p = (q[:, h] @ keys.T / 8**0.5).softmax(-1)
                head = head + weight * (p @ values) / (p @ values.norm(dim=-1))[:, None]
            heads.append(head)
        x = x + attention.o_proj(torch.cat(heads, dim=-1))
        y = normed(x, layer.post_attention_layernorm)
        x = x + layer.mlp.down_proj(torch.nn.functional.silu(layer.mlp.gate_proj(y)) * layer.mlp.up_proj(y))
    return model.lm_head(normed(x, model.model.norm)), memory


def plain_loss(model: Any, scores: Tensor, groups: ChunkGroups) -> Tensor:
    """The reference: every group alone, every chunk without padding, a graph through everything; a scalar."""
    losses = []
    for b in range(len(groups)):
        chunks = [groups.chunk_ids[b, c][groups.chunk_mask[b, c]] for c in range(3)]
        memories = [plain_read(model, ids, [])[1] for ids in chunks]
        nats = []
        for i, ids in enumerate(chunks):
            others = [j for j in range(3) if j != i]
            weights = scores[b, i, others].softmax(-1)
            logits, _ = plain_read(model, ids, [(w, memories[j]) for w, j in zip(weights, others, strict=True)])
            at = groups.chunk_target[b, i].nonzero()[:, 0]
            nats.append(torch.nn.functional.cross_entropy(logits[at - 1], ids[at], reduction="none"))
        losses.append(torch.cat(nats).mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("train_llm", [False, True])
@pytest.mark.parametrize("bos", [False, True])
def test_loss_and_gradients_are_those_of_a_plain_llama(
    tiny_static_encoder: SentenceTransformer, tiny_lm: FrozenLM, tiny_bos_lm: FrozenLM, bos: bool, train_llm: bool
) -> None:
    """Reference: the Llama above in float64; gradients with respect to scores and, if it is trained, the adapter."""
    lm = tiny_bos_lm if bos else tiny_lm
    trained = add_llm_lora(lm, LORA, seed=1) if train_llm else {}
    scramble(trained)
    loss, groups = loss_of(tiny_static_encoder, lm, trained=trained), groups_of(lm)
    lm.model.double()
    scores = SCORES.double().requires_grad_()
    inputs = [scores, *trained.values()]
    found = loss.compute_loss_from_scores(scores, groups)
    expected = plain_loss(lm.model, scores, groups)
    torch.testing.assert_close(found, expected.to(found), rtol=1e-6, atol=1e-6)
    gradients = [torch.autograd.grad(2 * value, inputs) for value in (found, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        # the projection to the vocabulary is float32
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))
        assert theirs.abs().max() > 1e-4
    assert gradients[0][0].diagonal(dim1=1, dim2=2).abs().max() == 0


def test_the_gradient_is_that_of_finite_differences(
    tiny_static_encoder: SentenceTransformer, tiny_lm: FrozenLM
) -> None:
    """Reference: central differences of the Llama above in float64, along random directions."""
    loss, groups = loss_of(tiny_static_encoder, tiny_lm), groups_of(tiny_lm)
    tiny_lm.model.double()
    scores = SCORES.double().requires_grad_()
    (gradient,) = torch.autograd.grad(loss.compute_loss_from_scores(scores, groups), scores)
    for _ in range(3):
        direction = torch.randn_like(scores).detach()
        with torch.no_grad():
            up, down = (plain_loss(tiny_lm.model, scores + step * direction, groups) for step in (1e-4, -1e-4))
        assert float((gradient * direction).sum()) == pytest.approx(float((up - down) / 2e-4), rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("micro_batch_size", [1, 3, 8])
@pytest.mark.parametrize("train_llm", [False, True])
def test_micro_batches_change_nothing(
    tiny_static_encoder: SentenceTransformer, tiny_lm: FrozenLM, micro_batch_size: int, train_llm: bool
) -> None:
    """Reference: one graph over the whole batch; loss and gradients, an upstream factor too."""
    trained = add_llm_lora(tiny_lm, LORA, seed=1) if train_llm else {}
    scramble(trained)
    loss = loss_of(tiny_static_encoder, tiny_lm, trained=trained, micro_batch_size=micro_batch_size)
    groups, scores = groups_of(tiny_lm), SCORES.clone().requires_grad_()
    inputs = [scores, *trained.values()]
    found = loss.compute_loss_from_scores(scores, groups)
    weights = scores.masked_fill(torch.eye(3).bool(), -torch.inf).softmax(-1)
    expected = loss.reader.losses(weights, groups).mean()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    ours, theirs = (torch.autograd.grad(3 * value, inputs) for value in (found, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5 * float(b.abs().max()))


def test_a_batch_is_the_mean_of_its_groups(tiny_static_encoder: SentenceTransformer, tiny_lm: FrozenLM) -> None:
    """Reference: every group alone, padded to its own longest chunk."""
    loss = loss_of(tiny_static_encoder, tiny_lm)
    alone = [loss.compute_loss_from_scores(SCORES[b : b + 1], groups_of(tiny_lm, slice(b, b + 1))) for b in range(3)]
    found = loss.compute_loss_from_scores(SCORES, groups_of(tiny_lm))
    torch.testing.assert_close(found, torch.stack(alone).mean())


def test_of_two_chunks_each_sees_the_other_whatever_the_scores(
    tiny_static_encoder: SentenceTransformer, tiny_lm: FrozenLM
) -> None:
    """Reference: closed cases; a softmax of one score is 1, its gradient 0. Equal scores are uniform weights."""
    loss, groups = loss_of(tiny_static_encoder, tiny_lm), groups_of(tiny_lm)
    pairs = ChunkGroups(**{name: tensor[:, :2] for name, tensor in groups.as_dict().items()})
    scores = SCORES[:, :2, :2].clone().requires_grad_()
    found = loss.compute_loss_from_scores(scores, pairs)
    torch.testing.assert_close(found, loss.compute_loss_from_scores(-5 * scores, pairs))
    assert torch.autograd.grad(found, scores)[0].abs().max() < 1e-7
    uniform = loss.reader.losses((1 - torch.eye(3)).expand(3, 3, 3) / 2, groups).mean()
    torch.testing.assert_close(loss.compute_loss_from_scores(torch.full_like(SCORES, 0.7), groups), uniform)


def test_a_chunk_does_not_see_what_comes_next(tiny_static_encoder: SentenceTransformer, tiny_lm: FrozenLM) -> None:
    """Reference: the loss of its first tokens with others after them; through another chunk it would see them."""
    reader, groups = loss_of(tiny_static_encoder, tiny_lm).reader, groups_of(tiny_lm)
    first = torch.zeros_like(groups.chunk_target)
    first[:, 1, 1:4] = True
    other = groups.chunk_ids.clone()
    other[:, 1, 4:] += 1
    weights = SCORES.masked_fill(torch.eye(3).bool(), -torch.inf).softmax(-1)
    losses = [reader.losses(weights, ChunkGroups(ids, groups.chunk_mask, first)) for ids in (groups.chunk_ids, other)]
    torch.testing.assert_close(losses[0], losses[1])
    all_tokens = [
        reader.losses(weights, ChunkGroups(ids, *list(groups.as_dict().values())[1:]))
        for ids in (groups.chunk_ids, other)
    ]
    assert (all_tokens[0] - all_tokens[1]).abs().min() > 1e-3


def test_the_encoders_gradient_is_that_of_the_joint_graph(
    tiny_encoder: SentenceTransformer, tiny_lm: FrozenLM
) -> None:
    """Reference: backward through LLM and encoder in one graph; queries are chunk 0."""
    loss, groups = loss_of(tiny_encoder, tiny_lm), groups_of(tiny_lm)
    parameters = [p for p in tiny_encoder.parameters() if p.requires_grad]
    found = torch.autograd.grad(
        loss(features(tiny_encoder), groups.as_dict())["revela"], parameters, allow_unused=True
    )
    queries, documents = embed(tiny_encoder, features(tiny_encoder))
    cosines = pairwise_cosines(torch.cat([queries[:, None], documents], dim=1))
    weights = (cosines / 0.3).masked_fill(torch.eye(3).bool(), -torch.inf).softmax(-1)
    joint = loss.reader.losses(weights, groups).mean()
    expected = torch.autograd.grad(joint, parameters, allow_unused=True)
    largest = max(float(e.abs().max()) for e in expected if e is not None)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * largest)
    assert largest > 1e-5


@pytest.mark.parametrize("train_llm", [False, True])
def test_what_a_step_changes(
    tiny_encoder: SentenceTransformer, tiny_lm: FrozenLM, tmp_path: Path, train_llm: bool
) -> None:
    """Reference: copies of all parameters before the step; names in the optimizer and in what is saved."""
    base = {name: p.clone() for name, p in tiny_lm.model.named_parameters()}
    trained = add_llm_lora(tiny_lm, LORA, seed=1) if train_llm else None
    loss = loss_of(tiny_encoder, tiny_lm, trained=trained)
    own = {id(p) for p in (trained or {}).values()}
    assert {id(p) for p in loss.parameters()} == {id(p) for p in tiny_encoder.parameters()} | own
    before = {name: p.detach().clone() for name, p in loss.named_parameters()}
    optimizer = torch.optim.SGD(loss.parameters(), lr=1.0)
    labels = groups_of(tiny_lm).as_dict()
    first = loss(features(tiny_encoder), labels)["revela"]
    first.backward()
    optimizer.step()
    assert loss(features(tiny_encoder), labels)["revela"].item() < first.item()
    for name, parameter in tiny_lm.model.named_parameters():
        if "lora" not in name:
            assert parameter.grad is None
            torch.testing.assert_close(parameter, base[name.replace(".base_layer", "")], rtol=0, atol=0)
    moved = [name for name, p in loss.named_parameters() if not torch.equal(p, before[name])]
    assert any("word_embeddings" in name for name in moved)
    assert any("lora_B" in name for name in moved) == train_llm
    tiny_encoder.save_pretrained(str(tmp_path / "saved"))
    size = sum(file.stat().st_size for file in (tmp_path / "saved").rglob("*.safetensors"))
    assert size < 4.2 * sum(p.numel() for p in tiny_encoder.parameters())


def test_an_adapter_starts_as_nothing_and_by_seed(
    tiny_static_encoder: SentenceTransformer, tiny_llm_folder: Path, tiny_lm: FrozenLM
) -> None:
    """Reference: the frozen LLM's loss; a second adapter of the same seed and of another one."""
    groups = groups_of(tiny_lm)
    expected = loss_of(tiny_static_encoder, tiny_lm).compute_loss_from_scores(SCORES, groups)
    state = torch.random.get_rng_state()
    lms = [tiny_lm, *(FrozenLM.from_pretrained(str(tiny_llm_folder), device="cpu") for _ in range(2))]
    adapters = [add_llm_lora(lm, LORA, seed=seed) for lm, seed in zip(lms, (1, 1, 2), strict=True)]
    assert torch.equal(torch.random.get_rng_state(), state)
    found = loss_of(tiny_static_encoder, tiny_lm, trained=adapters[0]).compute_loss_from_scores(SCORES, groups)
    torch.testing.assert_close(found.detach(), expected)
    for name, parameter in adapters[0].items():
        assert torch.equal(parameter, adapters[1][name])
        assert torch.equal(parameter, adapters[2][name]) == ("lora_B" in name)


def test_half_precision(tiny_static_encoder: SentenceTransformer, tiny_lm: FrozenLM) -> None:
    """Reference: the float32 LLM to the precision of bfloat16; the adapter stays float32, gradients are finite."""
    groups = groups_of(tiny_lm)
    expected = loss_of(tiny_static_encoder, tiny_lm).compute_loss_from_scores(SCORES, groups)
    tiny_lm.model.bfloat16()
    trained = add_llm_lora(tiny_lm, LORA, seed=1)
    assert {p.dtype for p in trained.values()} == {torch.float32}
    scores = SCORES.clone().requires_grad_()
    found = loss_of(tiny_static_encoder, tiny_lm, trained=trained).compute_loss_from_scores(scores, groups)
    assert found.item() == pytest.approx(expected.item(), rel=0.05)
    for gradient in torch.autograd.grad(found, [scores, *trained.values()]):
        assert gradient.dtype == torch.float32
        assert gradient.isfinite().all()


def test_without_a_graph_the_loss_is_the_same(tiny_static_encoder: SentenceTransformer, tiny_lm: FrozenLM) -> None:
    """Reference: the loss with a graph, as evaluation inside a trainer needs it."""
    trained, groups = add_llm_lora(tiny_lm, LORA, seed=1), groups_of(tiny_lm)
    loss = loss_of(tiny_static_encoder, tiny_lm, trained=trained)
    expected = loss.compute_loss_from_scores(SCORES.clone().requires_grad_(), groups)
    with torch.no_grad():
        found = loss.compute_loss_from_scores(SCORES, groups)
    torch.testing.assert_close(found, expected.detach())
    assert not found.requires_grad


def test_the_papers_temperature(tiny_encoder: SentenceTransformer, tiny_lm: FrozenLM) -> None:
    """Reference: weights of the most similar chunk alone."""
    loss, groups = loss_of(tiny_encoder, tiny_lm, temperature=1e-4), groups_of(tiny_lm)
    value = loss(features(tiny_encoder), groups.as_dict())["revela"]
    queries, documents = embed(tiny_encoder, features(tiny_encoder))
    cosines = pairwise_cosines(torch.cat([queries[:, None], documents], dim=1)).masked_fill(torch.eye(3).bool(), -2)
    nearest = torch.nn.functional.one_hot(cosines.argmax(-1), 3).float()
    torch.testing.assert_close(value, loss.reader.losses(nearest, groups).mean(), rtol=1e-3, atol=1e-3)
    value.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in tiny_encoder.parameters())


@pytest.mark.parametrize("bos", [False, True])
def test_chunks_token_by_token(tiny_lm: FrozenLM, tiny_bos_lm: FrozenLM, bos: bool) -> None:
    """Reference: decoded texts of every chunk and of what is predicted of it."""
    lm = tiny_bos_lm if bos else tiny_lm
    tokens = PromptTokens(lm.tokenizer, PromptTemplate(), max_document_tokens=10)
    answers = ["from leaves", None, None]
    with pytest.raises(NLTError, match="needs an answer"):
        build_chunks(tokens, QUERIES, DOCUMENTS, target="joint", context_length=256, answers=answers)
    groups = build_chunks(tokens, QUERIES[:1], DOCUMENTS[:1], target="joint", context_length=256, answers=answers[:1])
    start = "<s>" if bos else ""
    texts = [f"Question: {QUERIES[0]}\nAnswer: from leaves", *DOCUMENTS[0]]
    for c, text in enumerate(texts):
        ids, target = groups.chunk_ids[0, c], groups.chunk_target[0, c]
        assert lm.tokenizer.decode(ids[groups.chunk_mask[0, c]]) == start + text
        assert not target[0]
        predicted = lm.tokenizer.decode(ids[target])
        first = "" if bos else str(lm.tokenizer.decode(ids[:1]))
        assert predicted == (f" {QUERIES[0]} from leaves" if c == 0 else text.removeprefix(first))
    assert (
        groups.num_tokens
        == int(groups.chunk_mask.sum())
        == sum(len(lm.tokenizer(t, add_special_tokens=False).input_ids) + bos for t in texts)
    )


def test_chunks_are_cut_and_refused(tiny_lm: FrozenLM) -> None:
    """Reference: the number of tokens; the remedy in the message."""
    tokens = PromptTokens(tiny_lm.tokenizer, PromptTemplate(), max_document_tokens=10)
    documents = [["the moon makes the tides " * 9, "tea"]]
    groups = build_chunks(tokens, QUERIES[:1], documents, target="query", context_length=256)
    assert groups.chunk_mask[0, 1].sum() == 10
    with pytest.raises(NLTError, match=r"has 10 tokens and the LLM's context 9; use max_document_tokens 9 at most"):
        build_chunks(tokens, ["tea"], documents, target="query", context_length=9)


def test_wrong_settings_are_refused(tiny_static_encoder: SentenceTransformer, tiny_lm: FrozenLM) -> None:
    """Reference: the value and the remedy in each message."""
    with pytest.raises(NLTError, match=r"temperature is 0; it must be greater than 0"):
        loss_of(tiny_static_encoder, tiny_lm, temperature=0)
    with pytest.raises(NLTError, match=r"micro_batch_size is 0; it must be at least 1"):
        loss_of(tiny_static_encoder, tiny_lm, micro_batch_size=0)
    trained = add_llm_lora(tiny_lm, LORA, seed=1)
    tiny_lm.model.to("meta")  # type: ignore[arg-type]  # transformers hides the signature
    with pytest.raises(NLTError, match=r"trained is on meta and the encoder on cpu; put both on one device"):
        loss_of(tiny_static_encoder, tiny_lm, trained=trained)


def test_settings_for_the_card(tiny_static_encoder: SentenceTransformer, tiny_lm: FrozenLM) -> None:
    """Reference: the settings that the loss was made with."""
    settings = {"temperature": 0.3, "llm": tiny_lm.name, "llm_trained": False}
    assert loss_of(tiny_static_encoder, tiny_lm).get_config_dict() == settings
