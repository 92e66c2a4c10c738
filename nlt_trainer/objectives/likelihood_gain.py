"""Likelihood gain, distilled: the encoder's scores are fitted to the frozen LLM's gains by one of five divergences."""

from __future__ import annotations

from math import log

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from nlt_trainer.choices import Divergence, QueryWeight, check_choice
from nlt_trainer.encoder.similarity import gain_of
from nlt_trainer.errors import NLTError
from nlt_trainer.objectives.objective import Objective


class LikelihoodGainLoss(Objective):
    r"""Divergence of the encoder's scores over a query's candidates from the LLM's likelihood gains.

    With :math:`t_{bk} = g_{bk} / \tau_T` the likelihood gain of candidate k over the teacher's temperature,
    :math:`s_{bk} = \cos(e(q_b), e(d_{bk})) / \tau`, :math:`p = \mathrm{softmax}_k(t_b)` and
    :math:`w = \mathrm{softmax}_k(s_b)`, the loss is :math:`\frac{1}{B} \sum_b u_b D(t_b, s_b)` with D one of

    - `forward_kl`: :math:`\mathrm{KL}(p \| w)`
    - `reverse_kl`: :math:`\mathrm{KL}(w \| p)`
    - `jensen_shannon`: :math:`\frac{1}{2} \mathrm{KL}(p \| m) + \frac{1}{2} \mathrm{KL}(w \| m)`,
      :math:`m = \frac{1}{2} (p + w)`
    - `margin_mse`: :math:`\frac{1}{K-1} \sum_{k \neq +} ((t_+ - t_k) - (s_+ - s_k))^2` with + the candidate of the
      highest gain, which stands where the paper has the labelled passage
    - `listwise`: :math:`-\sum_k \log (e^{s_k} / \sum_{j: g_j \le g_k} e^{s_j})`, the Plackett-Luce likelihood of the
      order by gain (ListMLE); equal gains share a place

    A constant added to a query's gains, or to its scores, changes none of them. Of the gains `listwise` reads the
    order alone, so that the teacher's temperature reaches it by `query_weight="gain"` only.

    Inputs:
        | Texts              | Labels                                     |
        |--------------------|--------------------------------------------|
        | B queries, B x K documents | `gain` of shape `(B, K)`, nats per target token |

    Args:
        model: the encoder.
        temperature: of the encoder's cosines.
        teacher_temperature: of the gains, nats per target token.
        divergence: D above.
        query_weight: u above. `none`: every query counts 1; `positive`: 0 where no candidate has a positive gain, else
            1; `gain`: the teacher's probability that some candidate is better than none.

    When to use it: first; gains are computed once, kept, and cost the training nothing. Relation to its siblings:
    `DREAMLoss` needs the LLM at every step and no stored gains; `InfoNCELoss` keeps only the best candidate;
    `EMDR2Loss` marginalises likelihoods instead of copying their distribution.

    Source: the perplexity distillation of Atlas (arXiv 2208.03299) has forward_kl, RePlug (arXiv 2301.12652)
    reverse_kl, ART (arXiv 2206.10658) forward_kl with the query as target; margin_mse is of arXiv 2010.02666, listwise
    of Xia et al., "Listwise approach to learning to rank" (ICML 2008).

    Example:
        ```python
        loss = LikelihoodGainLoss(encoder, temperature=0.05, teacher_temperature=0.2)
        trainer = NLTTrainer(encoder, args, train_dataset=dataset, loss=loss, data_collator=loss.collator())
        ```
    """

    def __init__(
        self,
        model: SentenceTransformer,
        *,
        temperature: float = 0.05,
        teacher_temperature: float = 0.2,
        divergence: Divergence = "forward_kl",
        query_weight: QueryWeight = "none",
    ) -> None:
        super().__init__(model, temperature=temperature)
        if teacher_temperature <= 0:
            raise NLTError(f"teacher_temperature is {teacher_temperature}; it must be greater than 0")
        check_choice("divergence", divergence, Divergence)
        check_choice("query_weight", query_weight, QueryWeight)
        self.teacher_temperature = teacher_temperature
        self.divergence = divergence
        self.query_weight = query_weight

    def compute_loss_from_embeddings(
        self, queries: Tensor, documents: Tensor, labels: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        scores = self.own_scores(queries, documents)
        return {"likelihood_gain": self.compute_loss_from_scores(scores, gain_of(labels))}

    def compute_loss_from_scores(self, scores: Tensor, gain: Tensor) -> Tensor:
        """Loss of scores and gains, both `(B, K)`; a scalar in the scores' dtype."""
        teacher = gain.to(scores) / self.teacher_temperature
        return (self._weight(teacher) * DIVERGENCES[self.divergence](teacher, scores)).mean()

    def _weight(self, teacher: Tensor) -> Tensor:
        """Weight of each query, `(B,)`, between 0 and 1; the same whatever else is in the batch."""
        if self.query_weight == "positive":
            return (teacher.max(-1).values > 0).to(teacher)
        if self.query_weight == "gain":
            return 1 - nn.functional.pad(teacher, (0, 1)).softmax(-1)[:, -1]
        return torch.ones_like(teacher[:, 0])


# Each takes the logits of teacher and student, `(B, K)`, and returns `(B,)`.


def forward_kl(teacher: Tensor, student: Tensor) -> Tensor:
    log_p, log_w = teacher.log_softmax(-1), student.log_softmax(-1)
    return (log_p.exp() * (log_p - log_w)).sum(-1)


def reverse_kl(teacher: Tensor, student: Tensor) -> Tensor:
    return forward_kl(student, teacher)


def jensen_shannon(teacher: Tensor, student: Tensor) -> Tensor:
    log_p, log_w = teacher.log_softmax(-1), student.log_softmax(-1)
    log_m = torch.logaddexp(log_p, log_w) - log(2)
    return 0.5 * (log_p.exp() * (log_p - log_m) + log_w.exp() * (log_w - log_m)).sum(-1)


def margin_mse(teacher: Tensor, student: Tensor) -> Tensor:
    difference = teacher - student
    best = difference.gather(-1, teacher.argmax(-1, keepdim=True))  # (B, 1)
    return (best - difference).square().sum(-1) / max(teacher.shape[-1] - 1, 1)


def listwise(teacher: Tensor, student: Tensor) -> Tensor:
    not_better = teacher[:, None, :] <= teacher[:, :, None]  # (B, K, K): candidate j may follow candidate k
    rest = student[:, None, :].masked_fill(~not_better, -torch.inf).logsumexp(-1)  # (B, K)
    return (rest - student).sum(-1)


DIVERGENCES = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jensen_shannon": jensen_shannon,
    "margin_mse": margin_mse,
    "listwise": listwise,
}
