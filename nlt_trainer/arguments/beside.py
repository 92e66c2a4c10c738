"""Names of the files that stages write beside the file or folder that an option names."""

from __future__ import annotations

from pathlib import Path


def audit_file(gains: str | Path) -> Path:
    """The path of the audit of a gains file, which stands beside it; `gains.audit.json` is that of `gains.jsonl`."""
    return Path(f"{str(gains).removesuffix('.jsonl')}.audit.json")


def embeddings_folder(output: str | Path) -> Path:
    """The folder of the embeddings that a stage keeps until it has written its candidates or its collection."""
    return Path(f"{output}.embeddings")


def written_file(collection: str | Path) -> Path:
    """The file of the texts that the LLM has written for a collection of made queries."""
    return Path(f"{collection}.written.jsonl")
