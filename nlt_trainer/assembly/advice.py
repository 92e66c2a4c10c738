"""Replace `auto` in a recipe by what the audit of its gains proposes."""

from __future__ import annotations

from typing import Literal

from nlt_trainer.arguments.beside import audit_file
from nlt_trainer.arguments.data import DataArguments
from nlt_trainer.arguments.trainer import TrainerArguments
from nlt_trainer.data.gains import read_audit
from nlt_trainer.errors import DataError
from nlt_trainer.recipe.values import is_finite
from nlt_trainer.terminal import say

ADVISED: tuple[Literal["teacher_temperature", "prior_weight"], ...] = ("teacher_temperature", "prior_weight")
"""The options that may be `auto` and that the audit has a proposal for."""


def take_advice(args: TrainerArguments, data: DataArguments) -> None:
    """Set those options that are `auto` to the audit's proposals, and say which numbers these are.

    Args:
        args: the trainer block, which is changed.
        data: names the gains, beside which the audit stands.

    Raises:
        DataError: the audit is missing, or was written by a version that proposed nothing.
    """
    asked = [name for name in ADVISED if getattr(args, name) == "auto"]
    if not asked:
        return
    file, audit = audit_file(data.gains), read_audit(data.gains)
    for name in asked:
        if (proposed := audit.get(f"proposed_{name}")) is None:
            raise DataError(file, f"{name} is auto, and there is no proposal; run `nlt score` again, or give a number")
        if type(proposed) not in (int, float) or not is_finite(proposed) or proposed < 0:
            raise DataError(file, f"proposed_{name} is {proposed!r}, and no number from 0 on; run `nlt score` again")
        setattr(args, name, float(proposed))
    say("The audit proposes " + " and ".join(f"{name} {getattr(args, name):g}" for name in asked))
