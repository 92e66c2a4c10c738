"""The file of texts that an LLM has written, which grows batch by batch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from nlt_trainer.files import read_jsonl


class WrittenTexts:
    """Texts by key, in a JSONL file with one line `{"key": ..., "text": ...}` each.

    A stop amid a batch leaves half a line at the end of the file, which is removed when the file is opened again.

    Args:
        path: the file, which need not exist; `None` keeps the texts in memory alone.

    Raises:
        DataError: another line is not what this class writes.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.texts: dict[str, str] = {}
        if path is not None and path.is_file():
            whole = path.read_bytes().rpartition(b"\n")
            os.truncate(path, len(whole[0] + whole[1]))
            self.texts = {str(row.get("key")): str(row.get("text", "")) for _, row in read_jsonl(path)}

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
