"""Scores of candidates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize
from torch import Tensor

from nlt_trainer.encoder.similarity import all_cosines, check_similarity, gain_of, own_cosines
from nlt_trainer.errors import NLTError
from nlt_trainer.objectives.grad_cache import GradCacheLoss
from nlt_trainer.objectives.objective import Objective


class OwnCosines(Objective):
    """An objective whose one term is the matrix of cosines that every objective starts from."""

    def compute_loss_from_embeddings(
        self, queries: Tensor, documents: Tensor, labels: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        return {"cosines": own_cosines(queries, documents)}


@pytest.mark.parametrize("autocast", [False, True])
def test_cosines_against_numpy_also_under_autocast(autocast: bool) -> None:
    """Against numpy's dot products in float64; bfloat16 would be off by 1e-2."""
    queries = torch.nn.functional.normalize(torch.randn(3, 64), dim=-1)
    documents = torch.nn.functional.normalize(torch.randn(3, 5, 64), dim=-1)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        own, every = own_cosines(queries, documents), all_cosines(queries, documents.flatten(0, 1))
    q, d = queries.double().numpy(), documents.double().numpy()
    assert own.dtype == every.dtype == torch.float32
    np.testing.assert_allclose(own.numpy(), [[d[b, k] @ q[b] for k in range(5)] for b in range(3)], atol=1e-6)
    np.testing.assert_allclose(every.numpy(), q @ d.reshape(15, 64).T, atol=1e-6)


def test_a_batch_without_gains_names_the_remedy() -> None:
    """Against the message."""
    with pytest.raises(NLTError, match="nlt score"):
        gain_of({"candidate_keys": torch.zeros(1, 2)})


@pytest.mark.parametrize("in_parts", [False, True])
@pytest.mark.parametrize("dimensions", [None, 5])
def test_an_objective_compares_texts_as_the_encoder_does(
    tiny_encoder: SentenceTransformer, dimensions: int | None, in_parts: bool
) -> None:
    """Reference: `SentenceTransformer.encode` and `similarity`, which cut embeddings to `truncate_dim`."""
    tiny_encoder.truncate_dim = dimensions
    queries, documents = ["an owl", "green tea"], ["a mouse under the snow", "leaves", "bread rises", "a hive"]
    expected = tiny_encoder.similarity(tiny_encoder.encode(queries), tiny_encoder.encode(documents))  # (2, 4)
    loss: Objective = OwnCosines(tiny_encoder, temperature=1.0)
    if in_parts:
        loss = GradCacheLoss(loss, micro_batch_size=1)
    found = loss([tiny_encoder.preprocess(queries), tiny_encoder.preprocess(documents)], {})["cosines"]
    torch.testing.assert_close(found, torch.stack([expected[0, :2], expected[1, 2:]]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean", "manhattan"])
@pytest.mark.parametrize("dimensions", [None, 5])
@pytest.mark.parametrize("unit_length", [False, True])
def test_a_similarity_that_ranks_otherwise_than_the_cosine_is_refused(
    tiny_encoder: SentenceTransformer, similarity: str, dimensions: int | None, unit_length: bool
) -> None:
    """Reference: whether each ranking of 40 random embeddings by the encoder's own similarity is that by cosines."""
    tiny_encoder.similarity_fn_name = similarity  # type: ignore[assignment]  # a Literal
    tiny_encoder.truncate_dim = dimensions
    texts = torch.randn(40, 32, dtype=torch.float64)
    if unit_length:
        tiny_encoder.append(Normalize())
        texts = torch.nn.functional.normalize(texts, dim=-1)
    texts = texts[:, :dimensions]
    cosines = torch.nn.functional.cosine_similarity(texts[:, None], texts[None], dim=-1)
    if torch.equal(tiny_encoder.similarity(texts, texts).argsort(), cosines.argsort()):
        check_similarity(tiny_encoder)
    else:
        with pytest.raises(NLTError, match=rf"compares texts by '{similarity}'.*similarity_fn_name='cosine'"):
            OwnCosines(tiny_encoder, temperature=1.0)
