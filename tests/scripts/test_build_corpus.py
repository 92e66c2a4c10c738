"""The stage `build_corpus` against the lines that it prints."""

from __future__ import annotations

from pathlib import Path

import pytest
from document_files import OTHER, TEXT

from nlt_trainer.data.beir import load_corpus
from nlt_trainer.errors import NLTError
from nlt_trainer.scripts import build_corpus


def test_a_call_says_what_was_read_and_what_was_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Reference: the lines by hand; a second call says that nothing was to do."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name, content in {"a.txt": TEXT, "b.txt": TEXT, "c.txt": OTHER, "d.pdf": "no PDF", "e.png": ""}.items():
        (folder / name).write_text(content)
    (folder / "f.jsonl").write_text('{broken\n{"text": "short"}\n')
    command = ["--documents", str(folder), "--corpus", str(tmp_path / "out")]
    build_corpus.main(command)
    first, second = capsys.readouterr().out.splitlines()
    assert first == (
        f"{tmp_path}/out/corpus.jsonl: 3 files read, 2 passages, 1 duplicate folded, "
        "1 text of fewer than 5 words left out"
    )
    assert second.startswith("  skipped: 2 files (first d.pdf: ")
    assert second.endswith(
        f"), 1 of other kinds (.png 1), 1 line in f.jsonl; {tmp_path}/out/corpus.report.json lists them"
    )
    build_corpus.main(command)
    assert capsys.readouterr().out.splitlines() == [f"{first} (done before)", second]


def test_a_passage_has_the_length_that_was_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Reference: both sentences in one passage, or each in its own; no line says that something was skipped."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.txt").write_text(f"{TEXT} {OTHER}")
    (tmp_path / "in/b.txt").write_text("Another file has other words.")
    for words, passages in ((100, 2), (13, 3)):
        build_corpus.main([
            "--documents", str(tmp_path / "in"), "--corpus", str(tmp_path / "out"), "--passage_words", str(words),
        ])  # fmt: skip
        assert len(load_corpus(tmp_path / "out")) == passages
        assert capsys.readouterr().out == f"{tmp_path}/out/corpus.jsonl: 2 files read, {passages} passages\n"


def test_a_length_that_leaves_no_passage_is_refused() -> None:
    """Reference: the value and the remedy in the message."""
    with pytest.raises(NLTError, match="passage_words is 9; it must be at least 10"):
        build_corpus.main(["--documents", "in", "--passage_words", "9"])
