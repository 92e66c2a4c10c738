"""Likelihood-gain distillation: the encoder's scores are fitted to the frozen LLM's gains.

One of five divergences measures how far they are apart.
"""

from __future__ import annotations

from math import log

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from nlt_trainer.choices import Divergence, check_choice
from nlt_trainer.encoder.similarity import all_cosines, documents_of_batch, gain_of, label_of, no_negatives
from nlt_trainer.errors import NLTError
from nlt_trainer.objectives.objective import Objective


class LikelihoodGainLoss(Objective):
    r"""Divergence of the encoder's scores over a query's candidates from the LLM's likelihood gains.

    With :math:`t_{bk} = g_{bk} / \tau_T` the likelihood gain of candidate k over the teacher's temperature,
    :math:`s_{bk} = \cos(e(q_b), e(d_{bk})) / \tau`, :math:`p = \mathrm{softmax}_k(t_b)` and
    :math:`w = \mathrm{softmax}_k(s_b)`, the loss is :math:`\frac{1}{B} \sum_b D(t_b, s_b)` with D one of

    - `forward_kl`: :math:`\mathrm{KL}(p \| w)`
    - `reverse_kl`: :math:`\mathrm{KL}(w \| p)`
    - `jensen_shannon`: :math:`\frac{1}{2} \mathrm{KL}(p \| m) + \frac{1}{2} \mathrm{KL}(w \| m)`,
      :math:`m = \frac{1}{2} (p + w)`
    - `margin_mse`: :math:`\frac{1}{K-1} \sum_{k \neq +} ((t_+ - t_k) - (s_+ - s_k))^2`; here + is the candidate of the
      highest gain, while the paper takes the labelled passage
    - `listwise`: :math:`-\sum_k \log (e^{s_k} / \sum_{j: g_j \le g_k} e^{s_j})`, the Plackett-Luce likelihood of the
      order by gain (ListMLE); equal gains share a place

    With `in_batch_candidates` the encoder's softmax w runs over the different documents of the whole batch, and the
    teacher gives the candidates of other queries probability 0. The loss is still
    :math:`\sum_k p_k (\log p_k - \log w_k)` over a query's own candidates, which must now also score higher than the
    other queries' candidates. The documents in `no_negatives` are left out for their query.

    Adding a constant to all gains of a query, or to all its scores, changes none of these divergences. The `listwise`
    divergence uses only the order of the gains, so the teacher's temperature has no effect on it.

    Inputs:
        | Texts              | Labels                                     |
        |--------------------|--------------------------------------------|
        | B queries, B x K documents | `gain` of shape `(B, K)`, nats per target token; `candidate_keys` of shape |
        |                    | `(B, K)`, equal for equal texts, for in-batch candidates; optionally with  |
        |                    | them `no_negatives` `(B, R)`, keys of further texts, padded with -1        |

    Args:
        model: the encoder.
        temperature: of the encoder's cosines.
        teacher_temperature: of the gains, nats per target token.
        divergence: D above.
        in_batch_candidates: whether a query's candidates compete with those of all queries of the global batch. This
            works with `forward_kl` only, because the other divergences need the teacher's gain of every document.

    When to use it: as the first choice. Gains are computed once and stored, so training does not need the LLM.
    Relation to its siblings: `DREAMLoss` needs the LLM at every step and no stored gains; `InfoNCELoss` uses only the
    best candidate; `EMDR2Loss` marginalises likelihoods instead of copying their distribution.

    Source: forward_kl is the perplexity distillation of Atlas (arXiv 2208.03299) and, with the query as target, the
    loss of ART (arXiv 2206.10658); reverse_kl is that of RePlug (arXiv 2301.12652); margin_mse comes from arXiv
    2010.02666, and listwise from Xia et al., "Listwise approach to learning to rank" (ICML 2008).

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
        in_batch_candidates: bool = False,
    ) -> None:
        super().__init__(model, temperature=temperature)
        if teacher_temperature <= 0:
            raise NLTError(f"teacher_temperature is {teacher_temperature}; it must be greater than 0")
        check_choice("divergence", divergence, Divergence)
        if in_batch_candidates and divergence != "forward_kl":
            raise NLTError(
                f"in_batch_candidates: divergence {divergence!r} needs gains of other queries' candidates, which are "
                "not known; choose forward_kl"
            )
        self.teacher_temperature = teacher_temperature
        self.divergence = divergence
        self.in_batch_candidates = in_batch_candidates

    def compute_loss_from_embeddings(
        self, queries: Tensor, documents: Tensor, labels: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        if not self.in_batch_candidates:
            scores = self.own_scores(queries, documents)
            return {"likelihood_gain": self.compute_loss_from_scores(scores, gain_of(labels))}
        keys = label_of(labels, "candidate_keys", remedy="NLTCollator makes them")
        everyone, all_keys = documents_of_batch(documents, keys)
        scores = all_cosines(queries, everyone) / self.temperature  # (B, U)
        scores = scores.masked_fill(no_negatives(labels, all_keys, keys), -torch.inf)
        own = (keys[:, :, None] == all_keys).int().argmax(-1)  # (B, K, U) -> (B, K)
        return {"likelihood_gain": self.compute_loss_from_scores(scores, gain_of(labels), own=own)}

    def compute_loss_from_scores(self, scores: Tensor, gain: Tensor, *, own: Tensor | None = None) -> Tensor:
        """Loss from scores and gains; a scalar in the scores' dtype.

        Args:
            scores: `(B, K)` for a query's own candidates, or `(B, U)` for all documents of the batch.
            gain: `(B, K)`, gains of a query's own candidates.
            own: `(B, K)` int64, places of the own candidates among the U documents; `None` if the scores are `(B, K)`.
        """
        teacher = gain.to(scores) / self.teacher_temperature
        if own is None:
            return DIVERGENCES[self.divergence](teacher, scores).mean()
        log_p, log_w = teacher.log_softmax(-1), scores.log_softmax(-1).gather(1, own)
        return (log_p.exp() * (log_p - log_w)).sum(-1).mean()


# Each divergence takes the logits of teacher and student, both `(B, K)`, and returns one value a query, `(B,)`.


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
