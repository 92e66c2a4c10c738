"""Likelihood gain, distilled: the encoder's score distribution is fitted to the frozen LLM's."""

from __future__ import annotations

from typing import Literal

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from nlt_trainer.errors import NLTError
from nlt_trainer.models.objective import Objective
from nlt_trainer.models.similarity import gain_of

QueryWeight = Literal["none", "positive", "gain"]


class LikelihoodGainLoss(Objective):
    r"""KL divergence from the LLM's distribution over a query's candidates to the encoder's.

    With :math:`g_{bk}` the likelihood gain of candidate k and :math:`s_{bk} = \cos(e(q_b), e(d_{bk})) / \tau`,

    .. math:: L = \frac{1}{B} \sum_b u_b \,
              \mathrm{KL}\left(\mathrm{softmax}_k(g_{bk} / \tau_T) \,\|\, \mathrm{softmax}_k(s_{bk})\right)

    Adding a constant to a query's gains changes nothing, unless the null candidate takes part: a further candidate of
    gain 0 (no document), whose score is `null_similarity / temperature`.

    Inputs:
        | Texts              | Labels                                     |
        |--------------------|--------------------------------------------|
        | B queries, B x K documents | `gain` of shape `(B, K)`, nats per target token |

    Args:
        model: the encoder.
        temperature: of the encoder's cosines.
        teacher_temperature: of the gains, nats per token.
        null_candidate: whether "no document" competes with the candidates; teaches the encoder's cosine a threshold.
        null_similarity: cosine at which the encoder is held to find a document no better than none.
        query_weight: `none`: every query counts 1; `positive`: 0 where no candidate has a positive gain, else 1;
            `gain`: the teacher's probability that some candidate is better than none.

    When to use it: first; gains are computed once, kept, and cost the training nothing. Relation to its siblings:
    `DREAMLoss` needs the LLM at every step and no stored gains; `InfoNCELoss` keeps only the best candidate.

    Source: the perplexity distillation of Atlas (arXiv 2208.03299); RePlug (arXiv 2301.12652) has the other direction.

    Example:
        ```python
        loss = LikelihoodGainLoss(encoder, temperature=0.05, teacher_temperature=0.2)
        trainer = NLTTrainer(encoder, args, train_dataset=dataset, loss=loss, data_collator=NLTCollator(encoder))
        ```
    """

    def __init__(
        self,
        model: SentenceTransformer,
        *,
        temperature: float = 0.05,
        teacher_temperature: float = 0.2,
        null_candidate: bool = False,
        null_similarity: float = 0.0,
        query_weight: QueryWeight = "none",
    ) -> None:
        super().__init__(model, temperature=temperature)
        if teacher_temperature <= 0:
            raise NLTError(f"teacher_temperature is {teacher_temperature}; it must be greater than 0")
        if query_weight not in {"none", "positive", "gain"}:
            raise NLTError(f"query_weight {query_weight!r} is unknown; choose none, positive or gain")
        self.teacher_temperature = teacher_temperature
        self.null_candidate = null_candidate
        self.null_similarity = null_similarity
        self.query_weight = query_weight

    def compute_loss_from_embeddings(
        self, queries: Tensor, documents: Tensor, labels: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        scores = self.own_scores(queries, documents)
        return {"likelihood_gain": self.compute_loss_from_scores(scores, gain_of(labels))}

    def compute_loss_from_scores(self, scores: Tensor, gain: Tensor) -> Tensor:
        """Loss of scores and gains, both `(B, K)`; a scalar in float32."""
        teacher = gain.to(scores) / self.teacher_temperature
        weight = self._weight(teacher)
        if self.null_candidate:
            teacher = nn.functional.pad(teacher, (0, 1), value=0.0)  # (B, K + 1)
            scores = nn.functional.pad(scores, (0, 1), value=self.null_similarity / self.temperature)
        log_teacher, log_student = teacher.log_softmax(-1), scores.log_softmax(-1)
        divergence = (log_teacher.exp() * (log_teacher - log_student)).sum(-1)  # (B,)
        return (weight * divergence).mean()

    def _weight(self, teacher: Tensor) -> Tensor:
        """Weight of each query, `(B,)`, between 0 and 1; the same whatever else is in the batch."""
        if self.query_weight == "positive":
            return (teacher.max(-1).values > 0).to(teacher)
        if self.query_weight == "gain":
            return 1 - nn.functional.pad(teacher, (0, 1)).softmax(-1)[:, -1]
        return torch.ones_like(teacher[:, 0])
