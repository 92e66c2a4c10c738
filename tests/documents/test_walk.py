"""The walk against lists of files by hand."""

from __future__ import annotations

import os
from pathlib import Path

from nlt_trainer.documents.walk import find_files


def write(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


def found(root: Path, *, without: str = "none") -> tuple[list[str], dict[str, str]]:
    """Names of the files, and what was refused."""
    refused: dict[str, str] = {}

    def refuse(path: Path, reason: str) -> None:
        refused[path.relative_to(root).as_posix()] = reason

    files = find_files(root, without=[root / without], refuse=refuse)
    return [path.relative_to(root).as_posix() for path in files], refused


def test_the_order_is_that_of_names_with_files_before_folders(tmp_path: Path) -> None:
    """Reference: the list by hand."""
    write(tmp_path, "b/z.txt", "b/a/y.txt", "c.txt", "a/x.txt")
    assert found(tmp_path) == (["c.txt", "a/x.txt", "b/z.txt", "b/a/y.txt"], {})


def test_what_is_hidden_or_of_tools_is_left_out(tmp_path: Path) -> None:
    """Reference: the one file that is a user's."""
    write(tmp_path, ".git/a.txt", "node_modules/p/a.md", ".hidden.txt", "sub/.svn/a.txt", "CVS/a.txt", "~$open.docx")
    write(tmp_path, "sub/mine.txt")
    assert found(tmp_path) == (["sub/mine.txt"], {})


def test_the_output_inside_is_left_out(tmp_path: Path) -> None:
    """Reference: the same folder without it; a folder of the same name elsewhere is read."""
    write(tmp_path, "a.txt", "out/corpus.jsonl", "b/out/c.txt")
    assert found(tmp_path, without="out") == (["a.txt", "b/out/c.txt"], {})


def test_a_file_inside_is_left_out(tmp_path: Path) -> None:
    """Reference: the same folder without it and without a link to it."""
    write(tmp_path, "a.txt", "b/queries.txt", "queries.txt")
    (tmp_path / "link.txt").symlink_to(tmp_path / "b/queries.txt")
    assert found(tmp_path, without="b/queries.txt") == (["a.txt", "queries.txt"], {})
    queries = tmp_path / "queries.txt"
    assert not list(find_files(queries, without=[queries], refuse=lambda path, reason: None))


def test_links_make_no_circle(tmp_path: Path) -> None:
    """Reference: each file once; a link to a file is read, and a link to a folder or to nothing is named."""
    write(tmp_path, "a.txt", "sub/b.txt")
    (tmp_path / "sub/up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "c.txt").symlink_to(tmp_path / "a.txt")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "self.txt").symlink_to(tmp_path / "self.txt")
    files, refused = found(tmp_path)
    assert files == ["a.txt", "c.txt", "sub/b.txt"]
    assert set(refused) == {"gone.txt", "self.txt", "sub/up"}
    assert refused["sub/up"].startswith("a link to a folder, which is not followed")


def test_a_pipe_is_not_read(tmp_path: Path) -> None:
    """Reference: the reason; reading it would wait for ever."""
    os.mkfifo(tmp_path / "pipe.txt")
    assert found(tmp_path) == ([], {"pipe.txt": "not a regular file"})


def test_one_file_is_the_walk(tmp_path: Path) -> None:
    """Reference: the file itself."""
    write(tmp_path, "a.txt", "b.txt")
    files = find_files(tmp_path / "b.txt", without=[], refuse=lambda path, reason: None)
    assert list(files) == [tmp_path / "b.txt"]
