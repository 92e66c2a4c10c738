"""The base class of all objectives: an encoder, a temperature, and the steps from texts to embeddings to losses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from nlt_trainer.choices import DocumentLayout, TargetKind
from nlt_trainer.data.collator import NLTCollator
from nlt_trainer.data.llm_texts import LLMTexts
from nlt_trainer.encoder.parts import EncoderInParts
from nlt_trainer.encoder.similarity import Features, check_similarity, embed, own_cosines
from nlt_trainer.errors import NLTError
from nlt_trainer.prompts import PromptTemplate


class Objective(nn.Module, ABC):
    """A loss for a batch of queries with K candidates each, computed from the encoder's unit-length embeddings.

    A subclass turns embeddings into scores and passes them to its own `compute_loss_from_scores`, which uses no
    encoder. All objectives embed texts in the same place. `MixtureLoss` can therefore run the encoder once for several
    objectives, and `GradCacheLoss` can run it in pieces for any objective.

    Args:
        model: the encoder; it is a submodule, because the trainer builds its optimizer from the loss's parameters.
        temperature: of the encoder's cosines.

    Raises:
        NLTError: the temperature is not positive, or the encoder ranks documents by something else than cosines.
    """

    def __init__(self, model: SentenceTransformer, *, temperature: float) -> None:
        super().__init__()
        if temperature <= 0:
            raise NLTError(f"temperature is {temperature}; it must be greater than 0")
        self.dimensions: int | None = None
        if isinstance(model, SentenceTransformer):  # where only the LLM is held, another module stands for the encoder
            check_similarity(model)
            self.dimensions = model.truncate_dim
        self.model = model
        self.temperature = temperature

    def forward(self, sentence_features: Features, labels: dict[str, Tensor]) -> dict[str, Tensor]:
        """Named terms, scalars, from tokenised queries and candidates and the other entries of the batch."""
        embeddings = embed(EncoderInParts(self.model), sentence_features, dimensions=self.dimensions)
        return self.compute_loss_from_embeddings(*embeddings, labels)

    @property
    def lm_tokens(self) -> int:
        """Tokens that a frozen LLM has read for this objective in this process, without padding."""
        return 0

    @property
    def llm_texts(self) -> LLMTexts:
        """The texts of a batch that LLMs read for this objective: none, unless a subclass says otherwise."""
        return LLMTexts()

    def collator(
        self,
        rows: Sequence[Mapping[str, Any]] = (),
        *,
        template: PromptTemplate | None = None,
        target: TargetKind | None = None,
        max_document_tokens: int | None = None,
        layout: DocumentLayout | None = None,
        max_length: int | None = None,
        seed: int = 42,
    ) -> NLTCollator:
        """Make the collator whose batches this objective needs: the encoder's inputs and the texts that its LLM reads.

        A setting that is left out has the default that it has in a recipe. A setting that has no effect on the
        objective is refused: `template`, `target` and `max_document_tokens` are for objectives that read an LLM,
        and `layout` is for DREAM, LOOP and ADist. A mixture accepts a setting if any of its terms accepts it.

        Args:
            rows: the training rows; their answers decide the default target. Nothing else depends on them.
            template: text around documents, query and answer in the LLM's prompt.
            target: text that the LLM predicts: `answer`, `query` or `joint`; default `joint` if every row has an
                answer, else `query`.
            max_document_tokens: tokens that the LLM reads of a document, default 192; longer documents are cut.
            layout: documents follow one another (`sequential`, the default), or do not see each other (`independent`).
            max_length: tokens that the encoder reads of a text in training; default as many as at inference.
            seed: decides the candidates' order.

        Raises:
            NLTError: the objective has no use for a setting, a setting is wrong, or `rows` are needed.

        Example:
            ```python
            loss = DREAMLoss(encoder, lm, heads=heads)
            collator = loss.collator(dataset, layout="independent", max_document_tokens=96)
            ```
        """
        texts = self.llm_texts
        settings = {
            "template": template,
            "target": target,
            "max_document_tokens": max_document_tokens,
            "layout": layout,
        }
        given: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
        if useless := [name for name in given if name not in texts.settings]:
            raise NLTError(
                f"{type(self).__name__} has no use for {useless[0]} in its collator; leave it out (it takes "
                f"{', '.join((*texts.settings, 'max_length', 'seed'))})"
            )
        prompts, chunks = texts.builders(rows, **given)
        return NLTCollator(self.model, prompts=prompts, chunks=chunks, max_length=max_length, seed=seed)

    @abstractmethod
    def compute_loss_from_embeddings(
        self, queries: Tensor, documents: Tensor, labels: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Compute the objective's named terms, which are scalars.

        Args:
            queries: `(B, D)`, unit length, float32.
            documents: `(B, K, D)`, unit length, float32.
            labels: all entries of the batch other than the encoder's inputs, by name.
        """

    def own_scores(self, queries: Tensor, documents: Tensor) -> Tensor:
        """Cosine of each query with its own candidates, divided by the temperature, float32: `(B, K)`."""
        return own_cosines(queries, documents) / self.temperature
