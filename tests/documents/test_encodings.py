"""Encodings against texts that are written in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from nlt_trainer.documents import encodings
from nlt_trainer.documents.encodings import clean, encoding_of, read_text
from nlt_trainer.errors import NLTError

FRENCH = "L'été à Genève, où les élèves étudient la géométrie avec un professeur très sévère.\n"
GERMAN = "Die Maße der Tür überschreiten größere Höhen; Erläuterungen für Müller.\n"
RUSSIAN = "Привет, это обычный русский текст, где сказано, как работает поиск документов.\n"
JAPANESE = "これは日本語の文章です。検索の仕組みについて説明します。\n"


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (FRENCH, "utf-8"),
        (FRENCH, "utf-8-sig"),
        (FRENCH, "latin-1"),
        (GERMAN, "latin-1"),
        (RUSSIAN, "cp1251"),
        (RUSSIAN, "utf-16"),
        (RUSSIAN, "utf-32"),
        (GERMAN, "utf-16-le"),
        (JAPANESE, "shift_jis"),
    ],
)
def test_a_text_is_read_in_its_encoding(text: str, encoding: str, tmp_path: Path) -> None:
    """Reference: the text that was written."""
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    assert read_text(tmp_path / "a.txt") == text


def test_a_late_byte_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: the encodings; the head of both files is ASCII, and a character stands across two blocks."""
    monkeypatch.setattr(encodings, "HEAD", 65)
    for encoding in ("utf-8", "latin-1"):
        (tmp_path / "a.txt").write_bytes(("a line of text\n" * 4 + "abcdé" + GERMAN).encode(encoding))
        assert (encoding_of(tmp_path / "a.txt") == "utf-8") is (encoding == "utf-8")


@pytest.mark.parametrize("content", [bytes(range(256)) * 20, b"\0\1\2\3" * 500, b"\x7fELF" + b"\0" * 400])
def test_a_binary_file_is_refused(content: bytes, tmp_path: Path) -> None:
    """Reference: the message."""
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(NLTError, match="a binary file, whatever its name ends with"):
        encoding_of(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\0b\ud800c", "abc"),
        ("a\r\nb\rc\fd", "a\nb\nc\nd"),
        ("\x1b[1mé\x85\t", "[1mé\t"),
        ("\U0001f600", "\U0001f600"),
    ],
)
def test_what_no_text_has_is_removed(text: str, expected: str) -> None:
    """Reference: the text by hand; it can be written as UTF-8."""
    assert clean(text) == expected
    clean(text).encode()
