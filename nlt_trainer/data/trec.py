"""Read a TREC collection from a folder of documents, topics and qrels, and read runs of trec_eval.

The files are found by name, where `SPLIT` is the split that is asked for:

| part | names, with any of the endings below |
|---|---|
| documents | `corpus`, `collection`, `documents` or `docs` |
| topics | `topics.SPLIT`, `queries.SPLIT`, `topics` or `queries` |
| judgements | `qrels.SPLIT`, `qrels/SPLIT` or `qrels` |

Endings are `.jsonl`, `.json`, `.tsv`, `.txt`, `.trec`, `.sgml`, `.xml`, `.qrels` or none, each also packed (`.gz`).
The content tells the format: JSON lines, TREC's tags (`<DOC>`; `<top>`, or `<topic number="1">`), or columns with tabs
between them. In tagged text a `<` that begins no tag, as in `3 < 5`, is text. The columns are an id and a text, unless
a first line names others. Judgements have TREC's four columns, or BEIR's three under BEIR's header. Names of columns
and of the keys of JSON may be written in capitals, and with hyphens in place of underscores.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nlt_trainer.data.beir import (
    GRADE,
    QRELS_FILES,
    Collection,
    Document,
    Qrels,
    Query,
    check_judged,
    check_texts,
    is_qrels_header,
    load_collection,
)
from nlt_trainer.data.document import check_id
from nlt_trainer.data.questions import text_of
from nlt_trainer.errors import DataError, NLTError
from nlt_trainer.files import CORPUS_FILE, QRELS_FOLDER, QUERIES_FILE
from nlt_trainer.text_files import check_header, read_jsonl, read_lines

ENDING = r"(\.(jsonl|json|tsv|txt|trec|sgml|xml|qrels))?(\.gz)?"
DOCUMENT_FILES = ("corpus", "collection", "documents", "docs")
TOPIC_FILES = ("topics.{split}", "queries.{split}", "topics", "queries")
ID_KEYS = ("_id", "id", "docid", "docno", "doc_id", "pid", "qid", "query_id", "topic_id")
TITLE_KEYS = ("title",)
TEXT_KEYS = ("text", "contents", "body", "passage")
TOPIC_KEYS = ("text", "query", "title", "topic")
TITLE_TAGS = re.compile(r"<(TITLE|HEADLINE|HEAD|TI)>((?:[^<]++|<(?!/?\1>))*+)</\1>", re.IGNORECASE)
TEXT_TAGS = re.compile(r"<TEXT>((?:[^<]++|<(?!/?TEXT>))*+)</TEXT>", re.IGNORECASE)
"""What stands between two tags has no such tag in it: otherwise many that are never closed would take hours."""
DOCUMENT, TOPIC = "DOC", "top|topic"
"""Tags around a document and around a topic."""
TAG = re.compile(
    r"<!--(?:[^<-]++|<(?!!--)|-(?!->))*+-->|<[?!][^<>]*>|</?[a-z][\w:.-]*(?:\s+[\w:.-]+\s*=\s*(?:\"[^\"]*\"|'[^']*'|[^\s<>\"']+))*\s*/?>",
    re.DOTALL | re.IGNORECASE,
)
"""A tag with its attributes, or a comment; other text between `<` and `>` is text."""
ID_ATTRIBUTE = re.compile(r"\b(?:number|num|id)\s*=\s*[\"']?([^\s<>\"']+)", re.IGNORECASE)
NUMBER = re.compile(r"<num>\s*(?:Number:)?\s*([^\s<]+)", re.IGNORECASE)
CLOSED_QUERY = re.compile(r"<(query|title)\b[^<>]*>((?:[^<]++|<(?!/?\1\b))*+)</\1>", re.IGNORECASE)
OPEN_QUERY = re.compile(rf"<(query|title)>(.*?)(?={TAG.pattern}|\Z)", re.DOTALL | re.IGNORECASE)
"""The query of a topic, whose elements may be left open, as TREC's are."""


def load_folder(folder: str | Path, *, split: str) -> Collection:
    """Read a BEIR folder, or a TREC folder where the folder lacks one of BEIR's files.

    Raises:
        DataError: as `load_collection` and `load_trec`.
    """
    folder = Path(folder)
    named = folder / CORPUS_FILE, folder / QUERIES_FILE, folder / QRELS_FOLDER / f"{split}.tsv"
    found = [bool(_files(folder, stems, split)) for stems in (DOCUMENT_FILES, TOPIC_FILES, QRELS_FILES)]
    is_beir = all(path.is_file() for path in named)
    is_incomplete = not all(found) and (all(path.is_file() for path in named[:2]) or not any(found))
    return load_collection(folder, splits=[split]) if is_beir or is_incomplete else load_trec(folder, split=split)


def load_trec(folder: str | Path, *, split: str) -> Collection:
    """Read and check a TREC folder; warns of documents without text, and of judged ones that the corpus lacks.

    Args:
        folder: holds the files that this module's documentation names.
        split: which topics and judgements to read.

    Raises:
        DataError: a file is missing, doubled or malformed, an id is empty or doubled, a judged query has no topic;
            names file and line.
    """
    folder = Path(folder)
    corpus = _read_documents(_one_file(folder, DOCUMENT_FILES, split))
    queries = _read_topics(_one_file(folder, TOPIC_FILES, split))
    path = _one_file(folder, QRELS_FILES, split)
    qrels = _read_qrels(path, queries)
    check_judged(path, qrels, corpus)
    return Collection(folder.resolve().name, folder, corpus, queries, {split: qrels})


def read_run(path: str | Path) -> dict[str, dict[str, float]]:
    """Read a run of trec_eval with the columns query, `Q0`, document, rank, score, tag. The score decides the order.

    Returns:
        query id -> document id -> score.

    Raises:
        DataError: the file is missing, empty or malformed, a score is not finite, or a query has a document twice.
    """
    path = Path(path)
    rankings: dict[str, dict[str, float]] = {}
    for line, raw in read_lines(path):
        if not (fields := raw.split()):
            continue
        if len(fields) != 6:
            raise DataError(path, f"expected query, Q0, document, rank, score, tag; found {len(fields)}", line=line)
        query_id, _, document_id, _, score, _ = fields
        ranking = rankings.setdefault(query_id, {})
        if document_id in ranking:
            raise DataError(path, f"document {document_id!r} stands twice for query {query_id!r}", line=line)
        try:
            ranking[document_id] = float(score)
        except ValueError as error:
            raise DataError(path, f"score {score!r} is no number", line=line) from error
        if not math.isfinite(ranking[document_id]):
            raise DataError(path, f"score {score!r} is no finite number, and decides no order", line=line)
    if not rankings:
        raise DataError(path, "holds no ranking")
    return rankings


def _files(folder: Path, stems: Sequence[str], split: str) -> list[Path]:
    """The files of the first stem that has files."""
    for stem in (stem.format(split=split) for stem in stems):
        parent, pattern = (folder / stem).parent, re.compile(re.escape(Path(stem).name) + ENDING)
        if found := [path for path in sorted(parent.glob("*")) if path.is_file() and pattern.fullmatch(path.name)]:
            return found
    return []


def _one_file(folder: Path, stems: Sequence[str], split: str) -> Path:
    found = _files(folder, stems, split)
    names = ", ".join(stem.format(split=split) for stem in stems)
    if not found:
        raise DataError(folder, f"has none of {names} (with .jsonl, .tsv, .trec, ... or no ending); add the file")
    if len(found) > 1:
        raise DataError(folder, f"has {found[0].name} and {found[1].name}; keep one of them")
    return found[0]


def _read_documents(path: Path) -> dict[str, Document]:
    corpus: dict[str, Document] = {}
    for line, row in _rows(path, DOCUMENT):
        document_id = _new_id(row, corpus, path=path, line=line)
        if not any(key in row for key in TEXT_KEYS):
            known, found = ", ".join(TEXT_KEYS), ", ".join(map(repr, row))
            raise DataError(path, f"has none of {known}, but {found}; give the text one of these names", line=line)
        title, text = (_value(row, keys, path=path, line=line) for keys in (TITLE_KEYS, TEXT_KEYS))
        corpus[document_id] = Document(document_id, title, text)
    if not corpus:
        raise DataError(path, "holds no document")
    check_texts(path, corpus)
    return corpus


def _read_topics(path: Path) -> dict[str, Query]:
    queries: dict[str, Query] = {}
    for line, row in _rows(path, TOPIC):
        query_id = _new_id(row, queries, path=path, line=line)
        if not (text := _value(row, TOPIC_KEYS, path=path, line=line)):
            raise DataError(path, f"topic {query_id!r} has no text; write one under {TOPIC_KEYS[0]}", line=line)
        queries[query_id] = Query(query_id, text)
    if not queries:
        raise DataError(path, "holds no topic")
    return queries


def _rows(path: Path, tag: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield `(line, row)`. The first character of the file tells JSON lines, tagged blocks and columns apart."""
    first = next((text.lstrip() for _, text in read_lines(path) if text.strip()), "")
    if first.startswith("{"):
        return (
            (line, {_plain_name(key): value for key, value in row.items()} | row) for line, row in read_jsonl(path)
        )
    return _tagged_rows(path, tag) if first.startswith("<") else _column_rows(path)


def _column_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    names: list[str] = ["id", "text"]
    for line, raw in read_lines(path):
        fields = raw.split("\t")
        if line == 1 and any(_plain_name(field) in ID_KEYS for field in fields):
            names = [_plain_name(field) for field in fields]
            check_header(path, names)
        elif raw.strip():
            if len(fields) != len(names):
                reason = f"expected {len(names)} columns with tabs between them ({', '.join(names)})"
                raise DataError(path, f"{reason}, found {len(fields)}; name other columns in a first line", line=line)
            yield line, dict(zip(names, fields, strict=True))


def _plain_name(column: str) -> str:
    """The name of a column as the lists of known names have it."""
    return column.strip().casefold().replace("-", "_")


def _tagged_rows(path: Path, tag: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the blocks between `<tag>` and `</tag>`, of which a line may have several; `tag` may name alternatives."""
    mark = re.compile(rf"<(/?)({tag})(\s[^<>]*)?>", re.IGNORECASE)
    block: list[str] = []
    opened: re.Match[str] | None = None
    start = 0
    for line, raw in read_lines(path):
        begin = 0
        for found in mark.finditer(raw):
            if opened is None and not found[1]:
                block, opened, start, begin = [], found, line, found.end()
            elif opened is not None and found[2].casefold() == opened[2].casefold():
                if not found[1]:
                    raise _not_closed(path, opened, start)
                text = "\n".join([*block, raw[begin : found.start()]])
                yield start, _document_row(opened[0], text) if tag == DOCUMENT else _topic_row(opened[0], text)
                opened = None
        if opened is not None:
            block.append(raw[begin:])
    if opened is not None:
        raise _not_closed(path, opened, start)


def _not_closed(path: Path, opened: re.Match[str], line: int) -> DataError:
    return DataError(path, f"{opened[0]} is not closed by </{opened[2]}>; close it", line=line)


def _document_row(opened: str, text: str) -> dict[str, str]:
    """Id, title and text of a document, from its opening tag and what it holds."""
    number = re.search(r"<DOCNO>(.*?)</DOCNO>", text, re.DOTALL | re.IGNORECASE)
    attribute, title = ID_ATTRIBUTE.search(opened), TITLE_TAGS.search(text)
    rest = text
    for match in (number, title):
        rest = rest.replace(match.group(), "") if match else rest
    return {
        "id": _plain(number[1]) if number else attribute[1] if attribute else "",
        "title": _plain(title[2]) if title else "",
        "text": _plain("\n".join(TEXT_TAGS.findall(text)) or rest),
    }


def _topic_row(opened: str, text: str) -> dict[str, str]:
    """Number and query of a topic, from its opening tag and what it holds; without title or query it is read whole."""
    number = NUMBER.search(text) or ID_ATTRIBUTE.search(opened)
    query = CLOSED_QUERY.search(text) or OPEN_QUERY.search(text)
    whole = _plain(query[2] if query else NUMBER.sub("", text))
    return {"id": number[1] if number else "", "text": re.sub(r"^Topic:\s*", "", whole, flags=re.IGNORECASE)}


def _plain(text: str) -> str:
    """The text without tags, with entities resolved and white space reduced to single blanks."""
    return " ".join(html.unescape(TAG.sub(" ", text)).split())


def _new_id(row: Mapping[str, Any], known: Mapping[str, object], *, path: Path, line: int) -> str:
    value = _value(row, ID_KEYS, path=path, line=line)
    if not value:
        raise DataError(path, f"has no id ({', '.join(ID_KEYS)}, or DOCNO, num and number in tags); add it", line=line)
    if value in known:
        raise DataError(path, f"id {value!r} was used before; make ids unique", line=line)
    check_id(value, path=path, line=line)
    return value


def _value(row: Mapping[str, Any], keys: Sequence[str], *, path: Path, line: int) -> str:
    """The value of the first key that the row has, as text."""
    try:
        return next((text_of(row[key]) for key in keys if row.get(key) is not None), "")
    except NLTError as error:
        raise DataError(path, str(error), line=line) from error


def _read_qrels(path: Path, queries: Mapping[str, Query]) -> Qrels:
    qrels: Qrels = {}
    is_beir = False
    for line, raw in read_lines(path):
        fields = raw.split()
        if is_qrels_header(fields):
            is_beir = True
            continue
        if not fields:
            continue
        if is_beir:
            fields.insert(1, "0")
        if len(fields) != 4:
            raise DataError(path, f"expected query, 0, document, grade; found {len(fields)} fields", line=line)
        query_id, _, document_id, grade = fields
        if query_id not in queries:
            raise DataError(
                path, f"judges the unknown query {query_id!r}; add its topic or remove the line", line=line
            )
        if document_id in qrels.setdefault(query_id, {}):
            raise DataError(path, f"query {query_id!r} and document {document_id!r} were judged before", line=line)
        if not GRADE.fullmatch(grade):
            raise DataError(path, f"grade {grade!r} is not an integer of at most four digits", line=line)
        qrels[query_id][document_id] = int(grade)
    if not qrels:
        raise DataError(path, "holds no judgement")
    return qrels
