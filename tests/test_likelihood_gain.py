"""The likelihood-gain loss against ten lines of numpy and closed cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from nlt_trainer.errors import NLTError
from nlt_trainer.objectives.likelihood_gain import LikelihoodGainLoss, QueryWeight


def numpy_loss(
    scores: np.ndarray, gain: np.ndarray, *, null_score: float | None, query_weight: str, temperature: float = 0.2
) -> float:
    """The reference: KL(softmax(gain / temperature) || softmax(scores)), weighted, mean over queries."""

    def softmax(x: np.ndarray) -> np.ndarray:
        e = np.exp(x - x.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    column = np.zeros((len(gain), 1))
    better = 1 - softmax(np.hstack([gain / temperature, column]))[:, -1]
    weight = {"none": np.ones(len(gain)), "positive": (gain.max(1) > 0) * 1.0, "gain": better}[query_weight]
    if null_score is not None:
        gain, scores = np.hstack([gain, column]), np.hstack([scores, column + null_score])
    p, q = softmax(gain / temperature), softmax(scores)
    return float((weight * (p * np.log(p / q)).sum(1)).mean())


@pytest.fixture
def numbers() -> tuple[Tensor, Tensor]:
    """Scores and gains of 4 queries with 3 candidates; the second query has no positive gain."""
    generator = torch.Generator().manual_seed(3)
    scores, gain = torch.randn(4, 3, generator=generator) * 2, torch.randn(4, 3, generator=generator) * 0.3
    gain[1] = -gain[1].abs() - 0.1
    return scores, gain


@pytest.mark.parametrize("query_weight", ["none", "positive", "gain"])
@pytest.mark.parametrize("null_candidate", [False, True])
def test_the_loss_is_the_formula(
    tiny_static_encoder: SentenceTransformer,
    numbers: tuple[Tensor, Tensor],
    query_weight: QueryWeight,
    null_candidate: bool,
) -> None:
    """Reference: numpy in float64."""
    loss = LikelihoodGainLoss(
        tiny_static_encoder, null_candidate=null_candidate, null_similarity=0.1, query_weight=query_weight
    )
    scores, gain = numbers
    expected = numpy_loss(
        scores.double().numpy(),
        gain.double().numpy(),
        null_score=0.1 / 0.05 if null_candidate else None,
        query_weight=query_weight,
    )
    assert float(loss.compute_loss_from_scores(scores, gain)) == pytest.approx(expected, rel=1e-5)
    assert expected > 0.1


def test_a_student_that_agrees_has_no_loss_and_no_gradient(
    tiny_static_encoder: SentenceTransformer, numbers: tuple[Tensor, Tensor]
) -> None:
    """Reference: KL(p || p) = 0, its minimum; a shift of the scores does not matter."""
    gain = numbers[1]
    scores = (gain / 0.2 + 5).requires_grad_()
    loss = LikelihoodGainLoss(tiny_static_encoder).compute_loss_from_scores(scores, gain)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert scores.grad is not None
    torch.testing.assert_close(scores.grad, torch.zeros(4, 3), rtol=0, atol=1e-6)


def test_a_one_hot_teacher_gives_cross_entropy(
    tiny_static_encoder: SentenceTransformer, numbers: tuple[Tensor, Tensor]
) -> None:
    """Reference: cross-entropy with the best candidate, the limit of a low teacher temperature."""
    scores, gain = numbers
    loss = LikelihoodGainLoss(tiny_static_encoder, teacher_temperature=1e-4).compute_loss_from_scores(scores, gain)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(scores, gain.argmax(1)), rtol=1e-5, atol=1e-6)


def test_a_constant_matters_only_to_the_null_candidate(
    tiny_static_encoder: SentenceTransformer, numbers: tuple[Tensor, Tensor]
) -> None:
    """Reference: softmax is invariant under a constant a query; the null candidate's gain stays 0."""
    scores, gain = numbers
    shifted = gain + torch.tensor([[0.5], [-0.2], [0.1], [1.0]])
    plain = LikelihoodGainLoss(tiny_static_encoder)
    torch.testing.assert_close(
        plain.compute_loss_from_scores(scores, gain),
        plain.compute_loss_from_scores(scores, shifted),
        rtol=1e-5,
        atol=1e-6,
    )
    with_null = LikelihoodGainLoss(tiny_static_encoder, null_candidate=True)
    difference = with_null.compute_loss_from_scores(scores, gain) - with_null.compute_loss_from_scores(scores, shifted)
    assert abs(float(difference)) > 0.01


@pytest.mark.parametrize("query_weight", ["none", "positive", "gain"])
def test_a_batch_is_the_mean_of_its_queries(
    tiny_static_encoder: SentenceTransformer, numbers: tuple[Tensor, Tensor], query_weight: QueryWeight
) -> None:
    """Reference: each query alone; hence any split of a global batch over processes has the same mean."""
    scores, gain = numbers
    loss = LikelihoodGainLoss(tiny_static_encoder, query_weight=query_weight)
    alone = [loss.compute_loss_from_scores(scores[b : b + 1], gain[b : b + 1]) for b in range(4)]
    torch.testing.assert_close(loss.compute_loss_from_scores(scores, gain), torch.stack(alone).mean())


def test_forward_takes_cosines(tiny_static_encoder: SentenceTransformer) -> None:
    """Reference: `encoder.similarity` of the embeddings, query-major."""
    queries, documents = ["tea", "an owl"], ["green tea", "the moon", "a night owl", "bread"]
    gain = torch.tensor([[0.3, 0.0], [0.2, -0.1]])
    features = [tiny_static_encoder.preprocess(queries), tiny_static_encoder.preprocess(documents)]
    loss = LikelihoodGainLoss(tiny_static_encoder, temperature=0.1)
    found = loss(features, {"gain": gain})["likelihood_gain"]
    cosines = tiny_static_encoder.similarity(
        tiny_static_encoder.encode(queries, convert_to_tensor=True),
        tiny_static_encoder.encode(documents, convert_to_tensor=True),
    )
    scores = torch.stack([cosines[0, :2], cosines[1, 2:]]) / 0.1
    torch.testing.assert_close(found, loss.compute_loss_from_scores(scores, gain), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0}, "temperature is 0; it must be greater than 0"),
        ({"teacher_temperature": -1.0}, "teacher_temperature is -1.0; it must be greater than 0"),
        ({"query_weight": "best"}, "query_weight 'best' is unknown; choose none, positive or gain"),
    ],
)
def test_wrong_settings_are_refused(
    tiny_static_encoder: SentenceTransformer, settings: dict[str, object], message: str
) -> None:
    """Reference: the value and the remedy in each message."""
    with pytest.raises(NLTError, match=f"^{message}"):
        LikelihoodGainLoss(tiny_static_encoder, **settings)  # type: ignore[arg-type]
