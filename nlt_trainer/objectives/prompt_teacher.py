"""The base class of ADist and LOOP, whose teacher is a number that the LLM gives each document of one prompt."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from nlt_trainer.data.llm_texts import LLMTexts
from nlt_trainer.errors import NLTError
from nlt_trainer.injection.document_prompts import DocumentPrompts
from nlt_trainer.injection.document_reader import DocumentReader
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.lm.prompt_tokens import PromptFrame
from nlt_trainer.objectives.llm_objective import LLMObjective


class PromptTeacher(LLMObjective):
    """KL divergence from the frozen LLM's distribution over a query's candidates to the encoder's distribution.

    The LLM reads one prompt of K documents for each query, without a gradient. A subclass derives a number for each
    document from this reading.

    Args:
        model: the encoder.
        lm: the frozen LLM; a plain object, so that it is neither wrapped nor saved.
        temperature: of the encoder's cosines.
        teacher_temperature: of the LLM's numbers.
        micro_batch_size: queries that the LLM reads at once; memory grows with it, but the loss stays the same.

    Raises:
        NLTError: a temperature or the micro-batch size is not positive.
    """

    reader: DocumentReader
    term: ClassVar[str]
    """The loss's name in the log."""

    def __init__(
        self,
        model: SentenceTransformer,
        lm: FrozenLM,
        *,
        temperature: float = 0.05,
        teacher_temperature: float = 0.2,
        micro_batch_size: int = 2,
    ) -> None:
        super().__init__(model, DocumentReader(lm), temperature=temperature, micro_batch_size=micro_batch_size)
        if teacher_temperature <= 0:
            raise NLTError(f"teacher_temperature is {teacher_temperature}; it must be greater than 0")
        self.teacher_temperature = teacher_temperature

    @classmethod
    def texts_for(cls, llm: PromptFrame) -> LLMTexts:
        return LLMTexts(prompts=llm)

    def compute_loss_from_embeddings(
        self, queries: Tensor, documents: Tensor, labels: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        scores = self.own_scores(queries, documents)
        teacher = self.teacher_scores(DocumentPrompts.from_dict(labels), scores.shape[1])
        return {self.term: self.compute_loss_from_scores(scores, teacher)}

    def compute_loss_from_scores(self, scores: Tensor, teacher: Tensor) -> Tensor:
        """Loss from the encoder's scores and the LLM's numbers, both `(B, K)`; a scalar in float32."""
        log_teacher = (teacher.to(scores) / self.teacher_temperature).log_softmax(-1)
        return nn.functional.kl_div(scores.log_softmax(-1), log_teacher, log_target=True, reduction="batchmean")

    @torch.no_grad()
    def teacher_scores(self, prompts: DocumentPrompts, num_documents: int) -> Tensor:
        """The LLM's number for each of the K documents of B prompts, `(B, K)`."""
        device, size = self.reader.lm.device, self.micro_batch_size
        order = prompts.by_cost
        parts = [prompts.rows(rows).without_padding().to(device) for rows in order.split(size)]
        with torch.autocast(device.type, enabled=False):  # the LLM runs in its own dtype, not the encoder's
            scores = torch.cat([self.read(part, num_documents) for part in parts])
        return scores[order.argsort().to(device)]

    @abstractmethod
    def read(self, prompts: DocumentPrompts, num_documents: int) -> Tensor:
        """The LLM's number for each document of one micro-batch, `(b, K)`; the prompts are on the LLM's device."""

    def get_config_dict(self) -> dict[str, Any]:
        """Settings for the model card."""
        return {
            "temperature": self.temperature,
            "teacher_temperature": self.teacher_temperature,
            "llm": self.reader.lm.name,
        }
