"""LOOP: what the frozen LLM loses when a document is left out, distilled into the encoder."""

from __future__ import annotations

from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from nlt_trainer.errors import NLTError
from nlt_trainer.models.attention import enable_document_attention
from nlt_trainer.models.document_prompts import DocumentPrompts
from nlt_trainer.models.document_reader import DocumentReader
from nlt_trainer.models.frozen_lm import FrozenLM
from nlt_trainer.models.objective import Objective


class LOOPLoss(Objective):
    r"""KL divergence from the LLM's leave-one-out distribution over a query's candidates to the encoder's.

    With :math:`\ell_{bk}` the target's negative log-likelihood, nats per target token, after a prompt of all K
    candidates of which query and target do not see document k, and :math:`s_{bk} = \cos(e(q_b), e(d_{bk})) / \tau`,

    .. math:: L = \frac{1}{B} \sum_b
              \mathrm{KL}\left(\mathrm{softmax}_k(\ell_{bk} / \tau_T) \,\|\, \mathrm{softmax}_k(s_{bk})\right)

    A document without which the target is harder to predict gets more of the teacher. The loss with all documents
    would be subtracted from every candidate alike, which a softmax ignores, so it is not computed.

    Inputs:
        | Texts              | Labels                                     |
        |--------------------|--------------------------------------------|
        | B queries, B x K documents | the tensors of `DocumentPrompts` of the same documents, in the same order |

    Args:
        model: the encoder.
        lm: the frozen LLM; a plain object, so that it is neither wrapped nor saved.
        temperature: of the encoder's cosines.
        teacher_temperature: of the losses, nats per target token.
        micro_batch_size: queries that the LLM reads at once, K rows each; changes memory, not the loss.

    When to use it: where a document's worth depends on the other candidates, as with duplicates: of two equal
    documents neither is missed. Relation to its siblings: `LikelihoodGainLoss` reads each document alone, once for
    all epochs; `ADistLoss` reads the same prompt and looks at attention instead of the loss.

    Source: Atlas (arXiv 2208.03299), teacher and student temperature 0.01. There the decoder reads passages that were
    encoded apart from each other, as prompts of the independent layout are; in a sequential prompt the keys and values
    of later documents have seen document k. What is left out is the document and what follows it up to the next
    document's text, whose keys and values summarise it; all positions stay what they are.

    Example:
        ```python
        lm = FrozenLM.from_pretrained("HuggingFaceTB/SmolLM2-135M-Instruct")
        loss = LOOPLoss(encoder, lm, temperature=0.05, teacher_temperature=0.05)
        ```
    """

    def __init__(
        self,
        model: SentenceTransformer,
        lm: FrozenLM,
        *,
        temperature: float = 0.05,
        teacher_temperature: float = 0.01,
        micro_batch_size: int = 2,
    ) -> None:
        super().__init__(model, temperature=temperature)
        if teacher_temperature <= 0:
            raise NLTError(f"teacher_temperature is {teacher_temperature}; it must be greater than 0")
        if micro_batch_size < 1:
            raise NLTError(f"micro_batch_size is {micro_batch_size}; it must be at least 1")
        enable_document_attention(lm)
        self.teacher_temperature = teacher_temperature
        self.micro_batch_size = micro_batch_size
        self.reader = DocumentReader(lm)

    def compute_loss_from_embeddings(
        self, queries: Tensor, documents: Tensor, labels: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        scores = self.own_scores(queries, documents)
        left_out = self.left_out_losses(DocumentPrompts.from_dict(labels), scores.shape[1])
        return {"loop": self.compute_loss_from_scores(scores, left_out)}

    def compute_loss_from_scores(self, scores: Tensor, left_out: Tensor) -> Tensor:
        """Loss of scores and of the LLM's losses without each document, both `(B, K)`; a scalar in float32."""
        teacher = (left_out.to(scores) / self.teacher_temperature).log_softmax(-1)
        return nn.functional.kl_div(scores.log_softmax(-1), teacher, log_target=True, reduction="batchmean")

    @torch.no_grad()
    def left_out_losses(self, prompts: DocumentPrompts, num_documents: int) -> Tensor:
        """Mean target loss of each prompt without each of its documents, nats per target token: `(B, K)`."""
        device, size = self.reader.lm.device, self.micro_batch_size
        parts = [prompts.rows(slice(start, start + size)).to(device) for start in range(0, len(prompts), size)]
        with torch.autocast(device.type, enabled=False):  # the LLM runs in its own dtype, whatever the encoder's
            return torch.cat([self._left_out_losses(part, num_documents) for part in parts])

    def _left_out_losses(self, prompts: DocumentPrompts, num_documents: int) -> Tensor:
        """The documents are read once; K suffixes follow as rows `b * K + k`, each without document k."""
        cache = self.reader.read_documents(prompts)
        cache.batch_repeat_interleave(num_documents)
        repeated = prompts.repeat(num_documents)
        left_out = torch.arange(num_documents, device=prompts.documents.device).repeat(len(prompts))  # (B * K,)
        visible = repeated.prompt_mask & (repeated.document_parts(num_documents) != left_out[:, None])
        hidden = self.reader.read_suffix(repeated, cache, visible=visible)  # (B * K, S, hidden)
        return self.reader.target_losses(hidden, repeated)[:, 0].unflatten(0, (-1, num_documents))

    def get_config_dict(self) -> dict[str, Any]:
        """Settings for the model card."""
        return {
            "temperature": self.temperature,
            "teacher_temperature": self.teacher_temperature,
            "llm": self.reader.lm.name,
        }
