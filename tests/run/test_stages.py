from __future__ import annotations

from pathlib import Path

import pytest

from nlt_trainer.run.stages import Stage, run_stages


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


def test_a_missing_output_or_a_kill_repeats_only_that_stage(tmp_path: Path) -> None:
    work = Work(tmp_path)
    work.run()
    (tmp_path / "second").unlink()
    work.run()
    assert (work.calls, work.forgotten) == (["first", "second", "second"], 0)


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
