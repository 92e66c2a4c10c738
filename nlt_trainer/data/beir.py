"""A retrieval collection as a BEIR folder: `corpus.jsonl`, `queries.jsonl` and, where there are labels, `qrels/*.tsv`.

Reading is strict. Anything that is missing or doubled raises a `DataError`, which names the file and the line. What
public collections have is read with a warning: documents without text, which are never candidates, and judgements of
documents that the corpus lacks, which count as relevant and not found, as trec_eval counts them. Labels are optional,
because training can do without them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from nlt_trainer.data.document import Document as Document  # callers find it here, too
from nlt_trainer.data.document import check_id, doubled_id
from nlt_trainer.errors import DataError
from nlt_trainer.files import CORPUS_FILE, QRELS_FOLDER, QUERIES_FILE, FolderStage, atomic_folder, atomic_write
from nlt_trainer.text_files import check_keys, raw_lines, read_jsonl, read_lines, write_jsonl

logger = logging.getLogger(__name__)

GRADE = re.compile(r"[+-]?[0-9]{1,4}")  # the time of trec_eval grows with the grade
"""A grade of a judgement. Python's own `int` also takes `1_0`, digits of other scripts, and numbers without end."""
OWN_JUDGED = re.compile(rb"(?:\xef\xbb\xbf)?(?:([^\t]+)\t\1\t|\s*(\S+)\s+(?:\S+\s+)?\2\s)\s*[+]?0*[1-9][0-9]*\s*")
"""A line of qrels, in BEIR's format or in TREC's, in which a document is judged relevant to a query of its own id."""
QRELS_FILES = ("qrels.{split}", "qrels/{split}", "qrels")
"""Names of a split's file of judgements without their ending. A BEIR folder has the second, a TREC folder any."""

STORED_FROM = 64 << 20
"""Bytes of `corpus.jsonl` from which a corpus is kept on disk. Documents of 50 words took 1.6 times it as objects."""
QRELS_HEADER = ("query-id", "corpus-id", "score")

Qrels = dict[str, dict[str, int]]
"""Judgements of one split: query id -> document id -> grade; 0 is judged and not relevant."""


@dataclass(frozen=True, slots=True)
class Query:
    """One query and, where the collection has one, its answer."""

    id: str
    text: str
    answer: str | None = None


@dataclass(frozen=True)
class Collection:
    """A corpus, its queries and the judgements that were read.

    Args:
        name: the folder's own name, used in reports.
        folder: where the collection was read from.
        corpus: document id -> document, in file order; a large one is on disk, see `load_corpus`.
        queries: query id -> query, in file order.
        qrels: split -> query id -> document id -> grade; empty for a collection without labels.
    """

    name: str
    folder: Path
    corpus: Mapping[str, Document]
    queries: dict[str, Query]
    qrels: dict[str, Qrels]

    def split_qrels(self, split: str) -> Qrels:
        """Return the judgements of a split.

        Raises:
            DataError: the split was not read or does not exist; says how to write it and names the existing splits.
        """
        if split not in self.qrels:
            raise _no_judgements(self.folder, split, known=self.qrels)
        return self.qrels[split]

    @cached_property
    def ids_are_shared(self) -> bool:
        """Whether a document with a query's id is taken for the query itself, as in ArguAna and Quora.

        It is not if a document is judged relevant to a query of its own id, for then each kind has ids of its own. The
        judgements of all splits in the folder count, whichever of them were read and in whichever format they are, so
        that mining and every evaluation take the same documents for queries.

        Raises:
            DataError: a file of judgements cannot be unpacked.
        """
        judged = chain.from_iterable(split.items() for split in self.qrels.values())
        if any(grades.get(query_id, 0) > 0 for query_id, grades in judged):
            return False
        named = chain.from_iterable(self.folder.glob(name.format(split="*")) for name in QRELS_FILES)
        lines = chain.from_iterable(raw_lines(file) for file in named if file.is_file())
        return not any(map(OWN_JUDGED.fullmatch, lines))

    def own_document(self, query_id: str) -> str | None:
        """The id of the document that is the query itself, and so no answer to it; `None` if there is none."""
        return query_id if query_id in self.corpus and self.ids_are_shared else None

    def split_queries(self, split: str) -> list[Query]:
        """Return the queries that have a line in the qrels of a split, in the order of `queries.jsonl`.

        Raises:
            DataError: as `split_qrels`.
        """
        judged = self.split_qrels(split)
        return [query for query in self.queries.values() if query.id in judged]


def training_queries(collection: Collection, split: str | None) -> list[Query]:
    """Return the queries to train on, in the order of `queries.jsonl`.

    Args:
        collection: the collection.
        split: take the queries that the qrels of this split name (their ids only, no judgement is used);
            `None` takes every query, as in a collection without qrels.

    Raises:
        DataError: the split does not exist.
    """
    return list(collection.queries.values()) if split is None else collection.split_queries(split)


def load_collection(folder: str | Path, *, splits: Sequence[str] | None = None) -> Collection:
    """Read and check a BEIR folder; warns of documents without text, and of judged ones that the corpus lacks.

    Args:
        folder: holds `corpus.jsonl` (`_id`, `text`, optional `title`), `queries.jsonl` (`_id`, `text`, optional
            `answer` or `answers`, of which the first is taken) and optionally `qrels/SPLIT.tsv`.
        splits: the qrels to read; `None` reads all there are, which may be none.

    Raises:
        DataError: a file is missing or malformed, an id is missing, empty or doubled, a query is empty, qrels point to
            an unknown query or to no document of the corpus, a split of `splits` has no qrels; names file and line.
    """
    folder = Path(folder)
    corpus = load_corpus(folder)
    queries = _read_queries(folder / QUERIES_FILE)
    files = {path.stem: path for path in sorted((folder / QRELS_FOLDER).glob("*.tsv"))}
    if splits is not None:
        missing = [split for split in splits if split not in files]
        if missing:
            raise _no_judgements(folder, missing[0], known=files)
        files = {split: files[split] for split in splits}
    qrels = {split: _read_qrels(path, queries=queries, corpus=corpus) for split, path in files.items()}
    return Collection(name=folder.resolve().name, folder=folder, corpus=corpus, queries=queries, qrels=qrels)


def _no_judgements(folder: Path, split: str, *, known: Iterable[str]) -> DataError:
    """The error for a split without judgements: which file is missing, how to write it, and which splits exist."""
    there = ", ".join(sorted(known))
    return DataError(
        folder / QRELS_FOLDER / f"{split}.tsv",
        f"not found, so nothing judges the split {split!r}; write it with tabs between the columns: the header "
        f"{', '.join(QRELS_HEADER)}, then a line for each relevant document"
        + (f"; or name a split that is there: {there}" if there else ""),
    )


def write_collection(
    folder: str | Path,
    *,
    corpus: Iterable[Document],
    queries: Iterable[Query],
    qrels: Mapping[str, Mapping[str, Mapping[str, int]]],
    stage: FolderStage,
) -> Path:
    """Write a BEIR folder, which is whole or absent and replaces an earlier one of the stage; returns the folder.

    Args:
        folder: where to write.
        corpus: the documents, in the order of the file.
        queries: the queries, in the order of the file; an answer is written where there is one.
        qrels: split -> query id -> document id -> grade; an empty mapping writes no qrels.
        stage: what writes it.

    Raises:
        NLTError: as `check_folder`.
    """
    folder = Path(folder)
    with atomic_folder(folder, stage=stage) as partial:
        write_corpus(partial, corpus)
        write_queries(partial, queries)
        write_qrels(partial, qrels)
    return folder


def write_corpus(folder: Path, corpus: Iterable[Document]) -> int:
    """Write `corpus.jsonl`, one document after another as they come; returns the number of documents."""
    return write_jsonl(folder / CORPUS_FILE, ({"_id": d.id, "title": d.title, "text": d.text} for d in corpus))


def write_queries(folder: Path, queries: Iterable[Query]) -> int:
    """Write `queries.jsonl`, with answers where queries have one; returns the number of queries."""
    rows = ({"_id": q.id, "text": q.text} | ({} if q.answer is None else {"answer": q.answer}) for q in queries)
    return write_jsonl(folder / QUERIES_FILE, rows)


def write_qrels(folder: Path, qrels: Mapping[str, Mapping[str, Mapping[str, int]]]) -> None:
    """Write `qrels/SPLIT.tsv` for each split: query id -> document id -> grade."""
    for split, judgements in qrels.items():
        with atomic_write(folder / QRELS_FOLDER / f"{split}.tsv") as handle:
            handle.write("\t".join(QRELS_HEADER) + "\n")
            for query_id, grades in judgements.items():
                handle.writelines(f"{query_id}\t{document_id}\t{grade}\n" for document_id, grade in grades.items())


def check_corpus(folder: str | Path) -> None:
    """Refuse a folder without a corpus; a script calls this before it imports any large library.

    Raises:
        DataError: `corpus.jsonl` is missing.
    """
    _check_there(Path(folder) / CORPUS_FILE)


def load_corpus(folder: str | Path) -> Mapping[str, Document]:
    """Read and check the documents of a BEIR folder alone: document id -> document, in file order.

    A file of `STORED_FROM` bytes or more is read once, and its documents are kept on disk in the user's cache.

    Raises:
        DataError: `corpus.jsonl` is missing, malformed or without text; names file and line.
    """
    path = Path(folder) / CORPUS_FILE
    _check_there(path)
    if path.stat().st_size >= STORED_FROM:
        from nlt_trainer.data.stored_corpus import stored  # pyarrow is imported for large corpora only

        large = stored(path, _documents(path, known=()))
        check_texts(path, large)
        return large
    corpus: dict[str, Document] = {}
    for document in _documents(path, known=corpus):
        corpus[document.id] = document
    check_texts(path, corpus)
    return corpus


def _documents(path: Path, known: Container[str]) -> Iterator[Document]:
    """Yield the documents of a file; an id that is known by then is refused."""
    line = 0
    for line, row in _rows(path, "title"):
        document_id = _new_id(row, known, path=path, line=line)
        title = _text(row, "title", path, line, may_be_null=True).strip()
        text = _text(row, "text", path, line, may_be_null="text" in row)  # a missing key is a misnamed one
        yield Document(document_id, title, text if text.strip() else "")
    if not line:
        raise DataError(path, "holds no document; write one JSON object a line with _id, title and text")


def check_texts(path: Path, corpus: Mapping[str, Document]) -> None:
    """Warn of documents without text.

    Raises:
        DataError: no document has text.
    """
    empty = [document.id for document in corpus.values() if not document.content]
    if len(empty) == len(corpus):
        raise DataError(path, "has no document with text; write one under title or text")
    if empty:
        logger.warning("%s has %d empty documents, e.g. %s; they are never candidates", path, len(empty), empty[0])


def check_judged(path: Path, qrels: Qrels, corpus: Mapping[str, Document]) -> None:
    """Warn of judged documents that the corpus lacks.

    Raises:
        DataError: it lacks all of them.
    """
    judged = {document_id for grades in qrels.values() for document_id in grades}
    if not (missing := judged - corpus.keys()):
        return
    if missing == judged:
        raise DataError(
            path, f"judges no document of the corpus, but e.g. {min(missing)!r}; put the two that belong together"
        )
    logger.warning(
        "%s judges %d documents that the corpus lacks, e.g. %s; they count as documents that nothing finds",
        path, len(missing), min(missing),
    )  # fmt: skip


def _read_queries(path: Path) -> dict[str, Query]:
    queries: dict[str, Query] = {}
    for line, row in _rows(path, "answer", "answers"):
        query_id = _new_id(row, queries, path=path, line=line)
        text = _text(row, "text", path, line)
        if not text.strip():
            raise DataError(path, f"query {query_id!r} is empty; fill in its text or remove the line", line=line)
        queries[query_id] = Query(query_id, text, _answer(row, path=path, line=line))
    if not queries:
        raise DataError(path, "holds no query; write one JSON object a line with _id and text")
    return queries


def _rows(path: Path, *optional: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield `(line, row)`; a key that a row may have must not stand there in capitals."""
    _check_there(path)
    for line, row in read_jsonl(path):
        check_keys(path, row, optional, line=line)
        yield line, row


def _check_there(path: Path) -> None:
    if not path.is_file():
        files = f"{CORPUS_FILE} and {QUERIES_FILE}"
        remedy = "write them, or run `nlt build_corpus` on a folder of documents, or `nlt build_collection`"
        raise DataError(path, f"file not found; a collection is a folder with {files}: {remedy}")


def _new_id(row: dict[str, Any], known: Container[str], *, path: Path, line: int) -> str:
    value = row.get("_id")
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise DataError(path, f'_id must be a string, found the number {value}; write "{value}"', line=line)
    if not isinstance(value, str) or not value.strip():
        raise DataError(path, f"_id must be a string and not empty, found {value!r}; give every line one", line=line)
    if value in known:
        raise doubled_id(path, value, line=line)
    check_id(value, path=path, line=line)
    return value


def _text(row: dict[str, Any], key: str, path: Path, line: int, *, may_be_null: bool = False) -> str:
    value = row.get(key)
    if value is None and may_be_null:
        return ""
    if not isinstance(value, str):
        raise DataError(path, f"{key} must be a string, found {value!r}; correct the line", line=line)
    return value


def _answer(row: dict[str, Any], *, path: Path, line: int) -> str | None:
    value = row.get("answer")
    if value is None:
        answers = row.get("answers") or []
        if not isinstance(answers, list):
            raise DataError(path, f"answers must be a list of strings, found {answers!r}", line=line)
        value = next((found for found in answers if not isinstance(found, str) or found.strip()), None)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if not isinstance(value, str):
        raise DataError(path, f"an answer must be a string, found {value!r}; correct the line", line=line)
    return value


def _read_qrels(path: Path, *, queries: Mapping[str, Query], corpus: Mapping[str, Document]) -> Qrels:
    lines = read_lines(path)
    if not is_qrels_header(next(lines, (1, ""))[1].split("\t")):
        raise DataError(path, f"the first line must be {' '.join(QRELS_HEADER)}, separated by tabs", line=1)
    qrels: Qrels = {}
    for line, raw in lines:
        if not raw.strip():
            continue
        query_id, document_id, grade = _judgement(raw, path=path, line=line)
        if query_id not in queries:
            raise DataError(
                path, f"unknown query {query_id!r}; add it to {QUERIES_FILE} or remove the line", line=line
            )
        if document_id in qrels.setdefault(query_id, {}):
            raise DataError(
                path, f"query {query_id!r} and document {document_id!r} were judged before; keep one line", line=line
            )
        qrels[query_id][document_id] = grade
    if not qrels:
        raise DataError(path, "holds no judgement; add some or remove the file")
    check_judged(path, qrels, corpus)
    return qrels


def is_qrels_header(fields: Sequence[str]) -> bool:
    """Whether a line of judgements is BEIR's header, in whatever capitals."""
    return tuple(field.strip().casefold() for field in fields) == QRELS_HEADER


def _judgement(raw: str, *, path: Path, line: int) -> tuple[str, str, int]:
    fields = raw.split("\t")
    if len(fields) != len(QRELS_HEADER):
        raise DataError(
            path,
            f"expected 3 fields separated by tabs, found {len(fields)}; write query id, document id and grade",
            line=line,
        )
    query_id, document_id, score = fields
    if not GRADE.fullmatch(score.strip()):
        raise DataError(path, f"score {score!r} is not an integer of at most four digits; write the grade", line=line)
    check_id(document_id, path=path, line=line)  # one that the corpus lacks is taken, too
    return query_id, document_id, int(score)
