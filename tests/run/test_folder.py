"""The folder of a run: its names stand in one place, and what is malformed names its file."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import nlt_trainer
from nlt_trainer.errors import DataError, NLTError
from nlt_trainer.run.folder import CHECKPOINT, REPORT_KEYS, Run, find_runs
from nlt_trainer.text_files import write_json

PACKAGE = Path(str(nlt_trainer.__file__)).parent
NAMES = {path.name for path in vars(Run("run")).values()} - {"run"}
FILES = {name for name in NAMES if "." in name} | {CHECKPOINT}


def literals(path: Path) -> set[str]:
    """The texts of a module that are no docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    found = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in docs)
    return {node.value for node in found if isinstance(node.value, str)}


def joined(path: Path) -> set[str]:
    """The texts that a module joins to a path, as in `folder / "encoder"`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = (node.right for node in ast.walk(tree) if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div))
    return {node.value for node in found if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def test_the_names_of_a_runs_files_stand_in_one_module() -> None:
    """Reference: every other module; a template, BEIR folders, encoders and a message have such names too."""
    own = {PACKAGE / "run" / "folder.py"}
    others = {
        PACKAGE / "report" / "page.py": {"report.html"},
        PACKAGE / "files.py": {"encoder", "queries.jsonl", "trained_queries.json"},
        PACKAGE / "release" / "card.py": {"recipe.yaml"},
    }
    assert {"settings.json", "training.json", "results.json", "probe.safetensors", "table.md"} <= FILES
    for path in sorted(set(PACKAGE.rglob("*.py")) - own):
        assert literals(path) & FILES <= others.get(path, set()), path
        assert joined(path) & NAMES <= others.get(path, set()), path


def test_a_run_is_finished_when_it_has_an_encoder_and_a_report(tmp_path: Path) -> None:
    """Reference: the two, one after the other."""
    run, found = Run(tmp_path), []
    for write in (run.encoder.mkdir, lambda: write_json(run.training_file, dict.fromkeys(REPORT_KEYS, 0))):
        found.append(run.is_finished)
        write()
    assert [*found, run.is_finished] == [False, False, True]
    run.checkpoint(12).mkdir()
    run.checkpoint(2).mkdir()
    for name in ("x", "²", "-3"):
        (tmp_path / f"checkpoint-{name}").mkdir()
    assert run.checkpoints() == {2: tmp_path / "checkpoint-2", 12: tmp_path / "checkpoint-12"}
    assert (run.exported("adapter"), run.exported("onnx")) == (run.adapter, tmp_path / "onnx")


def test_runs_are_found_in_a_folder_or_in_its_folders(tmp_path: Path) -> None:
    """Reference: the folders by name; one without a report is no run; without any the message says what to name."""
    with pytest.raises(NLTError, match=r"has no training.json, nor has a folder in it; name the output_dir"):
        find_runs(tmp_path)
    for name in ("b", "a"):
        write_json(Run(tmp_path / name).training_file, dict.fromkeys(REPORT_KEYS, 0))
        write_json(Run(tmp_path / name).settings_file, {"model": {}, "data": {}, "trainer": {}})
    (tmp_path / "collection").mkdir()
    assert [run.name for run in find_runs(tmp_path)] == ["a", "b"]
    assert [run.name for run in find_runs(tmp_path / "b")] == ["b"]
    write_json(Run(tmp_path / "b").settings_file, {"model": {}, "data": {}})
    with pytest.raises(DataError, match=r"b/settings.json: has no trainer, as `nlt train` writes them; train again"):
        find_runs(tmp_path)


@pytest.mark.parametrize("content", ["[[1]]", "[null]", '["a"]', "{}"])
def test_a_damaged_list_of_trained_queries_is_refused(content: str, tmp_path: Path) -> None:
    """Reference: the name of the file in the error."""
    run = Run(tmp_path)
    run.trained_queries_file.write_text(content)
    with pytest.raises(DataError, match=r"trained_queries.json"):
        run.trained_queries  # noqa: B018
