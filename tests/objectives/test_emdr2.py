"""EMDR2 against loops of probabilities, at both levels, and closed cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from nlt_trainer.choices import MarginalLevel
from nlt_trainer.errors import NLTError
from nlt_trainer.objectives.emdr2 import EMDR2Loss

TOKENS = [3, 1, 4]  # target tokens of 3 queries


@pytest.fixture
def numbers() -> tuple[Tensor, Tensor]:
    """Scores of 3 queries with 4 candidates, and log-likelihoods of at most 4 target tokens, 0 after the end."""
    generator = torch.Generator().manual_seed(3)
    by_token = -torch.rand(3, 4, 4, generator=generator) * 4
    for b, length in enumerate(TOKENS):
        by_token[b, :, length:] = 0
    return torch.randn(3, 4, generator=generator) * 2, by_token


def numpy_loss(scores: np.ndarray, by_token: np.ndarray, level: str) -> float:
    """The reference: probabilities multiplied and added one by one, in float64."""
    total = 0.0
    for b, length in enumerate(TOKENS):
        shares = np.exp(scores[b]) / np.exp(scores[b]).sum()
        p = np.exp(by_token[b, :, :length])  # (K, T)
        if level == "sequence":
            log_marginal = math.log(sum(shares[k] * np.prod(p[k]) for k in range(len(shares))))
        else:
            log_marginal = sum(math.log(sum(shares[k] * p[k, t] for k in range(len(shares)))) for t in range(length))
        total -= log_marginal / length
    return total / len(TOKENS)


def likelihoods(by_token: Tensor, level: MarginalLevel) -> Tensor:
    """What the loss takes: `(B, K, T)`, or `(B, K, 1)` for whole sequences."""
    return by_token if level == "token" else by_token.sum(-1, keepdim=True)


@pytest.mark.parametrize("level", ["sequence", "token"])
def test_the_loss_is_the_formula(
    tiny_static_encoder: SentenceTransformer, numbers: tuple[Tensor, Tensor], level: MarginalLevel
) -> None:
    """Reference: numpy in float64; targets of different lengths."""
    scores, by_token = numbers
    loss = EMDR2Loss(tiny_static_encoder, level=level)
    found = loss.compute_loss_from_scores(scores, likelihoods(by_token, level), torch.tensor(TOKENS))
    expected = numpy_loss(scores.double().numpy(), by_token.double().numpy(), level)
    assert found.item() == pytest.approx(expected, rel=1e-5)
    assert expected > 0.5


@pytest.mark.parametrize("level", ["sequence", "token"])
def test_gradients_against_finite_differences(
    tiny_static_encoder: SentenceTransformer, numbers: tuple[Tensor, Tensor], level: MarginalLevel
) -> None:
    """Reference: `torch.autograd.gradcheck` on scores in float64."""
    loss, tokens = EMDR2Loss(tiny_static_encoder, level=level), torch.tensor(TOKENS)
    by_token = likelihoods(numbers[1].double(), level)
    scores = numbers[0].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: loss.compute_loss_from_scores(s, by_token, tokens), scores)


def test_the_gradient_is_share_minus_posterior(
    tiny_static_encoder: SentenceTransformer, numbers: tuple[Tensor, Tensor]
) -> None:
    """Reference: the closed form of the docstring, over the target's length and the batch."""
    scores, by_token = numbers[0].requires_grad_(), numbers[1]
    loss = EMDR2Loss(tiny_static_encoder)
    loss.compute_loss_from_scores(scores, likelihoods(by_token, "sequence"), torch.tensor(TOKENS)).backward()
    share = scores.detach().softmax(-1)
    posterior = (scores.detach() + by_token.sum(-1)).softmax(-1)
    torch.testing.assert_close(scores.grad, (share - posterior) / torch.tensor(TOKENS)[:, None] / 3)


@pytest.mark.parametrize("level", ["sequence", "token"])
def test_one_candidate_is_its_own_likelihood(tiny_static_encoder: SentenceTransformer, level: MarginalLevel) -> None:
    """Reference: minus the mean log-likelihood of a token, at both levels, whatever the score; no gradient."""
    by_token = torch.tensor([[[-1.0, -2.0, -3.0]], [[-4.0, 0.0, 0.0]]])
    scores = torch.tensor([[3.0], [-1.0]], requires_grad=True)
    loss = EMDR2Loss(tiny_static_encoder, level=level)
    value = loss.compute_loss_from_scores(scores, likelihoods(by_token, level), torch.tensor([3, 1]))
    value.backward()
    assert value.item() == pytest.approx((2 + 4) / 2)
    torch.testing.assert_close(scores.grad, torch.zeros(2, 1), rtol=0, atol=0)


@pytest.mark.parametrize("level", ["sequence", "token"])
def test_candidates_that_explain_equally_well_teach_nothing(
    tiny_static_encoder: SentenceTransformer, numbers: tuple[Tensor, Tensor], level: MarginalLevel
) -> None:
    """Reference: the shares sum to 1, so that the common likelihood comes out, and any shares do."""
    by_token = numbers[1][:, :1].expand(-1, 4, -1)
    scores = numbers[0].requires_grad_()
    loss = EMDR2Loss(tiny_static_encoder, level=level)
    value = loss.compute_loss_from_scores(scores, likelihoods(by_token, level), torch.tensor(TOKENS))
    value.backward()
    assert value.item() == pytest.approx(float((-by_token[:, 0].sum(-1) / torch.tensor(TOKENS)).mean()), rel=1e-5)
    assert scores.grad is not None
    torch.testing.assert_close(scores.grad, torch.zeros(3, 4), rtol=0, atol=1e-6)


def test_a_candidate_that_explains_alone_gives_cross_entropy(tiny_static_encoder: SentenceTransformer) -> None:
    """Reference: cross-entropy with that candidate, less its likelihood."""
    scores = torch.tensor([[0.3, -1.0, 2.0], [0.0, 0.5, 0.1]])
    likelihood = torch.tensor([[[-500.0], [-2.0], [-500.0]], [[-1.0], [-500.0], [-500.0]]])
    found = EMDR2Loss(tiny_static_encoder).compute_loss_from_scores(scores, likelihood, torch.tensor([1, 1]))
    expected = torch.nn.functional.cross_entropy(scores, torch.tensor([1, 0])) + 1.5
    torch.testing.assert_close(found, expected)


def test_float32_and_rounded_files_do_not_matter(tiny_static_encoder: SentenceTransformer) -> None:
    """Reference: float64, for targets of 1,000 tokens whose likelihoods lie within a nat; and 6 decimals in a file."""
    generator = torch.Generator().manual_seed(1)
    exact = -2500 - torch.rand(8, 8, 1, generator=generator, dtype=torch.float64)
    start = torch.randn(8, 8, generator=generator, dtype=torch.float64)
    loss, tokens = EMDR2Loss(tiny_static_encoder), torch.full((8,), 1000)
    gradients = []
    for scores, likelihood in ((start, exact), (start.float(), exact.float()), (start, exact.mul(1e6).round() / 1e6)):
        scores = scores.clone().requires_grad_()
        loss.compute_loss_from_scores(scores, likelihood, tokens).backward()
        assert scores.grad is not None
        gradients.append(scores.grad.double())
    scale = float(gradients[0].abs().max())
    assert float((gradients[1] - gradients[0]).abs().max()) < 1e-3 * scale
    assert float((gradients[2] - gradients[0]).abs().max()) < 1e-5 * scale


def test_forward_takes_the_batchs_columns(tiny_static_encoder: SentenceTransformer) -> None:
    """Reference: `compute_loss_from_scores` on cosines; what is missing names the remedy."""
    queries = torch.nn.functional.normalize(torch.randn(2, 8), dim=-1)
    documents = torch.nn.functional.normalize(torch.randn(2, 3, 8), dim=-1)
    scores = (documents @ queries[:, :, None])[..., 0] / 0.1
    labels = {
        "log_likelihood": -torch.rand(2, 3) * 5,
        "token_log_likelihoods": -torch.rand(2, 3, 4),
        "target_tokens": torch.tensor([4, 4]),
    }
    for level, key in (("sequence", "log_likelihood"), ("token", "token_log_likelihoods")):
        loss = EMDR2Loss(tiny_static_encoder, temperature=0.1, level=level)  # type: ignore[arg-type]  # from a tuple
        found = loss.compute_loss_from_embeddings(queries, documents, labels)
        expected = loss.compute_loss_from_scores(scores, labels[key].reshape(2, 3, -1), labels["target_tokens"])
        torch.testing.assert_close(found, {"emdr2": expected})
        remedy = "run `nlt score` again" + (" with token_likelihoods: true" if level == "token" else "")
        for missing in (key, "target_tokens"):
            with pytest.raises(NLTError, match=f"the batch has no {missing}; {remedy if missing == key else 'run'}"):
                rest = {name: value for name, value in labels.items() if name != missing}
                loss.compute_loss_from_embeddings(queries, documents, rest)


def test_wrong_settings_are_refused(tiny_static_encoder: SentenceTransformer) -> None:
    """Reference: the value and the remedy in each message."""
    with pytest.raises(NLTError, match=r"level 'word' is unknown; choose one of sequence, token"):
        EMDR2Loss(tiny_static_encoder, level="word")  # type: ignore[arg-type]
    with pytest.raises(NLTError, match=r"temperature is 0; it must be greater than 0"):
        EMDR2Loss(tiny_static_encoder, temperature=0)
