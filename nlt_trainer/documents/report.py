"""What became of a folder of documents."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nlt_trainer.errors import NLTError
from nlt_trainer.text_files import read_json, write_json

MOST_LINES = 20
"""Broken lines of a file that are listed; the others are counted."""


@dataclass
class CorpusReport:
    """What was read, and what was left out and why.

    Args:
        documents: folder or file that was read.
        key: hash of the files' names and contents, and of the settings.
        unit: what the length of a passage was counted in.
        most: the greatest length of a passage; `None` for a corpus that was kept as it is.
        files: number of files that gave passages.
        passages: number of passages in the corpus.
        corpus_bytes: size of the corpus file.
        corpus_hash: hash of its content; `None` in reports of version 0.1.
        too_short: number of texts that were too short to be a passage or to join one.
        other_kinds: ending of a file's name that no reader has -> number of such files.
        skipped: `file`, `reason` and `passages` of each file that gave none or could not be read to its end; the
            passages that it gave before are kept.
        broken_lines: file -> `count` of its broken lines, the numbers of the first `lines`, and the first `reason`.
        duplicates: id of a passage that was left out -> id of the passage that stands for it.
    """

    documents: str
    key: str
    unit: str
    most: int | None
    files: int = 0
    passages: int = 0
    corpus_bytes: int = 0
    corpus_hash: str | None = None
    too_short: int = 0
    other_kinds: dict[str, int] = field(default_factory=dict)
    skipped: list[dict[str, Any]] = field(default_factory=list)
    broken_lines: dict[str, dict[str, Any]] = field(default_factory=dict)
    duplicates: dict[str, str] = field(default_factory=dict)

    def skip(self, file: str, reason: str, *, passages: int = 0) -> None:
        """Note a file that could not be read to its end."""
        self.skipped.append({"file": file, "reason": reason, "passages": passages})

    def broken_line(self, file: str, line: int, reason: str) -> None:
        """Note a line that was left out."""
        of_file = self.broken_lines.setdefault(file, {"count": 0, "lines": [], "reason": reason})
        of_file["count"] += 1
        if len(of_file["lines"]) < MOST_LINES:
            of_file["lines"].append(line)

    def skipped_lines(self) -> int:
        """Number of broken lines in all files."""
        return sum(of_file["count"] for of_file in self.broken_lines.values())

    def write(self, path: Path) -> None:
        """Write the report as JSON; a name of a file that is not UTF-8 is written with escapes."""
        write_json(path, dataclasses.asdict(self))


def read_report(path: Path) -> CorpusReport | None:
    """Read a report; `None` where there is none that this version can read."""
    try:
        report = CorpusReport(**read_json(path))
    except (NLTError, TypeError):
        return None
    kinds = {name: type(value) for name, value in vars(CorpusReport("", "", "", None)).items() if value is not None}
    return report if all(isinstance(vars(report)[name], kind) for name, kind in kinds.items()) else None
