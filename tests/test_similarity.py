"""Scores of candidates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from nlt_trainer.errors import NLTError
from nlt_trainer.models.similarity import LENGTH_GROUPS, all_cosines, embed, gain_of, own_cosines


@pytest.mark.parametrize("side", ["left", "right"])
def test_groups_of_similar_length_embed_as_each_text_alone(tiny_encoder_folder: Path, side: str) -> None:
    """Reference: one text at a time, embeddings and gradients; and the padding that the groups leave out."""
    encoder = SentenceTransformer(str(tiny_encoder_folder), device="cpu").eval()
    encoder.tokenizer.padding_side = side
    words = "green tea is made from leaves that an owl at night hunts".split()
    texts = [" ".join(words[: 1 + 5 * i % 12]) for i in range(11)]
    seen: list[int] = []

    def count(module: Any, inputs: Any) -> None:
        seen.append(inputs[0]["input_ids"].numel())

    encoder.register_forward_pre_hook(count)
    features = encoder.preprocess(texts)
    _, documents = embed(encoder, [encoder.preprocess(["an owl"]), features])  # (1, 11, D)
    assert len(seen) == 1 + LENGTH_GROUPS
    assert int(features["attention_mask"].sum()) <= sum(seen[1:]) < features["input_ids"].numel()
    weights = torch.arange(documents.numel()).reshape(documents.shape).float().sin()
    (documents * weights).sum().backward()
    found = {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}
    encoder.zero_grad()
    alone = [encoder(encoder.preprocess([text]))["sentence_embedding"] for text in texts]
    expected = torch.nn.functional.normalize(torch.cat(alone), dim=-1)
    torch.testing.assert_close(documents[0], expected, atol=1e-5, rtol=0)
    (expected * weights[0]).sum().backward()
    for name, parameter in encoder.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[name], parameter.grad, atol=1e-4, rtol=1e-4)


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
