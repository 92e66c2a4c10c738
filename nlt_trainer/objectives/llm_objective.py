"""The base class of objectives that read an LLM at every step."""

from __future__ import annotations

from abc import abstractmethod

from sentence_transformers import SentenceTransformer

from nlt_trainer.data.llm_texts import LLMTexts
from nlt_trainer.errors import NLTError
from nlt_trainer.injection.attention import enable_document_attention
from nlt_trainer.injection.chunks import ChunkReader
from nlt_trainer.injection.document_reader import DocumentReader
from nlt_trainer.lm.prompt_tokens import PromptFrame
from nlt_trainer.objectives.objective import Objective


class LLMObjective(Objective):
    """An objective whose LLM reads queries with their documents.

    Args:
        model: the encoder.
        reader: reads texts with the LLM; the constructor switches its LLM to document attention.
        temperature: of the encoder's cosines.
        micro_batch_size: queries that the LLM reads at once; memory grows with it, but the gradient stays the same.

    Raises:
        NLTError: the temperature or the micro-batch size is not positive, or the LLM's attention cannot be injected.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        reader: DocumentReader | ChunkReader,
        *,
        temperature: float,
        micro_batch_size: int,
    ) -> None:
        super().__init__(model, temperature=temperature)
        if micro_batch_size < 1:
            raise NLTError(f"micro_batch_size is {micro_batch_size}; it must be at least 1")
        enable_document_attention(reader.lm)
        self.reader = reader
        self.micro_batch_size = micro_batch_size

    @property
    def lm_tokens(self) -> int:
        return self.reader.lm_tokens

    @classmethod
    @abstractmethod
    def texts_for(cls, llm: PromptFrame) -> LLMTexts:
        """The texts of a batch that an LLM reads for an objective of this class; no objective need exist yet."""

    @property
    def llm_texts(self) -> LLMTexts:
        return self.texts_for(self.reader.lm.prompt_frame)
