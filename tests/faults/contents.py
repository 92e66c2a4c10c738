"""What stages have written, in a form that does not depend on the time, and whether it is whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

TIMES = {"second", "seconds", "time", "runtime", "memory", "date", "phases", "checksum"}
"""Words in the names of values that differ from call to call; a checksum of a file that has such values does, too."""
PAGES = (".md", ".html", ".log")
"""Endings of pages for people, which say how long a stage took. That they are there is compared, their text is not."""
INPUTS = {"documents", "llm", "encoder", "parts", "collection"}
CACHES = {"cache", "scores", "made_scores", "stamps", "embeddings"}
"""Folders that are not compared, wherever they lie: databases whose pages depend on the order of writing, and hashes
of files that say how long something took."""
LEFT = (".partial", ".previous")


def differences(expected: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """The files that two calls have left differently, with what differs first."""
    paths = sorted({*expected, *found})
    return [
        f"different: {path}{first_difference(expected.get(path, ''), found.get(path, ''))}"
        for path in paths
        if expected.get(path) != found.get(path)
    ]


def first_difference(expected: str, found: str) -> str:
    """Where two texts part, with what stands there."""
    at = next((i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), 0)
    return f" ({expected[max(0, at - 60) : at + 60]!r} is {found[max(0, at - 60) : at + 60]!r})"


def content_hash(path: Path, content: bytes) -> str:
    """Hash of a file's content without what differs from call to call."""
    if path.suffix in PAGES:
        return "a page"
    if path.suffix == ".json":
        return json.dumps(timeless(json.loads(content)), sort_keys=True)
    return content.decode() if path.suffix == ".yaml" else digest(content)


def digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def timeless(value: Any) -> Any:
    """A JSON value without times and what else is not the same in a second call. A negative time stays."""
    if isinstance(value, Mapping):
        return {k: timeless(v) for k, v in value.items() if not TIMES & {*k.split("_")} or is_negative(v)}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def is_negative(value: Any) -> bool:
    return isinstance(value, int | float) and value < 0


def is_whole(path: Path) -> bool:
    """Whether a file can be read to its end, as far as its format says."""
    readers: dict[str, Callable[[bytes], Any]] = {
        ".json": json.loads,
        ".jsonl": lambda content: [json.loads(line) for line in content.splitlines()],
        ".safetensors": read_safetensors,
    }
    try:
        readers.get(path.suffix, len)(path.read_bytes())
    except (ValueError, RuntimeError):
        return False
    return path.suffix != ".jsonl" or not path.stat().st_size or path.read_bytes().endswith(b"\n")


def read_safetensors(content: bytes) -> None:
    import safetensors.torch

    try:
        safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise ValueError(str(error)) from error
