"""The limit of an encoder's positions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModel, AutoTokenizer, BertConfig, BertModel

from nlt_trainer.encoder.loading import load_encoder
from nlt_trainer.encoder.positions import position_limit
from nlt_trainer.errors import NLTError

SIZES = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32, "num_hidden_layers": 1}
LONG = "the owl hunts at night " * 40


@pytest.fixture(params=["bert", "distilbert", "roberta", "gpt2", "llama"])
def plain_folder(request: pytest.FixtureRequest, tiny_encoder_folder: Path, tmp_path: Path) -> Path:
    """A plain transformer with 24 positions, and a tokenizer that names no limit."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder_folder.parent / "bert", model_max_length=10**30)
    config = AutoConfig.for_model(
        request.param, vocab_size=len(tokenizer), max_position_embeddings=24, pad_token_id=0, **SIZES
    )
    AutoModel.from_config(config).save_pretrained(tmp_path / request.param)
    tokenizer.save_pretrained(tmp_path / request.param)
    return tmp_path / request.param


def test_the_limit_is_the_longest_text_that_can_be_read(plain_folder: Path) -> None:
    """Reference: the model itself, which fails with one token more; rotary positions have no end."""
    encoder = load_encoder(str(plain_folder), pooling="mean", device="cpu")
    limit = position_limit(encoder)
    if plain_folder.name == "llama":
        assert limit is None
        limit = 24
    else:
        assert limit is not None
        assert limit == encoder.max_seq_length
        with pytest.raises(NLTError, match=rf"max_seq_length is {limit + 1}, and .* reads texts of 1 to {limit} tok"):
            load_encoder(str(plain_folder), pooling="mean", max_seq_length=limit + 1, device="cpu")
    encoder.encode([LONG])
    encoder.max_seq_length = limit + 1
    if plain_folder.name == "llama":
        encoder.encode([LONG])
    else:
        with pytest.raises((IndexError, RuntimeError)):
            encoder.encode([LONG])


def test_only_a_tower_that_reads_texts_counts(tiny_encoder_folder: Path) -> None:
    """Reference: the limit without a table beside the encoder that no text goes through, as of images."""
    encoder = load_encoder(str(tiny_encoder_folder), device="cpu")
    assert position_limit(encoder) == 128
    sizes: dict[str, Any] = SIZES
    encoder.add_module("images", BertModel(BertConfig(vocab_size=8, max_position_embeddings=16, **sizes)))
    encoder[1].images = encoder._modules.pop("images")  # beside the module, so that nothing calls it
    assert position_limit(encoder) == 128
