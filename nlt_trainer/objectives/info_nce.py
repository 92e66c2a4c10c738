"""InfoNCE: the contrastive baseline with which every label-free objective is compared."""

from __future__ import annotations

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import all_gather, all_gather_with_grad
from torch import Tensor, nn

from nlt_trainer.data.questions import NO_KEY
from nlt_trainer.encoder.similarity import all_cosines, gain_of, has_key, label_of
from nlt_trainer.errors import NLTError
from nlt_trainer.objectives.objective import Objective


class InfoNCELoss(Objective):
    r"""Cross-entropy of a query's positive candidate against the other candidates of the batch.

    .. math:: L = -\frac{1}{B} \sum_b \log \frac{\exp(s(q_b, d_b^+))}{\sum_d \exp(s(q_b, d))}

    where d runs over the query's own K candidates and over those of all other queries of the global batch. With
    several processes it runs over the candidates of all of them; then every process needs the same batch size, so set
    `dataloader_drop_last`. A candidate with the same text as the positive is never a negative, nor is one of the
    documents in `no_negatives`: the others that are judged relevant to the query, and the query itself. With
    `false_negative_margin` m a candidate is no negative either if its gain for this query is at least the positive's
    gain minus m, because the LLM then finds it about as helpful or more. Gains are known for the query's own
    candidates, and so for every candidate of the batch that has the text of one of them.

    Inputs:
        | Texts              | Labels                                     |
        |--------------------|--------------------------------------------|
        | B queries, B x K documents | `positive` of shape `(B,)`, index of the labelled candidate, or else `gain` |
        |                    | of shape `(B, K)`, whose best candidate is taken; `gain` also for the margin       |
        |                    | `candidate_keys` of shape `(B, K)`, equal for equal texts                          |
        |                    | optionally `no_negatives` of shape `(B, R)`, keys of further texts, padded with -1 |

    Args:
        model: the encoder.
        temperature: of the encoder's cosines.
        false_negative_margin: m, nats per target token; `None` means that no gain leaves a candidate out.

    When to use it: with labels, or as a baseline. Relation to its siblings: `LikelihoodGainLoss` with a teacher
    temperature near 0 is this loss over a query's own candidates alone, with the candidate of the highest gain as the
    positive.

    Source: arXiv 1807.03748; in-batch negatives as in arXiv 2004.04906.

    Example:
        ```python
        loss = InfoNCELoss(encoder, temperature=0.05, false_negative_margin=0.1)
        ```
    """

    def __init__(
        self,
        model: SentenceTransformer,
        *,
        temperature: float = 0.05,
        false_negative_margin: float | None = None,
    ) -> None:
        super().__init__(model, temperature=temperature)
        if false_negative_margin is not None and false_negative_margin < 0:
            raise NLTError(
                f"false_negative_margin is {false_negative_margin}; it must be at least 0, or unset for no margin"
            )
        self.false_negative_margin = false_negative_margin

    def compute_loss_from_embeddings(
        self, queries: Tensor, documents: Tensor, labels: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        own_positive = labels["positive"] if "positive" in labels else gain_of(labels).argmax(-1)  # (B,)
        not_negative = self.not_negative(labels, own_positive)  # (B, K)
        own_keys = label_of(labels, "candidate_keys", remedy="NLTCollator makes them")
        b, k = documents.shape[:2]
        rank, keys, documents = 0, own_keys.flatten(), documents.flatten(0, 1)  # (B * K,), (B * K, D)
        if torch.distributed.is_initialized():  # W processes: (W * B * K,), (W * B * K, D)
            rank, keys, documents = torch.distributed.get_rank(), all_gather(keys), all_gather_with_grad(documents)
        scores = all_cosines(queries, documents) / self.temperature  # (B, W * B * K)
        positive = own_positive + torch.arange(b, device=own_positive.device) * k + rank * b * k
        excluded = has_key(keys, own_keys.masked_fill(~not_negative, NO_KEY))
        if (others := labels.get("no_negatives")) is not None:
            excluded |= has_key(keys, others)
        return {"info_nce": self.compute_loss_from_scores(scores, positive, excluded)}

    def not_negative(self, labels: dict[str, Tensor], positive: Tensor) -> Tensor:
        """Mark the query's own candidates that are no negatives, among them the positive `(B,)`: `(B, K)` bool."""
        column = positive[:, None]
        if self.false_negative_margin is None:
            return torch.zeros_like(labels["candidate_keys"], dtype=torch.bool).scatter_(1, column, True)
        gain = gain_of(labels)
        return gain >= gain.gather(1, column) - self.false_negative_margin

    def compute_loss_from_scores(self, scores: Tensor, positive: Tensor, excluded: Tensor) -> Tensor:
        """Loss from scores `(B, N)`, the positives' columns `(B,)` and a mask of columns to leave out `(B, N)`."""
        excluded = excluded.scatter(1, positive[:, None], False)
        return nn.functional.cross_entropy(scores.masked_fill(excluded, -torch.inf), positive)
