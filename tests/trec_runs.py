"""Runs of trec_eval as files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def write_run(path: Path, rankings: Mapping[str, Mapping[str, float]], *, tag: str) -> None:
    """Write rankings as a run of trec_eval, best first, with equal scores in trec_eval's order."""
    with path.open("w", encoding="utf-8") as handle:
        for query_id, ranking in rankings.items():
            best = sorted(ranking.items(), key=lambda item: (item[1], item[0]), reverse=True)
            handle.writelines(f"{query_id} Q0 {d} {rank} {s!r} {tag}\n" for rank, (d, s) in enumerate(best, start=1))
