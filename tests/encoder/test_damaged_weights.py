"""Weights of a trained encoder that a disk or a copy has changed: refused by name, and never saved as right."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from nlt_trainer.encoder.loading import load_encoder
from nlt_trainer.errors import DataError
from nlt_trainer.files import read_json, write_json
from nlt_trainer.release.card import saved_weights


@pytest.fixture
def saved(tiny_encoder_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny encoder with a record of its weights."""
    folder = tmp_path / "encoder"
    shutil.copytree(tiny_encoder_folder, folder)
    write_json(folder / "record.json", {"weights": saved_weights(folder)})
    return folder


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


def test_weights_that_have_changed_are_refused(saved: Path) -> None:
    """One bit of one number, which the format itself cannot tell."""
    assert [*read_json(saved / "record.json")["weights"]] == ["model.safetensors"]
    load_encoder(str(saved), device="cpu")
    flip_a_bit(saved / "model.safetensors")
    with pytest.raises(
        DataError, match=r"model.safetensors: is not as it was saved.* copy it again or run `nlt train`"
    ):
        load_encoder(str(saved), device="cpu")
    (saved / "record.json").unlink()
    load_encoder(str(saved), device="cpu")


def test_a_later_record_keeps_the_hashes_of_the_first(saved: Path) -> None:
    """An evaluation writes the record again, by when the weights may have been damaged."""
    before = saved_weights(saved)
    flip_a_bit(saved / "model.safetensors")
    assert saved_weights(saved) == before
