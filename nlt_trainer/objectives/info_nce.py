"""InfoNCE: the baseline that every label-free objective is compared with."""

from __future__ import annotations

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import all_gather, all_gather_with_grad
from torch import Tensor, nn

from nlt_trainer.models.objective import Objective
from nlt_trainer.models.similarity import all_cosines, gain_of


class InfoNCELoss(Objective):
    r"""Cross-entropy of a query's positive candidate against the other candidates of the batch.

    .. math:: L = -\frac{1}{B} \sum_b \log \frac{\exp(s(q_b, d_b^+))}{\sum_d \exp(s(q_b, d))}

    where d runs over the query's own K candidates and, with `in_batch_negatives`, over those of all queries of the
    global batch. A candidate with the same text as the positive is never its negative.

    Inputs:
        | Texts              | Labels                                     |
        |--------------------|--------------------------------------------|
        | B queries, B x K documents | `positive` of shape `(B,)`, index of the labelled candidate, or else `gain` |
        |                    | of shape `(B, K)`, whose best candidate is taken                                  |
        |                    | `candidate_keys` of shape `(B, K)`, equal for equal texts                          |

    Args:
        model: the encoder.
        temperature: of the encoder's cosines.
        in_batch_negatives: whether other queries' candidates are negatives too, across processes where there are
            several (then every process needs the same batch size: set `dataloader_drop_last`).

    When to use it: with labels, or to compare. Relation to its siblings: `LikelihoodGainLoss` with a teacher
    temperature near 0 and no in-batch negatives is this loss with the best candidate by gain as positive.

    Source: arXiv 1807.03748; in-batch negatives as in arXiv 2004.04906.

    Example:
        ```python
        loss = InfoNCELoss(encoder, temperature=0.05)
        ```
    """

    def __init__(
        self, model: SentenceTransformer, *, temperature: float = 0.05, in_batch_negatives: bool = True
    ) -> None:
        super().__init__(model, temperature=temperature)
        self.in_batch_negatives = in_batch_negatives

    def compute_loss_from_embeddings(
        self, queries: Tensor, documents: Tensor, labels: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        positive = labels["positive"] if "positive" in labels else gain_of(labels).argmax(-1)  # (B,)
        if not self.in_batch_negatives:
            scores = self.own_scores(queries, documents)
            return {"info_nce": self.compute_loss_from_scores(scores, positive, labels["candidate_keys"])}
        b, k = documents.shape[:2]
        rank, keys, documents = 0, labels["candidate_keys"].flatten(), documents.flatten(0, 1)  # (B * K,), (B * K, D)
        if torch.distributed.is_initialized():  # W processes: (W * B * K,), (W * B * K, D)
            rank, keys, documents = torch.distributed.get_rank(), all_gather(keys), all_gather_with_grad(documents)
        scores = all_cosines(queries, documents) / self.temperature  # (B, W * B * K)
        positive = positive + torch.arange(b, device=positive.device) * k + rank * b * k
        return {"info_nce": self.compute_loss_from_scores(scores, positive, keys.expand(b, -1))}

    def compute_loss_from_scores(self, scores: Tensor, positive: Tensor, keys: Tensor) -> Tensor:
        """Loss of scores `(B, N)`, the positives' columns `(B,)` and the candidates' keys `(B, N)`; a scalar."""
        column = positive[:, None]
        same_text = keys == keys.gather(1, column)  # (B, N)
        same_text.scatter_(1, column, False)
        return nn.functional.cross_entropy(scores.masked_fill(same_text, -torch.inf), positive)
