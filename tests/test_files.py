"""Files and folders are whole or absent, and what a killed process has left is removed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nlt_trainer.errors import DataError, NLTError
from nlt_trainer.files import (
    FOLDER_MARK,
    RECORD_FILE,
    FolderStage,
    alone_in,
    atomic_folder,
    atomic_write,
    check_folder,
    sweep,
)
from nlt_trainer.text_files import read_json, write_json


def test_data_error_names_file_and_line() -> None:
    error = DataError("corpus.jsonl", "empty id", line=3)
    assert isinstance(error, NLTError)
    assert (str(error), error.path, error.line) == ("corpus.jsonl:3: empty id", Path("corpus.jsonl"), 3)
    assert str(DataError(Path("corpus.jsonl"), "file not found")) == "corpus.jsonl: file not found"


def test_atomic_write_creates_parents_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    with atomic_write(path) as handle:
        handle.write("é")
        assert not path.exists()
    assert path.read_text(encoding="utf-8") == "é"
    assert list(path.parent.iterdir()) == [path]


def test_atomic_write_keeps_the_previous_content_when_the_block_fails(tmp_path: Path) -> None:
    path = tmp_path / "b.txt"
    path.write_text("before")
    with pytest.raises(RuntimeError, match="killed"), atomic_write(path) as handle:
        handle.write("half")
        raise RuntimeError("killed")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_folder_replaces_a_folder_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "model"
    for name in ("first.txt", "second.txt"):
        with atomic_folder(path, stage="nlt train") as partial:
            (partial / name).write_text(name)
            assert partial != path
    assert sorted(file.name for file in path.iterdir()) == [FOLDER_MARK, "second.txt"]
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_folder_keeps_the_previous_folder_when_the_block_fails(tmp_path: Path) -> None:
    path = tmp_path / "model"
    with atomic_folder(path, stage="nlt train") as partial:
        (partial / "weights").write_text("before")
    with pytest.raises(RuntimeError, match="killed"), atomic_folder(path, stage="nlt train") as partial:
        (partial / "weights").write_text("half")
        raise RuntimeError("killed")
    assert (path / "weights").read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


STAGES = {
    "amid a file": ("atomic_write('x/file')", "handle.write('half')"),
    "amid a folder": ("atomic_folder('x/model', stage='nlt train')", "(handle / 'weights').write_text('half')"),
}


def writing(block: str, inside: str, end: str) -> str:
    """A program that ends, or waits, amid an atomic block."""
    return f"""
import os, sys, time
from nlt_trainer.files import atomic_folder, atomic_write
with {block} as handle:
    {inside}
    print('writing', flush=True)
    {end}
"""


@pytest.mark.parametrize("when", STAGES)
def test_what_a_killed_process_leaves_is_swept_and_what_a_live_one_writes_is_not(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: a program that ends amid a block without cleaning up, and one that waits there and then goes on."""
    monkeypatch.chdir(tmp_path)
    program = writing(*STAGES[when], end="os._exit(9)")
    assert subprocess.run([sys.executable, "-c", program]).returncode == 9
    program = writing(*STAGES[when], end="sys.stdin.readline()")
    live = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert live.stdout is not None and live.stdout.readline() == "writing\n"
    assert len(list(Path("x").iterdir())) == 2
    sweep("x")
    (left,) = Path("x").iterdir()
    sweep(tmp_path, below=True)
    assert left.exists()
    live.communicate("\n")
    assert live.returncode == 0
    assert [path.suffix for path in Path("x").iterdir()] == [""]


def test_a_folder_that_was_moved_aside_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: a program that ends between the two renames: the former folder, under its name."""
    monkeypatch.chdir(tmp_path)
    write_json(tmp_path / "model" / "config.json", {})
    (tmp_path / "model" / FOLDER_MARK).touch()
    program = writing("atomic_folder('model', stage='nlt train')", "Path.replace = once", end="pass").replace(
        "with ", "from pathlib import Path\nreplace = Path.replace\n"
        "def once(*paths):\n    replace(*paths)\n    os._exit(9)\nwith "
    )  # fmt: skip
    assert subprocess.run([sys.executable, "-c", program]).returncode == 9
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".partial", ".previous"]
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert read_json(tmp_path / "model" / "config.json") == {}


def test_a_file_that_is_swept_before_it_is_held_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: the file as it was to be written; a sweep of another process comes right after its making."""
    touch, made = Path.touch, []

    def touch_and_sweep(path: Path) -> None:
        touch(path)
        made.append(path)
        if len(made) == 1:
            sweep(tmp_path)

    monkeypatch.setattr(Path, "touch", touch_and_sweep)
    write_json(tmp_path / "a.json", {"a": 1})
    assert read_json(tmp_path / "a.json") == {"a": 1} and len(made) == 2


def test_other_hidden_files_stay(tmp_path: Path) -> None:
    """Reference: the files; a pull that was cut short finds its own folder again."""
    names = {".model.0123456789ab.partial", ".partial", "a.01234567.partial", ".a.0123456z.partial", ".a.lock"}
    for name in names:
        (tmp_path / name).touch()
    sweep(tmp_path, below=True)
    assert {path.name for path in tmp_path.iterdir()} == names


def test_a_file_is_not_written_over_a_folder_nor_a_folder_over_a_file(tmp_path: Path) -> None:
    """Reference: what stood there before; the message names it."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("kept")
    with pytest.raises(NLTError, match=r"folder is a folder, and a file is to be written there; name a file"):
        write_json(tmp_path / "folder", {})
    with (
        pytest.raises(NLTError, match=r"file is a file, and a folder is to be written there; name a folder"),
        atomic_folder(tmp_path / "file", stage="nlt train"),
    ):
        pass
    assert (tmp_path / "file").read_text() == "kept"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_folder_that_was_not_written_here_is_not_replaced(tmp_path: Path) -> None:
    """Reference: its file; an empty folder and one that was written here are replaced."""
    path = tmp_path / "folder"
    path.mkdir()
    for text in ("first", "second"):
        with atomic_folder(path, stage="nlt train") as partial:
            (partial / "a").write_text(text)
        assert (path / "a").read_text() == text
    (path / FOLDER_MARK).unlink()
    with (
        pytest.raises(NLTError, match=r"folder is there already and was not written by nlt"),
        atomic_folder(path, stage="nlt train"),
    ):
        pass
    assert (path / "a").read_text() == "second"


@pytest.mark.parametrize("there", [True, False])
def test_what_a_link_leads_to_is_written_and_the_link_stays(tmp_path: Path, there: bool) -> None:
    """Reference: the folder and the file on the other side, which may be another disk; nothing is written on this."""
    here, disk = tmp_path / "here", tmp_path / "disk"
    here.mkdir()
    disk.mkdir()
    if there:
        (disk / "folder").mkdir()
        (disk / "file").write_text("first")
    for name in ("folder", "file"):
        (here / name).symlink_to(disk / name)
    for text in ("second", "third"):
        with atomic_folder(here / "folder", stage="nlt pull") as partial:
            assert partial.parent == disk
            (partial / "a").write_text(text)
        write_json(here / "file", text)
        assert (disk / "folder" / "a").read_text() == text
        assert read_json(disk / "file", kind=str) == text
    assert sorted(path.name for path in here.iterdir() if path.is_symlink()) == ["file", "folder"]
    assert sorted(path.name for path in (*here.iterdir(), *disk.iterdir())) == ["file", "file", "folder", "folder"]


@pytest.mark.parametrize("link", [True, False])
def test_a_place_where_a_disk_is_mounted_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, link: bool
) -> None:
    """Reference: the message before the work, where the system would say after it that the place is busy."""
    disk, path = tmp_path / "disk", tmp_path / ("link" if link else "disk")
    disk.mkdir()
    if link:
        path.symlink_to(disk)
    monkeypatch.setattr(Path, "is_mount", lambda self: self == disk)
    with pytest.raises(NLTError, match=rf"{path.name} is where a disk is mounted, .*; name a folder in it$"):
        check_folder(path, stage="nlt pull")
    check_folder(path, stage="nlt build_corpus")
    check_folder(path / "encoder", stage="nlt pull")


@pytest.mark.parametrize(
    ("mark", "record", "replacing"),
    [
        ("nlt train", True, {"nlt train"}),
        ("nlt make_queries", False, {"nlt make_queries"}),
        ("nlt pull", True, {"nlt pull"}),
        ("", True, {"nlt train", "nlt export"}),
        ("", False, {"nlt train", "nlt export", "nlt make_encoder", "nlt make_queries", "nlt build_corpus"}),
    ],
)
def test_a_stage_replaces_only_what_it_has_written(
    mark: str, record: bool, replacing: set[FolderStage], tmp_path: Path
) -> None:
    """Reference: the stage that the mark names. Of a folder of an earlier version, whose mark names none, it is known
    that it was not pulled, and whether it has the record of a trained encoder."""
    stages: list[FolderStage] = [
        "nlt train", "nlt export", "nlt make_encoder", "nlt make_queries", "nlt build_corpus", "nlt pull"
    ]  # fmt: skip
    for stage in stages:
        path = tmp_path / stage.replace(" ", "_")
        path.mkdir()
        (path / FOLDER_MARK).write_text(f"{mark}\n" if mark else "")
        if record:
            write_json(path / RECORD_FILE, {})
        if stage in replacing:
            with atomic_folder(path, stage=stage):
                pass
            assert [file.name for file in path.iterdir()] == [FOLDER_MARK]
            continue
        before = {file.name: file.read_text() for file in path.iterdir()}
        writer = mark or "another stage of an earlier version"
        with pytest.raises(NLTError, match=f"was written by {writer}, not by {stage}; name another folder, or move"):
            check_folder(path, stage=stage)
        assert {file.name: file.read_text() for file in path.iterdir()} == before


def test_a_folder_is_held_by_one_process_until_it_ends(tmp_path: Path) -> None:
    """Reference: a process that holds the folder, and is then killed."""
    program = f"""
import sys, time
from nlt_trainer.files import alone_in
with alone_in({str(tmp_path / "run")!r}):
    print("in", flush=True)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "in\n"
        message = r"another process is working in .*run; wait until it has ended, or name another"
        with pytest.raises(NLTError, match=message), alone_in(tmp_path / "run"):
            pass
        other.kill()
    with alone_in(tmp_path / "run"), alone_in(tmp_path / "run"):
        (tmp_path / "run" / "file").touch()
    assert (tmp_path / "run" / "file").is_file()


def test_a_held_folder_without_content_is_removed(tmp_path: Path) -> None:
    """Reference: an error before anything is written leaves nothing; a file in its place is named."""
    with pytest.raises(KeyError), alone_in(tmp_path / "run"):
        raise KeyError
    assert not (tmp_path / "run").exists()
    (tmp_path / "file").touch()
    with (
        pytest.raises(NLTError, match="file is a file, and a folder is to be"),
        alone_in(tmp_path / "file/run"),
    ):
        pass
