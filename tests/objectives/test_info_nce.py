"""InfoNCE against numpy, with equal texts and with labelled and gain positives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from nlt_trainer.errors import NLTError
from nlt_trainer.objectives.info_nce import InfoNCELoss

QUERIES = ["tea", "an owl", "the sea"]
DOCUMENTS = ["green tea", "the moon", "a night owl", "green tea", "bread", "the moon"]
KEYS = torch.tensor([[1, 2], [3, 1], [4, 2]])
GAIN = torch.tensor([[0.4, 0.1], [0.2, 0.3], [-0.1, 0.5]])  # best: green tea, green tea, the moon


def numpy_loss(embeddings: tuple[np.ndarray, np.ndarray], positive: list[int]) -> float:
    """The reference: -log of the positive's share among candidates of other texts, temperature 0.1."""
    queries, documents = embeddings
    keys, total = KEYS.flatten().tolist(), 0.0
    for b, own in enumerate(positive):
        column = 2 * b + own
        others = [j for j in range(6) if keys[j] != keys[column]]
        scores = documents @ queries[b] / 0.1
        total -= scores[column] - np.log(np.exp(scores[[column, *others]]).sum())
    return total / 3


def run(encoder: SentenceTransformer, labels: dict[str, Tensor]) -> Tensor:
    loss = InfoNCELoss(encoder, temperature=0.1)
    return loss([encoder.preprocess(QUERIES), encoder.preprocess(DOCUMENTS)], {"candidate_keys": KEYS, **labels})[
        "info_nce"
    ]


@pytest.mark.parametrize(
    ("labels", "positive"),
    [
        ({"gain": GAIN}, [0, 1, 1]),
        ({"positive": torch.tensor([1, 0, 0])}, [1, 0, 0]),
        ({"positive": torch.tensor([1, 0, 0]), "gain": GAIN}, [1, 0, 0]),
    ],
)
def test_the_loss_is_the_formula(
    tiny_static_encoder: SentenceTransformer, labels: dict[str, Tensor], positive: list[int]
) -> None:
    """Reference: numpy; "green tea" and "the moon" stand twice and are never negatives of themselves."""
    embeddings = (
        tiny_static_encoder.encode(QUERIES, normalize_embeddings=True).astype(np.float64),
        tiny_static_encoder.encode(DOCUMENTS, normalize_embeddings=True).astype(np.float64),
    )
    expected = numpy_loss(embeddings, positive)
    assert run(tiny_static_encoder, labels).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("margin", [0.0, 0.15, 1.0])
@pytest.mark.parametrize("labels", [{}, {"positive": torch.tensor([1, 0, 0])}])
def test_candidates_within_the_margin_are_no_negatives(
    tiny_static_encoder: SentenceTransformer, labels: dict[str, Tensor], margin: float
) -> None:
    """Reference: loops in numpy; a text's gain is known where it is among the query's own candidates."""
    queries = tiny_static_encoder.encode(QUERIES, normalize_embeddings=True).astype(np.float64)
    documents = tiny_static_encoder.encode(DOCUMENTS, normalize_embeddings=True).astype(np.float64)
    positive = labels["positive"].tolist() if labels else [0, 1, 1]
    keys, expected, masked = KEYS.flatten().tolist(), 0.0, 0
    for b, own in enumerate(positive):
        known = dict(zip(KEYS[b].tolist(), GAIN[b].tolist(), strict=True))
        terms = []
        for j in range(6):
            negative = known.get(keys[j], -np.inf) < known[keys[2 * b + own]] - margin
            masked += not negative and keys[j] != keys[2 * b + own]
            if negative or j == 2 * b + own:
                terms.append(np.exp(documents[j] @ queries[b] / 0.1))
        expected -= documents[2 * b + own] @ queries[b] / 0.1 - np.log(sum(terms))
    loss = InfoNCELoss(tiny_static_encoder, temperature=0.1, false_negative_margin=margin)
    features = [tiny_static_encoder.preprocess(QUERIES), tiny_static_encoder.preprocess(DOCUMENTS)]
    found = loss(features, {"candidate_keys": KEYS, "gain": GAIN, **labels})["info_nce"]
    assert found.item() == pytest.approx(expected / 3, rel=1e-4, abs=1e-6)
    assert masked > 0 or (margin == 0 and not labels)


def test_other_relevant_documents_are_no_negatives(tiny_static_encoder: SentenceTransformer) -> None:
    """Reference: numpy. Text 2 is a second relevant document of the first query: its own candidate, and the third's.

    Text 4 is relevant to the second query, which does not have it as a candidate. The third has no further one.
    """
    queries = tiny_static_encoder.encode(QUERIES, normalize_embeddings=True).astype(np.float64)
    documents = tiny_static_encoder.encode(DOCUMENTS, normalize_embeddings=True).astype(np.float64)
    others, expected = [{2}, {4}, set()], 0.0
    for b, scores in enumerate(queries @ documents.T / 0.1):
        positive, keys = 2 * b, KEYS.flatten().tolist()
        left = [j for j in range(6) if keys[j] not in {*others[b], keys[positive]}]
        expected -= scores[positive] - np.log(np.exp(scores[[positive, *left]]).sum())
    labels = {"positive": torch.tensor([0, 0, 0]), "no_negatives": torch.tensor([[1, 2], [3, 4], [4, -1]])}
    found = run(tiny_static_encoder, labels).item()
    assert found == pytest.approx(expected / 3, rel=1e-4)
    assert found < run(tiny_static_encoder, {"positive": torch.tensor([0, 0, 0])}).item() - 0.01


def test_a_margin_needs_gains(tiny_static_encoder: SentenceTransformer) -> None:
    """Reference: the remedy in the message; labels alone do not say which negatives are false."""
    features = [tiny_static_encoder.preprocess(QUERIES), tiny_static_encoder.preprocess(DOCUMENTS)]
    loss = InfoNCELoss(tiny_static_encoder, false_negative_margin=0.1)
    with pytest.raises(NLTError, match=r"the batch has no gain; run `nlt score` first"):
        loss(features, {"candidate_keys": KEYS, "positive": torch.tensor([1, 0, 0])})


def test_excluded_columns_are_masked_and_the_positive_is_not(tiny_static_encoder: SentenceTransformer) -> None:
    """Reference: cross-entropy over the columns that are left; with none left but the positive there is no loss."""
    scores = torch.tensor([[1.0, 5.0, 2.0, 0.0]])
    loss, positive = InfoNCELoss(tiny_static_encoder), torch.tensor([0])
    found = loss.compute_loss_from_scores(scores, positive, torch.tensor([[True, True, False, False]]))
    torch.testing.assert_close(found, torch.nn.functional.cross_entropy(scores[:, [0, 2, 3]], positive))
    assert loss.compute_loss_from_scores(scores, positive, torch.ones(1, 4, dtype=torch.bool)).item() == 0


def test_gradients_against_finite_differences(tiny_static_encoder: SentenceTransformer) -> None:
    """Reference: `torch.autograd.gradcheck` on scores in float64."""
    scores = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    excluded, positive = torch.rand(3, 5) < 0.3, torch.tensor([4, 0, 2])
    loss = InfoNCELoss(tiny_static_encoder)
    assert torch.autograd.gradcheck(lambda s: loss.compute_loss_from_scores(s, positive, excluded), scores)


def test_wrong_settings_are_refused(tiny_static_encoder: SentenceTransformer) -> None:
    """Reference: the value and the remedy in each message."""
    with pytest.raises(NLTError, match=r"temperature is -0.5; it must be greater than 0"):
        InfoNCELoss(tiny_static_encoder, temperature=-0.5)
    with pytest.raises(NLTError, match=r"false_negative_margin is -1; it must be at least 0, or unset"):
        InfoNCELoss(tiny_static_encoder, false_negative_margin=-1)
