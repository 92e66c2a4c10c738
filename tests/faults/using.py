"""How the program inputs.py uses each kind of input: it is read, written, read again and compared."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
from drawing import (
    DOCUMENT_IDS,
    QUERY_IDS,
    Input,
    candidate_files,
    collections,
    gain_files,
    head_files,
    query_files,
    runs,
    trec_folders,
)
from drawing_commands import command_lines, recipes, world
from drawing_documents import data_sets, document_folders
from hypothesis.strategies import SearchStrategy
from trials import import_everything

from nlt_trainer.arguments.stages import RECIPE_BLOCKS
from nlt_trainer.data.beir import (
    Collection,
    Document,
    load_collection,
    load_corpus,
    write_collection,
    write_queries,
)
from nlt_trainer.data.candidates import QueryCandidates, read_candidates, write_candidates
from nlt_trainer.data.gains import audit_teacher, read_gains, read_likelihoods, write_gains
from nlt_trainer.data.hub_collection import BEIRSource, build_hub_collection
from nlt_trainer.data.query_file import read_query_file
from nlt_trainer.data.trec import load_trec, read_run
from nlt_trainer.documents.corpus import build_corpus
from nlt_trainer.errors import NLTError
from nlt_trainer.injection.heads import HeadSet
from nlt_trainer.recipe.parsing import parse_recipe
from nlt_trainer.scripts import cli

CORPUS = {one: Document(one, "", f"Text of {one}.") for one in DOCUMENT_IDS}
CANDIDATES = [
    QueryCandidates(one, f"query {one}", None, tuple(DOCUMENT_IDS[:3]), (3.0, 2.0, 1.0)) for one in QUERY_IDS[:2]
]
WORLD = world()
import_everything()
with contextlib.suppress(ImportError):  # it takes seconds, and is not needed by every stage
    import gradio  # noqa: F401
importlib.import_module("nlt_trainer.training_arguments")
LIKELIHOODS = ("target_tokens", "log_likelihood", "token_log_likelihoods")


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def same_collection(found: Collection, folder: Path) -> None:
    write_collection(
        folder,
        corpus=found.corpus.values(),
        queries=found.queries.values(),
        qrels=found.qrels,
        stage="nlt build_collection",
    )
    again = load_collection(folder)
    assert (again.corpus, again.queries, again.qrels) == (found.corpus, found.queries, found.qrels)


def use_collection(folder: Path, drawn: Input) -> None:
    same_collection(load_collection(folder), folder / "out")


def use_trec(folder: Path, drawn: Input) -> None:
    same_collection(load_trec(folder, split="test"), folder / "out")


def use_run(folder: Path, drawn: Input) -> None:
    scores = [score for ranking in read_run(folder / "run.trec").values() for score in ranking.values()]
    assert np.isfinite(scores).all(), "a score is no number"


def use_queries(folder: Path, drawn: Input) -> None:
    (name,) = drawn.files
    found = read_query_file(folder / name)
    write_queries(folder / "out", found)
    assert read_query_file(folder / "out" / "queries.jsonl") == found


def use_candidates(folder: Path, drawn: Input) -> None:
    collection = Collection("in", folder, CORPUS, {}, {})
    found = read_candidates(folder / "candidates.jsonl", collection)
    write_candidates(folder / "again.jsonl", found, corpus=CORPUS)
    assert read_candidates(folder / "again.jsonl", collection) == found


def use_gains(folder: Path, drawn: Input) -> None:
    path, again = folder / "gains.jsonl", folder / "again.jsonl"
    gain = read_gains(path, CANDIDATES, corpus=CORPUS)
    further = read_likelihoods(path, CANDIDATES, LIKELIHOODS, corpus=CORPUS)
    write_gains(again, CANDIDATES, gain, corpus=CORPUS, further=further)
    np.testing.assert_allclose(read_gains(again, CANDIDATES, corpus=CORPUS), gain, rtol=1e-12, atol=5e-7)
    assert {*read_likelihoods(again, CANDIDATES, LIKELIHOODS, corpus=CORPUS)} == {*LIKELIHOODS}
    audit_teacher(gain, [c.bm25 for c in CANDIDATES])


def use_heads(folder: Path, drawn: Input) -> None:
    found = HeadSet.load(folder / "heads.json")
    found.save(folder / "again.json")
    assert HeadSet.load(folder / "again.json") == found
    assert found.chosen(2).jaccard(found, 2) == 1


def use_documents(folder: Path, drawn: Input) -> None:
    report, before = build_corpus(folder, folder.parent / "corpus")
    corpus = load_corpus(folder.parent / "corpus")
    assert (len(corpus), before) == (report.passages, False)
    assert build_corpus(folder, folder.parent / "corpus") == (report, True)


def use_data_set(folder: Path, drawn: Input) -> None:
    report = build_hub_collection("out", beir=BEIRSource(str(folder), splits={"test": "test"}))
    assert len(load_collection("out").corpus) == report["documents"]


def use_recipe(folder: Path, drawn: Input) -> None:
    first, second = (parse_recipe(RECIPE_BLOCKS, drawn.words) for _ in range(2))
    assert repr(first) == repr(second)


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Streams as those of a process in a terminal that nobody types into."""
    before = sys.stdin, sys.stdout, sys.stderr, os.environ.copy()
    sys.stdin = io.StringIO("")
    sys.stdout = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    sys.stderr = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace")
    try:
        yield
    finally:
        sys.stdin, sys.stdout, sys.stderr = before[:3]
        os.environ.clear()
        os.environ.update(before[3])


def use_command(folder: Path, drawn: Input) -> None:
    (folder / "loop").symlink_to("loop")
    write_files(folder, WORLD)
    with standard_streams():
        try:
            code = cli.main(drawn.words)
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else 1
    assert code in (0, 2, 3), f"exit code {code}"
    if code == 2:
        raise NLTError("refused")


@cache
def written_by_libraries() -> dict[str, bytes]:
    """Ending -> content of a whole PDF, Word and Parquet file."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import pyarrow as pa
    from document_files import TEXT, write_docx, write_pdf
    from pyarrow import parquet

    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "x")
        found = {".pdf": write_pdf(path, TEXT, title="T").read_bytes(), ".docx": write_docx(path).read_bytes()}
        parquet.write_table(pa.table({"_id": DOCUMENT_IDS, "title": DOCUMENT_IDS, "text": [TEXT] * 6}), path)
        return {**found, ".parquet": path.read_bytes()}


def folders_of_documents() -> SearchStrategy[Input]:
    return document_folders(written_by_libraries())


def sets_of_data() -> SearchStrategy[Input]:
    return data_sets(written_by_libraries()[".parquet"])


KINDS: dict[str, tuple[Callable[[], SearchStrategy[Input]], Callable[[Path, Input], None]]] = {
    "BEIR folder": (collections, use_collection),
    "TREC folder": (trec_folders, use_trec),
    "run of trec_eval": (runs, use_run),
    "file of queries": (query_files, use_queries),
    "candidates": (candidate_files, use_candidates),
    "gains": (gain_files, use_gains),
    "heads": (head_files, use_heads),
    "documents": (folders_of_documents, use_documents),
    "data set of the Hub": (sets_of_data, use_data_set),
    "recipe": (recipes, use_recipe),
    "command line": (command_lines, use_command),
}
"""Kind of input -> how it is drawn, and what uses it."""
