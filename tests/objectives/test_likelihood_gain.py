"""The likelihood-gain loss, under each divergence, against numpy in loops and closed cases."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from nlt_trainer.choices import Divergence
from nlt_trainer.errors import NLTError
from nlt_trainer.objectives.likelihood_gain import DIVERGENCES, LikelihoodGainLoss


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def numpy_divergence(name: str, teacher: np.ndarray, student: np.ndarray) -> np.ndarray:
    """The reference, in loops over queries and candidates where the loss has tensor operations: `(B,)`."""
    p, w = softmax(teacher), softmax(student)
    m = (p + w) / 2
    kl = {
        "forward_kl": p * np.log(p / w),
        "reverse_kl": w * np.log(w / p),
        "jensen_shannon": p * np.log(p / m) / 2 + w * np.log(w / m) / 2,
    }
    if name in kl:
        return kl[name].sum(1)
    values = []
    for t, s in zip(teacher, student, strict=True):
        order = sorted(range(len(t)), key=lambda k: -t[k])
        if name == "margin_mse":
            margins = [((t[order[0]] - t[k]) - (s[order[0]] - s[k])) ** 2 for k in order[1:]]
            values.append(sum(margins) / len(margins))
        else:  # choose the best, then the best of the rest, ...
            steps = [np.exp(s[k]) / sum(np.exp(s[j]) for j in order[i:]) for i, k in enumerate(order)]
            values.append(-sum(np.log(steps)))
    return np.array(values)


def numpy_loss(
    scores: np.ndarray,
    gain: np.ndarray,
    *,
    divergence: str = "forward_kl",
    temperature: float = 0.2,
) -> float:
    """The reference: the divergence of gain / temperature and scores, mean over queries."""
    return float(numpy_divergence(divergence, gain / temperature, scores).mean())


@pytest.fixture
def numbers() -> tuple[Tensor, Tensor]:
    """Scores and gains of 4 queries with 3 candidates; the second query has no positive gain."""
    generator = torch.Generator().manual_seed(3)
    scores, gain = torch.randn(4, 3, generator=generator) * 2, torch.randn(4, 3, generator=generator) * 0.3
    gain[1] = -gain[1].abs() - 0.1
    return scores, gain


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_the_loss_is_the_formula(
    tiny_static_encoder: SentenceTransformer,
    numbers: tuple[Tensor, Tensor],
    divergence: Divergence,
) -> None:
    """Reference: numpy in float64."""
    loss = LikelihoodGainLoss(tiny_static_encoder, divergence=divergence)
    scores, gain = numbers
    expected = numpy_loss(
        scores.double().numpy(),
        gain.double().numpy(),
        divergence=divergence,
    )
    assert float(loss.compute_loss_from_scores(scores, gain)) == pytest.approx(expected, rel=1e-5)
    assert expected > 0.05


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_gradients_against_finite_differences(
    tiny_static_encoder: SentenceTransformer,
    numbers: tuple[Tensor, Tensor],
    divergence: Divergence,
) -> None:
    """Reference: `torch.autograd.gradcheck` on scores in float64."""
    loss = LikelihoodGainLoss(tiny_static_encoder, divergence=divergence)
    scores, gain = numbers[0].double().requires_grad_(), numbers[1].double()
    assert torch.autograd.gradcheck(lambda s: loss.compute_loss_from_scores(s, gain), scores)


@pytest.mark.parametrize("divergence", [name for name in DIVERGENCES if name != "listwise"])
def test_a_student_that_agrees_has_no_loss_and_no_gradient(
    tiny_static_encoder: SentenceTransformer, numbers: tuple[Tensor, Tensor], divergence: Divergence
) -> None:
    """Reference: a divergence of equal distributions is 0, its minimum; a shift of the scores does not matter."""
    gain = numbers[1]
    scores = (gain / 0.2 + 5).requires_grad_()
    loss = LikelihoodGainLoss(tiny_static_encoder, divergence=divergence).compute_loss_from_scores(scores, gain)
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


def test_a_one_hot_teacher_under_jensen_shannon(
    tiny_static_encoder: SentenceTransformer, numbers: tuple[Tensor, Tensor]
) -> None:
    """Reference: with w the best candidate's share, log 2 + (w log w - (1 + w) log(1 + w)) / 2, at most log 2."""
    scores, gain = numbers
    loss = LikelihoodGainLoss(tiny_static_encoder, divergence="jensen_shannon", teacher_temperature=1e-4)
    found = loss.compute_loss_from_scores(scores, gain)
    w = scores.softmax(1).gather(1, gain.argmax(1, keepdim=True))
    expected = (math.log(2) + (w * w.log() - (1 + w) * (1 + w).log()) / 2).mean()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert 0 < float(found) < math.log(2)


@pytest.mark.parametrize(
    ("divergence", "expected"),
    [("forward_kl", 0), ("reverse_kl", 0), ("jensen_shannon", 0), ("margin_mse", 0), ("listwise", 3 * math.log(3))],
)
def test_a_uniform_teacher_and_a_uniform_student(
    tiny_static_encoder: SentenceTransformer, divergence: Divergence, expected: float
) -> None:
    """Reference: nothing to learn; under `listwise` each of 3 equal gains is the first of all 3: 3 log 3."""
    scores = torch.full((2, 3), 0.7, requires_grad=True)
    loss = LikelihoodGainLoss(tiny_static_encoder, divergence=divergence)
    value = loss.compute_loss_from_scores(scores, torch.full((2, 3), 0.4))
    value.backward()
    assert value.item() == pytest.approx(expected, abs=1e-6)
    assert scores.grad is not None
    torch.testing.assert_close(scores.grad, torch.zeros(2, 3), rtol=0, atol=1e-6)


def test_equal_gains_share_a_place(tiny_static_encoder: SentenceTransformer, numbers: tuple[Tensor, Tensor]) -> None:
    """Reference: any order of the candidates gives the same list loss, also with equal texts among them."""
    scores, gain = numbers[0][:, [0, 1, 2, 2]], numbers[1][:, [0, 1, 2, 2]]
    loss = LikelihoodGainLoss(tiny_static_encoder, divergence="listwise")
    expected = loss.compute_loss_from_scores(scores, gain)
    for order in itertools.permutations(range(4)):
        torch.testing.assert_close(loss.compute_loss_from_scores(scores[:, order], gain[:, order]), expected)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_single_candidate_teaches_nothing(tiny_static_encoder: SentenceTransformer, divergence: Divergence) -> None:
    """Reference: one candidate has all of both distributions, whatever its score."""
    scores = torch.tensor([[3.0], [-1.0]], requires_grad=True)
    loss = LikelihoodGainLoss(tiny_static_encoder, divergence=divergence)
    value = loss.compute_loss_from_scores(scores, torch.tensor([[0.5], [-0.2]]))
    value.backward()
    assert value.item() == 0
    torch.testing.assert_close(scores.grad, torch.zeros(2, 1), rtol=0, atol=0)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_constant_changes_nothing(
    tiny_static_encoder: SentenceTransformer, numbers: tuple[Tensor, Tensor], divergence: Divergence
) -> None:
    """Reference: differences alone count, of gains and of scores."""
    scores, gain = numbers
    shift = torch.tensor([[0.5], [-0.2], [0.1], [1.0]])
    plain = LikelihoodGainLoss(tiny_static_encoder, divergence=divergence)
    expected = plain.compute_loss_from_scores(scores, gain)
    for found in (
        plain.compute_loss_from_scores(scores, gain + shift),
        plain.compute_loss_from_scores(scores + shift, gain),
    ):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("left_out", [{}, {0: [9, 2], 1: [7, -1]}])
def test_candidates_of_the_batch_are_the_formula(
    tiny_static_encoder: SentenceTransformer, left_out: dict[int, list[int]]
) -> None:
    """Reference: numpy; key 2 stands twice and is one document, key 7 twice among one query's own and is read twice.

    What is no negative is left out, unless it is a candidate of the query's own, as key 2 is.
    """
    embeddings = torch.nn.functional.normalize(torch.randn(2, 4, 8), dim=-1)
    queries, documents = embeddings[:, 0], embeddings[:, 1:].clone()
    keys, gain = torch.tensor([[7, 2, 7], [2, 9, 4]]), torch.tensor([[0.3, 0.0, 0.1], [0.2, -0.1, 0.05]])
    documents[0, 2], documents[1, 0] = documents[0, 0], documents[0, 1]  # equal texts have equal embeddings
    loss = LikelihoodGainLoss(tiny_static_encoder, in_batch_candidates=True)
    labels = {"gain": gain, "candidate_keys": keys}
    if left_out:
        labels["no_negatives"] = torch.tensor([*left_out.values()])
    found = loss.compute_loss_from_embeddings(queries, documents, labels)
    different = {7: documents[0, 0], 2: documents[0, 1], 9: documents[1, 1], 4: documents[1, 2]}
    expected = []
    for b in range(2):
        among = {*different} - {*left_out.get(b, [])} | {*keys[b].tolist()}
        scores = {key: float(queries[b] @ different[key]) / 0.05 for key in among}
        total = np.log(np.sum(np.exp([*scores.values()])))
        teacher = gain[b : b + 1].double().numpy() / 0.2
        p = softmax(teacher)[0]
        log_w = np.array([scores[int(key)] - total for key in keys[b]])
        expected.append(float((p * (np.log(p) - log_w)).sum()))
    assert float(found["likelihood_gain"]) == pytest.approx(np.mean(expected), rel=1e-4)


def test_one_query_alone_has_no_candidates_of_others(tiny_static_encoder: SentenceTransformer) -> None:
    """Reference: the loss without them, and its gradient."""
    embeddings = torch.nn.functional.normalize(torch.randn(1, 4, 8), dim=-1)
    labels = {"gain": torch.tensor([[0.3, 0.0, 0.1]]), "candidate_keys": torch.tensor([[1, 2, 3]])}
    found = []
    for in_batch in (True, False):
        documents = embeddings[:, 1:].clone().requires_grad_()
        loss = LikelihoodGainLoss(tiny_static_encoder, in_batch_candidates=in_batch)
        value = loss.compute_loss_from_embeddings(embeddings[:, 0], documents, labels)["likelihood_gain"]
        found.append((value, torch.autograd.grad(value, documents)[0]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)


def test_a_batch_is_the_mean_of_its_queries(
    tiny_static_encoder: SentenceTransformer, numbers: tuple[Tensor, Tensor]
) -> None:
    """Reference: each query alone; hence any split of a global batch over processes has the same mean."""
    scores, gain = numbers
    loss = LikelihoodGainLoss(tiny_static_encoder)
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
        (
            {"in_batch_candidates": True, "divergence": "listwise"},
            "in_batch_candidates: divergence 'listwise' needs gains of other queries' candidates",
        ),
        ({"divergence": "kl"}, "divergence 'kl' is unknown; choose one of forward_kl, reverse_kl, jensen_shannon, "),
    ],
)
def test_wrong_settings_are_refused(
    tiny_static_encoder: SentenceTransformer, settings: dict[str, object], message: str
) -> None:
    """Reference: the value and the remedy in each message."""
    with pytest.raises(NLTError, match=f"^{message}"):
        LikelihoodGainLoss(tiny_static_encoder, **settings)  # type: ignore[arg-type]
