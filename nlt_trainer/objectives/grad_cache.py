"""Gradient caching: large batches of texts in the memory of a small one, for any objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from nlt_trainer.data.llm_texts import LLMTexts
from nlt_trainer.encoder.parts import join, parts_by_length
from nlt_trainer.encoder.similarity import Features, embed
from nlt_trainer.errors import NLTError
from nlt_trainer.objectives.objective import Objective


class GradCacheLoss(Objective):
    r"""An objective whose encoder embeds a few texts at a time, with the gradient of the whole batch.

    Texts are embedded part by part, longest first, and only their embeddings are kept. The objective is computed on
    all embeddings. The backward pass begins with the objective's gradient with respect to the embeddings. It then
    embeds each part again, with the same random numbers, and differentiates it before it goes on to the next part.
    Loss and gradient are those of the objective itself. A step encodes every text twice, and memory holds the
    activations of one part.

    Inputs: those of the objective.

    Args:
        objective: any objective, also a `MixtureLoss`.
        micro_batch_size: texts that the encoder embeds at once.

    When to use it: where B queries with K candidates do not fit in memory. Relation to its siblings: `DREAMLoss` has a
    `micro_batch_size` of its own, for the LLM; both can be used together.

    Source: GradCache (arXiv 2101.06983). Here autograd does the bookkeeping. Each part is a `torch.utils.checkpoint`.
    Their backward passes run one after another, because autograd takes a later part of the forward pass first.

    Example:
        ```python
        loss = GradCacheLoss(InfoNCELoss(encoder), micro_batch_size=32)
        ```
    """

    def __init__(self, objective: Objective, *, micro_batch_size: int) -> None:
        if micro_batch_size < 1:
            raise NLTError(f"encoder_micro_batch_size is {micro_batch_size}; it must be at least 1")
        if isinstance(objective.model[0], StaticEmbedding):
            raise NLTError(
                "the encoder is a table of token embeddings, which keeps no activations; leave "
                "encoder_micro_batch_size out"
            )
        super().__init__(objective.model, temperature=objective.temperature)
        self.objective = objective
        self.micro_batch_size = micro_batch_size

    @property
    def lm_tokens(self) -> int:
        return self.objective.lm_tokens

    @property
    def llm_texts(self) -> LLMTexts:
        return self.objective.llm_texts

    def forward(self, sentence_features: Features, labels: dict[str, Tensor]) -> dict[str, Tensor]:
        encoder = _EncoderInParts(self.model, self.micro_batch_size)
        embeddings = embed(encoder, sentence_features, dimensions=self.dimensions)
        return self.compute_loss_from_embeddings(*embeddings, labels)

    def compute_loss_from_embeddings(
        self, queries: Tensor, documents: Tensor, labels: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = self.objective.compute_loss_from_embeddings(queries, documents, labels)
        return terms


@dataclass(eq=False)
class _EncoderInParts:
    """Takes the place of the encoder and embeds `size` texts at a time, without keeping activations."""

    model: nn.Module
    size: int

    def __call__(self, features: dict[str, Any]) -> dict[str, Tensor]:
        parts = parts_by_length(features, texts=self.size)
        return join(parts, [checkpoint(_Part(self.model), part, use_reentrant=False) for _, part in parts])


@dataclass(eq=False)
class _Part:
    """Embeds one part: first by the wrapped encoder, then, in the backward pass, by the encoder inside.

    After its forward pass, DistributedDataParallel waits for all gradients. Another forward pass of it, during the
    backward pass, would make it start to wait anew.
    """

    model: nn.Module

    def __call__(self, features: dict[str, Any]) -> Tensor:
        embedding: Tensor = self.model(dict(features))["sentence_embedding"]
        if isinstance(self.model, DistributedDataParallel):
            self.model = self.model.module
        return embedding
