"""Find candidate documents for each query with BM25, an encoder's rankings or both. No label is read."""

from __future__ import annotations

import hashlib
import random
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlt_trainer.data.beir import Collection, Query
from nlt_trainer.data.bm25 import BM25Index, matching
from nlt_trainer.data.bm25 import tokenize as tokenize  # callers find it here, too
from nlt_trainer.data.document import Contents, Document
from nlt_trainer.data.fusion import FUSION_DEPTH, fuse
from nlt_trainer.errors import DataError, NLTError
from nlt_trainer.lm.score_cache import ScoreCache
from nlt_trainer.text_files import raw_lines, read_jsonl, write_jsonl

CHECKED = re.compile(rb', "texts": "[0-9a-f]{32}"(, "queries": \d+)?(, "checksum": "[0-9a-f]{32}")?}$')
"""The end of a line that has a hash of its texts, as each version has written it."""


@dataclass(frozen=True, slots=True)
class QueryCandidates:
    """A query with its K candidate documents.

    Args:
        query_id: id of the query.
        query: text of the query.
        answer: the query's answer; `None` if the collection has none.
        document_ids: K distinct document ids: those that the miner found, best first, then random ones if it found too
            few.
        bm25: K BM25 scores of the documents, whichever miner chose them; 0 if query and document share no token.
    """

    query_id: str
    query: str
    answer: str | None
    document_ids: tuple[str, ...]
    bm25: tuple[float, ...]


def mine_candidates(
    collection: Collection,
    queries: Sequence[Query],
    *,
    num_candidates: int,
    seed: int = 0,
    encoder_rankings: Sequence[Sequence[int]] | None = None,
    fused: bool = False,
) -> list[QueryCandidates]:
    """Give each query K documents: the best by BM25, by an encoder or by both.

    If BM25 finds fewer than K documents that share a token with the query, random documents fill the rest. The random
    draw depends only on `seed` and the query's id, so neither the order of the queries nor other queries change it.

    An empty document is never among them, nor one that is the query itself, see `Collection.own_document`.

    Args:
        collection: the corpus to search; no judgement chooses a candidate.
        queries: the queries, for example from `training_queries`.
        num_candidates: K, the number of documents for each query.
        seed: seed of the random documents.
        encoder_rankings: for each query, one more than `ranking_depth` indices into the corpus, best first; candidates
            are chosen from these rankings instead of BM25's.
        fused: whether candidates are chosen from both rankings, joined by `fuse`.

    Raises:
        NLTError: K is below 1 or above the number of documents from which a query's may be chosen.
    """
    index, depth = BM25Index(collection.corpus), ranking_depth(num_candidates, fused=fused)
    empty = {i for i, content in enumerate(Contents(collection.corpus)) if not content}
    mined = []
    for b, query in enumerate(queries):
        own = collection.own_document(query.id)
        left_out = empty if own is None else {*empty, index.numbers[own]}
        _check_number(num_candidates, len(index.numbers) - len(left_out), own=own, collection=collection)
        scores = index.scores(query.text, leave_out=own)
        if encoder_rankings is None:
            chosen = matching(scores, num_candidates)
        else:
            chosen = [i for i in encoder_rankings[b] if i not in left_out][:depth]
            chosen = (fuse(matching(scores, depth), chosen) if fused else chosen)[:num_candidates]
        taken = [*chosen, *left_out]
        chosen += _draw(len(scores), taken, count=num_candidates - len(chosen), key=f"{seed}:{query.id}")
        document_ids = tuple(index.document_ids[i] for i in chosen)
        bm25 = tuple(float(scores[i]) for i in chosen)
        mined.append(QueryCandidates(query.id, query.text, query.answer, document_ids, bm25))
    return mined


def _check_number(num_candidates: int, usable: int, *, own: str | None, collection: Collection) -> None:
    """Refuse a K that is below 1 or above the number of documents from which a query's candidates may be chosen."""
    if not 1 <= num_candidates <= usable:
        others = f" with text other than query {own!r} itself" if own else " with text"
        raise NLTError(
            f"num_candidates={num_candidates} with {usable} documents{others} in {collection.folder}; choose at most "
            "the number of documents"
        )


def ranking_depth(num_chosen: int, *, fused: bool) -> int:
    """How many documents of an encoder's ranking `mine_candidates` needs in order to choose `num_chosen`."""
    return max(num_chosen, FUSION_DEPTH) if fused else num_chosen


def _draw(num_documents: int, chosen: Sequence[int], *, count: int, key: str) -> list[int]:
    """Draw `count` distinct indices below `num_documents` that are not in `chosen`, uniformly, with `key` as seed."""
    # At least count of count + |chosen| distinct indices are new. Keeping the first count of these is still uniform.
    draw = random.Random(key).sample(range(num_documents), count + len(chosen))
    taken = set(chosen)
    return [index for index in draw if index not in taken][:count]


def texts_hash(c: QueryCandidates, corpus: Mapping[str, Document]) -> str:
    """Hash of a query, its answer and the texts of its candidates (32 hex digits)."""
    return ScoreCache.key(c.query, c.answer, *(corpus[document_id].content for document_id in c.document_ids)).hex()


def write_candidates(
    path: str | Path, candidates: Sequence[QueryCandidates], *, corpus: Mapping[str, Document]
) -> None:
    """Write `candidates.jsonl`, whole or not at all.

    A line has `query_id`, `query`, `answer`, `document_ids`, `bm25`, `texts`, a hash of the texts that were mined,
    `queries`, the number of lines, and `checksum`, a hash of all these. A reader that has other texts, fewer lines or
    other values refuses the candidates.

    Args:
        path: the file.
        candidates: a line for each of them.
        corpus: has the documents that were mined, by their ids.
    """
    write_jsonl(
        path,
        (
            {
                "query_id": row.query_id,
                "query": row.query,
                "answer": row.answer,
                "document_ids": list(row.document_ids),
                "bm25": list(row.bm25),
                "texts": texts_hash(row, corpus),
                "queries": len(candidates),
            }
            for row in candidates
        ),
        checksum=True,
    )


def candidates_hash(path: Path) -> str:
    """Hash of a file of candidates but for what is only checked, as older versions wrote it (16 hex digits)."""
    digest = hashlib.blake2b()
    for raw in raw_lines(path):
        digest.update(CHECKED.sub(b"}", raw))
    return digest.hexdigest()[:16]


def read_candidates(
    path: str | Path, collection: Collection, *, num_candidates: int | None = None
) -> list[QueryCandidates]:
    """Read and check `candidates.jsonl`.

    Args:
        path: the file.
        collection: has the corpus that was mined.
        num_candidates: the K that every line must have; `None` takes the K of the first line.

    Raises:
        DataError: the file is missing, empty or malformed, a query stands twice, or a query's candidates are missing,
            doubled, unknown, not K, or had other texts when they were mined, or lines are missing, or values are not
            as they were written. The message names the file and the line. A file of an older version does not say
            which texts, lines and values these were, and is read.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(path, "file not found; run `nlt mine` first, which writes it")
    rows: dict[str, QueryCandidates] = {}
    written: list[object] = []
    for line, raw in read_jsonl(path, checksum=True, remedy="run `nlt mine` again"):
        row = _parse(raw, path=path, line=line)
        num_candidates = num_candidates or len(row.document_ids)
        if row.query_id in rows:
            raise DataError(path, f"query {row.query_id!r} stands twice; run `nlt mine` again", line=line)
        reason = _fault(row, collection.corpus, num_candidates=num_candidates)
        if reason is not None:
            raise DataError(path, f"query {row.query_id!r}: {reason}; run `nlt mine` again", line=line)
        if raw.get("texts") not in (None, texts_hash(row, collection.corpus)):
            raise DataError(
                path,
                f"query {row.query_id!r}, its answer or one of its documents had another text when it was mined; run "
                "`nlt mine` again, or remove `texts` from the line if you have changed it yourself",
                line=line,
            )
        rows[row.query_id] = row
        written.append(raw.get("queries"))
    if not rows:
        raise DataError(path, "holds no query; run `nlt mine` again")
    if other := [number for number in written if number not in (None, len(rows))]:
        raise DataError(
            path,
            f"holds {len(rows)} queries, and {other[0]} were written; run `nlt mine` again, or remove `queries` "
            "from the lines if you have changed the file yourself",
        )
    return list(rows.values())


def _fault(row: QueryCandidates, corpus: Mapping[str, object], *, num_candidates: int) -> str | None:
    """Say what is wrong with the candidates of a query; `None` if nothing is wrong."""
    if not row.document_ids:
        return "no candidates"
    if len(row.document_ids) != num_candidates:
        return f"{len(row.document_ids)} candidates where {num_candidates} are expected"
    if len(row.bm25) != num_candidates:
        return f"{len(row.bm25)} BM25 scores for {num_candidates} candidates"
    if len(set(row.document_ids)) != num_candidates:
        return "a document stands twice"
    unknown = [document_id for document_id in row.document_ids if document_id not in corpus]
    return f"document {unknown[0]!r} is not in the corpus" if unknown else None


def _parse(raw: dict[str, Any], *, path: Path, line: int) -> QueryCandidates:
    """Check the types of the values of one line."""
    query_id, query, answer = raw.get("query_id"), raw.get("query"), raw.get("answer")
    document_ids, bm25 = raw.get("document_ids"), raw.get("bm25")
    if not isinstance(query_id, str) or not isinstance(query, str) or not query_id or not query.strip():
        raise DataError(path, "query_id and query must be strings and not empty; run `nlt mine` again", line=line)
    if answer is not None and not isinstance(answer, str):
        raise DataError(path, f"answer must be a string or null, found {answer!r}; run `nlt mine` again", line=line)
    if not isinstance(document_ids, list) or not all(isinstance(value, str) for value in document_ids):
        raise DataError(path, "document_ids must be a list of strings; run `nlt mine` again", line=line)
    if not isinstance(bm25, list) or not all(isinstance(value, (int, float)) for value in bm25):
        raise DataError(path, "bm25 must be a list of numbers; run `nlt mine` again", line=line)
    if not all(abs(value) <= sys.float_info.max for value in bm25):
        raise DataError(path, "bm25 must be a list of finite numbers; run `nlt mine` again", line=line)
    return QueryCandidates(query_id, query, answer, tuple(document_ids), tuple(map(float, bm25)))
