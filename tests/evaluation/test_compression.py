"""Smaller embeddings against Sentence Transformers' own and against closed cases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from nlt_trainer.encoder.embedding_cache import EmbeddingCache
from nlt_trainer.errors import NLTError
from nlt_trainer.evaluation.compression import CompressedEncoder

DOCUMENTS = [f"a document of {word}" for word in ("tea", "glass", "silk", "bread", "owls", "tides", "clocks", "bees")]


@pytest.fixture
def cached(tiny_static_encoder: SentenceTransformer, tmp_path: Path) -> EmbeddingCache:
    return EmbeddingCache(tiny_static_encoder, tmp_path)


def test_the_first_dimensions_are_those_of_the_encoder(cached: EmbeddingCache) -> None:
    """Reference: `truncate_dim` of the encoder's own method."""
    encoder = CompressedEncoder(cached, truncate_dim=8)
    for found, expected in (
        (encoder.encode_query, cached.encoder.encode_query),
        (encoder.encode_document, cached.encoder.encode_document),
    ):
        np.testing.assert_allclose(found(DOCUMENTS), expected(DOCUMENTS, truncate_dim=8), atol=1e-6)


def test_int8_is_within_half_a_step(cached: EmbeddingCache) -> None:
    """Reference: the float embeddings; 256 steps between least and greatest value; later documents share the steps."""
    exact = cached.encoder.encode_document(DOCUMENTS)
    encoder = CompressedEncoder(cached, precision="int8")
    found = encoder.encode_document(DOCUMENTS)
    step = (exact.max(0) - exact.min(0)) / 255
    assert np.all(np.abs(found - exact) <= 0.51 * step + 1e-6)
    assert np.abs(found - exact).max() > 0.1 * step.max()
    np.testing.assert_allclose(encoder.encode_document(DOCUMENTS[3:4]), found[3:4], atol=1e-6)
    np.testing.assert_array_equal(encoder.encode_query(DOCUMENTS), cached.encoder.encode_query(DOCUMENTS))


def test_binary_is_the_sign_of_the_dimensions_that_are_kept(cached: EmbeddingCache) -> None:
    """Reference: the signs of the first 12 dimensions, which do not fill two bytes."""
    encoder = CompressedEncoder(cached, truncate_dim=12, precision="binary")
    exact = cached.encoder.encode_document(DOCUMENTS)[:, :12]
    np.testing.assert_array_equal(encoder.encode_document(DOCUMENTS), np.where(exact > 0, 1, -1))


@pytest.mark.parametrize("dim", [0, 32, 500])
def test_sizes_that_are_none_are_refused(dim: int, cached: EmbeddingCache) -> None:
    """Reference: the encoder's 32 dimensions."""
    with pytest.raises(NLTError, match=rf"truncate_dims has {dim}, and the embeddings have 32 dimensions"):
        CompressedEncoder(cached, truncate_dim=dim)
