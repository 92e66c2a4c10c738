"""Files of a trained encoder or adapter that a disk or a copy has changed: refused by name, never saved as right."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from nlt_trainer.content import record_files
from nlt_trainer.encoder.loading import load_encoder
from nlt_trainer.errors import DataError
from nlt_trainer.file_hashes import saved_hashes
from nlt_trainer.release.card import read_release, write_release
from nlt_trainer.text_files import read_json, write_json

DECIDING = ("model.safetensors", "config.json", "modules.json", "1_Pooling/config.json", "tokenizer.json")
"""Some of the files that decide what an encoder makes of a text."""


@pytest.fixture
def saved(tiny_encoder_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny encoder with a record of its files."""
    folder = tmp_path / "encoder"
    shutil.copytree(tiny_encoder_folder, folder)
    record_files(folder)
    return folder


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", DECIDING)
def test_a_file_that_has_changed_is_refused(saved: Path, name: str) -> None:
    """One bit of one number, which the format itself cannot tell; or a file that is gone."""
    load_encoder(str(saved), device="cpu")
    before = (saved / name).read_bytes()
    if name == "model.safetensors":
        flip_a_bit(saved / name)
    else:
        (saved / name).write_bytes(before + b"\n")
    message = rf"{name}: is not as it was saved.* copy the folder again or repeat the stage"
    with pytest.raises(DataError, match=message):
        load_encoder(str(saved), device="cpu")
    (saved / name).unlink()
    with pytest.raises(DataError, match=message):
        load_encoder(str(saved), device="cpu")
    (saved / name).write_bytes(before)
    load_encoder(str(saved), device="cpu")


def test_a_file_may_be_changed_on_purpose(saved: Path) -> None:
    """The message names the record; a card is no part of the encoder."""
    (saved / "README.md").write_text("another card")
    load_encoder(str(saved), device="cpu")
    flip_a_bit(saved / "model.safetensors")
    (saved / "record.json").unlink()
    load_encoder(str(saved), device="cpu")


def test_the_record_of_version_0_1_has_the_weights_alone(saved: Path) -> None:
    """They are checked, and other files are not."""
    write_json(saved / "record.json", {"weights": {"model.safetensors": saved_hashes(saved)["model.safetensors"]}})
    (saved / "tokenizer.json").write_text((saved / "tokenizer.json").read_text() + "\n")
    load_encoder(str(saved), device="cpu")
    flip_a_bit(saved / "model.safetensors")
    with pytest.raises(DataError, match=r"model.safetensors: is not as it was saved"):
        load_encoder(str(saved), device="cpu")


@pytest.mark.parametrize("hashes", [["x"], "x", 3, {"model.safetensors": 3}])
@pytest.mark.parametrize("key", ["files", "weights"])
def test_a_malformed_record_is_refused(saved: Path, key: str, hashes: Any) -> None:
    """The message names the file and the value."""
    write_json(saved / "record.json", {key: hashes})
    with pytest.raises(DataError, match=r"record.json: has .* where hashes of files belong; fetch or save the model"):
        load_encoder(str(saved), device="cpu")


def test_a_later_record_keeps_the_hashes_of_the_first(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation writes the record again, by when a file may have been damaged."""
    monkeypatch.setattr("nlt_trainer.release.card.render_card", lambda *_, **options: "a card")
    before = saved_hashes(saved)
    with pytest.raises(DataError, match=r"has no card and no recipe yet; run `nlt train` again"):
        read_release(saved)
    flip_a_bit(saved / "model.safetensors")
    write_release(saved, {}, {"training": {}, "weights": {"model.safetensors": "of another folder"}}, trained_on=None)
    assert saved_hashes(saved) == before
    assert set(read_json(saved / "record.json")) == {"training", "adapter_base", "files"}


@pytest.mark.parametrize("content", [b"\0" * 64, b"model: [", b"\xff", b"- a list"])
def test_a_damaged_recipe_beside_an_encoder_is_named(saved: Path, content: bytes) -> None:
    """The card is rendered from it."""
    write_json(saved / "record.json", {"training": {}})
    (saved / "recipe.yaml").write_bytes(content)
    with pytest.raises(DataError, match=r"recipe.yaml.*(not valid YAML|maps blocks to keys)"):
        read_release(saved)
