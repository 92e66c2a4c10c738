"""What `nlt plan` takes besides a recipe."""

from __future__ import annotations

from dataclasses import dataclass

from nlt_trainer.arguments.option import option
from nlt_trainer.errors import NLTError


@dataclass
class PlanArguments:
    """Parameters that control the plan."""

    accelerator: str | None = option(
        default=None,
        decides="nothing",
        help="Also say how long an accelerator of this name would take, e.g. A100 bf16.",
    )
    accelerator_tflops: float | None = option(
        default=None,
        decides="nothing",
        help="The same for one with this matrix-multiply peak, TFLOP/s.",
    )
    utilisation: float = option(
        default=0.4,
        decides="nothing",
        help="Share of its peak that the accelerator sustains: 0.4 is a common figure.",
    )
    plan_file: str | None = option(
        default=None,
        decides="nothing",
        help="Write the plan as JSON too.",
    )

    def __post_init__(self) -> None:
        if not 0 < self.utilisation <= 1:
            raise NLTError(f"utilisation is {self.utilisation}; it must be above 0 and at most 1")
