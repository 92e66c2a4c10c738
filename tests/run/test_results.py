from __future__ import annotations

from nlt_trainer.run.results import Result, results_table


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
