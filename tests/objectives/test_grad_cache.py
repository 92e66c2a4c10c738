"""Gradient caching against one graph over the whole batch: gradients, dropout, memory, evaluation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import BertConfig, BertModel

from nlt_trainer.encoder.parts import join, parts_by_length
from nlt_trainer.encoder.similarity import Features
from nlt_trainer.errors import NLTError
from nlt_trainer.injection.chunks import build_chunks
from nlt_trainer.injection.document_prompts import build_prompts
from nlt_trainer.injection.heads import HeadSet
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.lm.prompt_tokens import PromptTokens
from nlt_trainer.objectives.adist import ADistLoss
from nlt_trainer.objectives.dream import DREAMLoss
from nlt_trainer.objectives.emdr2 import EMDR2Loss
from nlt_trainer.objectives.grad_cache import GradCacheLoss
from nlt_trainer.objectives.info_nce import InfoNCELoss
from nlt_trainer.objectives.likelihood_gain import LikelihoodGainLoss
from nlt_trainer.objectives.loop import LOOPLoss
from nlt_trainer.objectives.mixture import MixtureLoss
from nlt_trainer.objectives.objective import Objective
from nlt_trainer.objectives.revela import RevelaLoss
from nlt_trainer.prompts import PromptTemplate

QUERIES = ["how is tea made", "which bird hunts at night", "what makes the tides"]
DOCUMENTS = ["leaves", "an owl", "silk of a moth", "an owl hunts", "the moon pulls the sea", "bread rises"]


@pytest.fixture
def batch(tiny_encoder: SentenceTransformer, tiny_lm: FrozenLM) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
    """Encoder inputs and labels of 3 queries with 2 candidates, enough for every objective."""
    tokens = PromptTokens(tiny_lm.tokenizer, PromptTemplate(), max_document_tokens=16)
    rows = [DOCUMENTS[2 * b : 2 * b + 2] for b in range(3)]
    labels = {
        "gain": torch.tensor([[0.4, 0.1], [0.2, 0.3], [-0.1, 0.5]]),
        "candidate_keys": torch.arange(6).reshape(3, 2),
        "target_tokens": torch.tensor([3, 2, 4]),
        "log_likelihood": torch.tensor([[-4.0, -6.0], [-3.0, -2.0], [-9.0, -7.5]]),
        **build_prompts(tokens, QUERIES, rows, target="query", context_length=256).as_dict(),
        **build_chunks(tokens, QUERIES, rows, target="query", context_length=256).as_dict(),
    }
    return [tiny_encoder.preprocess(QUERIES), tiny_encoder.preprocess(DOCUMENTS)], labels


def dream(encoder: SentenceTransformer, lm: FrozenLM) -> DREAMLoss:
    heads = HeadSet(((1, 2), (0, 3)), ((1.0,) * 4,) * 2, lm.name, lm.fingerprint, {})
    return DREAMLoss(encoder, lm, heads=heads, temperature=0.3, micro_batch_size=2)


OBJECTIVES: dict[str, Callable[[SentenceTransformer, FrozenLM], Objective]] = {
    "likelihood_gain": lambda encoder, lm: LikelihoodGainLoss(encoder),
    "info_nce": lambda encoder, lm: InfoNCELoss(encoder),
    "emdr2": lambda encoder, lm: EMDR2Loss(encoder),
    "dream": dream,
    "loop": lambda encoder, lm: LOOPLoss(encoder, lm),
    "adist": lambda encoder, lm: ADistLoss(encoder, lm),
    "revela": lambda encoder, lm: RevelaLoss(encoder, lm, temperature=0.3),
    "mixture": lambda encoder, lm: MixtureLoss([LikelihoodGainLoss(encoder), dream(encoder, lm)], weights=[1.0, 0.5]),
}


def gradients(loss: nn.Module, features: Features, labels: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """Named terms, and the gradient of their sum as one vector."""
    loss.zero_grad()
    terms = loss(features, labels)
    torch.stack(list(terms.values())).sum().backward()
    flat = [p.grad.flatten() for p in loss.parameters() if p.grad is not None]
    return {name: value.detach() for name, value in terms.items()}, torch.cat(flat).clone()


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("micro_batch_size", [1, 4, 100])
def test_loss_and_gradient_are_those_of_the_objective(
    tiny_encoder: SentenceTransformer,
    tiny_lm: FrozenLM,
    batch: tuple[list[dict[str, Tensor]], dict[str, Tensor]],
    objective: str,
    micro_batch_size: int,
) -> None:
    """Reference: the objective itself, one graph over the whole batch; parts of one text, of some, of all."""
    plain = OBJECTIVES[objective](tiny_encoder, tiny_lm)
    expected, expected_gradient = gradients(plain, *batch)
    found, gradient = gradients(GradCacheLoss(plain, micro_batch_size=micro_batch_size), *batch)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-6)
    scale = float(expected_gradient.abs().max())
    assert float((gradient - expected_gradient).abs().max()) < min(1e-6 * max(scale, 1), 1e-5 * scale)
    assert scale > 1e-3


@pytest.fixture
def encoder_with_dropout(tiny_encoder_folder: Path) -> SentenceTransformer:
    """The tiny encoder's tokenizer and shape with dropout of 0.2 everywhere, in training mode."""
    torch.manual_seed(0)
    config = BertConfig.from_pretrained(tiny_encoder_folder.parent / "bert", hidden_dropout_prob=0.2)
    transformer = Transformer(str(tiny_encoder_folder.parent / "bert"), max_seq_length=64)
    transformer.model = BertModel(config)
    return SentenceTransformer(modules=[transformer, Pooling(32, pooling_mode="mean")], device="cpu").train()


class InPartsWithGraph(nn.Module):
    """The reference for dropout: the same parts and hence the same random numbers, all in one graph."""

    def __init__(self, model: SentenceTransformer, size: int) -> None:
        super().__init__()
        self.model, self.size = model, size

    def __call__(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        parts = parts_by_length(features, texts=self.size)
        return join(parts, [self.model(part)["sentence_embedding"] for _, part in parts])


def test_dropout_is_replayed(
    encoder_with_dropout: SentenceTransformer, batch: tuple[list[dict[str, Tensor]], dict[str, Tensor]]
) -> None:
    """Reference: the same parts in one graph from the same seed; another seed gives another gradient."""
    plain = LikelihoodGainLoss(encoder_with_dropout)
    in_parts = LikelihoodGainLoss(encoder_with_dropout)
    in_parts.model = InPartsWithGraph(encoder_with_dropout, 2)  # type: ignore[assignment]
    found, expected = [], []
    for seed in (1, 2):
        torch.manual_seed(seed)
        expected.append(gradients(in_parts, *batch)[1])
        torch.manual_seed(seed)
        found.append(gradients(GradCacheLoss(plain, micro_batch_size=2), *batch)[1])
        assert float((found[-1] - expected[-1]).abs().max()) < 1e-6 * max(1, float(expected[-1].abs().max()))
    assert float((found[0] - found[1]).abs().max()) > 1e-2


def test_the_random_state_goes_on_as_without(
    encoder_with_dropout: SentenceTransformer, batch: tuple[list[dict[str, Tensor]], dict[str, Tensor]]
) -> None:
    """Reference: the generator after the forward pass alone; the replay must not draw from it."""
    loss = GradCacheLoss(LikelihoodGainLoss(encoder_with_dropout), micro_batch_size=2)
    terms = loss(*batch)
    state = torch.get_rng_state()
    terms["likelihood_gain"].backward()
    assert torch.equal(torch.get_rng_state(), state)


def test_one_part_is_alive_at_a_time(
    tiny_encoder: SentenceTransformer, batch: tuple[list[dict[str, Tensor]], dict[str, Tensor]]
) -> None:
    """Reference: the order of passes, first all parts forward, then each part forward and backward before the next."""
    order: list[str] = []
    transformer: Any = tiny_encoder[0]
    module = transformer.auto_model.embeddings  # the first to go forward, the last to go backward

    def forward(module: nn.Module, arguments: object, output: Tensor) -> None:
        order.append("forward")
        if output.requires_grad:
            output.register_hook(lambda gradient: order.append("backward"))

    handle = module.register_forward_hook(forward)
    loss = GradCacheLoss(LikelihoodGainLoss(tiny_encoder), micro_batch_size=3)
    loss(*batch)["likelihood_gain"].backward()
    handle.remove()
    assert order == ["forward"] * 3 + ["forward", "backward"] * 3


class TwoTowers(nn.Module):
    """An encoder whose queries and documents have parameters of their own, told apart by an entry of their inputs."""

    def __init__(self, queries: nn.Module, documents: nn.Module) -> None:
        super().__init__()
        self.queries, self.documents = queries, documents

    def forward(self, features: dict[str, Any]) -> Any:
        return (self.queries if "queries" in features else self.documents)(features)


def test_the_replay_leaves_the_distributed_wrapper_alone(
    tiny_encoder_folder: Path, batch: tuple[list[dict[str, Tensor]], dict[str, Tensor]], tmp_path: Path
) -> None:
    """Reference: no caching under DDP, two steps; documents' gradients are complete before queries are replayed."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        encoders = [SentenceTransformer(str(tiny_encoder_folder), device="cpu") for _ in range(2)]
        for encoder in encoders:
            transformer: Any = encoder[0]
            transformer.auto_model.pooler = None  # DDP waits for every parameter
        plain = LikelihoodGainLoss(encoders[0])
        plain.model = DistributedDataParallel(TwoTowers(*encoders))  # type: ignore[assignment]
        cached = GradCacheLoss(LikelihoodGainLoss(encoders[0]), micro_batch_size=2)
        cached.model = plain.model
        features, labels = batch
        features[0]["queries"] = True  # type: ignore[assignment]  # no tensor, so it goes with every part
        for _ in range(2):
            expected = gradients(plain, features, labels)[1]
            found = gradients(cached, features, labels)[1]
            assert float((found - expected).abs().max()) < 1e-6 * max(1, float(expected.abs().max()))
    finally:
        torch.distributed.destroy_process_group()


def test_without_a_graph_the_loss_is_the_same(
    tiny_encoder: SentenceTransformer, batch: tuple[list[dict[str, Tensor]], dict[str, Tensor]]
) -> None:
    """Reference: the objective, as evaluation inside a trainer calls it."""
    plain = LikelihoodGainLoss(tiny_encoder)
    with torch.no_grad():
        found = GradCacheLoss(plain, micro_batch_size=2)(*batch)["likelihood_gain"]
        torch.testing.assert_close(found, plain(*batch)["likelihood_gain"], rtol=1e-6, atol=1e-6)
    assert not found.requires_grad


def test_autocast_is_replayed(
    tiny_encoder: SentenceTransformer, batch: tuple[list[dict[str, Tensor]], dict[str, Tensor]]
) -> None:
    """Reference: the objective in bfloat16, whose backward pass runs outside the autocast block."""
    plain = LikelihoodGainLoss(tiny_encoder)
    vectors = []
    for loss in (plain, GradCacheLoss(plain, micro_batch_size=100)):
        loss.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = loss(*batch)["likelihood_gain"]
        value.backward()
        vectors.append(torch.cat([p.grad.flatten() for p in loss.parameters() if p.grad is not None]))
    torch.testing.assert_close(vectors[1], vectors[0], rtol=1e-5, atol=1e-6)


def test_wrong_settings_are_refused(
    tiny_encoder: SentenceTransformer, tiny_static_encoder: SentenceTransformer
) -> None:
    """Reference: the value and the remedy in each message."""
    with pytest.raises(NLTError, match="encoder_micro_batch_size is 0; it must be at least 1"):
        GradCacheLoss(LikelihoodGainLoss(tiny_encoder), micro_batch_size=0)
    with pytest.raises(NLTError, match=r"table of token embeddings.*leave encoder_micro_batch_size out"):
        GradCacheLoss(LikelihoodGainLoss(tiny_static_encoder), micro_batch_size=2)
    packed = {"input_ids": torch.zeros(1, 9, dtype=torch.int64), "cu_seq_lens_q": torch.tensor([0, 4, 9])}
    with pytest.raises(NLTError, match="packed and cannot be cut into parts"):
        GradCacheLoss(LikelihoodGainLoss(tiny_encoder), micro_batch_size=2)([packed, packed], {})
