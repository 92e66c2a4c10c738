"""Scores of candidates."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nlt_trainer.encoder.similarity import all_cosines, gain_of, own_cosines
from nlt_trainer.errors import NLTError


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
