"""ADist: the encoder learns to score documents as the frozen LLM attends to them."""

from __future__ import annotations

import torch
from torch import Tensor

from nlt_trainer.injection.attention_mass import ValueMass
from nlt_trainer.injection.document_prompts import DocumentPrompts
from nlt_trainer.objectives.prompt_teacher import PromptTeacher


class ADistLoss(PromptTeacher):
    r"""KL divergence from the LLM's attention over a query's candidates to the encoder's distribution.

    The LLM reads a prompt of all K candidates, the query and the target. With p the attention and v the values,

    .. math:: a_{bk} = \mathrm{mean}_{\text{layer, head, row}} \sum_{t \in d_{bk}} p_t \lVert v_t \rVert_2,
              \qquad \bar a_b = \frac{1}{K} \sum_k a_{bk}

    where the rows are the positions that predict a token of the target. With :math:`s_{bk} = \cos(e(q_b), e(d_{bk})) /
    \tau`, the loss is

    .. math:: L = \frac{1}{B} \sum_b
              \mathrm{KL}\left(\mathrm{softmax}_k\!\left(\frac{a_{bk}}{\tau_T \, \bar a_b}\right)
              \,\Big\|\, \mathrm{softmax}_k(s_{bk})\right)

    Inputs:
        | Texts              | Labels                                     |
        |--------------------|--------------------------------------------|
        | B queries, B x K documents | the tensors of `DocumentPrompts` of the same documents, in the same order |

    Args:
        model: the encoder.
        lm: the frozen LLM; a plain object, so that it is neither wrapped nor saved.
        temperature: of the encoder's cosines.
        teacher_temperature: of the attention relative to its mean over the query's candidates.
        micro_batch_size: queries that the LLM reads at once; it changes memory, not the loss.

    When to use it: as a teacher that costs the LLM one prompt a query. All heads count alike, whether or not they look
    for the answer. In a sequential prompt a document's attention also depends on its place. In the independent layout
    all documents stand at the same positions. Relation to its siblings: `DREAMLoss` changes the attention of chosen
    heads, while this loss copies the attention of all heads; `LOOPLoss` reads the same prompt but uses the target's
    loss.

    Source: Atlas (arXiv 2208.03299). There p is the cross-attention of an encoder-decoder, and a_bk is divided by a
    constant and by a temperature of 0.01, which fit the values of T5. The norms of values differ between LLMs by
    orders of magnitude, so here the mean over the query's candidates replaces the constant.

    Example:
        ```python
        lm = FrozenLM.from_pretrained("HuggingFaceTB/SmolLM2-135M-Instruct")
        loss = ADistLoss(encoder, lm, temperature=0.05, teacher_temperature=0.2)
        ```
    """

    term = "adist"

    def compute_loss_from_scores(self, scores: Tensor, teacher: Tensor) -> Tensor:
        """Loss from scores and from the attention to each document, both `(B, K)`; a scalar in float32."""
        return super().compute_loss_from_scores(scores, teacher / teacher.mean(-1, keepdim=True))

    def read(self, prompts: DocumentPrompts, num_documents: int) -> Tensor:
        """Attention times value norm for each document, from the rows that predict the target: `(b, K)` float32."""
        recorder = ValueMass(prompts.key_documents(num_documents), prompts.suffix_predicts, num_documents)
        self.reader.read_suffix(prompts, self.reader.read_documents(prompts), recorder)
        return torch.stack(list(recorder.mass.values())).mean(dim=(0, 2))  # (L, b, H, K) -> (b, K)
