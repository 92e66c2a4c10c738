"""What `auto` becomes: the numbers that the audit of the gains proposes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nlt_trainer.arguments.beside import audit_file
from nlt_trainer.arguments.data import DataArguments
from nlt_trainer.arguments.trainer import TrainerArguments
from nlt_trainer.assembly.advice import take_advice
from nlt_trainer.errors import DataError, NLTError
from nlt_trainer.text_files import write_json


def advised(folder: Path, audit: dict[str, Any] | None, **options: Any) -> TrainerArguments:
    args, data = TrainerArguments(**options), DataArguments(gains=str(folder / "gains.jsonl"))
    if audit is not None:
        write_json(audit_file(data.gains), audit)
    take_advice(args, data)
    return args


AUDIT = {"proposed_teacher_temperature": 0.05, "proposed_prior_weight": 0.3}


def test_auto_is_what_the_audit_proposes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Reference: the audit; a number that the recipe gives stays."""
    both = advised(tmp_path, AUDIT, teacher_temperature="auto", prior_weight="auto")
    assert (both.number("teacher_temperature"), both.number("prior_weight")) == (0.05, 0.3)
    assert capsys.readouterr().out == "The audit proposes teacher_temperature 0.05 and prior_weight 0.3\n"
    one = advised(tmp_path, AUDIT, teacher_temperature="auto", prior_weight=0.7)
    assert (one.number("teacher_temperature"), one.number("prior_weight")) == (0.05, 0.7)
    assert advised(tmp_path, AUDIT).number("teacher_temperature") == 0.2


@pytest.mark.parametrize("audit", [None, {"proposed_teacher_temperature": 0.05}])
def test_no_proposal_is_an_error(tmp_path: Path, audit: dict[str, Any] | None) -> None:
    with pytest.raises(DataError, match=r"gains.audit.json: prior_weight is auto, .* run `nlt score` again"):
        advised(tmp_path, audit, prior_weight="auto")


@pytest.mark.parametrize("proposed", [float("nan"), float("inf"), "high", True])
def test_a_proposal_that_is_no_number_is_refused(tmp_path: Path, proposed: object) -> None:
    """Reference: the value and the remedy in the message; JSON itself has no NaN, but Python reads and writes it."""
    with pytest.raises(DataError, match=rf"gains.audit.json: proposed_prior_weight is .*{proposed}.*run `nlt score`"):
        advised(tmp_path, {"proposed_prior_weight": proposed}, prior_weight="auto")


def test_a_teacher_without_gains_has_no_proposal() -> None:
    with pytest.raises(NLTError, match=r"teacher_temperature is auto, .* adist reads no gains; give a number"):
        TrainerArguments(objective="adist", teacher_temperature="auto")


def test_only_bm25_has_a_proposed_weight() -> None:
    """The audit's proposal is BM25's agreement with the gains, which says nothing of the miner's order."""
    with pytest.raises(NLTError, match=r"prior_weight is auto, .* prior is order; give a number, or set prior: bm25"):
        TrainerArguments(prior="order", prior_weight="auto")
