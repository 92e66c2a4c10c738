"""LOOP: the encoder learns to score a document by how much the frozen LLM's loss grows when it is left out."""

from __future__ import annotations

import torch
from torch import Tensor

from nlt_trainer.injection.document_prompts import DocumentPrompts
from nlt_trainer.objectives.prompt_teacher import PromptTeacher


class LOOPLoss(PromptTeacher):
    r"""KL divergence from the LLM's leave-one-out distribution over a query's candidates to the encoder's.

    Let :math:`\ell_{bk}` be the target's negative log-likelihood, nats per target token, after a prompt of all K
    candidates in which query and target do not see document k. With :math:`s_{bk} = \cos(e(q_b), e(d_{bk})) / \tau`,
    the loss is

    .. math:: L = \frac{1}{B} \sum_b
              \mathrm{KL}\left(\mathrm{softmax}_k(\ell_{bk} / \tau_T) \,\|\, \mathrm{softmax}_k(s_{bk})\right)

    The teacher gives a document more probability if the target is harder to predict without it. The loss with all
    documents is not computed: subtracting it from every candidate would not change the softmax.

    Inputs:
        | Texts              | Labels                                     |
        |--------------------|--------------------------------------------|
        | B queries, B x K documents | the tensors of `DocumentPrompts` of the same documents, in the same order |

    Args:
        model: the encoder.
        lm: the frozen LLM; a plain object, so that it is neither wrapped nor saved.
        temperature: of the encoder's cosines.
        teacher_temperature: of the losses, nats per target token.
        micro_batch_size: queries that the LLM reads at once, K rows each; it changes memory, not the loss.

    When to use it: where the value of a document depends on the other candidates. Duplicates are an example: leaving
    out one of two equal documents changes little. Relation to its siblings: `LikelihoodGainLoss` reads each document
    alone, once for all epochs; `ADistLoss` reads the same prompt but uses attention instead of the loss.

    Source: Atlas (arXiv 2208.03299), teacher and student temperature 0.01. There the decoder reads passages that were
    encoded separately, like the documents of the independent layout. In a sequential prompt the keys and values of
    later documents have seen document k. Left out are the document and the tokens between it and the next document's
    text, because their keys and values summarise it. The positions of all other tokens stay the same.

    Example:
        ```python
        lm = FrozenLM.from_pretrained("HuggingFaceTB/SmolLM2-135M-Instruct")
        loss = LOOPLoss(encoder, lm, temperature=0.05, teacher_temperature=0.05)
        ```
    """

    term = "loop"

    def read(self, prompts: DocumentPrompts, num_documents: int) -> Tensor:
        """Mean target loss of each prompt when one of its documents is left out, nats per target token: `(b, K)`.

        The documents are read once. Then the suffix is read K times, as rows `b * K + k`, each without document k.
        """
        cache = self.reader.read_documents(prompts)
        cache.batch_repeat_interleave(num_documents)
        repeated = prompts.repeat(num_documents)
        left_out = torch.arange(num_documents, device=prompts.documents.device).repeat(len(prompts))  # (b * K,)
        visible = repeated.prompt_mask & (repeated.document_parts(num_documents) != left_out[:, None])
        hidden = self.reader.read_suffix(repeated, cache, visible=visible)  # (b * K, S, hidden)
        return self.reader.target_losses(hidden, repeated).unflatten(0, (-1, num_documents))
