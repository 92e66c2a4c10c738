"""TREC folders and runs: every format against the same documents by hand; what is malformed is named."""

from __future__ import annotations

import gzip
import json
import logging
import re
import time
from pathlib import Path

import pytest
import pytrec_eval
from trec_runs import write_run

from nlt_trainer.data.beir import Collection, load_collection
from nlt_trainer.data.trec import load_folder, load_trec, read_run
from nlt_trainer.errors import DataError
from nlt_trainer.evaluation.folder_task import BEIRFolderRetrieval

CORPUS = {
    "tags": "<DOC>\n<DOCNO> a </DOCNO>\n<HEADLINE>Tea &amp; milk</HEADLINE>\n<TEXT>\nGreen <B>tea</B>\nis hot.\n"
    "</TEXT>\n</DOC>\n<DOC><DOCNO>b</DOCNO>\nNo tags\naround it.\n</DOC>\n",
    "jsonl": '{"docno": "a", "title": "Tea & milk", "contents": "Green tea is hot."}\n'
    '{"id": "b", "text": "No tags around it."}\n',
    "jsonl in capitals": '{"DocNo": "a", "Title": "Tea & milk", "CONTENTS": "Green tea is hot."}\n'
    '{"Doc-ID": "b", "Text": "No tags around it."}\n',
    "header": "docid\ttitle\tbody\na\tTea & milk\tGreen tea is hot.\nb\t\tNo tags around it.\n",
    "header in capitals": "DocID\tTITLE \tBody\na\tTea & milk\tGreen tea is hot.\nb\t\tNo tags around it.\n",
}
TOPICS = {
    "tags": "<top>\n<num> Number: 1\n<title> Topic: hot tea \n<desc> Description:\nWhich tea?\n</top>\n"
    "<top>\n<num>2</num><title>tags</title>\n</top>\n",
    "jsonl": '{"query_id": 1, "query": "hot tea"}\n{"_id": "2", "text": "tags"}\n',
    "columns": "1\thot tea\n2\ttags\n",
    "header": "Query\tQuery-Id\nhot tea\t1\ntags\t2\n",
}
QRELS = "1 0 a 2\n1 0 b 0\n2 Q0 b 1\n"


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def check(collection: Collection) -> None:
    contents = {document.id: " / ".join(document.content.split("\n")) for document in collection.corpus.values()}
    assert contents == {"a": "Tea & milk / Green tea is hot.", "b": "No tags around it."}
    assert {query.id: query.text for query in collection.queries.values()} == {"1": "hot tea", "2": "tags"}
    assert collection.qrels == {"test": {"1": {"a": 2, "b": 0}, "2": {"b": 1}}}


@pytest.mark.parametrize("documents", CORPUS)
@pytest.mark.parametrize("topics", TOPICS)
def test_every_format_is_the_same_collection(documents: str, topics: str, tmp_path: Path) -> None:
    """Reference: documents, topics and judgements by hand."""
    write(tmp_path, {"collection.tsv": CORPUS[documents], "topics.txt": TOPICS[topics], "qrels.test.txt": QRELS})
    check(load_folder(tmp_path, split="test"))


DOCUMENT = "<DOC>\n<DOCNO> a </DOCNO>\n<TEXT>\n{}\n</TEXT>\n</DOC>\n<DOC><DOCNO>b</DOCNO><TEXT>x</TEXT></DOC>\n"


@pytest.mark.parametrize(
    ("documents", "texts"),
    [
        (DOCUMENT.format("3 < 5 and 7 > 2"), {"a": "3 < 5 and 7 > 2", "b": "x"}),
        (DOCUMENT.format("if a<b and c>d"), {"a": "if a<b and c>d", "b": "x"}),
        (DOCUMENT.format("<P CLASS=x>a<BR/>b</P> <!-- c > d -->"), {"a": "a b", "b": "x"}),
        (DOCUMENT.format("one").replace("\n", " "), {"a": "one", "b": "x"}),
        (DOCUMENT.format("one").replace("</DOC>\n<DOC>", "</DOC><DOC>"), {"a": "one", "b": "x"}),
        ('<DOC id="a" type="story"><TEXT>one</TEXT></DOC>\n', {"a": "one"}),
        ('{"id": "a", "contents": ["one", "two"]}\n', {"a": "one two"}),
        ('{"id": "a", "title": NaN, "contents": "one"}\n', {"a": "one"}),
        ('{"id": "a", "contents": "one"}\n{"id": "b", "contents": NaN}\n', {"a": "one", "b": ""}),
    ],
)
def test_texts_of_documents_lose_nothing(documents: str, texts: dict[str, str], tmp_path: Path) -> None:
    """Reference: the texts that were put in. TREC's tags are not XML, and JSON's NaN is no word."""
    write(tmp_path, {"docs": documents, "topics": "1\tx\n", "qrels": "1 0 a 1\n"})
    found = load_trec(tmp_path, split="test").corpus
    assert {document.id: document.text for document in found.values()} == texts


@pytest.mark.parametrize(
    "topics",
    [
        '<topics task="trials">\n<topic number="1">\nhot tea\n</topic>\n<topic number="2">x < y</topic>\n</topics>\n',
        '<?xml version="1.0"?>\n<topics><topic number="1"><query>hot tea</query><question>Which?</question></topic>'
        '<topic number="2" type="a"><query>x &lt; y</query></topic></topics>\n',
        "<top>\n<num> Number: 1\n<title> hot tea\n<desc> Which topic?\n</top>\n<top><num>2<title>x < y<desc>z</top>\n",
        "<top><num>1</num><title>hot <b>tea</b></title><topic>drinks</topic></top><top><num>2</num>x < y</top>",
    ],
)
def test_topics_are_numbered_by_element_or_attribute(topics: str, tmp_path: Path) -> None:
    """Reference: the queries by hand, in the forms of several of TREC's tracks."""
    write(tmp_path, {"docs": "a\tb\n", "topics.xml": topics, "qrels": "1 0 a 1\n"})
    queries = load_trec(tmp_path, split="test").queries
    assert {query.id: query.text for query in queries.values()} == {"1": "hot tea", "2": "x < y"}


def test_judgements_of_beir_serve_a_trec_folder(tmp_path: Path) -> None:
    """Reference: the same collection."""
    for header in ("query-id\tcorpus-id\tscore", "Query-Id\tCorpus-Id\tScore"):
        rows = f"{header}\n1\ta\t2\n1\tb\t0\n2\tb\t1\n"
        write(tmp_path, {"corpus.jsonl": CORPUS["jsonl"], "topics": TOPICS["columns"], "qrels/test.tsv": rows})
        check(load_folder(tmp_path, split="test"))


def test_packed_files_and_those_of_the_split_come_first(tmp_path: Path) -> None:
    """Reference: the same collection; the general topics are malformed and not read."""
    write(tmp_path, {"topics.test.tsv": TOPICS["columns"], "topics.tsv": "malformed", "qrels/test.qrels": QRELS})
    with gzip.open(tmp_path / "corpus.jsonl.gz", "wt") as handle:
        handle.write(CORPUS["jsonl"])
    check(load_folder(tmp_path, split="test"))


def test_a_trec_folder_is_a_task_of_mteb(tmp_path: Path) -> None:
    """Reference: the judged queries of the split."""
    write(tmp_path, {"docs.trec": CORPUS["tags"], "topics": TOPICS["tags"], "qrels": QRELS})
    task = BEIRFolderRetrieval(tmp_path, split="test")
    task.load_data()
    assert list(task.dataset["default"]["test"]["queries"]["id"]) == ["1", "2"]


def test_a_beir_folder_stays_one(tiny_collection_folder: Path, tmp_path: Path) -> None:
    """Reference: the strict reader, also of a folder that is not there; TREC judgements may lie in a BEIR folder."""
    assert len(load_folder(tiny_collection_folder, split="dev").qrels["dev"]) == 2
    with pytest.raises(DataError, match=r"qrels/valid.tsv: .* split that is there: dev, test, train"):
        load_folder(tiny_collection_folder, split="valid")
    with pytest.raises(DataError, match=r"corpus.jsonl: file not found"):
        load_folder(tmp_path / "nothing", split="test")
    (tiny_collection_folder / "qrels.hard.txt").write_text("q1 0 d01 1\n")
    assert load_folder(tiny_collection_folder, split="hard").qrels == {"hard": {"q1": {"d01": 1}}}


OWN = {
    "qrels.dev": ["a 0 a 1\n", "1 0 b 1\r\na\t0\ta\t+02\r\n", "query-id corpus-id score\na a 1\n"],
    "qrels.dev.txt.gz": ["1 0 a 1\na Q0 a 1\n", "\ufeffa 0 a 1"],
    "qrels/dev.tsv": ["query-id\tcorpus-id\tscore\na\ta\t1\n"],
    "qrels.tsv": ["query-id\tcorpus-id\tscore\n1\tb\t1\na\ta\t 2\n"],
}
"""Files of a split that is not asked for, in which a document is judged relevant to the query of its id."""


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in OWN.items() for text in texts])
def test_judgements_of_all_splits_and_formats_decide_whether_ids_are_shared(
    name: str, text: str, tmp_path: Path
) -> None:
    """Reference: BEIR's reader of the same folder, by which mining goes; with a grade of 0, a document of a query's id
    is the query itself.
    """
    topics = "1\thot tea\na\tgreen tea\n"
    corpus = "".join(
        json.dumps({"_id": i, "text": t}) + "\n" for i, t in (("a", "Green tea is hot."), ("b", "No tags"))
    )
    queries = '{"_id": "1", "text": "hot tea"}\n{"_id": "a", "text": "green tea"}\n'
    files = {"corpus.jsonl": corpus, "queries.jsonl": queries, "topics.test": topics, "qrels.test": "1 0 a 1\n"}
    write(tmp_path, files)
    for grade, own in ((text, None), (re.sub(r"(?m)[12](?=\r?$)", "0", text), "a")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        content = grade.encode()
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        assert load_folder(tmp_path, split="test").own_document("a") == own
        assert load_collection(tmp_path, splits=[]).own_document("a") == own


@pytest.mark.parametrize(
    "text",
    ["a 0 ab 1\n", "a 0 b 1\n", "a 0 a 0\n", "a 0 a -1\n", "x\tx 1\t1\n", "a a 1\tb\t1\n", "1 1 2 1\n", "\0\xff\n"],
)
def test_other_lines_do_not_say_that_ids_differ(text: str, tmp_path: Path) -> None:
    """Reference: lines by hand, of which none judges a document relevant to a query of its own id."""
    write(tmp_path, {"docs": "a\thot tea\n", "topics": "a\ttea\n", "qrels.test": "a 0 a 0\n", "qrels.dev": text})
    assert load_trec(tmp_path, split="test").own_document("a") == "a"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("qrels", "1 0 a 1\n\n1 0 b 1 x\n", r"qrels:3: expected query, 0, document, grade; found 5 fields"),
        ("qrels", "3 0 a 1\n", r"qrels:1: judges the unknown query '3'"),
        ("qrels", "1 0 a 1\n1 0 a 1\n", r"qrels:2: query '1' and document 'a' were judged before"),
        ("qrels", "1 0 a high\n", r"qrels:1: grade 'high' is not an integer"),
        ("qrels", "1 0 a 10000\n", r"qrels:1: grade '10000' is not an integer of at most four digits"),
        ("qrels", "\n", r"qrels: holds no judgement"),
        ("docs", '{"docid": "a", "title": "t", "segment": "x"}\n', r"docs:1: has none of text, contents, .*'segment'"),
        ("docs", "docid\ttitle\tabstract\na\tt\tx\n", r"docs:2: has none of text, .*'abstract'; give the text one"),
        ("docs", '{"id": "a\\u0000b", "text": "tea"}\n', r"docs:1: id 'a\\x00b' has a control character; take it out"),
        ("topics", "1\thot\ttea\n", r"topics:1: expected 2 columns with tabs between them \(id, text\), found 3"),
        ("docs", "docid\ttext\tText\na\tx\ty\n", r"docs:1: column 'text' stands twice in the first line; rename or"),
        ("topics", "1\thot\n1\ttea\n", r"topics:2: id '1' was used before"),
        ("topics", "<top>\n<num>1\n</top>", r"topics:1: topic '1' has no text"),
        ("topics", "\n<top>\n<num>1\n<title>a\n", r"topics:2: <top> is not closed by </top>"),
        ("topics", "<top><num>1\n<title>a\n<top>\n", r"topics:1: <top> is not closed by </top>"),
        ("topics", "", r"topics: holds no topic"),
        (
            "docs",
            '{"id": "a", "text": {"en": "tea"}}\n',
            r"docs:1: found an object where a text belongs: .*name the part",
        ),
        ("docs", '{"text": "no id"}\n', r"docs:1: has no id"),
        ("docs", "", r"docs: holds no document"),
        ("docs.tsv", "a\tb\n", r"has docs and docs.tsv; keep one of them"),
    ],
)
def test_what_is_malformed_is_named(name: str, text: str, message: str, tmp_path: Path) -> None:
    """Reference: file and line of what was put in."""
    write(tmp_path, {"docs": "a\thot tea\nb\ttags\n", "topics": TOPICS["columns"], "qrels": QRELS, name: text})
    with pytest.raises(DataError, match=message):
        load_trec(tmp_path, split="test")


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    """Reference: the names that the documentation has."""
    write(tmp_path, {"docs": "a\tb\n", "topics": TOPICS["columns"]})
    with pytest.raises(DataError, match=r"has none of qrels.dev, qrels/dev, qrels \("):
        load_folder(tmp_path, split="dev")


def test_judged_documents_outside_the_corpus_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Reference: trec_eval, which reads no corpus; empty documents are allowed, and both are said."""
    write(tmp_path, {"docs": "a\thot tea\nb\t\n", "topics": TOPICS["columns"], "qrels": "1 0 a 1\n1 0 gone -1\n"})
    with caplog.at_level(logging.WARNING):
        collection = load_trec(tmp_path, split="test")
    assert collection.qrels["test"] == {"1": {"a": 1, "gone": -1}}
    assert "judges 1 documents that the corpus lacks, e.g. gone" in caplog.text
    assert "has 1 empty documents, e.g. b" in caplog.text
    write(tmp_path, {"qrels": "1 0 gone 1\n"})
    with pytest.raises(DataError, match=r"qrels: judges no document of the corpus, but e.g. 'gone'"):
        load_trec(tmp_path, split="test")


def test_a_run_is_what_trec_eval_reads(tmp_path: Path) -> None:
    """Reference: pytrec_eval's own reader; equal scores stand in trec_eval's order, last id first."""
    rankings = {"1": {"a": 0.1 + 0.2, "b": 0.5, "c": 0.5}, "2": {"b": -1.0}}
    write_run(tmp_path / "run.txt", rankings, tag="ours")
    with (tmp_path / "run.txt").open() as handle:
        assert pytrec_eval.parse_run(handle) == read_run(tmp_path / "run.txt") == rankings
    assert [row.split()[2] for row in (tmp_path / "run.txt").read_text().splitlines()] == ["c", "b", "a", "b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 Q0 a 1 0.5\n", r"run:1: expected query, Q0, document, rank, score, tag; found 5"),
        ("1 Q0 a 1 best x\n", r"run:1: score 'best' is no number"),
        ("1 Q0 a 1 nan x\n", r"run:1: score 'nan' is no finite number"),
        ("1 Q0 a 1 1e999 x\n", r"run:1: score '1e999' is no finite number"),
        ("1 Q0 a 1 1 x\n1 Q0 a 2 0 x\n", r"run:2: document 'a' stands twice for query '1'"),
        ("\n", r"run: holds no ranking"),
    ],
)
def test_a_malformed_run_is_named(text: str, message: str, tmp_path: Path) -> None:
    """Reference: file and line of what was put in."""
    with pytest.raises(DataError, match=message):
        read_run(write(tmp_path, {"run": text}) / "run")


def test_json_ids_may_be_numbers(tmp_path: Path) -> None:
    """Reference: the number as text."""
    write(tmp_path, {"docs": json.dumps({"id": 7, "text": "x"}), "topics": "1\tx\n", "qrels": "1 0 7 1\n"})
    assert list(load_trec(tmp_path, split="test").corpus) == ["7"]


@pytest.mark.parametrize("tag", ["<TITLE>", "<TEXT>", "<!--", "<title>", "<TITLE><TEXT>", "<!-- - "])
def test_tags_that_are_never_closed_take_no_time(tmp_path: Path, tag: str) -> None:
    """Reference: seconds, where time that grew with the square of the length took minutes; the text stays."""
    many = tag * 20_000
    files = {
        "docs": f"<DOC><DOCNO>a</DOCNO>{many} tea</DOC>\n",
        "topics": f"<top><num>1<title>tea {many}</top>\n",
        "qrels": "1 0 a 1\n",
    }
    begin = time.process_time()
    found = load_trec(write(tmp_path, files), split="test")
    assert time.process_time() - begin < 5
    assert found.corpus["a"].text.endswith("tea")
    assert found.queries["1"].text.startswith("tea")
