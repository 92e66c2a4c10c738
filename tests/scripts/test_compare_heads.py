"""`nlt compare_heads`: overlaps by hand, and what cannot be compared."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import pytest

from nlt_trainer.errors import DataError, NLTError
from nlt_trainer.injection.heads import HeadSet
from nlt_trainer.scripts import compare_heads


def save(path: Path, scores: list[list[float]], weights: str = "w", score: str = "reciprocal_rank") -> str:
    table = tuple(map(tuple, scores))
    HeadSet((), table, "llm", {"weights": weights}, {"score": score}).select(1).save(path)
    return str(path)


def test_the_table_has_the_overlap_of_each_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Reference: sets by hand: {0.0, 0.1}, {0.0, 1.0} and {1.0, 1.1}; chance gives (1/2) / (2 - 1/2)."""
    files = [
        save(tmp_path / "a.json", [[0.9, 0.8], [0.1, 0.2]]),
        save(tmp_path / "b.json", [[0.9, 0.1], [0.8, 0.2]], score="signal_to_noise"),
        save(tmp_path / "c.json", [[0.1, 0.2], [0.9, 0.8]]),
    ]
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / ".1.png.01234567.partial").touch()  # as a killed process leaves it
    compare_heads.main([*files, "--num_heads", "2", "--heat_maps", str(tmp_path / "maps")])
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == ["1.png", "2.png", "3.png"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[:5] == [
        "| Jaccard index, 2 heads | 1 | 2 | 3 |",
        "|---|---|---|---|",
        "| 1 | 1.00 | 0.33 | 0.00 |",
        "| 2 | 0.33 | 1.00 | 0.33 |",
        "| 3 | 0.00 | 0.33 | 1.00 |",
    ]
    assert lines[6] == "mean of pairs 0.22; by chance about 0.33"
    assert lines[9] == f"2: {files[1]} (signal to noise; the best 2 by score, the file's own are 1: 0.0, 1.0)"
    for number in (1, 2, 3):
        assert matplotlib.image.imread(tmp_path / "maps" / f"{number}.png")[..., :3].std() > 0


def test_heads_of_a_control_are_compared_as_they_stand_in_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reference: sets by hand: {0.0, 0.1} by score and {1.0, 1.1}, the worst of the same scores."""
    best = HeadSet((), ((0.9, 0.8), (0.1, 0.2)), "llm", {"weights": "w"}, {"score": "reciprocal_rank"}).select(2)
    files = [str(tmp_path / "best.json"), str(tmp_path / "worst.json")]
    best.save(files[0])
    best.select(2, "worst").save(files[1])
    compare_heads.main([*files, "--num_heads", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "| 1 | 1.00 | 0.00 |"
    assert lines[-1] == f"2: {files[1]} (mean reciprocal rank; the file's own 2, worst: 1.0, 1.1)"
    compare_heads.main([*files, "--num_heads", "1"])
    assert "| 1 | 1.00 | 1.00 |" in capsys.readouterr().out


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    """Reference: the reason in each message."""
    file = save(tmp_path / "a.json", [[0.9, 0.8]])
    with pytest.raises(NLTError, match=r"only .*a.json was given; name two head files or more"):
        compare_heads.main([file])
    with pytest.raises(NLTError, match=r"heads of different LLMs"):
        compare_heads.main([file, save(tmp_path / "b.json", [[0.9, 0.8]], weights="other")])
    with pytest.raises(DataError, match=r"file not found"):
        compare_heads.main([file, str(tmp_path / "none.json")])
