"""EMDR2: the encoder's shares weigh the candidates in a mixture, whose likelihood of the target is maximised."""

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

    The likelihoods come from the frozen LLM and are stored, so only the encoder gets a gradient. At sequence level
    the gradient with respect to a score is its share minus its posterior,
    :math:`w_k - w_k p_k / \sum_j w_j p_j`. The likelihoods of a whole target differ much more between candidates than
    those of one token, so the token level spreads its posterior over more candidates. The loss of each query is
    divided by its target's length, which does not change the posterior. Without this, long targets would count more
    than short ones, and the loss would not be in nats per target token as it is in its siblings.

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

    When to use it: with stored likelihoods, where several candidates explain the target equally well. This loss is
    satisfied if the encoder prefers any of them, while `LikelihoodGainLoss` asks for all of them in the LLM's
    proportions. It has no teacher temperature.

    Source: EMDR2 (arXiv 2106.05346), where the LLM learns too; the token level is that of RAG-Token (arXiv
    2005.11401).

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
        """Loss from scores `(B, K)`, log-likelihoods `(B, K, T)` and target lengths `(B,)`; a scalar.

        T is 1 at sequence level. After a target's end all log-likelihoods are 0. Because the shares sum to 1, these
        tokens add 0 to the loss.
        """
        log_shares = scores.log_softmax(-1)[:, :, None]  # (B, K, 1)
        marginal = (log_shares + log_likelihood.to(scores)).logsumexp(1)  # (B, T)
        return -(marginal.sum(-1) / target_tokens).mean()
