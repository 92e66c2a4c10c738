"""What all objectives share: an encoder, a temperature, and the way from texts to embeddings to named losses."""

from __future__ import annotations

from abc import ABC, abstractmethod

from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from nlt_trainer.encoder.parts import EncoderInParts
from nlt_trainer.encoder.similarity import Features, embed, own_cosines
from nlt_trainer.errors import NLTError


class Objective(nn.Module, ABC):
    """A loss of a batch of queries with K candidates each, read off the encoder's unit-length embeddings.

    A subclass turns embeddings into scores and hands them to a `compute_loss_from_scores` of its own, which has no
    encoder in it. Because texts are embedded in one place, `MixtureLoss` runs the encoder once for several objectives
    and `GradCacheLoss` in pieces for any.

    Args:
        model: the encoder; held, because the trainer builds its optimizer from the loss's parameters.
        temperature: of the encoder's cosines.

    Raises:
        NLTError: the temperature is not positive.
    """

    def __init__(self, model: SentenceTransformer, *, temperature: float) -> None:
        super().__init__()
        if temperature <= 0:
            raise NLTError(f"temperature is {temperature}; it must be greater than 0")
        self.model = model
        self.temperature = temperature

    def forward(self, sentence_features: Features, labels: dict[str, Tensor]) -> dict[str, Tensor]:
        """Named terms, scalars, of tokenised queries and candidates and the rest of `NLTCollator`'s batch."""
        return self.compute_loss_from_embeddings(*embed(EncoderInParts(self.model), sentence_features), labels)

    @property
    def lm_tokens(self) -> int:
        """Tokens that a frozen LLM has read for this objective in this process, without padding."""
        return 0

    @abstractmethod
    def compute_loss_from_embeddings(
        self, queries: Tensor, documents: Tensor, labels: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Named terms, scalars.

        Args:
            queries: `(B, D)`, unit length, float32.
            documents: `(B, K, D)`, unit length, float32.
            labels: every entry of the batch that is no encoder input, by name.
        """

    def own_scores(self, queries: Tensor, documents: Tensor) -> Tensor:
        """Cosine of each query with its own candidates over the temperature, float32: `(B, K)`."""
        return own_cosines(queries, documents) / self.temperature
