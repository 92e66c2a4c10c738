"""DREAM: the encoder's scores are injected into attention heads of the frozen LLM, whose loss trains the encoder."""

from __future__ import annotations

import math
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from nlt_trainer.errors import NLTError
from nlt_trainer.models.attention import ScoreInjection, enable_document_attention
from nlt_trainer.models.document_prompts import DocumentPrompts
from nlt_trainer.models.document_reader import DocumentReader
from nlt_trainer.models.frozen_lm import FrozenLM
from nlt_trainer.models.heads import HeadSet
from nlt_trainer.models.known_gradient import micro_batched_loss
from nlt_trainer.models.objective import Objective


class DREAMLoss(Objective):
    r"""Next-token loss of the target under a frozen LLM whose selected heads share attention as the encoder scores.

    With :math:`w_{bk} = \mathrm{softmax}_k(\cos(e(q_b), e(d_{bk})) / \tau)`, a selected head's attention p, from every
    row after the documents, to token t of document k becomes

    .. math:: p'_t = p_t \, w_{bk} \, \frac{\sum_j m_j}{m_k}, \qquad m_k = \sum_{t \in d_k} p_t

    and the loss is the mean negative log-likelihood of the target's tokens, averaged over queries. Gradients reach
    only w, hence only the encoder; shares sum to 1, so that raising one document lowers the others.

    A document may help any target, or none, whatever the query: repetitive text does, boilerplate does. That part of
    the gradient says nothing about relevance, and an encoder learns it soon. Where prompts carry the suffixes of M
    other queries, the mean loss of their targets after the same documents under the same shares is subtracted: what is
    left is what the documents do for this query. It corresponds to the null query by which heads are calibrated.

    The gradient fades as w saturates. With a share floor f the shares are :math:`(1 - f) w_{bk} + f / K`, so that the
    LLM keeps every document in view while a low temperature still lets queries that are solved rest.

    Inputs:
        | Texts              | Labels                                     |
        |--------------------|--------------------------------------------|
        | B queries, B x K documents | the tensors of `DocumentPrompts` of the same documents, in the same order |

    Args:
        model: the encoder.
        lm: the frozen LLM; a plain object, so that it is neither wrapped nor saved.
        heads: the heads to inject, found in this LLM.
        temperature: of the encoder's cosines.
        share_floor: part of the shares that all documents get alike, 0 (the paper's) to below 1.
        micro_batch_size: queries that the LLM reads at once; any value gives the same gradient, memory grows with it.
        document_cache_gib: memory, GiB, for keys and values of documents that do not see each other, kept from step to
            step; 0 keeps none.

    When to use it: where the target depends on combining documents or stored gains are not wanted; each step reads B
    prompts of K documents. Relation to its siblings: `LikelihoodGainLoss` reads each document alone, once.

    Source: DREAM (arXiv 2606.24667). The LLM's part runs in micro-batches down to dL/dw, then the encoder's backward
    pass runs once from there; the documents' part of a prompt has no graph, which changes no gradient.

    Example:
        ```python
        lm = FrozenLM.from_pretrained("HuggingFaceTB/SmolLM2-135M-Instruct")
        loss = DREAMLoss(encoder, lm, heads=HeadSet.load("heads.json"), temperature=0.05)
        ```
    """

    def __init__(
        self,
        model: SentenceTransformer,
        lm: FrozenLM,
        *,
        heads: HeadSet,
        temperature: float = 0.05,
        share_floor: float = 0.0,
        micro_batch_size: int = 2,
        document_cache_gib: float = 0.0,
    ) -> None:
        super().__init__(model, temperature=temperature)
        if not 0 <= share_floor < 1:
            raise NLTError(
                f"share_floor is {share_floor}; it must be at least 0 and below 1, where nothing would train"
            )
        if micro_batch_size < 1:
            raise NLTError(f"micro_batch_size is {micro_batch_size}; it must be at least 1")
        heads.check(lm)
        enable_document_attention(lm)
        self.share_floor = share_floor
        self.micro_batch_size = micro_batch_size
        self.reader = DocumentReader(lm, cache_bytes=int(document_cache_gib * 2**30))
        self.heads = heads.by_layer(lm.device)

    def compute_loss_from_embeddings(
        self, queries: Tensor, documents: Tensor, labels: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        scores = self.own_scores(queries, documents)
        prompts = DocumentPrompts.from_dict(labels)
        return {"dream": self.compute_loss_from_scores(scores, prompts)}

    def compute_loss_from_scores(self, scores: Tensor, prompts: DocumentPrompts) -> Tensor:
        """Loss of scores `(B, K)` and their prompts; a scalar in float32 with a gradient to the scores."""
        device = self.reader.lm.device
        return micro_batched_loss(
            lambda log_weights, part: self.read(log_weights, prompts.rows(part).to(device)),
            self.log_shares(scores),
            micro_batch_size=self.micro_batch_size,
            device=device,
        )

    def log_shares(self, scores: Tensor) -> Tensor:
        """Logarithms of the documents' shares, `(B, K)`."""
        log_weights = scores.log_softmax(-1)
        if self.share_floor == 0:
            return log_weights
        even = log_weights.new_tensor(self.share_floor / scores.shape[1]).log()
        return torch.logaddexp(log_weights + math.log1p(-self.share_floor), even)

    def read(self, log_weights: Tensor, prompts: DocumentPrompts) -> Tensor:
        """Loss of each prompt, nats per target token, `(B,)`, with log-weights `(B, K)` injected."""
        cache = self.reader.read_documents(prompts)
        documents = prompts.key_documents(log_weights.shape[1])
        injection = ScoreInjection(log_weights, documents, prompts.suffix_mask, self.heads)
        losses = self.reader.target_losses(self.reader.read_suffix(prompts, cache, injection), prompts)  # (B, 1 + M)
        return losses[:, 0] - losses[:, 1:].mean(1) if losses.shape[1] > 1 else losses[:, 0]

    def get_config_dict(self) -> dict[str, Any]:
        """Settings for the model card."""
        heads = [[layer, int(head)] for layer, indices in self.heads.items() for head in indices]
        return {
            "temperature": self.temperature,
            "share_floor": self.share_floor,
            "llm": self.reader.lm.name,
            "heads": heads,
        }
