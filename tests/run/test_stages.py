from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nlt_trainer.errors import DataError
from nlt_trainer.run.stages import Stage, run_stages
from nlt_trainer.text_files import read_json, write_json


class Work:
    """Two stages that count their calls: `first` writes a file, `second` reads it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls, self.forgotten = folder, list[str](), 0
        self.settings, self.source = "a", folder / "source.txt"
        self.source.write_text("1")

    def write(self, name: str) -> None:
        self.calls.append(name)
        (self.folder / name).write_text(name)

    def forget(self) -> None:
        self.forgotten += 1

    def run(self) -> dict[str, float]:
        stages = [
            Stage("first", lambda: self.write("first"), self.folder / "first", self.settings, [self.source]),
            Stage("second", lambda: self.write("second"), self.folder / "second", forget=self.forget),
        ]
        return run_stages(stages, self.folder / "stamps")


def test_a_second_call_repeats_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = Work(tmp_path)
    assert work.run().keys() == {"first", "second"}
    work.run()
    assert (work.calls, work.forgotten) == (["first", "second"], 0)
    assert capsys.readouterr().out.count("done before") == 2


@pytest.mark.parametrize("change", ["settings", "input"])
def test_a_change_repeats_the_stage_and_those_after_it(tmp_path: Path, change: str) -> None:
    work = Work(tmp_path)
    work.run()
    if change == "settings":
        work.settings = "b"
    else:
        work.source.write_text("2")
    work.run()
    assert (work.calls, work.forgotten) == (["first", "second"] * 2, 1)


def test_an_output_that_was_replaced_repeats_the_stage_and_those_after_it(tmp_path: Path) -> None:
    """Nothing is forgotten; a stamp of an earlier version, which has no hash of the output, is believed."""
    work = Work(tmp_path)
    work.run()
    (tmp_path / "first").write_text("by hand")
    work.run()
    assert (work.calls, work.forgotten) == (["first", "second"] * 2, 0)
    work.run()
    stamp = tmp_path / "stamps" / "first.json"
    write_json(stamp, {key: value for key, value in read_json(stamp).items() if key != "output"})
    work.run()
    assert work.calls == ["first", "second"] * 2


@pytest.mark.parametrize("entry", [{"seconds": "x"}, {"done": "yes"}, {"key": 3}, {"output": ["x"]}])
def test_a_malformed_stamp_is_refused(tmp_path: Path, entry: dict[str, Any]) -> None:
    """The message names the file, the value and the remedy."""
    work = Work(tmp_path)
    work.run()
    stamp = tmp_path / "stamps" / "first.json"
    write_json(stamp, {**read_json(stamp), **entry})
    with pytest.raises(
        DataError, match=r"first.json: .* is .*; it says whether first is done; remove it, and first runs again"
    ):
        work.run()


def test_a_missing_output_repeats_the_stage_and_those_after_it(tmp_path: Path) -> None:
    """Nothing is forgotten: the settings are the same, so a later stage may go on from what it has."""
    work = Work(tmp_path)
    work.run()
    (tmp_path / "second").unlink()
    work.run()
    assert (work.calls, work.forgotten) == (["first", "second", "second"], 0)
    (tmp_path / "first").unlink()
    work.run()
    assert (work.calls[3:], work.forgotten) == (["first", "second"], 0)


def test_a_stage_runs_again_after_one_that_was_killed_with_other_settings(tmp_path: Path) -> None:
    """The settings are the former ones again, but what the killed stage has left under the second is not."""
    work = Work(tmp_path)
    work.run()
    work.settings, write = "b", work.write

    def killed(name: str) -> None:
        raise KeyboardInterrupt

    work.write = killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        work.run()
    work.settings, work.write = "a", write  # type: ignore[method-assign]
    work.run()
    assert (work.calls, work.forgotten) == (["first", "second"] * 2, 0)


def test_only_stages_that_need_it_follow_a_repeated_stage(tmp_path: Path) -> None:
    calls: list[str] = []

    def stage(name: str, *needs: str) -> Stage:
        def write() -> None:
            calls.append(name)
            (tmp_path / name).write_text(name)

        return Stage(name, write, tmp_path / name, needs=needs)

    stages = [stage("mine"), stage("one", "mine"), stage("other", "mine"), stage("judge one", "one")]
    run_stages(stages, tmp_path / "stamps")
    (tmp_path / "one").unlink()
    run_stages(stages, tmp_path / "stamps")
    assert calls[4:] == ["one", "judge one"]


def test_a_failed_stage_is_not_done(tmp_path: Path) -> None:
    output = tmp_path / "output"

    def fail() -> None:
        output.write_text("half")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        run_stages([Stage("only", fail, output)], tmp_path / "stamps")
    again: list[str] = []
    run_stages([Stage("only", lambda: again.append("run"), output)], tmp_path / "stamps")
    assert again == ["run"], "the half-written output does not count"


@pytest.mark.parametrize(("content", "reason"), [('{"key": "ab', "not valid JSON"), ("[]", "expected a JSON dict")])
def test_a_damaged_stamp_is_named_with_the_remedy(content: str, reason: str, tmp_path: Path) -> None:
    """Reference: no stage has run; after the remedy the stage of the stamp and the one after it have."""
    work = Work(tmp_path)
    work.run()
    stamp = tmp_path / "stamps" / "first.json"
    stamp.write_text(content)
    with pytest.raises(
        DataError, match=rf"first.json: {reason}.*; it says whether first is done; remove it, and first"
    ):
        work.run()
    assert work.calls == ["first", "second"]
    stamp.unlink()
    work.run()
    assert work.calls == ["first", "second"] * 2
