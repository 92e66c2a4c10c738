"""What goes wrong in the inputs that the program inputs.py draws. Drawing takes longer, so that each has variants."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import replace

from drawing import Input
from drawing_commands import PATHS, WORDS

TOKENS = [
    b"1e999", b"NaN", b"-Infinity", b"9" * 400, b"9" * 5000, b"-7", b"0.5", b"1_0", "١٢".encode(), b"true", b"null",
    b'""', b'"7"', b"[]", b"{}", b"[" * 3000, b'{"a":' * 3000, b'"\\ud800"', b'"\\u0000"', b"", b"'", b"0x_",
    b"2001-99-99",
]  # fmt: skip
"""What takes the place of a value in a file."""
INSERTED = [
    b"\0", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\r", b"\n", b"\n\n", b"\t", b"\x1b[2J", b"\xc2\x85",
    b"\xe2\x80\xa8", b'"', b"{", b"}", b"<", b"&#xD800;", b"&", b"\\", b"%", b"---\n", b": ", b"#" * 3000,
    b"<b>" * 3000, b"> " * 3000,
]  # fmt: skip
TOKEN = re.compile(rb'"[^"\n]*"|-?\d[\d.]*|\w+')
KEY = re.compile(rb'[{,] ?("\w+": ?[^,{}\n]+)')


def variants(drawn: Input, *, number: int) -> Iterator[Input]:
    """Yield an input as it was drawn, and then with something wrong in one of its files or one of its words."""
    yield drawn
    draw = random.Random(drawn.seed)
    for _ in range(number - 1):
        files, words = dict(drawn.files), list(drawn.words)
        if files:
            name = draw.choice([*files])
            for _ in range(draw.choice((1, 1, 2))):
                files[name] = SPOILERS[draw.choice((*COMMON, *COMMON, *SPOILERS))](draw, files[name])
        elif len(words) > 1:
            words[draw.randrange(1, len(words))] = draw.choice([*WORDS, *PATHS])
        yield replace(drawn, files=files, words=words)


def _cut(draw: random.Random, content: bytes) -> bytes:
    return content[: draw.randint(0, len(content))]


def _flipped(draw: random.Random, content: bytes) -> bytes:
    at = draw.randint(0, len(content))
    return content[:at] + bytes(byte ^ 1 << draw.randrange(8) for byte in content[at : at + 1]) + content[at + 1 :]


def _inserted(draw: random.Random, content: bytes) -> bytes:
    at = draw.randint(0, len(content))
    return content[:at] + draw.choice(INSERTED) + content[at:]


def _token(draw: random.Random, content: bytes) -> bytes:
    begin, end = draw.choice([match.span() for match in TOKEN.finditer(content)][:200] or [(0, 0)])
    return content[:begin] + draw.choice(TOKENS) + content[end:]


def _line(draw: random.Random, content: bytes) -> bytes:
    """A line is missing, or stands twice."""
    lines = content.splitlines(keepends=True)
    at = draw.randint(0, len(lines))
    return b"".join([*lines[:at], *lines[at : at + 1] * draw.choice((0, 2)), *lines[at + 1 :]])


def _key(draw: random.Random, content: bytes) -> bytes:
    """A key stands twice."""
    begin, end = draw.choice([match.span(1) for match in KEY.finditer(content)][:100] or [(0, 0)])
    return content[:end] + b", " + content[begin:end] + content[end:]


SPOILERS: dict[str, Callable[[random.Random, bytes], bytes]] = {
    "cut": _cut,
    "flipped": _flipped,
    "inserted": _inserted,
    "token": _token,
    "line": _line,
    "key": _key,
    "empty": lambda draw, content: b"",
    "mark": lambda draw, content: b"\xef\xbb\xbf" + content,
    "crlf": lambda draw, content: content.replace(b"\n", b"\r\n"),
    "utf16": lambda draw, content: content.decode("utf-8", errors="replace").encode("utf-16"),
    "long": lambda draw, content: content * 40,
}
"""What goes wrong in a file, by name."""
COMMON = ("cut", "flipped", "inserted", "token", "token", "line")
