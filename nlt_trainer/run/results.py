"""The rows of the table of results: how they are stored, shown as Markdown and put into sentences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from nlt_trainer.errors import DataError
from nlt_trainer.text_files import read_json, write_json

Share = Annotated[float, Field(ge=0, le=1 + 1e-9, allow_inf_nan=False)]
"""A number from 0 to 1, but for the rounding of a mean."""
FORBID_OTHERS = ConfigDict(extra="forbid")
"""Lets pydantic refuse a kept file with entries that are unknown here."""


@dataclass(frozen=True)
class Result:
    """What one system scores on one collection, and what it cost.

    Args:
        name: `bm25`, `start`, the objective that trained the encoder, or what `nlt evaluate` calls another system.
        ndcg_at_10: mean over the queries, like the two metrics after it.
        mrr_at_10: mean reciprocal rank among the first 10.
        recall_at_100: share of the relevant documents among the first 100.
        train_seconds: wall time of training and of the LLM stage before it (scoring, or head detection).
        lm_tokens: tokens that the frozen LLM has read for it, without padding.
        seed: of training; `None` where nothing was trained.
        collection: name of the folder, of mteb's task, or of the benchmark whose mean this is.
        split: of its qrels; `mean of N` for a mean.
        ndcg_at_10_low: lower bound of the 95 % bootstrap interval of nDCG@10 over queries; `None` where none was made.
        ndcg_at_10_high: its upper bound.
        p_against_start: two-sided p-value of its difference from the start in nDCG@10; `None` where none was computed.
        kept: whether this is the encoder that `nlt adapt` has kept; `None` where there was nothing to decide.
        trained_on: how many of the queries the system was trained on; `None` where nothing is known of its training.
        queries: the number of all queries; 0 where nothing was compared, as in rows of BM25, of means, and of earlier
            versions for an encoder that was trained on none or that they knew nothing of.
    """

    __pydantic_config__ = FORBID_OTHERS

    name: str
    ndcg_at_10: Share
    mrr_at_10: Share
    recall_at_100: Share
    train_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    lm_tokens: Annotated[int, Field(ge=0)]
    seed: int | None
    collection: str
    split: str
    ndcg_at_10_low: Share | None = None
    ndcg_at_10_high: Share | None = None
    p_against_start: Share | None = None
    kept: bool | None = None
    trained_on: Annotated[int, Field(ge=0)] | None = 0
    queries: Annotated[int, Field(ge=0)] = 0

    @property
    def trained_share(self) -> str:
        """How many of the queries were trained on, as `3 of 16`; empty where nothing was compared."""
        if self.trained_on is None:
            return "not known"
        return f"{self.trained_on:,} of {self.queries:,}" if self.queries else ""


def write_results(path: str | Path, results: Sequence[Result]) -> None:
    """Write the rows as a JSON list of objects, each with a checksum."""
    write_json(path, [asdict(result) for result in results], checksum=True)


def read_results(path: str | Path) -> list[Result]:
    """Read what `write_results` has written; no rows where there is no file.

    Raises:
        DataError: it holds something else.
    """
    path = Path(path)
    remedy = "write it again with `nlt evaluate`"
    return as_results(read_json(path, kind=list, remedy=remedy), path) if path.is_file() else []


def as_results(rows: Any, path: str | Path) -> list[Result]:
    """Turn rows of a JSON file into results.

    Args:
        rows: a list of objects, each with the entries of a `Result`.
        path: the file that they come from.

    Raises:
        DataError: they are something else, or a number is not finite or out of its range; names row, entry and value.
    """
    try:
        return TypeAdapter(list[Result]).validate_python(rows)
    except ValidationError as error:
        first = error.errors()[0]
        row, *entry = first["loc"] or ("",)
        fault = f"row {row} {'.'.join(map(str, entry))}: {first['msg']}, found {first['input']!r:.80}"
        raise DataError(path, f"is no table of results ({fault}); write it again with `nlt evaluate`") from error


def table_row(cells: Iterable[str]) -> str:
    """A row of a Markdown table, in whose cells a bar and a line break would end the cell."""
    escaped = (cell.replace("|", "\\|").replace("\n", " ") for cell in cells)
    return f"| {' | '.join(escaped)} |"


def results_table(results: Sequence[Result]) -> str:
    """Render rows as a Markdown table.

    There are columns for what `nlt adapt` has decided where it decided something, and for how many queries were
    trained on where some were.
    """
    header = ["collection", "system", "nDCG@10", "MRR@10", "Recall@100", "training seconds", "LLM tokens", "seed"]
    decided = any(row.kept is not None for row in results)
    header += ["p against start", "kept"] if decided else []
    trained = any(row.trained_on for row in results)
    header += ["queries trained on"] if trained else []
    lines = [table_row(header), f"|{'---|' * len(header)}"]
    for r in results:
        cost = (f"{r.train_seconds:,.0f}", f"{r.lm_tokens:,}", str(r.seed)) if r.seed is not None else ("", "", "")
        interval = "" if r.ndcg_at_10_low is None else f" [{r.ndcg_at_10_low:.3f}, {r.ndcg_at_10_high:.3f}]"
        metrics = (f"{r.ndcg_at_10:.3f}{interval}", f"{r.mrr_at_10:.3f}", f"{r.recall_at_100:.3f}")
        p = "" if r.p_against_start is None else f"{r.p_against_start:.2g}"
        cells = [f"{r.collection} {r.split}", r.name, *metrics, *cost]
        cells += [p, "yes" if r.kept else ""] if decided else []
        cells += [r.trained_share] if trained else []
        lines.append(table_row(cells))
    return "\n".join(lines)


def verdicts(results: Sequence[Result], name: str, *, start: str = "start") -> list[str]:
    """Write one sentence for each collection: what a system gains over the start, and whether BM25 is ahead.

    Args:
        results: rows of a table.
        name: of the system that the sentences are about.
        start: name of the encoder with which it is compared.

    Returns:
        The sentences. A collection that has neither the start nor BM25 to compare with gets none.
    """
    figures = {(row.collection, row.split, row.name): row.ndcg_at_10 for row in results}
    sentences = []
    for row in results:
        value = row.ndcg_at_10
        before = figures.get((row.collection, row.split, start)) if name != start else None
        bm25 = figures.get((row.collection, row.split, "bm25"))
        if row.name != name or (before is None and bm25 is None):
            continue
        parts = [f"On {row.collection} {row.split} its nDCG@10 is {value:.3f}"]
        if before is not None:
            other = "the start" if start == "start" else start
            parts.append(f"{abs(value - before):.3f} {'above' if value >= before else 'below'} {other}")
        if bm25 is not None:
            ahead = f"BM25 is still ahead by {bm25 - value:.3f}" if bm25 > value else f"{value - bm25:.3f} above BM25"
            parts.append(ahead)
        if row.trained_on:
            parts.append(f"{row.trained_share} queries were trained on")
        sentences.append(", ".join(parts) + ".")
    return sentences
