"""Turn data sets of the Hub into a BEIR folder.

Two kinds of data sets are read, alone or together. A set in BEIR's layout gives a corpus and judged queries. A
question-answer set gives questions, answers and, where it has them, passages, of which some are gold. Texts stream
from file to file. Only the queries, and an id and a hash of each document, stay in memory.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from nlt_trainer.data.beir import Document, Qrels, Query, write_corpus, write_qrels, write_queries
from nlt_trainer.data.hub import HubDataset, fetch_dataset, read_rows
from nlt_trainer.data.questions import Columns, Question, hash_of, read_question, text_of
from nlt_trainer.errors import DataError, NLTError
from nlt_trainer.file_hashes import changed_file, file_hash
from nlt_trainer.files import atomic_folder, check_folder
from nlt_trainer.text_files import read_json, write_json

SOURCE_FILE = "source.json"
MOST_GRADE = 9999
"""No file of judgements is read with a larger one."""
REPORT_KINDS = {
    "commits": dict,
    "documents": int,
    "queries": int,
    "judged_queries": dict,
    "left_out": dict,
    "files": dict,
}
"""Entry of a report, besides the settings -> kind of its value."""


@dataclass(frozen=True)
class BEIRSource:
    """A data set in BEIR's layout: `corpus`, `queries` and judgements.

    Args:
        name: Hub id or folder.
        revision: of a Hub id.
        qrels: Hub id or folder of the judgements, if they lie elsewhere; `None` means in the same data set.
        qrels_revision: of that Hub id.
        splits: split of the judgements -> split of the collection; empty takes the corpus alone.
    """

    name: str
    revision: str | None = None
    qrels: str | None = None
    qrels_revision: str | None = None
    splits: Mapping[str, str] = field(default_factory=lambda: {"test": "test"})


@dataclass(frozen=True)
class QuestionSource:
    """A question-answer set.

    Args:
        name: Hub id or folder.
        revision: of a Hub id.
        config: configuration; `None` means `default`, or the only one.
        columns: where question, answer and passages stand in a row.
        splits: split of the set -> split of the collection.
        held_out: split of the collection -> share of the train questions that a hash of their id sends there.
    """

    name: str
    columns: Columns
    revision: str | None = None
    config: str | None = None
    splits: Mapping[str, str] = field(default_factory=lambda: {"train": "train"})
    held_out: Mapping[str, float] = field(default_factory=dict)


def build_hub_collection(
    folder: str | Path, *, beir: BEIRSource | None = None, questions: QuestionSource | None = None
) -> dict[str, Any]:
    """Write a BEIR folder, whole or not at all; returns the report that its `source.json` holds too.

    A folder that was built from the Hub with the same settings is left as it is. Fetched files stay in the Hub's
    cache, so that a killed build goes on from there.

    Args:
        folder: where to write.
        beir: its corpus and judgements are kept whole, repeated and empty texts and documents that are judged but not
            there included, so that figures compare with published ones.
        questions: each distinct passage becomes one document, each distinct question one query.

    Raises:
        NLTError: the sources do not fit together or cannot be fetched, or the folder holds something else.
        DataError: a malformed file, an id that stands for two texts, a split without judgements, or a file of an
            earlier build that has changed since.
    """
    folder = Path(folder)
    _check(beir, questions)
    settings = {name: asdict(source) for name, source in (("beir", beir), ("questions", questions)) if source}
    if (done := _built_before(folder, settings)) is not None:
        return done
    check_folder(folder, stage="nlt build_collection")
    parts = _fetch(beir, questions)
    build = _Build(beir, questions, parts)
    with atomic_folder(folder, stage="nlt build_collection") as partial:
        documents = write_corpus(partial, build.documents())
        queries, qrels = build.queries()
        write_queries(partial, queries)
        write_qrels(partial, qrels)
        report = {
            "settings": settings,
            "commits": {part.name: part.commit for part in parts.values()},
            "documents": documents,
            "queries": len(queries),
            "judged_queries": {split: len(judgements) for split, judgements in qrels.items()},
            "left_out": dict(build.left_out),
            "files": {
                file.relative_to(partial).as_posix(): file_hash(file)
                for file in sorted(partial.rglob("*"))
                if file.is_file()
            },
        }
        write_json(partial / SOURCE_FILE, report)
    return report


def _check(beir: BEIRSource | None, questions: QuestionSource | None) -> None:
    """Refuse sources that cannot give a usable collection."""
    if questions is None:
        if beir is None or not beir.splits:
            raise NLTError("a collection needs beir with beir_splits, or questions, or both; set one")
        return
    if sum(questions.held_out.values()) >= 1 or any(share <= 0 for share in questions.held_out.values()):
        raise NLTError(f"held_out is {dict(questions.held_out)}; give shares above 0 that leave some for train")
    if questions.columns.passage is not None:
        return
    if beir is None:
        raise NLTError("questions without passages need a corpus; set passage_column, or beir to take its corpus")
    if beir.splits:
        raise NLTError(
            "questions without passages have no judgements, so that nothing would keep them apart from the judged "
            f"queries of {beir.name}; set beir_splits: {{}} and build the judged queries into a folder of their own"
        )
    if questions.held_out or set(questions.splits.values()) != {"train"}:
        raise NLTError("questions without passages cannot be judged; map all of question_splits to train, no held_out")


def _built_before(folder: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The report of an earlier build with these settings, or `None`. A build from local folders is always repeated."""
    if not folder.exists():
        return None
    source = folder / SOURCE_FILE
    report = read_json(source) if source.is_file() else {}
    if report.get("settings") != settings:
        raise NLTError(f"{folder} exists and was not built with these settings; choose another folder or remove it")
    files = report.setdefault("files", {})  # version 0.1 has kept no hashes
    for key, kind in REPORT_KINDS.items():
        if not isinstance(report.get(key), kind):
            raise DataError(source, f"{key} is {report.get(key)!r}; remove {folder} to build it again")
    if not all(report["commits"].values()):
        return None
    if (changed := changed_file(folder, files)) is not None:
        raise DataError(
            changed,
            f"is not as it was built; put it back, remove {folder} to build it again, or go on without a build if you "
            "have changed it yourself",
        )
    return report


def _fetch(beir: BEIRSource | None, questions: QuestionSource | None) -> dict[str, HubDataset]:
    parts = {}
    if beir is not None:
        parts["beir"] = fetch_dataset(beir.name, revision=beir.revision)
        if beir.qrels is not None:
            parts["qrels"] = fetch_dataset(beir.qrels, revision=beir.qrels_revision)
    if questions is not None:
        configs = [questions.config or "default"]
        parts["questions"] = fetch_dataset(questions.name, revision=questions.revision, configs=configs)
    return parts


class _Build:
    """Builds a collection in one pass over the documents and then one over the queries.

    Args:
        beir: source in BEIR's layout.
        questions: question-answer set.
        parts: the fetched files of both.
    """

    def __init__(
        self, beir: BEIRSource | None, questions: QuestionSource | None, parts: Mapping[str, HubDataset]
    ) -> None:
        self.beir, self.questions, self.parts = beir, questions, parts
        self.left_out: Counter[str] = Counter()
        self.text_of: dict[str, int] = {}  # document id -> hash of its text
        self.id_of: dict[int, str] = {}  # hash of a text -> id of the first document that has it

    def documents(self) -> Iterator[Document]:
        """Yield the corpus: first the documents in BEIR's layout, then the passages that are new."""
        if self.beir is not None:
            yield from self._beir_documents(self.beir)
        if self.questions is not None and self.questions.columns.passage is not None:
            for split in self.questions.splits:
                for question in self._read_questions(self.questions, split):
                    yield from self._new_passages(question)

    def _beir_documents(self, beir: BEIRSource) -> Iterator[Document]:
        part = self.parts["beir"]
        for row in _rows(part, part.part_files("corpus", beir.splits)):
            document = Document(_id(row, part), _text(row, "title", part), _text(row, "text", part))
            key = hash_of(document.content)
            if document.id not in self.text_of:
                self.text_of[document.id] = key
                self.id_of.setdefault(key, document.id)
                yield document
            elif self.text_of[document.id] != key:
                raise DataError(part.folder, f"document id {document.id!r} stands for two texts; fix the data set")

    def _new_passages(self, question: Question) -> Iterator[Document]:
        for passage in question.passages:
            key = hash_of(passage.content)
            if key not in self.id_of:
                self.id_of[key] = passage.id
                yield passage

    def queries(self) -> tuple[list[Query], dict[str, Qrels]]:
        """Queries and judgements. No evaluation query is also in train."""
        queries: dict[str, Query] = {}
        qrels: dict[str, Qrels] = {}
        if self.beir is not None and self.beir.splits:
            judged = self._beir_qrels(self.beir)
            queries = self._beir_queries(self.beir, {query for split in judged.values() for query in split})
            qrels = {s: {q: grades for q, grades in split.items() if q in queries} for s, split in judged.items()}
        if self.questions is not None:
            self._add_questions(self.questions, queries, qrels)
        if not queries:
            raise NLTError("no query is left; look at beir_splits, question_splits and the columns")
        if empty := [split for split, judgements in qrels.items() if not judgements]:
            raise NLTError(f"split {empty[0]!r} has no judged query; corpus, queries and qrels do not belong together")
        return list(queries.values()), qrels

    def _beir_qrels(self, beir: BEIRSource) -> dict[str, Qrels]:
        part = self.parts.get("qrels", self.parts["beir"])
        qrels: dict[str, Qrels] = {}
        for source, target in beir.splits.items():
            judgements = qrels.setdefault(target, {})
            for row in _rows(part, part.split_files(source, configs=("default", "qrels"), inside="qrels")):
                query_id, document_id, grade = _judgement(row, part)
                judgements.setdefault(query_id, {})[document_id] = grade
        return qrels

    def _beir_queries(self, beir: BEIRSource, judged: set[str]) -> dict[str, Query]:
        part = self.parts["beir"]
        found: dict[str, Query] = {}
        for row in _rows(part, part.part_files("queries", beir.splits)):
            query = Query(_id(row, part), _text(row, "text", part))
            if query.id not in judged:
                continue
            if not query.text:
                self.left_out["queries without text"] += 1
            elif found.setdefault(query.id, query) != query:
                raise DataError(part.folder, f"query id {query.id!r} stands for two texts; fix the data set")
        return found

    def _read_questions(self, source: QuestionSource, split: str) -> Iterator[Question]:
        part = self.parts["questions"]
        only = list(part.configs) if len(part.configs) == 1 else []
        configs = [source.config] if source.config else ["default", *only]
        try:
            for row in _rows(part, part.split_files(split, configs=configs)):
                yield read_question(row, source.columns)
        except DataError:
            raise
        except NLTError as error:
            raise DataError(part.folder, str(error)) from error

    def _add_questions(self, source: QuestionSource, queries: dict[str, Query], qrels: dict[str, Qrels]) -> None:
        # Normalised text -> judgements of the query with this text. The judgements of BEIR's queries do not change.
        known: dict[str, dict[str, int]] = {_normalised(query.text): {} for query in queries.values()}
        for split, target in sorted(source.splits.items(), key=lambda item: item[1] == "train"):
            for question in self._read_questions(source, split):
                if (why := _unusable(question, source.columns)) is not None:
                    self.left_out[why] += 1
                    continue
                text = _normalised(question.text)
                gold = {
                    self.id_of[hash_of(p.content)]: 1
                    for p, g in zip(question.passages, question.gold, strict=True)
                    if g
                }
                if text in known:
                    known[text].update(gold)
                    self.left_out["repeated questions"] += 1
                    continue
                if question.id in queries:
                    part = self.parts["questions"]
                    raise DataError(
                        part.folder, f"question id {question.id!r} stands for two questions; leave out id_column"
                    )
                known[text] = gold
                queries[question.id] = Query(question.id, question.text, question.answer)
                if source.columns.passage is not None:
                    qrels.setdefault(split_of(question.id, target, source.held_out), {})[question.id] = gold


def _unusable(question: Question, columns: Columns) -> str | None:
    """Why a question is left out; `None` where it is kept."""
    if not question.text:
        return "questions without text"
    if columns.answer is not None and question.answer is None:
        return "questions without an answer"
    if columns.passage is not None and not any(question.gold):
        return "questions without a gold passage"
    return None


def split_of(query_id: str, split: str, held_out: Mapping[str, float]) -> str:
    """The split of a question: that of its source, except that a hash of its id sends shares of train elsewhere.

    Nothing else decides it, so a question keeps its split when the set is reordered or grows.
    """
    if split != "train":
        return split
    draw = hash_of(query_id) / 2**64
    for name, share in held_out.items():
        if draw < share:
            return name
        draw -= share
    return split


def _rows(part: HubDataset, files: list[Path]) -> Iterator[dict[str, Any]]:
    """The rows of files of a data set, with a progress bar if reading takes long."""
    return tqdm(read_rows(files), desc=f"{part.name} {files[0].name}", unit=" rows", delay=2)


def _id(row: Mapping[str, Any], part: HubDataset) -> str:
    value = row.get("_id", row.get("id"))
    if value is None or not str(value).strip():
        raise DataError(part.folder, f"a row has neither _id nor id: {str(dict(row))[:120]}")
    return str(value)


def _text(row: Mapping[str, Any], column: str, part: HubDataset) -> str:
    try:
        return text_of(row.get(column))
    except NLTError as error:
        raise DataError(part.folder, f"{column}: {error}") from error


def _judgement(row: Mapping[str, Any], part: HubDataset) -> tuple[str, str, int]:
    try:
        query_id, document_id, grade = row["query-id"], row["corpus-id"], float(row["score"])
    except (KeyError, TypeError, ValueError):
        query_id, document_id, grade = None, None, math.nan
    if query_id is None or document_id is None or not grade.is_integer() or abs(grade) > MOST_GRADE:
        raise DataError(
            part.folder,
            f"{dict(row)} is no judgement: needs query-id, corpus-id and score, a whole number of at most four digits",
        )
    return str(query_id), str(document_id), int(grade)


def _normalised(text: str) -> str:
    return " ".join(text.casefold().split())
