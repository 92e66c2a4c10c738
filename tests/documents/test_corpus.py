"""Corpora of folders against what lies in them; each kind of bad input has its test here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from document_files import OTHER, TEXT, encrypt_pdf, write_docx, write_pdf

from nlt_trainer.data.beir import Document, load_corpus
from nlt_trainer.documents import readers
from nlt_trainer.documents.corpus import REPORT_FILE, WORDS, build_corpus
from nlt_trainer.documents.passages import PassageLength
from nlt_trainer.documents.report import MOST_LINES, CorpusReport, read_report
from nlt_trainer.errors import DataError, NLTError

THIRD = "Passages that nobody looks for are read by nobody at all."


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """A folder with two text files."""
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "a.txt").write_text(TEXT)
    (folder / "b_c.md").write_text(f"# Search\n{OTHER}\n")
    return folder


def test_a_folder_of_every_kind_of_file(tmp_path: Path, documents: Path) -> None:
    """Reference: `load_corpus`, which reads what was written: ids, titles and texts by hand."""
    (documents / "sub").mkdir()
    (documents / "sub/c.CSV").write_text(f'title,text\nOn reading,"{THIRD}"\n')
    (documents / "sub/d.html").write_text("<title>Web</title><p>A page has more than five words here.</p>")
    (documents / "sub/e.jsonl").write_text('{"text": "A line of JSON has words of its own."}\n')
    (documents / "sub/f.rst").write_text("Part\n====\nWhat is restructured has six words.\n")
    write_pdf(documents / "sub/g.pdf", "A portable document has a text layer.")
    write_docx(documents / "sub/h.docx")
    report, before = build_corpus(documents, tmp_path / "out")
    found = load_corpus(tmp_path / "out")
    assert [(id, document.title) for id, document in found.items()] == [
        ("a.txt#1", "a"),
        ("b_c.md#1", "Search"),
        ("sub/c.CSV#1", "On reading"),
        ("sub/d.html#1", "Web"),
        ("sub/e.jsonl#1", ""),
        ("sub/f.rst#1", "Part"),
        ("sub/g.pdf#1", "g"),
        ("sub/h.docx#2", "Manual > Prices"),
    ]
    assert found["sub/c.CSV#1"] == Document("sub/c.CSV#1", "On reading", THIRD)
    assert (report.files, report.passages, before) == (8, 8, False)
    assert report.duplicates == {"sub/h.docx#1": "a.txt#1"}
    assert (report.skipped, report.broken_lines, report.other_kinds) == ([], {}, {})
    assert read_report(tmp_path / "out" / REPORT_FILE) == report


def test_rows_of_one_text_under_two_titles_are_two_passages(tmp_path: Path) -> None:
    """Reference: ids by hand. The title of a row is a part of what it says, and the name of a file is none."""
    documents = tmp_path / "documents"
    documents.mkdir()
    answer = "Please write to the people of our support."
    rows = (f"{title},{answer}" for title in ("How do I pay", "How do I leave", "How do I pay"))
    (documents / "a.csv").write_text("\n".join(["title,text", *rows]))
    for name in ("b.txt", "c.txt"):
        (documents / name).write_text(TEXT)
    report, _ = build_corpus(documents, tmp_path / "out")
    assert [*load_corpus(tmp_path / "out")] == ["a.csv#1", "a.csv#2", "b.txt#1"]
    assert report.duplicates == {"a.csv#3": "a.csv#1", "c.txt#1": "b.txt#1"}


def test_a_second_call_does_nothing_until_something_changes(tmp_path: Path, documents: Path) -> None:
    """Reference: the time at which the corpus was written."""
    out = documents / "out"  # inside what is read: it changes nothing

    def built(length: PassageLength = WORDS) -> bool:
        """Whether a call writes the corpus."""
        os.utime(out / "corpus.jsonl", ns=(1, 1))
        report, before = build_corpus(documents, out, length=length)
        written = (out / "corpus.jsonl").stat().st_mtime_ns != 1
        assert written is not before
        assert report.passages == len(load_corpus(out))
        return written

    build_corpus(documents, out)
    assert not built()
    assert built(PassageLength(20))
    assert not built(PassageLength(20))
    assert built(PassageLength(100, "characters", len))
    build_corpus(documents, out)
    (documents / "a.txt").write_text(THIRD)
    assert built()
    os.utime(documents / "a.txt", ns=(7, 7))
    assert not built(), "its content is the same"
    (documents / "a.txt").write_text(THIRD.upper())
    os.utime(documents / "a.txt", ns=(7, 7))
    assert built(), "its size and time are the same"
    (documents / "of_another_kind.xyz").touch()
    assert built()
    (documents / "of_another_kind.xyz").write_text(TEXT)
    assert not built()
    (documents / "new.txt").write_text("A new file of six words.")
    assert built()
    (out / "corpus.jsonl").write_text('{"_id": "someone", "text": "changed it"}')
    assert built()
    (out / "corpus.jsonl").write_bytes((out / "corpus.jsonl").read_bytes().replace(b"six", b"sex"))
    assert built(), "one byte has changed, and not the size"
    report = json.loads((out / REPORT_FILE).read_text())
    (out / REPORT_FILE).write_text(json.dumps({key: report[key] for key in report if key != "corpus_hash"}))
    assert not built(), "a report of version 0.1"
    (out / REPORT_FILE).write_text(json.dumps({**report, "duplicates": 3}))
    assert built()
    (out / REPORT_FILE).write_text('{"of": "another version"}')
    assert built()
    assert not built()


@pytest.mark.parametrize("named", ["folder", "file"])
def test_a_beir_corpus_is_kept_as_it_is(named: str, tmp_path: Path) -> None:
    """Reference: its own lines; not even what is short, long or doubled is changed."""
    folder = tmp_path / "beir"
    folder.mkdir()
    rows = [{"_id": f"d {n}", "title": "t", "text": text} for n, text in enumerate(["x", "x", "word " * 1000])]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": "a query is no document"}\n')
    path = folder if named == "folder" else folder / "corpus.jsonl"
    report, _ = build_corpus(path, tmp_path / "out")
    assert load_corpus(tmp_path / "out") == load_corpus(folder)
    assert (report.passages, report.duplicates, report.most) == (3, {}, None)
    assert build_corpus(path, tmp_path / "out", length=PassageLength(20)) == (report, True)
    (folder / "corpus.jsonl").write_text('{"_id": "a", "text": "b"}\n{"text": "no id"}\n')
    with pytest.raises(DataError, match=r"corpus.jsonl:2: _id must be a string"):
        build_corpus(path, tmp_path / "out")
    assert len(load_corpus(tmp_path / "out")) == 3  # the earlier one is still whole


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"gives 0 passages, and at least 2 are needed; give files with text; these endings are read: .txt .md"),
        (
            {"a.png": b"\x89PNG", "b.png": b"", "c": b"x"},
            r"files of other kinds: 2 .png, 1 none; give files with text",
        ),
        ({"a.txt": bytes(range(256)) * 9}, r"1 file was skipped, the first is a.txt \(a binary file"),
        (
            {"a.txt": TEXT.encode()},
            r"gives 1 passage, .*; give more text; longer texts are cut into several",
        ),
        (
            {"a.txt": TEXT.encode(), "b.txt": TEXT.encode()},
            r"gives 1 passage, .*; 1 more say the same and were left out",
        ),
        ({"a.txt": b"short"}, r"the first is a.txt \(has no text of at least 5 words\)"),
    ],
)
def test_too_little_is_refused_and_leaves_nothing(files: dict[str, bytes], message: str, tmp_path: Path) -> None:
    """Reference: the message, which names what was found and the remedy; the output has no file."""
    (tmp_path / "in").mkdir()
    for name, content in files.items():
        (tmp_path / "in" / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        build_corpus(tmp_path / "in", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_one_document_is_enough_if_it_has_two_passages(tmp_path: Path) -> None:
    """Reference: ids by hand."""
    (tmp_path / "a.md").write_text(f"# One\n{TEXT}\n# Two\n{OTHER}\n")
    report, _ = build_corpus(tmp_path / "a.md", tmp_path / "out")
    assert list(load_corpus(tmp_path / "out")) == ["a.md#1", "a.md#2"]
    assert report.files == 1


def test_what_cannot_be_read_is_listed_and_the_rest_is_kept(
    tmp_path: Path, documents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: names and reasons by hand."""

    def refused(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    encrypt_pdf(write_pdf(documents / "locked.pdf", TEXT), password="secret")
    (documents / "damaged.pdf").write_bytes(b"%PDF-1.7 garbage")
    (documents / "damaged.docx").write_bytes(write_docx(tmp_path / "whole.docx").read_bytes()[:900])
    (documents / "picture.txt").write_bytes(bytes(range(256)) * 9)
    (documents / "mine.rst").write_text(TEXT)
    (documents / "up").symlink_to(documents)
    (documents / "log.xyz").write_text(TEXT)
    monkeypatch.setitem(readers.READERS, ".rst", refused)
    report, _ = build_corpus(documents, tmp_path / "out")
    reasons = {entry["file"]: entry["reason"] for entry in report.skipped}
    assert set(reasons) == {"locked.pdf", "damaged.pdf", "damaged.docx", "picture.txt", "mine.rst", "up"}
    assert reasons["locked.pdf"] == "encrypted; save it without a password"
    assert reasons["mine.rst"].startswith("PermissionError: ")
    assert reasons["picture.txt"].startswith("a binary file")
    assert (report.files, report.passages, report.other_kinds) == (2, 2, {".xyz": 1})


def test_a_file_without_the_right_to_read_it_is_listed(tmp_path: Path, documents: Path) -> None:
    """Reference: the operating system."""
    for path in (documents / "mine.txt", documents / "folder"):
        path.mkdir() if path.name == "folder" else path.write_text(THIRD)
        path.chmod(0)
    if os.access(documents / "mine.txt", os.R_OK):
        pytest.skip("this user may read everything")
    report, _ = build_corpus(documents, tmp_path / "out")
    (documents / "folder").chmod(0o700)
    assert {entry["file"] for entry in report.skipped} == {"mine.txt", "folder"}


def test_a_file_that_ends_in_the_middle_keeps_what_it_gave(
    tmp_path: Path, documents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: the row before an unclosed quotation mark."""
    monkeypatch.setattr("nlt_trainer.documents.tables.MAX_FIELD", 100)
    (documents / "c.csv").write_text(f'id,text\n1,{THIRD}\n2,"{"word " * 99}\n')
    report, _ = build_corpus(documents, tmp_path / "out")
    (entry,) = report.skipped
    assert (entry["file"], entry["passages"]) == ("c.csv", 1)
    assert entry["reason"].startswith("Error: field larger than field limit")
    assert "c.csv#1" in load_corpus(tmp_path / "out")


def test_broken_lines_are_counted_and_the_first_are_listed(tmp_path: Path, documents: Path) -> None:
    """Reference: their numbers by hand; each other line is read."""
    (documents / "c.jsonl").write_text(f"{{broken\n{json.dumps({'text': THIRD})}\n" + "{broken\n" * 30)
    report, _ = build_corpus(documents, tmp_path / "out")
    of_file = report.broken_lines["c.jsonl"]
    assert of_file["lines"] == [1, *range(3, MOST_LINES + 2)]
    assert (of_file["count"], report.skipped_lines(), report.skipped) == (31, 31, [])
    assert "not valid JSON" in of_file["reason"]
    assert load_corpus(tmp_path / "out")["c.jsonl#2"].text == THIRD


def test_duplicated_files_are_folded(tmp_path: Path, documents: Path) -> None:
    """Reference: the file that comes first."""
    for name in ("copy.txt", "b/copy.txt"):
        (documents / name).parent.mkdir(exist_ok=True)
        (documents / name).write_text(f"  {TEXT.upper()}\n")
    report, _ = build_corpus(documents, tmp_path / "out")
    assert report.duplicates == {"copy.txt#1": "a.txt#1", "b/copy.txt#1": "a.txt#1"}
    assert list(load_corpus(tmp_path / "out")) == ["a.txt#1", "b_c.md#1"]
    assert report.files == 4


def test_languages_and_characters_that_no_file_can_hold(tmp_path: Path, documents: Path) -> None:
    """Reference: texts by hand; the corpus is UTF-8 without NUL, and `load_corpus` reads it."""
    (documents / "zh.txt").write_text("这是一个中文文档。它描述了搜索系统。")
    (documents / "ru.txt").write_bytes("Привет, это обычный русский текст для поиска документов.".encode("cp1251"))
    row = '{"text": "a half \\ud83d and a NUL \\u0000 and four more words"}'
    (documents / "odd.jsonl").write_text(row)
    build_corpus(documents, tmp_path / "out")
    found = load_corpus(tmp_path / "out")
    assert found["zh.txt#1"].text == "这是一个中文文档。它描述了搜索系统。"
    assert found["ru.txt#1"].text == "Привет, это обычный русский текст для поиска документов."
    assert found["odd.jsonl#1"].text.split() == "a half and a NUL and four more words".split()


def test_names_that_no_file_can_hold(tmp_path: Path, documents: Path) -> None:
    """Reference: their bytes, written as in an address; the corpus and the report are UTF-8."""
    for name in (b"tab\tline\n.txt", b"latin-\xe9.txt"):
        Path(os.fsdecode(os.fsencode(documents) + b"/" + name)).write_text(f"{THIRD} {name!r}")
    for name in (b"ending.\xe9", b"damaged-\xe9.docx"):
        Path(os.fsdecode(os.fsencode(documents) + b"/" + name)).write_bytes(b"x")
    documents = documents.rename(os.fsdecode(os.fsencode(documents) + b"-\xe9"))
    report, _ = build_corpus(documents, tmp_path / "out")
    assert set(load_corpus(tmp_path / "out")) >= {"latin-%E9.txt#1", "tab%09line%0A.txt#1"}
    assert report.documents.endswith("-%E9")
    assert ".%e9" in report.other_kinds
    assert "damaged-%E9.docx" in [skipped["file"] for skipped in report.skipped]
    assert build_corpus(documents, tmp_path / "out") == (report, True)


def test_paths_are_checked_before_anything_is_read(tmp_path: Path, documents: Path) -> None:
    """Reference: the message of each."""
    with pytest.raises(DataError, match=r"no/such: not found; name a folder of documents, or one file"):
        build_corpus("no/such", tmp_path / "out")
    for path in (documents, documents / "a.txt"):
        with pytest.raises(NLTError, match="is the folder that is read; name another one"):
            build_corpus(path, documents)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/file").write_text("precious")
    with pytest.raises(NLTError, match="is there already and was not written by nlt"):
        build_corpus(documents, tmp_path / "theirs")
    assert [path.name for path in (tmp_path / "theirs").iterdir()] == ["file"]


def test_a_stop_leaves_the_earlier_corpus(tmp_path: Path, documents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: the corpus before; a call after the stop makes the new one."""

    def interrupted(path: Path) -> None:
        raise KeyboardInterrupt

    build_corpus(documents, tmp_path / "out")
    earlier = load_corpus(tmp_path / "out")
    (documents / "z.rst").write_text(THIRD)
    with monkeypatch.context() as patched:
        patched.setitem(readers.READERS, ".rst", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build_corpus(documents, tmp_path / "out")
    assert load_corpus(tmp_path / "out") == earlier
    assert {path.name for path in (tmp_path / "out").iterdir()} == {".nlt_trainer", "corpus.jsonl", REPORT_FILE}
    assert build_corpus(documents, tmp_path / "out")[0].passages == 3


def test_a_corpus_is_written_after_a_kill(tmp_path: Path, documents: Path) -> None:
    """Reference: the folder that a process leaves which ends amid the first corpus, without a chance to clean up."""
    script = "\n".join([
        "import os, sys",
        "from nlt_trainer.documents import corpus, readers",
        "readers.READERS['.rst'] = lambda path: os._exit(9)",
        "corpus.build_corpus(*sys.argv[1:])",
    ])  # fmt: skip
    (documents / "z.rst").write_text(THIRD)
    killed = subprocess.run([sys.executable, "-c", script, str(documents), str(tmp_path / "out")])
    assert killed.returncode == 9
    assert [path.suffix for path in (tmp_path / "out").iterdir()] == [".partial"]
    assert build_corpus(documents, tmp_path / "out")[0].passages == 3
    assert {path.name for path in (tmp_path / "out").iterdir()} == {".nlt_trainer", "corpus.jsonl", REPORT_FILE}


def test_memory_does_not_grow_with_what_is_read(tmp_path: Path) -> None:
    """Reference: the size of the file, of which far less is held at once; its passages are all the same but one."""
    line = json.dumps({"text": TEXT, "vector": [0.125] * 1000})
    (tmp_path / "a.jsonl").write_text(f"{line}\n" * 1000 + json.dumps({"text": OTHER}))
    build_corpus(tmp_path / "a.jsonl", tmp_path / "warm")  # imports what is imported late
    tracemalloc.start()
    build_corpus(tmp_path / "a.jsonl", tmp_path / "out")
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(load_corpus(tmp_path / "out")) == 2
    assert held < (tmp_path / "a.jsonl").stat().st_size / 5


def test_a_report_of_another_version_counts_as_none(tmp_path: Path) -> None:
    """Reference: `None`; the same report without the strange key is read."""
    report = CorpusReport("documents", "key", "pieces", 180)
    report.write(tmp_path / "report.json")
    assert read_report(tmp_path / "report.json") == report
    assert read_report(tmp_path / "none.json") is None
    values = json.loads((tmp_path / "report.json").read_text()) | {"strange": 1}
    (tmp_path / "report.json").write_text(json.dumps(values))
    assert read_report(tmp_path / "report.json") is None
