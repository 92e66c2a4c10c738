"""Encoders on their way to workers."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import numpy as np
import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from sentence_transformers import SentenceTransformer

from nlt_trainer.encoder.embedding import EncoderForWorkers, Texts, embed

ray = pytest.importorskip("ray")


@pytest.fixture
def bf16_accelerator() -> Iterator[Accelerator]:
    """What prepares an encoder for training in mixed precision."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(mixed_precision="bf16", cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


def test_an_encoder_that_trains_in_mixed_precision_travels(
    bf16_accelerator: Accelerator, tiny_encoder: SentenceTransformer
) -> None:
    """Reference: the embeddings before; the encoder that trains keeps what accelerate has put around its `forward`."""
    texts = Texts("document", ["an owl hunts", "the moon"], None, batch_size=2)
    expected = embed(tiny_encoder, texts, bf16=False, name="encoder")
    prepared = bf16_accelerator.prepare(tiny_encoder)
    around = prepared.forward
    with pytest.raises(pickle.PicklingError, match="automatic mixed precision"):
        ray.cloudpickle.dumps(prepared)
    sent = pickle.loads(ray.cloudpickle.dumps(EncoderForWorkers(prepared, bf16=False, name="encoder")))
    np.testing.assert_array_equal(sent()(texts), expected)
    assert prepared.forward == around
    bf16 = embed(prepared, texts, bf16=False, name="encoder")
    assert 0 < np.abs(bf16 - expected).max() < 0.05
