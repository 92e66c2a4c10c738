"""What the program inputs.py draws besides files of collections and stages: documents, and data sets of the Hub."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Callable, Sequence
from typing import Any

from drawing import DOCUMENT_IDS, PLAIN, SEEDS, Draw, Input, collections, encoded, json_lines, rows_of
from hypothesis import strategies as st


def _table(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, [*rows[0]], delimiter=",")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


MAKERS: dict[str, Callable[[Draw, list[dict[str, Any]]], bytes]] = {
    ".txt": lambda draw, rows: "\n\n".join(row["text"] for row in rows).encode(
        draw(st.sampled_from(("utf-8", "cp1252", "utf-16", "shift_jis", "utf-32-be"))), errors="ignore"
    ),
    ".md": lambda draw, rows: encoded(
        "---\ntitle: a\n---\n" + "".join(f"# {row['title']}\n\n> {row['text']}\n\n```\nx\n```\n" for row in rows)
    ),
    ".rst": lambda draw, rows: encoded("".join(f"{row['title']}\n{'=' * 70}\n\n{row['text']}\n\n" for row in rows)),
    ".html": lambda draw, rows: encoded(
        "<html><head><title>t</title></head><body>"
        + "".join(f"<h2>{row['title']}</h2><div><p>{row['text']}</p></div><table><tr><td>1</table>" for row in rows)
    ),
    ".csv": lambda draw, rows: encoded(_table(rows)),
    ".jsonl": lambda draw, rows: draw(json_lines(rows)),
}
"""Ending of a document's name -> its content from rows."""
FILE_NAMES = [
    "a",
    "b b",
    "Ünicode",
    "\udcff",
    "a\nb",
    "a#1",
    "-a",
    "%41",
    "x" * 200,
    ".hidden",
    "deep/er/a",
    "\x1b[2J",
]


@st.composite
def document_folders(draw: Draw, examples: dict[str, bytes]) -> Input:
    """A folder of documents.

    Args:
        draw: gives a value of a strategy.
        examples: ending of a name -> content of a whole file, for those kinds that a library has written.
    """
    files = {"whole.md": "\n\n".join(f"# {n}\n\n{text}" for n, text in enumerate(PLAIN)).encode()}
    for _ in range(draw(st.integers(1, 3))):
        ending = draw(st.sampled_from([*MAKERS, *examples, ".zip", ".\udcff", ""]))
        content = MAKERS[ending](draw, rows_of(draw, DOCUMENT_IDS, "title", "text")) if ending in MAKERS else b"x" * 9
        files[draw(st.sampled_from(FILE_NAMES)) + ending] = examples.get(ending, content)
    return Input(files, seed=draw(SEEDS))


CARD = """---
configs:
- config_name: default
  data_files:
  - split: test
    path: qrels/*.tsv
- config_name: corpus
  data_files: corpus.jsonl
- config_name: queries
  data_files:
  - split: test
    path: [queries.jsonl]
---
# A data set
"""


@st.composite
def data_sets(draw: Draw, parquet: bytes) -> Input:
    """A data set in the Hub's layout."""
    beir = draw(collections()).files
    if draw(st.booleans()):
        beir["README.md"] = CARD.encode()
    if draw(st.integers(0, 3)) == 0:
        del beir["corpus.jsonl"]
        beir["corpus/part.parquet"] = parquet
    if draw(st.integers(0, 3)) == 0:
        beir["qrels/test.tsv.gz"] = gzip.compress(beir.pop("qrels/test.tsv"), mtime=0)
    return Input(beir, seed=draw(SEEDS))
