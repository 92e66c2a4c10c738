"""`nlt` against its contract: which module a stage runs, exit codes and what stands on stderr."""

from __future__ import annotations

import errno
import importlib.util
import os
import subprocess
import sys
from types import ModuleType

import pytest

from nlt_trainer.errors import NLTError
from nlt_trainer.program import GOES_ON, run_main, shown
from nlt_trainer.scripts import cli


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module that stands in for the stage `train`."""
    module = ModuleType("stand_in")
    monkeypatch.setitem(sys.modules, "stand_in", module)
    monkeypatch.setitem(cli.STAGES, "train", ("stand_in", "stand-in"))
    monkeypatch.setattr(sys, "argv", ["nlt"])
    return module


def test_every_stage_is_a_module() -> None:
    missing = [module for module, _ in cli.STAGES.values() if importlib.util.find_spec(module) is None]
    assert missing == []


def test_help_lists_every_stage_and_imports_none() -> None:
    code = (
        "import sys; from nlt_trainer.scripts import cli; cli.main(['--help']); "
        "print([name for name, _ in cli.STAGES.values() if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(f"  {name} " in result.stdout for name in cli.STAGES)
    assert result.stdout.splitlines()[-1] == "[]"


def test_no_stage_prints_the_help_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert capsys.readouterr().out.startswith("usage: nlt STAGE")


@pytest.mark.parametrize(
    ("given", "remedy"), [("trian", "did you mean train?"), ("detect-head", "did you mean detect_heads?")]
)
def test_unknown_stage_names_the_nearest(given: str, remedy: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([given]) == 2
    assert capsys.readouterr().err == f"nlt: error: unknown stage {given!r}, {remedy}\n"


def test_unknown_stage_without_a_near_one_lists_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["xyzzy"]) == 2
    assert f"choose from {', '.join(cli.STAGES)}" in capsys.readouterr().err


def test_arguments_reach_the_stage(stage: ModuleType) -> None:
    seen: list[list[str]] = []
    stage.main = lambda argv: seen.append([*argv, sys.argv[0]])  # type: ignore[attr-defined]
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["train", "--config", "a.yaml"])
    assert exit_info.value.code == 0
    assert seen == [["--config", "a.yaml", "nlt train"]]


def test_wrong_input_is_one_line_and_exit_code_2(stage: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(argv: list[str] | None) -> None:
        raise NLTError("corpus.jsonl:3: empty id")

    stage.main = fail  # type: ignore[attr-defined]
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["train"])
    assert exit_info.value.code == 2
    assert capsys.readouterr().err == "nlt train: error: corpus.jsonl:3: empty id\n"


@pytest.mark.parametrize(
    ("name", "hint"), [("train", "; run again, it goes on from the last whole"), ("compare_heads", "\n")]
)
def test_an_interrupt_is_one_line_and_exit_code_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, hint: str
) -> None:
    """Reference: 128 + SIGINT; what is said of going on is said of stages that do, also amid a stage's imports."""

    def interrupt(argv: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["nlt"])
    monkeypatch.setattr(cli.importlib, "import_module", interrupt)
    with pytest.raises(SystemExit) as exit_info:
        cli.main([name])
    assert exit_info.value.code == 130
    found = capsys.readouterr().err
    assert found.startswith(f"\nnlt {name}: stopped{hint}")
    assert found.count("\n") == 2


def test_a_docstring_is_shown_without_its_fences() -> None:
    """Reference: the text by hand; the stages that go on are stages."""
    doc = "Do it.\n\n```bash\nnlt train \\\n  --x 1\n```\n\nThen more.\n"
    assert shown(doc) == "Do it.\n\n  nlt train \\\n    --x 1\n\nThen more."
    assert set(GOES_ON) <= set(cli.STAGES)


def test_a_programming_error_keeps_its_traceback(stage: ModuleType) -> None:
    def fail(argv: list[str] | None) -> None:
        raise KeyError("bug")

    stage.main = fail  # type: ignore[attr-defined]
    with pytest.raises(KeyError, match="bug"):
        cli.main(["train"])


def test_run_main_names_the_stage_after_the_file_and_keeps_its_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/nlt_trainer/scripts/mine.py", "--key", "value"])

    def stage_main(argv: list[str] | None) -> int:
        print(argv, sys.argv[0])
        return 3

    with pytest.raises(SystemExit) as exit_info:
        run_main(stage_main)
    assert exit_info.value.code == 3
    assert capsys.readouterr().out == "['--key', 'value'] nlt mine\n"


@pytest.mark.parametrize("code", [errno.EACCES, errno.ENOSPC])
def test_a_disk_that_refuses_is_one_line(code: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Reference: the system's own words, the remedy, and what a second call goes on from; exit code 2."""

    def main(argv: list[str] | None) -> None:
        raise OSError(code, os.strerror(code), "gains.jsonl")

    with pytest.raises(SystemExit) as exit_info:
        run_main(main, [], stage="score")
    assert exit_info.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"nlt score: error: [Errno {code}] {os.strerror(code)}: 'gains.jsonl'; ")
    assert error.endswith("; run again, it goes on from the scores that it has in its cache\n")
    assert error.count("\n") == 1


def test_other_errors_of_the_system_keep_their_traceback() -> None:
    """Reference: the exception itself."""

    def main(argv: list[str] | None) -> None:
        raise ConnectionResetError("peer")

    with pytest.raises(ConnectionResetError, match="peer"):
        run_main(main, [], stage="score")
