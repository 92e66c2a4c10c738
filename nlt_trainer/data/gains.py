"""Write and read likelihood gains, and audit a teacher's gains before an encoder is trained on them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from nlt_trainer.arguments.beside import audit_file
from nlt_trainer.data.beir import Document
from nlt_trainer.data.candidates import QueryCandidates, texts_hash
from nlt_trainer.errors import DataError, NLTError
from nlt_trainer.file_hashes import file_hash
from nlt_trainer.files import atomic_write
from nlt_trainer.text_files import read_json, read_jsonl


def read_audit(gains: str | Path) -> dict[str, Any]:
    """Read the audit of a gains file: empty where there is none, else with an entry `scorer`, empty in older ones.

    Raises:
        DataError: the audit is malformed.
    """
    path = audit_file(gains)
    if not path.is_file():
        return {}
    audit = {"scorer": {}, **read_json(path)}
    scorer = audit["scorer"]
    for value in (scorer, *(scorer.get(key, {}) for key in ("template", "model", "llm") if isinstance(scorer, dict))):
        if not isinstance(value, dict):
            raise DataError(path, f"its entry scorer has {value!r}, and no object; run `nlt score` again")
    return audit


def write_gains(
    path: str | Path,
    candidates: Sequence[QueryCandidates],
    gain: np.ndarray,
    *,
    corpus: Mapping[str, Document],
    further: Mapping[str, Iterable[Any]] | None = None,
) -> str:
    """Write one line a query: `query_id`, `document_ids`, `texts` and `gain`, K numbers in nats per target token.

    `texts` is a hash of the texts that were scored. A reader that has others refuses the gains.

    Args:
        path: the file.
        candidates: B queries with K candidates each.
        gain: `(B, K)`.
        corpus: has the documents that were scored, by their ids.
        further: further columns of B values each, which `read_likelihoods` reads: `target_tokens` (a number),
            `log_likelihood` (K numbers, nats of the whole target) and `token_log_likelihoods` (K lists with a number
            for each target token).

    Returns:
        Hash of the file that was written, as `file_hash` has it. Another process may replace it right afterwards.
    """
    columns: dict[str, Iterable[Any]] = {"gain": gain, **(further or {})}
    rows = (
        {"query_id": c.query_id, "document_ids": list(c.document_ids), "texts": texts_hash(c, corpus)}
        | {name: _rounded(value) for name, value in zip(columns, values, strict=True)}
        for c, *values in zip(candidates, *columns.values(), strict=True)
    )
    with atomic_write(path) as handle:
        for row in rows:
            handle.write(json.dumps(row, ensure_ascii=False) + "\n")
        handle.flush()
        return file_hash(Path(handle.name))


def _rounded(value: Any) -> Any:
    """Numbers in the form of JSON, with 6 decimals: a millionth of a nat makes no difference."""
    if isinstance(value, int | np.integer):
        return int(value)
    return [_rounded(v) for v in value] if np.ndim(value) else round(float(value), 6)


def read_gains(
    path: str | Path, candidates: Sequence[QueryCandidates], *, corpus: Mapping[str, Document]
) -> np.ndarray:
    """Read gains for candidates, whose documents are in `corpus`: `(B, K)` float64, nats per target token.

    Raises:
        DataError: the file is missing or malformed, a number is not finite, or it was made for other candidates or
            other texts. A file that an older version wrote does not say for which texts, and is read.
    """
    path = Path(path)
    gains = []
    for c, (line, row) in zip(candidates, _rows(path, candidates, corpus), strict=True):
        gain = _numbers(row.get("gain"))
        if gain is None:
            raise DataError(path, f"gain of query {c.query_id!r} is not a list of numbers", line=line)
        if gain.shape != (len(c.document_ids),) or not np.isfinite(gain).all():
            raise DataError(
                path,
                f"query {c.query_id!r} needs {len(c.document_ids)} finite gains, found {row.get('gain')}",
                line=line,
            )
        gains.append(gain)
    return np.stack(gains)


LIKELIHOODS = ("target_tokens", "log_likelihood", "token_log_likelihoods")
MOST_TARGET_TOKENS = 2**31 - 1
"""No LLM reads a longer target, and a tensor holds no number that is much larger."""


def read_likelihoods(
    path: str | Path, candidates: Sequence[QueryCandidates], names: Iterable[str], *, corpus: Mapping[str, Document]
) -> dict[str, list[Any]]:
    """Read further columns of a gains file: a list of B values for each of the names, which come from `LIKELIHOODS`.

    Raises:
        DataError: as `read_gains`, or the file lacks a column. It was then written by an older version or without
            `token_likelihoods`.
    """
    path = Path(path)
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for c, (line, row) in zip(candidates, _rows(path, candidates, corpus), strict=True):
        for name, values in columns.items():
            if name not in row:
                option = " with token_likelihoods: true" if name == "token_log_likelihoods" else ""
                raise DataError(path, f"the file has no {name}; run `nlt score` again{option}", line=line)
            if not _is_likelihood(name, row[name], len(c.document_ids)):
                raise DataError(path, f"{name} of query {c.query_id!r} is malformed; run `nlt score` again", line=line)
            values.append(row[name])
    return columns


def _is_likelihood(name: str, value: Any, k: int) -> bool:
    """Whether a value has the form that `write_gains` gives it, for K candidates."""
    if name == "target_tokens":
        return isinstance(value, int) and 0 < value <= MOST_TARGET_TOKENS
    numbers, dimensions = _numbers(value), 1 if name == "log_likelihood" else 2
    if numbers is None or numbers.ndim != dimensions:
        return False
    return len(numbers) == k and bool(np.isfinite(numbers).all())


def _numbers(value: Any) -> np.ndarray | None:
    """Numbers of a JSON file as float64; `None` where they are none, lists of several lengths, or beyond float64."""
    try:
        return np.array(value, np.float64)
    except (TypeError, ValueError, OverflowError):
        return None


def _rows(
    path: Path, candidates: Sequence[QueryCandidates], corpus: Mapping[str, Document]
) -> list[tuple[int, dict[str, Any]]]:
    """For each query, the number and the content of its line."""
    if not path.is_file():
        raise DataError(path, "file not found; run `nlt score` first, which writes it")
    rows: dict[str, tuple[int, dict[str, Any]]] = {}
    expected = {c.query_id: c for c in candidates}
    for line, row in read_jsonl(path):
        query_id = row.get("query_id")
        if not isinstance(query_id, str):
            raise DataError(path, f"query_id must be a string, found {query_id!r}; run `nlt score` again", line=line)
        if query_id not in expected:
            continue
        if row.get("document_ids") != list(expected[query_id].document_ids):
            raise DataError(path, f"query {query_id!r} has other candidates here; run `nlt score` again", line=line)
        if row.get("texts") not in (None, texts_hash(expected[query_id], corpus)):
            raise DataError(
                path,
                f"query {query_id!r}, its answer or one of its documents had another text when it was scored; run "
                "`nlt mine` and `nlt score` again",
                line=line,
            )
        rows[query_id] = (line, row)
    if missing := [query_id for query_id in expected if query_id not in rows]:
        raise DataError(path, f"no gains for {len(missing)} queries, e.g. {missing[0]!r}; run `nlt score` again")
    return [rows[c.query_id] for c in candidates]


@dataclass(frozen=True)
class TeacherAudit:
    """Facts about the distribution that a teacher's gains give at one temperature.

    Args:
        teacher_temperature: nats per token.
        effective_candidates: mean over queries of exp(entropy) of the teacher's distribution, between 1 and K.
        top_probability: mean probability of the best candidate.
    """

    teacher_temperature: float
    effective_candidates: float
    top_probability: float


AUDIT_TEMPERATURES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def audit_teacher(
    gain: np.ndarray, bm25: Sequence[Sequence[float]], relevant: np.ndarray | None = None
) -> dict[str, Any]:
    """Report on gains before training.

    Args:
        gain: `(B, K)`, nats per target token.
        bm25: B lists of K BM25 scores of the same candidates.
        relevant: `(B, K)` bool, which candidates are judged relevant, if there are judgements; only for the report.

    Returns:
        A report with these entries:

        - the share of queries with a positive gain, and quantiles of the gain
        - the agreement with BM25: the share of queries whose best candidate by gain is one of BM25's best, and the
          mean Spearman correlation; queries whose candidates all have the same BM25 score do not count
        - one `TeacherAudit` for each temperature
        - a proposed temperature, at which the effective number of candidates is nearest to K / 3
        - a proposed weight of BM25 as prior: its rank correlation with the gain, where that is positive. Gains are the
          better evidence, so BM25 deserves the more weight the more it agrees with them
        - `best_within`: the share of the queries whose best candidate by gain is among the miner's first 2, 4, 8 ...
        - with judgements, `gold`: the mean reciprocal rank of the best relevant candidate by gain and by BM25, over
          the queries that have one
    """
    bm25_scores = np.asarray(bm25)
    if not len(gain):
        raise NLTError("there are no gains to audit; mine candidates for at least one query")
    audits = [_at_temperature(gain, t) for t in AUDIT_TEMPERATURES]
    aim = gain.shape[1] / 3
    proposal = min(audits, key=lambda a: abs(a.effective_candidates - aim)).teacher_temperature
    spearman, best = _mean_spearman(gain, bm25_scores), gain.argmax(1)
    quantiles = np.quantile(gain, [0.05, 0.25, 0.5, 0.75, 0.95])
    return {
        "queries": len(gain),
        "candidates": int(gain.shape[1]),
        "share_of_queries_with_positive_gain": float((gain.max(1) > 0).mean()),
        "gain_quantiles_5_25_50_75_95": [round(float(q), 4) for q in quantiles],
        "same_best_as_bm25": _same_best(gain, bm25_scores),
        "spearman_with_bm25": spearman,
        "temperatures": [vars(a) for a in audits],
        "proposed_teacher_temperature": proposal,
        "proposed_prior_weight": round(max(0.0, spearman), 1),
        "best_within": {str(k): round(float((best < k).mean()), 3) for k in _powers_of_two(gain.shape[1])},
        **({} if relevant is None or not relevant.any() else {"gold": _gold(gain, bm25_scores, relevant)}),
    }


def _powers_of_two(most: int) -> list[int]:
    """2, 4, 8 ... up to a number."""
    return [2**n for n in range(1, most.bit_length()) if 2**n <= most]


def _gold(gain: np.ndarray, bm25: np.ndarray, relevant: np.ndarray) -> dict[str, Any]:
    """Mean reciprocal rank of the best relevant candidate; other candidates with the same score rank before it."""
    judged = relevant.any(1)
    report: dict[str, Any] = {"queries": int(judged.sum())}
    for name, scores in (("mrr_by_gain", gain), ("mrr_by_bm25", bm25)):
        best = np.where(relevant, scores, -np.inf).max(1, keepdims=True)
        rank = 1 + ((scores >= best) & ~relevant).sum(1)  # (B,)
        report[name] = round(float((1 / rank[judged]).mean()), 4)
    return report


def _at_temperature(gain: np.ndarray, temperature: float) -> TeacherAudit:
    logits = gain / temperature
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    entropy = -(p * np.log(np.clip(p, 1e-300, None))).sum(1)
    return TeacherAudit(temperature, round(float(np.exp(entropy).mean()), 3), round(float(p.max(1).mean()), 3))


def _same_best(gain: np.ndarray, bm25: np.ndarray) -> float:
    """Share of rows whose best by gain is among BM25's best; rows with equal BM25 scores are left out."""
    told_apart = bm25.max(1) > bm25.min(1)  # (B,)
    same = np.take_along_axis(bm25, gain.argmax(1)[:, None], 1)[:, 0] == bm25.max(1)
    return float(same[told_apart].mean()) if told_apart.any() else 0.0


def _mean_spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over rows of the rank correlation; rows in which one side is constant are left out."""
    told_apart = (np.ptp(a, axis=1) > 0) & (np.ptp(b, axis=1) > 0)  # (B,)
    if not told_apart.any():
        return 0.0
    # Random candidates often have BM25 score 0; equal scores get the mean of their ranks.
    ranks = [stats.rankdata(scores[told_apart], axis=1) for scores in (a, b)]
    return round(float(stats.pearsonr(*ranks, axis=1).statistic.mean()), 3)
