"""The file of texts that an LLM has written, which grows batch by batch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

from nlt_trainer.errors import DataError
from nlt_trainer.text_files import read_jsonl

START = b'{"key": "'
"""How every line of the file begins."""
FOREIGN = "is not what `nlt make_queries` writes; move the file away, or name another collection"


class WrittenTexts:
    """Texts by key, in a JSONL file with one line `{"key": ..., "text": ...}` each.

    A stop amid a batch leaves half a line at the end of the file, which is removed when the file is opened again.

    Args:
        path: the file, which need not exist; `None` keeps the texts in memory alone.

    Raises:
        DataError: the file holds something that this class does not write; it stays as it is.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.texts = {} if path is None or not path.is_file() else _read(path)

    def add(self, texts: Mapping[str, str]) -> None:
        """Add texts, which are on the disk when this returns."""
        self.texts.update(texts)
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"key": key, "text": text}, ensure_ascii=False) + "\n" for key, text in texts.items()]
        with self.path.open("a", encoding="utf-8") as handle:
            handle.writelines(lines)
            handle.flush()
            os.fsync(handle.fileno())


def _read(path: Path) -> dict[str, str]:
    """Read the whole lines, and then remove half a line after them."""
    content, texts = path.read_bytes(), dict[str, str]()
    if not content.startswith(START[: len(content)]):
        raise DataError(path, FOREIGN, line=1)
    for line, row in islice(read_jsonl(path), content.count(b"\n")):
        key, text = row.get("key"), row.get("text")
        if not isinstance(key, str) or not isinstance(text, str):
            raise DataError(path, FOREIGN, line=line)
        texts[key] = text
    os.truncate(path, content.rfind(b"\n") + 1)
    return texts
