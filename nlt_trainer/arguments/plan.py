"""What `nlt plan` takes besides a recipe."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nlt_trainer.arguments.option import option
from nlt_trainer.errors import NLTError

PEAKS = {
    "T4 fp16": 65.0,
    "L4 bf16": 121.0,
    "A10 bf16": 125.0,
    "RTX 4090 bf16": 165.2,
    "A100 fp32": 19.5,
    "A100 tf32": 156.0,
    "A100 bf16": 312.0,
    "L40S bf16": 362.0,
    "H100 bf16": 989.4,
    "H200 bf16": 989.4,
    "MI300X bf16": 1307.4,
}
"""Dense matrix-multiply peaks without sparsity, TFLOP/s, from the makers' data sheets (SXM where there is one)."""


@dataclass
class PlanArguments:
    """Parameters that control the plan."""

    accelerator: str | None = option(
        default=None,
        decides="nothing",
        help=(
            f"Also say how long an accelerator would take: its peak in TFLOP/s, or one of these: {', '.join(PEAKS)}."
        ),
    )
    utilisation: float = option(
        default=0.4,
        decides="nothing",
        help="Share of its peak that the accelerator sustains: 0.4 is a common figure.",
    )
    plan_file: str | None = option(
        default=None,
        decides="nothing",
        path="file",
        help="Write the plan as JSON too.",
    )

    def __post_init__(self) -> None:
        if not 0 < self.utilisation <= 1:
            raise NLTError(f"utilisation is {self.utilisation}; it must be above 0 and at most 1")
        if self.accelerator is not None and not 0 < self._peak() < math.inf:
            raise NLTError(
                f"accelerator {self.accelerator!r} is unknown; choose one of {', '.join(PEAKS)}, or give its "
                "peak in TFLOP/s"
            )

    def _peak(self) -> float:
        """The peak of the accelerator in TFLOP/s; 0 where none is named or nobody knows it."""
        try:
            return PEAKS.get(str(self.accelerator)) or float(str(self.accelerator))
        except ValueError:
            return 0.0

    @property
    def flops_a_second(self) -> float | None:
        """What the accelerator sustains, FLOP/s; `None` where none is named."""
        return None if self.accelerator is None else self.utilisation * self._peak() * 1e12

    @property
    def title(self) -> str:
        """The accelerator and its share, as people say them."""
        unit = "" if self.accelerator in PEAKS else " TFLOP/s"
        return f"{self.accelerator}{unit} at {self.utilisation:.0%}"
