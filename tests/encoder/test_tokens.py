"""Inputs of texts that are kept, against what the encoder makes of each batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from nlt_trainer.encoder import tokens as encoder_tokens
from nlt_trainer.encoder.tokens import EncoderTokens

BATCHES = (["an owl hunts", "leaves", "an owl hunts"], ["leaves", "", "the moon pulls the sea " * 9], ["", ""])


def counted(encoder: SentenceTransformer, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Texts that the encoder tokenises from now on."""
    texts: list[str] = []
    plain = encoder.preprocess

    def preprocess(inputs: list[str], **kwargs: Any) -> Any:
        texts.extend(inputs)
        return plain(inputs, **kwargs)

    monkeypatch.setattr(encoder, "preprocess", preprocess)
    return texts


def keys_of(texts: list[str]) -> list[int]:
    return [hash(text) for text in texts]


def check_equal(found: dict[str, Any], expected: Any) -> None:
    """Same entries, tensors of the same type."""
    assert set(found) == set(expected)
    for name, value in expected.items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(found[name], value.long(), rtol=0, atol=0)  # of no token at all it is float
        else:
            assert found[name] == value


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("prompt", ["", "query: "])
@pytest.mark.parametrize("max_length", [None, 12])
def test_a_transformers_batches(
    tiny_encoder: SentenceTransformer,
    monkeypatch: pytest.MonkeyPatch,
    side: str,
    prompt: str,
    max_length: int | None,
) -> None:
    """Reference: `preprocess` of each batch; no text is tokenised twice."""
    tiny_encoder.tokenizer.padding_side = side
    tiny_encoder.prompts = {"query": prompt}
    cut = {} if max_length is None else {"max_length": max_length}
    expected = [tiny_encoder.preprocess(b, prompt=prompt or None, task="query", **cut) for b in BATCHES]
    tokens = EncoderTokens(tiny_encoder, "query", max_length=max_length)
    texts = counted(tiny_encoder, monkeypatch)
    for _ in range(2):
        for batch, features in zip(BATCHES, expected, strict=True):
            check_equal(tokens(batch, keys_of(batch)), features)
    assert sorted(texts) == sorted({text for batch in BATCHES for text in batch})


def test_a_token_tables_batches(tiny_static_encoder: SentenceTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: `preprocess` of each batch, texts one after another with offsets."""
    tiny_static_encoder.prompts = {"document": "text: "}
    expected = [tiny_static_encoder.preprocess(batch, prompt="text: ", task="document") for batch in BATCHES]
    tokens = EncoderTokens(tiny_static_encoder, "document", max_length=None)
    texts = counted(tiny_static_encoder, monkeypatch)
    for batch, features in zip(BATCHES, expected, strict=True):
        check_equal(tokens(batch, keys_of(batch)), features)
    assert len(texts) == len({text for batch in BATCHES for text in batch})


def test_what_is_full_keeps_no_more(tiny_encoder: SentenceTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: `preprocess`; the longest text has no room and is tokenised at each use."""
    monkeypatch.setattr(encoder_tokens, "KEPT_NUMBERS", 40)
    tokens = EncoderTokens(tiny_encoder, "query", max_length=None)
    texts = counted(tiny_encoder, monkeypatch)
    for _ in range(3):
        check_equal(tokens(BATCHES[1], keys_of(BATCHES[1])), tiny_encoder.preprocess(BATCHES[1], task="query"))
    assert [texts.count(text) - 3 for text in BATCHES[1]] == [1, 1, 3]


def test_batches_that_are_no_padded_rows_are_made_anew(
    tiny_encoder: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: `preprocess`, with padding to a multiple of eight, which no row shows."""
    plain = tiny_encoder.preprocess

    def preprocess(inputs: list[str], **kwargs: Any) -> Any:
        features = plain(inputs, **kwargs)
        missing = -features["input_ids"].shape[1] % 8
        return {
            name: torch.nn.functional.pad(value, (0, missing)) if isinstance(value, Tensor) else value
            for name, value in features.items()
        }

    monkeypatch.setattr(tiny_encoder, "preprocess", preprocess)
    tokens = EncoderTokens(tiny_encoder, "query", max_length=None)
    check_equal(tokens(BATCHES[0], keys_of(BATCHES[0])), preprocess(BATCHES[0], task="query"))


def test_no_more_is_read_than_the_encoder_reads(tiny_encoder: SentenceTransformer) -> None:
    """Reference: the encoder's own length, which the library would exceed where a longer one is asked for."""
    tiny_encoder.max_seq_length = 10
    texts = ["the moon pulls the sea " * 9]
    found = EncoderTokens(tiny_encoder, "query", max_length=30)(texts, keys_of(texts))
    assert found["input_ids"].shape == (1, 10)
