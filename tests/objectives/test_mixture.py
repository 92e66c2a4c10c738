"""Mixtures against their terms."""

from __future__ import annotations

import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from nlt_trainer.errors import NLTError
from nlt_trainer.objectives.emdr2 import EMDR2Loss
from nlt_trainer.objectives.info_nce import InfoNCELoss
from nlt_trainer.objectives.likelihood_gain import LikelihoodGainLoss
from nlt_trainer.objectives.mixture import MixtureLoss

LABELS = {
    "gain": torch.tensor([[0.4, 0.1], [0.2, 0.3]]),
    "candidate_keys": torch.arange(4).reshape(2, 2),
    "target_tokens": torch.tensor([3, 2]),
    "log_likelihood": torch.tensor([[-4.0, -6.0], [-3.0, -2.0]]),
}


def features(encoder: SentenceTransformer) -> list[dict[str, Tensor]]:
    return [encoder.preprocess(["tea", "an owl"]), encoder.preprocess(["green tea", "silk", "a night owl", "bread"])]


def test_terms_are_weighted_and_named(tiny_encoder: SentenceTransformer) -> None:
    """Reference: each objective alone, at its own temperature, times its weight; the gradient is their sum's."""
    terms = [LikelihoodGainLoss(tiny_encoder), EMDR2Loss(tiny_encoder, temperature=0.2), InfoNCELoss(tiny_encoder)]
    weights = [1.0, 0.5, 0.01]
    mixture = MixtureLoss(terms, weights=weights)
    found = mixture(features(tiny_encoder), LABELS)
    expected = {
        name: weight * value
        for term, weight in zip(terms, weights, strict=True)
        for name, value in term(features(tiny_encoder), LABELS).items()
    }
    assert list(found) == ["likelihood_gain", "emdr2", "info_nce"]
    torch.testing.assert_close(found, expected)
    parameters = [p for p in tiny_encoder.parameters() if p.requires_grad]
    ours = torch.autograd.grad(torch.stack(list(found.values())).sum(), parameters, allow_unused=True)
    theirs = torch.autograd.grad(torch.stack(list(expected.values())).sum(), parameters, allow_unused=True)
    torch.testing.assert_close([g for g in ours if g is not None], [g for g in theirs if g is not None])


def test_the_encoder_runs_once_a_step(tiny_encoder: SentenceTransformer) -> None:
    """Reference: two calls, queries and documents, whatever the number of terms."""
    calls = []
    tiny_encoder.register_forward_hook(lambda *_: calls.append(1))
    MixtureLoss([LikelihoodGainLoss(tiny_encoder), InfoNCELoss(tiny_encoder)], weights=[1, 1])(
        features(tiny_encoder), LABELS
    )
    assert len(calls) == 2


def test_parameters_are_the_encoders_once(tiny_encoder: SentenceTransformer) -> None:
    """Reference: the encoder's parameters, from which the trainer builds its optimizer."""
    mixture = MixtureLoss([LikelihoodGainLoss(tiny_encoder), InfoNCELoss(tiny_encoder)], weights=[1, 1])
    assert [id(p) for p in mixture.parameters()] == [id(p) for p in tiny_encoder.parameters()]
    assert isinstance(mixture, nn.Module)


def test_wrong_mixtures_are_refused(
    tiny_encoder: SentenceTransformer, tiny_static_encoder: SentenceTransformer
) -> None:
    """Reference: the value and the remedy in each message."""
    one, other = LikelihoodGainLoss(tiny_encoder), LikelihoodGainLoss(tiny_encoder, divergence="listwise")
    with pytest.raises(NLTError, match=r"2 objectives and 1 weights; give one for each"):
        MixtureLoss([one, other], weights=[1])
    with pytest.raises(NLTError, match=r"0 objectives and 0 weights"):
        MixtureLoss([], weights=[])
    with pytest.raises(NLTError, match=r"weight -0.5 is not a positive number; leave the objective out"):
        MixtureLoss([one, other], weights=[1, -0.5])
    with pytest.raises(NLTError, match=r"hold different encoders; give all of them the same one"):
        MixtureLoss([one, LikelihoodGainLoss(tiny_static_encoder)], weights=[1, 1])
    with pytest.raises(NLTError, match=r"two objectives of the mixture have a term 'likelihood_gain'"):
        MixtureLoss([one, other], weights=[1, 1])(features(tiny_encoder), LABELS)
