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


def numpy_loss(embeddings: tuple[np.ndarray, np.ndarray], positive: list[int], *, in_batch: bool) -> float:
    """The reference: -log of the positive's share among candidates of other texts, temperature 0.1."""
    queries, documents = embeddings
    keys, total = KEYS.flatten().tolist(), 0.0
    for b, own in enumerate(positive):
        column = 2 * b + own
        others = [j for j in range(6) if (in_batch or j // 2 == b) and keys[j] != keys[column]]
        scores = documents @ queries[b] / 0.1
        total -= scores[column] - np.log(np.exp(scores[[column, *others]]).sum())
    return total / 3


def run(encoder: SentenceTransformer, labels: dict[str, Tensor], *, in_batch: bool) -> Tensor:
    loss = InfoNCELoss(encoder, temperature=0.1, in_batch_negatives=in_batch)
    return loss([encoder.preprocess(QUERIES), encoder.preprocess(DOCUMENTS)], {"candidate_keys": KEYS, **labels})[
        "info_nce"
    ]


@pytest.mark.parametrize("in_batch", [True, False])
@pytest.mark.parametrize(
    ("labels", "positive"),
    [
        ({"gain": GAIN}, [0, 1, 1]),
        ({"positive": torch.tensor([1, 0, 0])}, [1, 0, 0]),
        ({"positive": torch.tensor([1, 0, 0]), "gain": GAIN}, [1, 0, 0]),
    ],
)
def test_the_loss_is_the_formula(
    tiny_static_encoder: SentenceTransformer, labels: dict[str, Tensor], positive: list[int], in_batch: bool
) -> None:
    """Reference: numpy; "green tea" and "the moon" stand twice and are never negatives of themselves."""
    embeddings = (
        tiny_static_encoder.encode(QUERIES, normalize_embeddings=True).astype(np.float64),
        tiny_static_encoder.encode(DOCUMENTS, normalize_embeddings=True).astype(np.float64),
    )
    expected = numpy_loss(embeddings, positive, in_batch=in_batch)
    assert run(tiny_static_encoder, labels, in_batch=in_batch).item() == pytest.approx(expected, rel=1e-4)


def test_equal_texts_are_masked_and_the_positive_is_not(tiny_static_encoder: SentenceTransformer) -> None:
    """Reference: cross-entropy over the columns that are left."""
    scores = torch.tensor([[1.0, 5.0, 2.0, 0.0]])
    loss = InfoNCELoss(tiny_static_encoder)
    found = loss.compute_loss_from_scores(scores, torch.tensor([0]), torch.tensor([[7, 7, 8, 9]]))
    torch.testing.assert_close(found, torch.nn.functional.cross_entropy(scores[:, [0, 2, 3]], torch.tensor([0])))


def test_a_temperature_that_is_not_positive_is_refused(tiny_static_encoder: SentenceTransformer) -> None:
    """Reference: the value and the remedy in the message."""
    with pytest.raises(NLTError, match=r"temperature is -0.5; it must be greater than 0"):
        InfoNCELoss(tiny_static_encoder, temperature=-0.5)
