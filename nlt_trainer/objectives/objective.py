"""What all objectives share: an encoder, a temperature, and the way from texts to embeddings to named losses."""

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
from nlt_trainer.encoder.similarity import Features, embed, own_cosines
from nlt_trainer.errors import NLTError
from nlt_trainer.prompts import PromptTemplate


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

    @property
    def llm_texts(self) -> LLMTexts:
        """What LLMs read of a batch for this objective: nothing, unless a subclass says otherwise."""
        return LLMTexts()

    def collator(
        self,
        rows: Sequence[Mapping[str, Any]] = (),
        *,
        template: PromptTemplate | None = None,
        target: TargetKind | None = None,
        max_document_tokens: int | None = None,
        layout: DocumentLayout | None = None,
        contrast_targets: int | None = None,
        max_length: int | None = None,
        seed: int = 42,
    ) -> NLTCollator:
        """The collator whose batches this objective reads: inputs of the encoder, and the texts that its LLM reads.

        A setting that is left out has a recipe's default. A setting that changes nothing for the objective is refused:
        `template`, `target` and `max_document_tokens` are for objectives that read an LLM, `layout` is for DREAM, LOOP
        and ADist, `contrast_targets` for DREAM. A mixture takes what any of its terms takes.

        Args:
            rows: the training rows; the default target is chosen by their answers, and contrast targets are drawn from
                them. Nothing else depends on them.
            template: text around documents, query and answer in the LLM's prompt.
            target: text that the LLM predicts: `answer`, `query` or `joint`; default `joint` if every row has an
                answer, else `query`.
            max_document_tokens: tokens that the LLM reads of a document, default 192; longer documents are cut.
            layout: documents one after the other (`sequential`, the default), or none seeing another (`independent`).
            contrast_targets: other queries' targets, a query, whose mean loss is subtracted; default 0.
            max_length: tokens that the encoder reads of a text in training; default as many as at inference.
            seed: of the candidates' order and of the draw of contrast targets.

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
            "contrast_targets": contrast_targets,
        }
        given: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
        if useless := [name for name in given if name not in texts.settings]:
            raise NLTError(
                f"{type(self).__name__} has no use for {useless[0]} in its collator; leave it out (it takes "
                f"{', '.join((*texts.settings, 'max_length', 'seed'))})"
            )
        prompts, chunks = texts.builders(rows, seed=seed, **given)
        return NLTCollator(self.model, prompts=prompts, chunks=chunks, max_length=max_length, seed=seed)

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
