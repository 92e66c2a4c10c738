"""Objectives at the edges of their numbers: temperatures, candidates, precisions, and encoders that give 0 or NaN."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, logsumexp
from sentence_transformers import SentenceTransformer
from torch import Tensor

from nlt_trainer.data.collator import NLTCollator
from nlt_trainer.encoder.similarity import embed
from nlt_trainer.injection.heads import HeadSet
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.objectives.adist import ADistLoss
from nlt_trainer.objectives.dream import DREAMLoss
from nlt_trainer.objectives.emdr2 import EMDR2Loss
from nlt_trainer.objectives.info_nce import InfoNCELoss
from nlt_trainer.objectives.likelihood_gain import DIVERGENCES, LikelihoodGainLoss
from nlt_trainer.objectives.loop import LOOPLoss
from nlt_trainer.objectives.objective import Objective
from nlt_trainer.objectives.revela import RevelaLoss
from nlt_trainer.trainer import ENCODER_INPUTS

B, T = 3, 5
"""Queries, and target tokens."""
CASES = [*itertools.product((1e-4, 1e-2, 1.0, 1e2), (1, 2, 37, 512))]
"""Temperatures with numbers of candidates. They are loops in the tests, because a fixture costs more than a case."""


def batch(k: int, *, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Scores `(B, K)` of random cosines, gains `(B, K)` of which two are equal, and log-likelihoods `(B, K, T)`."""
    cosines, gain = 2 * torch.rand(B, k) - 1, torch.randn(B, k)
    gain[:, -1] = gain[:, 0]
    return cosines / temperature, gain, -5 * torch.rand(B, k, T)


def numpy_divergence(name: str, teacher: np.ndarray, student: np.ndarray) -> float:
    """The reference in float64, from logits `(B, K)`; it never leaves the logarithms."""
    log_p, log_w = log_softmax(teacher, axis=1), log_softmax(student, axis=1)
    log_m = np.logaddexp(log_p, log_w) - np.log(2)
    p, w = np.exp(log_p), np.exp(log_w)
    if name == "margin_mse":
        margins = [(t[t.argmax()] - t) - (s[t.argmax()] - s) for t, s in zip(teacher, student, strict=True)]
        return float(np.square(margins).sum() / max(teacher.shape[1] - 1, 1) / len(teacher))
    if name == "listwise":
        pairs = [(t, s, k) for t, s in zip(teacher, student, strict=True) for k in range(len(t))]
        return float(sum(logsumexp(s[t <= t[k]]) - s[k] for t, s, k in pairs) / len(teacher))
    terms = {
        "forward_kl": p * (log_p - log_w),
        "reverse_kl": w * (log_w - log_p),
        "jensen_shannon": (p * (log_p - log_m) + w * (log_w - log_m)) / 2,
    }
    return float(terms[name].sum(1).mean())


def check(loss: Callable[[Tensor], Tensor], scores: Tensor, expected: float) -> None:
    """Compare a loss with the reference, and its gradient with that of the same scores in float64."""
    single, double = scores.clone().requires_grad_(), scores.double().requires_grad_()
    value, exact = loss(single), loss(double)
    (gradient,), (exact_gradient,) = torch.autograd.grad(value, single), torch.autograd.grad(exact, double)
    assert exact.item() == pytest.approx(expected, rel=1e-6, abs=1e-9)
    # A score has 24 bits, and its last one counts: the largest scores decide what can be told apart.
    last_bit = 1e-6 * float(scores.abs().max())
    assert value.item() == pytest.approx(expected, rel=1e-4, abs=1e-5 + last_bit)
    assert gradient.isfinite().all()
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=1e-3, atol=1e-5 + last_bit)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_likelihood_gain_at_every_temperature(tiny_static_encoder: SentenceTransformer, name: Any) -> None:
    """Reference: the formula in float64; the teacher is as sharp as the student, and as flat."""
    for temperature, k in CASES:
        scores, gain, _ = batch(k, temperature=temperature)
        for sharpness in (temperature, 1 / temperature):
            loss = LikelihoodGainLoss(tiny_static_encoder, divergence=name, teacher_temperature=sharpness)
            expected = numpy_divergence(name, gain.double().numpy() / sharpness, scores.double().numpy())
            check(partial(loss.compute_loss_from_scores, gain=gain), scores, expected)


def test_emdr2_at_every_temperature(tiny_static_encoder: SentenceTransformer) -> None:
    """Reference: the formula in float64, for targets of five tokens and of 20,480."""
    loss = EMDR2Loss(tiny_static_encoder, level="token")
    for (temperature, k), tokens in itertools.product(CASES, (1, 4096)):
        scores, _, log_likelihood = batch(k, temperature=temperature)
        stored, lengths = log_likelihood * tokens, torch.full((B,), T * tokens)
        log_w = log_softmax(scores.double().numpy(), axis=1)
        marginal = logsumexp(log_w[:, :, None] + stored.double().numpy(), axis=1)  # (B, T)
        expected = float(-(marginal.sum(1) / (T * tokens)).mean())
        check(partial(loss.compute_loss_from_scores, log_likelihood=stored, target_tokens=lengths), scores, expected)


def test_info_nce_at_every_temperature(tiny_static_encoder: SentenceTransformer) -> None:
    """Reference: the formula in float64; the last candidate is the positive one."""
    loss = InfoNCELoss(tiny_static_encoder)
    for temperature, k in CASES:
        scores, _, _ = batch(k, temperature=temperature)
        labels = {"positive": torch.full((B,), k - 1), "excluded": torch.zeros(B, k, dtype=torch.bool)}
        expected = float(-log_softmax(scores.double().numpy(), axis=1)[:, -1].mean())
        check(partial(loss.compute_loss_from_scores, **labels), scores, expected)


QUERIES = ["how is tea made", "which bird hunts at night", "what makes the tides"]
ROWS = [
    {
        "query": query,
        "answer": "the moon",
        "documents": ["Green tea is made from leaves.", "An owl hunts at night.", "The moon pulls the sea."],
        "gain": [0.1, 0.3, -0.2],
        "target_tokens": 2,
        "log_likelihood": [-3.0, -2.0, -4.0],
    }
    for query in QUERIES
]
STORED: dict[str, Callable[..., Objective]] = {
    **{name: lambda e, t, d=name: LikelihoodGainLoss(e, temperature=t, divergence=d) for name in DIVERGENCES},
    "in_batch_candidates": lambda e, t: LikelihoodGainLoss(e, temperature=t, in_batch_candidates=True),
    "emdr2": lambda e, t: EMDR2Loss(e, temperature=t),
    "info_nce": lambda e, t: InfoNCELoss(e, temperature=t),
}
READING: dict[str, Callable[..., Objective]] = {
    "adist": lambda e, t, lm: ADistLoss(e, lm, temperature=t, teacher_temperature=t),
    "loop": lambda e, t, lm: LOOPLoss(e, lm, temperature=t, teacher_temperature=t),
    "dream": lambda e, t, lm: DREAMLoss(e, lm, heads=heads_of(lm), temperature=t),
    "dream kept": lambda e, t, lm: DREAMLoss(e, lm, heads=heads_of(lm), temperature=t, document_mass="kept"),
    "revela": lambda e, t, lm: RevelaLoss(e, lm, temperature=t),
}
"""Objectives that read stored numbers, and those that read an LLM -> how they are made."""


def heads_of(lm: FrozenLM) -> HeadSet:
    return HeadSet(((1, 2), (0, 3)), ((1.0,) * 4,) * 2, lm.name, lm.fingerprint, {})


def embeddings() -> tuple[Tensor, Tensor]:
    """Random directions of B queries `(B, 8)` and B times 3 candidates, of which equal texts have equal ones."""
    found = torch.nn.functional.normalize(torch.randn(B + 3, 8), dim=-1)
    return found[:B], found[B:].expand(B, 3, 8).clone()


def labels_of(loss: Objective, encoder: SentenceTransformer) -> dict[str, Tensor]:
    """What a batch of `ROWS` has besides texts."""
    found = loss.collator(ROWS)(ROWS)
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


@pytest.mark.parametrize("name", READING)
def test_an_llm_of_every_dtype_at_every_temperature(
    tiny_static_encoder: SentenceTransformer, tiny_lm: FrozenLM, name: str
) -> None:
    """Reference: the LLM in float64, to the precision of its dtype."""
    weights = {key: value.double() for key, value in tiny_lm.model.state_dict().items()}
    queries, documents = embeddings()

    def results(dtype: torch.dtype, temperature: float) -> tuple[Tensor, Tensor]:
        torch.nn.Module.to(tiny_lm.model, dtype).load_state_dict(weights)
        loss = READING[name](tiny_static_encoder, temperature, tiny_lm)
        leaf = queries.clone().requires_grad_()
        (value,) = loss.compute_loss_from_embeddings(leaf, documents, labels_of(loss, tiny_static_encoder)).values()
        return value.detach(), torch.autograd.grad(value, leaf)[0]

    halves = (torch.bfloat16, torch.float16)
    for temperature, dtype in itertools.product((1e-4, 5e-2, 1e2), (torch.float32, *halves)):
        exact = results(torch.float64, temperature)
        value, gradient = results(dtype, temperature)
        assert value.isfinite()
        assert gradient.isfinite().all()
        if name in ("adist", "loop") and temperature < 1e-2:
            continue  # so sharp a teacher makes the last bits of the LLM decide
        tolerance = 0.1 if dtype in halves else 1e-3
        torch.testing.assert_close(value.double(), exact[0].double(), rtol=tolerance, atol=tolerance)


@pytest.fixture
def objectives(tiny_static_encoder: SentenceTransformer, tiny_lm: FrozenLM) -> Callable[[float], list[Objective]]:
    """Makes every objective with a temperature."""

    def make(temperature: float) -> list[Objective]:
        reading = [make(tiny_static_encoder, temperature, tiny_lm) for make in READING.values()]
        return [*(make(tiny_static_encoder, temperature) for make in STORED.values()), *reading]

    return make


def test_embeddings_of_zeros_give_a_finite_loss(
    tiny_static_encoder: SentenceTransformer, objectives: Callable[[float], list[Objective]]
) -> None:
    """Reference: cosines of 0, as from an encoder that finds no word in a text."""
    for loss in itertools.chain.from_iterable(map(objectives, (1e-4, 5e-2, 1e2))):
        labels = labels_of(loss, tiny_static_encoder)
        features = [{"x": torch.zeros(n, 8, requires_grad=True)} for n in (B, 3 * B)]
        queries, documents = embed(lambda f: {"sentence_embedding": f["x"]}, features)
        (value,) = loss.compute_loss_from_embeddings(queries, documents, labels).values()
        none = torch.zeros(B, 8), torch.zeros(B, 3, 8)
        (expected,) = loss.compute_loss_from_embeddings(*none, labels).values()
        assert value.isfinite(), type(loss)
        assert value.item() == expected.item()
        for gradient in torch.autograd.grad(value, [f["x"] for f in features], allow_unused=True):
            assert gradient is None or gradient.isfinite().all(), type(loss)


@pytest.mark.parametrize("where", ["a query", "a candidate", "everything"])
def test_an_embedding_of_nan_is_never_trained_on(
    tiny_static_encoder: SentenceTransformer, objectives: Callable[[float], list[Objective]], where: str
) -> None:
    """Reference: the trainer refuses a loss of NaN, so it must be NaN, whatever the objective makes of the numbers."""
    queries, documents = embeddings()
    if where != "a candidate":
        queries[0 if where == "a query" else slice(None)] = torch.nan
    if where != "a query":
        documents[:, 1] = torch.nan
    queries.requires_grad_()
    for loss in objectives(0.05):
        labels = labels_of(loss, tiny_static_encoder)
        (value,) = loss.compute_loss_from_embeddings(queries, documents, labels).values()
        assert value.isnan(), type(loss)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_an_encoder_of_every_dtype(tiny_encoder: SentenceTransformer, dtype: torch.dtype) -> None:
    """Reference: the encoder in float32, to the precision of its dtype; the loss itself is float32 in each."""
    batch = NLTCollator(tiny_encoder, seed=1)(ROWS)
    features = [
        {name.removeprefix(start): value for name, value in batch.items() if name.startswith(start)}
        for start in ENCODER_INPUTS
    ]
    labels = {name: value for name, value in batch.items() if not name.startswith(ENCODER_INPUTS)}
    losses = [make(tiny_encoder, 0.05) for make in STORED.values()]
    expected = [next(iter(loss(features, labels).values())).item() for loss in losses]
    tiny_encoder.to(dtype)
    for loss, right in zip(losses, expected, strict=True):
        (value,) = loss(features, labels).values()
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(right, rel=0.1, abs=0.1)
        value.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in tiny_encoder.parameters())
