"""`nlt` against its contract: which module a stage runs, exit codes and what stands on stderr."""

from __future__ import annotations

import errno
import importlib.metadata
import io
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import pytest
from safetensors import SafetensorError

from nlt_trainer.errors import NLTError
from nlt_trainer.files import cache_folder
from nlt_trainer.program import GOES_ON, run_main, shown
from nlt_trainer.scripts import cli
from nlt_trainer.terminal import say


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module that stands in for the stage `train`."""
    module = ModuleType("train")
    monkeypatch.setitem(sys.modules, "nlt_trainer.scripts.train", module)
    monkeypatch.setattr(sys, "argv", ["nlt"])
    return module


def test_every_stage_is_a_module() -> None:
    """Both ways: no stage without a program, no program that is not a stage."""
    folder = Path(cli.__file__).parent
    assert {path.stem for path in folder.glob("*.py")} - {"__init__", "cli"} == set(cli.STAGES)


def test_help_lists_every_stage_and_imports_none() -> None:
    code = (
        "import sys; from nlt_trainer.scripts import cli; cli.main(['--help']); "
        "print([name for name in cli.STAGES if f'nlt_trainer.scripts.{name}' in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(f"  {name} " in result.stdout for name in cli.STAGES)
    assert result.stdout.splitlines()[-1] == "[]"


HEAVY = ("torch", "transformers", "sentence_transformers", "mteb", "datasets", "faiss", "matplotlib", "scipy")
"""Packages whose import takes a second or more."""


@pytest.mark.parametrize("stage", cli.STAGES)
def test_help_a_typo_and_a_missing_recipe_import_nothing_heavy(stage: str) -> None:
    """Reference: `sys.modules` of a fresh process, and the exit code of each call."""
    code = (
        "import sys\nfrom nlt_trainer.scripts import cli\n"
        "for words in (['--help'], ['--sede', '1'], ['--config', 'no/such.yaml']):\n"
        f"    try:\n        cli.main(['{stage}', *words])\n"
        "    except SystemExit as end:\n        print('code', end.code)\n"
        f"print('heavy', [name for name in {HEAVY} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [line for line in result.stdout.splitlines() if line.startswith("code")] == ["code 0", "code 2", "code 2"]
    assert result.stdout.splitlines()[-1] == "heavy []"
    assert result.stderr.count("error:") >= 2
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("report no/such", "no/such has no training.json"),
        ("compare_heads one.json", "only one.json was given; name two head files or more"),
        ("demo --recipes no/such", "no/such has no demo recipes"),
        ("train", "collection/corpus.jsonl: file not found"),
        ("mine --collection no/such", "no/such/corpus.jsonl: file not found"),
        ("score --collection no/such", "no/such/corpus.jsonl: file not found"),
        ("train --num_candidates 0", "num_candidates is 0"),
        ("build_corpus", "documents is not set and has no default"),
        ("build_corpus --documents no/such", "no/such: not found; name a folder of documents"),
        ("search", "encoder is not set and has no default"),
        ("search --encoder a --corpus no/such", "no/such/corpus.jsonl: file not found"),
        ("app --encoder a --corpus no/such", "no/such/corpus.jsonl: file not found"),
    ],
)
def test_a_plain_mistake_imports_nothing_heavy(words: str, message: str, tmp_path: Path) -> None:
    """Reference: `sys.modules` of a fresh process in an empty folder, its exit code and its one line of error."""
    code = (
        f"import sys\nfrom nlt_trainer.scripts import cli\ntry:\n    cli.main({words.split()})\n"
        f"finally:\n    print([name for name in {HEAVY} if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert (result.returncode, result.stdout) == (2, "[]\n")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("stage", ["search", "app"])
def test_help_lists_a_stages_own_options_first(stage: str) -> None:
    """Reference: the options that a search cannot do without."""
    command = [sys.executable, "-m", "nlt_trainer.scripts.cli", stage, "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert all(f"--{key}" in shown for key in ("encoder", "corpus", "against", "top_k", "embeddings"))
    assert "sbert.net" not in shown


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    """Reference: the metadata of the installed package."""
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"nlt_trainer {importlib.metadata.version('nlt_trainer')}\n"


def test_help_is_also_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    """Reference: the flag."""
    assert (cli.main(["help"]), cli.main(["--help"])) == (0, 0)
    printed = capsys.readouterr().out
    assert printed[: len(printed) // 2] == printed[len(printed) // 2 :] != ""


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


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("becomes", ["itself", "an error of a library", "wrong input"])
def test_a_signal_is_one_line_and_its_exit_code(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
    becomes: str,
    number: signal.Signals,
    code: int,
) -> None:
    """Reference: 128 + the number of the signal; afterwards the signals do what they did before. A library that is
    written in Rust makes an error of its own of what a signal raises within it."""

    def signalled(argv: list[str]) -> None:
        try:
            os.kill(os.getpid(), number)
        except KeyboardInterrupt as interrupt:
            if becomes == "itself":
                raise
            raise NLTError("loading failed") if becomes == "wrong input" else ValueError(str(interrupt)) from None

    found = signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, found))
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    monkeypatch.setattr(sys, "argv", ["nlt"])
    monkeypatch.setattr(cli.importlib, "import_module", signalled)
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["train"])
    assert exit_info.value.code == code
    assert capsys.readouterr().err.startswith("\nnlt train: stopped; run again, it goes on from the last whole")
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == before


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


@pytest.mark.parametrize(
    "code",
    [errno.EACCES, errno.ENOSPC, errno.EIO, errno.EXDEV, errno.EFBIG, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST],
)
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


def test_a_cache_that_cannot_be_written_can_be_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    """Reference: the variable that names it, where the error is about a file in it."""

    def main(argv: list[str] | None) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(cache_folder() / "embeddings"))

    with pytest.raises(SystemExit):
        run_main(main, [], stage="search")
    remedy = (
        "; name a place that can be written; the environment variable NLT_CACHE names another folder for the cache"
    )
    assert capsys.readouterr().err.endswith(f"{remedy}\n")


def test_a_disk_without_room_for_temporary_files_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Reference: what Python's own module says that can write to no folder, and the remedy."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "absent")])
    with pytest.raises(SystemExit) as exit_info:
        run_main(lambda _: print(tempfile.gettempdir()), [], stage="train")
    assert exit_info.value.code == 2
    error = capsys.readouterr().err
    assert f"No usable temporary directory found in ['{tmp_path}/absent']; free some space there, or let" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "error",
    [
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        Exception("No space left on device (os error 28)"),
        RuntimeError("basic_ios::clear: iostream error"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 640 vs 598"),
    ],
)
def test_a_full_disk_is_one_line_whatever_writes(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    """Reference: what safetensors 0.8, tokenizers 0.23 and torch 2.13 (twice) raise on a full disk."""

    def main(argv: list[str] | None) -> None:
        raise error

    with pytest.raises(SystemExit) as exit_info:
        run_main(main, [], stage="train")
    assert exit_info.value.code == 2
    line = f"nlt train: error: {error}; free some space on the disk; run again, it goes on from the last whole "
    assert capsys.readouterr().err == f"{line}checkpoint, if there is one\n"


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
@pytest.mark.parametrize("output", ["a pipe", "/dev/full"])
def test_an_output_that_takes_nothing_is_one_line(output: str) -> None:
    """Reference: a pipe whose reader has ended, as `head` does, and a full disk; Python's own end adds no line."""
    imports = "from nlt_trainer.program import run_main; from nlt_trainer.terminal import say"
    if output == "a pipe":
        reader, end = os.pipe()
        os.close(reader)
    else:
        end = os.open(output, os.O_WRONLY)
    command = [sys.executable, "-c", f"{imports}; run_main(lambda _: say('a'), [], stage='score')"]
    ended = subprocess.run(command, stdout=end, stderr=subprocess.PIPE, text=True)
    os.close(end)
    remedy = "what read the output has ended, so let it" if output == "a pipe" else "free some space on the disk"
    assert ended.returncode == 2
    assert re.fullmatch(rf"nlt score: error: [^;]*; {remedy}[^\n]* in its cache\n", ended.stderr)


@pytest.mark.parametrize("error", [ConnectionResetError("peer"), RuntimeError("bug"), SafetensorError("header")])
def test_other_errors_keep_their_traceback(error: Exception) -> None:
    """Reference: the exception itself."""

    def main(argv: list[str] | None) -> None:
        raise error

    with pytest.raises(type(error), match=str(error)):
        run_main(main, [], stage="score")


def test_a_name_that_is_not_utf8_can_be_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: Python's escapes, where a plain stream raises an error."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr("sys.stdout", stream)
    with pytest.raises(SystemExit) as exit_info:
        run_main(lambda argv: say("corpus-\udce9"), [], stage="build_corpus")
    assert exit_info.value.code == 0
    assert stream.buffer.getvalue() == b"corpus-\\udce9\n"
