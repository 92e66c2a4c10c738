"""Several objectives in one run: a weighted sum over the same embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import or_

from torch import Tensor, nn

from nlt_trainer.data.llm_texts import LLMTexts
from nlt_trainer.errors import NLTError
from nlt_trainer.objectives.objective import Objective


class MixtureLoss(Objective):
    r"""Weighted sum of objectives that share the encoder and the batch.

    .. math:: L = \sum_i \lambda_i L_i

    The encoder embeds a batch once for all terms. The log shows each term under its own name and *weighted*, so that
    the logged terms add up to the logged loss. Divide by the weight to compare a term with a run of its own.

    Inputs:
        | Texts              | Labels                                     |
        |--------------------|--------------------------------------------|
        | B queries, B x K documents | those of all terms                         |

    Args:
        objectives: the terms; each keeps its own temperature.
        weights: one for each term, greater than 0.

    When to use it: where objectives complement each other. An example is DREAM with likelihood gain: DREAM's gradient
    is local and fades when its shares saturate, and likelihood gain reads each candidate apart.

    Example:
        ```python
        loss = MixtureLoss([LikelihoodGainLoss(encoder), DREAMLoss(encoder, lm, heads=heads)], weights=[1.0, 0.5])
        ```
    """

    def __init__(self, objectives: Sequence[Objective], *, weights: Sequence[float]) -> None:
        if not objectives or len(objectives) != len(weights):
            raise NLTError(f"a mixture has {len(objectives)} objectives and {len(weights)} weights; give one for each")
        if wrong := [weight for weight in weights if not 0 < weight < float("inf")]:
            raise NLTError(f"the mixture's weight {wrong[0]} is not a positive number; leave the objective out")
        if any(objective.model is not objectives[0].model for objective in objectives):
            raise NLTError("the objectives of a mixture hold different encoders; give all of them the same one")
        super().__init__(objectives[0].model, temperature=objectives[0].temperature)
        self.objectives: Sequence[Objective] = nn.ModuleList(objectives)  # type: ignore[assignment]  # it has no item type
        self.weights = list(weights)

    @property
    def lm_tokens(self) -> int:
        return sum(objective.lm_tokens for objective in self.objectives)

    @property
    def llm_texts(self) -> LLMTexts:
        return reduce(or_, (objective.llm_texts for objective in self.objectives))

    def compute_loss_from_embeddings(
        self, queries: Tensor, documents: Tensor, labels: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        for objective, weight in zip(self.objectives, self.weights, strict=True):
            for name, value in objective.compute_loss_from_embeddings(queries, documents, labels).items():
                if name in terms:
                    raise NLTError(f"two objectives of the mixture have a term {name!r}; take each objective once")
                terms[name] = weight * value
        return terms
