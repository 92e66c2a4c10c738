"""The encoding of a text file that does not say it."""

from __future__ import annotations

import codecs
import unicodedata
from pathlib import Path

from nlt_trainer.errors import NLTError

HEAD = 1 << 20
"""Bytes from which an encoding is guessed."""
MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF16_LE: "utf-16"}
MARKS |= {codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_BE: "utf-16"}
"""Byte order mark -> encoding; that of UTF-32 begins like that of UTF-16 and comes first."""
MOST_CONTROLS = 0.05
"""Share of control characters beyond which a file is no text."""
WESTERN, MESSIER = "cp1252", 0.1
"""The commonest encoding of one byte a character, and by how much more mess it is still preferred."""


def encoding_of(path: Path) -> str:
    """Return the encoding of a text file: by its byte order mark, UTF-8 where the whole file is, else by a guess.

    Raises:
        NLTError: the file is binary.
    """
    with path.open("rb") as handle:
        head = handle.read(HEAD)
    for mark, encoding in MARKS.items():
        if head.startswith(mark):
            return encoding
    encoding = "utf-8" if _is_utf8(path) else ""
    if not encoding or _is_binary(head.decode(encoding, errors="ignore")):
        encoding = _guess(head if len(head) < HEAD else head[: head.rfind(b"\n") + 1] or head)
    if not encoding or _is_binary(head.decode(encoding, errors="ignore")):
        raise NLTError("a binary file, whatever its name ends with")
    return encoding


def read_text(path: Path) -> str:
    """Return the text of a file in whatever encoding it is; lines end with a newline.

    Raises:
        NLTError: as `encoding_of`.
    """
    return path.read_text(encoding=encoding_of(path), errors="replace")


def clean(text: str) -> str:
    """Return a text without what UTF-8 or a reader cannot hold: halves of characters and control characters."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n")
    if not text.isascii() or "\0" in text:
        text = text.encode("utf-8", errors="ignore").decode()
    return text.translate(_CONTROLS)


def _is_utf8(path: Path) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    with path.open("rb") as handle:
        try:
            while block := handle.read(HEAD):
                decoder.decode(block)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return False
    return True


def _guess(head: bytes) -> str:
    """The most plausible encoding; among equally plausible ones Western Europe's."""
    from charset_normalizer import from_bytes

    matches = from_bytes(head)
    best = matches.best()
    if best is None:
        return ""
    for match in matches:
        if match.encoding == WESTERN and match.coherence >= best.coherence and match.chaos <= best.chaos + MESSIER:
            return WESTERN
    return best.encoding


_CONTROLS = {code: None for code in range(0xA0) if unicodedata.category(chr(code)) == "Cc" and chr(code) not in "\n\t"}


def _is_binary(text: str) -> bool:
    controls = sum(character < " " and character not in "\n\r\t\f" for character in text)
    return controls > MOST_CONTROLS * len(text)
