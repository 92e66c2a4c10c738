"""EMDR2: the target's likelihood, marginalised over the candidates with the encoder's shares as their prior."""

from __future__ import annotations

from sentence_transformers import SentenceTransformer
from torch import Tensor

from nlt_trainer.choices import MarginalLevel, check_choice
from nlt_trainer.encoder.similarity import label_of
from nlt_trainer.objectives.objective import Objective


class EMDR2Loss(Objective):
    r"""Negative log-likelihood of the target under a mixture of the candidates.

    With :math:`w_{bk} = \mathrm{softmax}_k(\cos(e(q_b), e(d_{bk})) / \tau)` and :math:`|y|` the target's tokens,

    .. math:: L_{sequence} = -\frac{1}{B} \sum_b \frac{1}{|y_b|} \log \sum_k w_{bk} \, p(y_b | d_{bk}, q_b)
    .. math:: L_{token} = -\frac{1}{B} \sum_b \frac{1}{|y_b|} \sum_t
              \log \sum_k w_{bk} \, p(y_{bt} | y_{b,<t}, d_{bk}, q_b)

    The likelihoods are the frozen LLM's and stored, so that the gradient is that of the retriever alone: at sequence
    level posterior minus share, :math:`w_k - w_k p_k / \sum_j w_j p_j`. A whole target tells candidates apart far more
    sharply than one token does, so the token level spreads its posterior over more of them. Each query is divided by
    its target's length, which leaves its posterior as it is: otherwise long targets would outweigh short ones, and the
    loss would not be in nats per target token as those of its siblings are.

    Inputs:
        | Texts              | Labels                                     |
        |--------------------|--------------------------------------------|
        | B queries, B x K documents | `target_tokens` of shape `(B,)`            |
        |                    | `log_likelihood` of shape `(B, K)`, nats, for `level="sequence"` |
        |                    | `token_log_likelihoods` of shape `(B, K, T)`, nats, 0 after a target's end, |
        |                    | for `level="token"`                                                        |

    Args:
        model: the encoder.
        temperature: of the encoder's cosines.
        level: `sequence` or `token`, as above.

    When to use it: with cached likelihoods, where several candidates explain the target equally well: it is content
    with any of them, while `LikelihoodGainLoss` asks for all in the LLM's proportion. It has no teacher temperature.

    Source: EMDR2 (arXiv 2106.05346), where the LLM learns too; the token level is RAG-Token's (arXiv 2005.11401).

    Example:
        ```python
        loss = EMDR2Loss(encoder, temperature=0.05, level="sequence")
        ```
    """

    def __init__(
        self, model: SentenceTransformer, *, temperature: float = 0.05, level: MarginalLevel = "sequence"
    ) -> None:
        super().__init__(model, temperature=temperature)
        check_choice("level", level, MarginalLevel)
        self.level = level

    def compute_loss_from_embeddings(
        self, queries: Tensor, documents: Tensor, labels: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        again = "run `nlt score` again"
        if self.level == "token":
            remedy = f"{again} with token_likelihoods: true"
            log_likelihood = label_of(labels, "token_log_likelihoods", remedy=remedy)  # (B, K, T)
        else:
            log_likelihood = label_of(labels, "log_likelihood", remedy=again)[:, :, None]  # (B, K, 1)
        target_tokens = label_of(labels, "target_tokens", remedy=again)
        scores = self.own_scores(queries, documents)
        return {"emdr2": self.compute_loss_from_scores(scores, log_likelihood, target_tokens)}

    def compute_loss_from_scores(self, scores: Tensor, log_likelihood: Tensor, target_tokens: Tensor) -> Tensor:
        """Loss of scores `(B, K)`, log-likelihoods `(B, K, T)` and target lengths `(B,)`; a scalar.

        T is 1 at sequence level. After a target's end log-likelihoods are 0, where the shares, which sum to 1, give 0.
        """
        log_shares = scores.log_softmax(-1)[:, :, None]  # (B, K, 1)
        marginal = (log_shares + log_likelihood.to(scores)).logsumexp(1)  # (B, T)
        return -(marginal.sum(-1) / target_tokens).mean()
