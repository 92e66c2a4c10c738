"""Revela: the LLM reads texts together, and each attends to the others as much as the encoder finds them similar."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from nlt_trainer.data.llm_texts import LLMTexts
from nlt_trainer.encoder.similarity import pairwise_cosines
from nlt_trainer.errors import NLTError
from nlt_trainer.injection.chunks import ChunkGroups, ChunkReader
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.lm.prompt_tokens import PromptFrame
from nlt_trainer.objectives.llm_objective import LLMObjective
from nlt_trainer.objectives.micro_batched_loss import micro_batched_loss


class RevelaLoss(LLMObjective):
    r"""Next-token loss of chunks under an LLM whose heads also read other chunks, weighted by their similarity.

    A group holds C = K + 1 chunks: a query (chunk 0) and its K candidates. With
    :math:`a_{ij} = \mathrm{softmax}_{j \ne i}(\cos(e(i), e(j)) / \tau)`, every head of every layer adds the following
    to its output at each row s of chunk i:

    .. math:: \sum_{j \ne i} a_{ij} \,
              \frac{\sum_{t \in j} p_t v_t}{\sum_{t \in j} p_t \lVert v_t \rVert_2},
              \qquad p = \mathrm{softmax}_{t \in j}(q_s \cdot k_t \cdot \text{scaling})

    The loss is the mean negative log-likelihood of a group's predicted tokens, averaged over groups. Keys and values
    of chunk j come from reading it alone, and row s sees all tokens of chunk j. Queries and keys have the positions of
    their own chunks. The predicted tokens are the target's in chunk 0 and all but the first in the other chunks.

    Inputs:
        | Texts              | Labels                                     |
        |--------------------|--------------------------------------------|
        | B queries, B x K documents | the tensors of `ChunkGroups` of the same documents, in the same order |

    Args:
        model: the encoder.
        lm: the LLM; a plain object, so that it is neither wrapped nor saved.
        temperature: of the encoder's cosines; with the paper's default, only the most similar chunk has any weight as
            soon as cosines are 0.001 apart.
        micro_batch_size: groups that the LLM reads at once; memory grows with it, but the gradient stays the same.
        trained: parameters of the LLM that are trained too, by name, as `add_llm_lora` gives them; `None` trains none.
            They belong to the loss, so they are in the optimizer but never in the saved encoder.

    When to use it: as a comparison, or on candidates that explain each other. Relation to its siblings: `DREAMLoss`
    reads one prompt a query, changes the attention of chosen heads, adds nothing to it, and predicts only the target.
    Here documents are also compared with documents, and most of the loss comes from the documents' tokens.

    Source: Revela (arXiv 2506.16552): temperature 1e-4, 16 chunks of at most 160 tokens, LoRA of rank 256 on all
    linear layers at a learning rate of 1e-4. There a group holds chunks of raw text, and the similarity of a chunk is
    taken from its first half. Here a group is one query with its candidates, so that every objective sees the same
    texts.

    Example:
        ```python
        lm = FrozenLM.from_pretrained("HuggingFaceTB/SmolLM2-135M-Instruct")
        trained = add_llm_lora(lm, {"r": 16, "target_modules": "all-linear"}, seed=42)
        loss = RevelaLoss(encoder, lm, temperature=0.05, trained=trained)
        ```
    """

    reader: ChunkReader

    def __init__(
        self,
        model: SentenceTransformer,
        lm: FrozenLM,
        *,
        temperature: float = 1e-4,
        micro_batch_size: int = 2,
        trained: Mapping[str, nn.Parameter] | None = None,
    ) -> None:
        if trained and lm.device != model.device:
            raise NLTError(
                f"the LLM that is trained is on {lm.device} and the encoder on {model.device}; put both on one device "
                "(leave llm_device out)"
            )
        reader = ChunkReader(lm, trained=bool(trained))
        super().__init__(model, reader, temperature=temperature, micro_batch_size=micro_batch_size)
        self.llm = nn.ParameterDict({name.replace(".", "_"): p for name, p in (trained or {}).items()})

    @classmethod
    def texts_for(cls, llm: PromptFrame) -> LLMTexts:
        return LLMTexts(chunks=llm)

    def compute_loss_from_embeddings(
        self, queries: Tensor, documents: Tensor, labels: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        chunks = torch.cat([queries[:, None], documents], dim=1)  # (B, C, D)
        scores = pairwise_cosines(chunks) / self.temperature
        return {"revela": self.compute_loss_from_scores(scores, ChunkGroups.from_dict(labels))}

    def compute_loss_from_scores(self, scores: Tensor, groups: ChunkGroups) -> Tensor:
        """Loss from scores `(B, C, C)`, whose diagonal is not used, and their groups; a scalar in float32."""
        own = torch.eye(scores.shape[1], dtype=torch.bool, device=scores.device)
        weights = scores.masked_fill(own, -torch.inf).softmax(-1)
        device = self.reader.lm.device
        return micro_batched_loss(
            lambda part, place: self.reader.losses(part, groups.rows(place).to(device)),
            weights,
            micro_batch_size=self.micro_batch_size,
            device=device,
            parameters=list(self.llm.values()),
        )

    def get_config_dict(self) -> dict[str, Any]:
        """Settings for the model card."""
        return {"temperature": self.temperature, "llm": self.reader.lm.name, "llm_trained": self.reader.trained}
