from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nlt_trainer.errors import DataError
from nlt_trainer.run.results import Result, read_results, results_table, verdicts, write_results
from nlt_trainer.text_files import write_json


def test_the_table_says_what_was_decided_where_something_was() -> None:
    """Against the cells, written by hand."""
    plain = Result("start", 0.5, 0.4, 0.9, 0.0, 0, None, "docs", "held_out")
    assert results_table([plain]).splitlines()[0].endswith("| seed |")
    kept = Result("adapted", 0.6, 0.5, 0.9, 12.0, 3456, 42, "docs", "held_out", 0.55, 0.65, 0.0001, True)
    header, _, row = results_table([kept]).splitlines()
    assert header.endswith("| seed | p against start | kept |")
    assert row == "| docs held_out | adapted | 0.600 [0.550, 0.650] | 0.500 | 0.900 | 12 | 3,456 | 42 | 0.0001 | yes |"
    other = Result("start", 0.5, 0.4, 0.9, 0.0, 0, None, "docs", "held_out", kept=False)
    assert results_table([kept, other]).splitlines()[-1].endswith("|  |  |  |  |  |")


def test_the_table_says_what_was_trained_on_where_something_was() -> None:
    """Against the cells and the sentence, written by hand."""
    bm25 = Result("bm25", 0.4, 0.3, 0.8, 0.0, 0, None, "docs", "test")
    start = Result("start", 0.5, 0.4, 0.9, 0.0, 0, None, "docs", "test", trained_on=None)
    other = Result("emdr2", 0.5, 0.4, 0.9, 1.0, 2, 42, "docs", "test", trained_on=0, queries=1600)
    trained = Result("dream", 0.6, 0.5, 0.9, 12.0, 3456, 42, "docs", "test", trained_on=12, queries=1600)
    header, _, *rows = results_table([bm25, start, other, trained]).splitlines()
    assert header.endswith("| seed | queries trained on |")
    ends = ("|  |  |  |  |", "|  |  |  | not known |", "| 42 | 0 of 1,600 |", "| 42 | 12 of 1,600 |")
    assert all(row.endswith(end) for row, end in zip(rows, ends, strict=True))
    assert results_table([bm25, start, other]).splitlines()[0].endswith("| seed |")
    said = "On docs test its nDCG@10 is 0.600, 0.100 above the start, 12 of 1,600 queries were trained on."
    assert verdicts([start, trained], "dream") == [said]


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("ndcg_at_10", float("nan")),
        ("mrr_at_10", float("inf")),
        ("recall_at_100", 1.5),
        ("ndcg_at_10_low", -0.1),
        ("p_against_start", float("nan")),
        ("train_seconds", float("inf")),
        ("lm_tokens", -1),
        ("queries", "many"),
        ("strange", 1),
    ],
)
def test_results_with_impossible_values_are_refused(tmp_path: Path, entry: str, value: Any) -> None:
    """The message names the file, the row, the entry and the value; rows that may be are read as they were written."""
    rows = [Result(name, 1.0, 0.0, 1.0, 9.0, 9, 42, "docs", "test") for name in ("start", "dream")]
    path = tmp_path / "results.json"
    assert read_results(path) == []
    write_results(path, rows)
    assert read_results(path) == rows
    write_json(path, [vars(rows[0]), {**vars(rows[1]), entry: value}])
    with pytest.raises(DataError, match=rf"results.json: is no table of results \(row 1 {entry}: .*, found .*{value}"):
        read_results(path)
    write_json(path, ["x"])
    with pytest.raises(DataError, match=r"results.json: is no table of results \(row 0 .*found 'x'"):
        read_results(path)
