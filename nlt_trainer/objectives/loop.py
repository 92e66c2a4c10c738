"""LOOP: what the frozen LLM loses when a document is left out, distilled into the encoder."""

from __future__ import annotations

import torch
from torch import Tensor

from nlt_trainer.injection.document_prompts import DocumentPrompts
from nlt_trainer.objectives.prompt_teacher import PromptTeacher


class LOOPLoss(PromptTeacher):
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

    term = "loop"

    def read(self, prompts: DocumentPrompts, num_documents: int) -> Tensor:
        """Mean target loss of each prompt without each of its documents, nats per target token: `(b, K)`.

        The documents are read once; K suffixes follow as rows `b * K + k`, each without document k.
        """
        cache = self.reader.read_documents(prompts)
        cache.batch_repeat_interleave(num_documents)
        repeated = prompts.repeat(num_documents)
        left_out = torch.arange(num_documents, device=prompts.documents.device).repeat(len(prompts))  # (b * K,)
        visible = repeated.prompt_mask & (repeated.document_parts(num_documents) != left_out[:, None])
        hidden = self.reader.read_suffix(repeated, cache, visible=visible)  # (b * K, S, hidden)
        return self.reader.target_losses(hidden, repeated)[:, 0].unflatten(0, (-1, num_documents))
