"""Parts of a batch against the whole batch at once: embeddings, gradients, sizes, padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from nlt_trainer.encoder import parts as encoder_parts
from nlt_trainer.encoder.parts import EncoderInParts, join, parts_by_length
from nlt_trainer.objectives.likelihood_gain import LikelihoodGainLoss

TEXTS = ["an owl hunts", "leaves", "the moon pulls the water of the sea " * 4, "silk", "bread rises " * 6, "a moth"]


def gradient(encoder: SentenceTransformer, embeddings: Tensor) -> Tensor:
    """Of some function of the embeddings, as one vector."""
    encoder.zero_grad()
    (embeddings * torch.arange(len(embeddings))[:, None]).square().sum().backward()
    return torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None])


@pytest.mark.parametrize("side", ["right", "left"])
def test_parts_embed_as_the_whole(
    tiny_encoder: SentenceTransformer, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: the encoder itself on all texts at once, with padding on either side; both with their gradients."""
    monkeypatch.setattr(encoder_parts, "PART_TOKENS", 32)
    tiny_encoder.tokenizer.padding_side = side
    # positions that no padding shifts, which this encoder does not find itself
    features: dict[str, Any] = tiny_encoder.preprocess(TEXTS)
    features["position_ids"] = (features["attention_mask"].cumsum(1) - 1).clamp(min=0)
    read: list[torch.Size] = []

    def model(inputs: dict[str, Any]) -> dict[str, Tensor]:
        read.append(inputs["input_ids"].shape)
        transformer: Any = tiny_encoder[0]
        hidden = transformer.auto_model(
            **{name: inputs[name] for name in ("input_ids", "attention_mask", "position_ids")}
        ).last_hidden_state
        mask = inputs["attention_mask"][:, :, None]
        return {"sentence_embedding": (hidden * mask).sum(1) / mask.sum(1)}

    expected = model(features)["sentence_embedding"]
    of_whole = gradient(tiny_encoder, expected)
    read.clear()
    found = EncoderInParts(model)(features)["sentence_embedding"]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient(tiny_encoder, found), of_whole, rtol=1e-5, atol=1e-4)
    lengths = features["attention_mask"].sum(1)
    assert sum(rows for rows, _ in read) == len(TEXTS)
    assert all(rows * length <= 32 or rows == 1 for rows, length in read)
    assert sum(rows * length for rows, length in read) < 0.7 * lengths.max() * len(TEXTS)  # padding is left out


def test_an_objective_embeds_in_parts(tiny_encoder: SentenceTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: the same objective with all texts at once, loss and gradient."""
    loss = LikelihoodGainLoss(tiny_encoder)
    features: list[dict[str, Tensor]] = [tiny_encoder.preprocess(TEXTS[:2]), tiny_encoder.preprocess(TEXTS)]
    gain = torch.tensor([[0.1, 0.9, 0.4], [0.2, 0.1, 0.7]])
    read: list[int] = []
    transformer: Any = tiny_encoder[0]
    handle = transformer.register_forward_hook(lambda *given: read.append(len(given[1][0]["input_ids"])))
    found = []
    for tokens in (10_000, 32):
        monkeypatch.setattr(encoder_parts, "PART_TOKENS", tokens)
        value = loss(features, {"gain": gain})["likelihood_gain"]
        tiny_encoder.zero_grad()
        value.backward()
        gradients = [p.grad.flatten().clone() for p in tiny_encoder.parameters() if p.grad is not None]
        found.append(torch.cat([value.detach()[None], *gradients]))
    handle.remove()
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)
    assert read[:2] == [2, 6]
    assert len(read) > 5


def test_small_batches_and_inputs_without_a_mask_stay_whole(tiny_encoder: SentenceTransformer) -> None:
    """Reference: the definition; the encoder gets the very inputs."""
    given: list[dict[str, Any]] = []

    def model(inputs: dict[str, Any]) -> dict[str, Tensor]:
        given.append(inputs)
        return {"sentence_embedding": torch.zeros(2, 3)}

    small: dict[str, Any] = tiny_encoder.preprocess(TEXTS)
    packed = {"input_ids": torch.zeros(5000, dtype=torch.int64), "offsets": torch.tensor([0, 3])}
    for features in (small, packed):
        EncoderInParts(model)(features)
        assert given[-1] is features


def test_parts_of_some_texts_keep_what_is_no_tensor(tiny_encoder: SentenceTransformer) -> None:
    """Reference: the texts sorted by hand."""
    features: dict[str, Any] = tiny_encoder.preprocess(TEXTS) | {"modality": "text"}
    parts = parts_by_length(features, texts=4)
    assert [len(rows) for rows, _ in parts] == [4, 2]
    lengths = features["attention_mask"].sum(1)
    assert lengths[torch.cat([rows for rows, _ in parts])].tolist() == sorted(lengths.tolist(), reverse=True)
    for rows, part in parts:
        assert part["modality"] == "text"
        width = int(lengths[rows].max())
        assert torch.equal(part["input_ids"], features["input_ids"][rows, :width])
    rows = torch.arange(len(TEXTS), dtype=torch.float32)[:, None]
    joined = join(parts, [rows[chosen] for chosen, _ in parts])["sentence_embedding"]
    assert torch.equal(joined, rows)
