"""Smaller embeddings: only the first dimensions, or documents in int8 or binary, as a smaller index would hold them.

Truncation and quantisation are those of Sentence Transformers. Queries stay float32, as in its own rescoring, because
an index stores only documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sentence_transformers.util import quantize_embeddings, truncate_embeddings
from torch import Tensor

from nlt_trainer.choices import Precision
from nlt_trainer.encoder.embedding_cache import EmbeddingCache
from nlt_trainer.errors import NLTError


class CompressedEncoder:
    """An encoder with smaller embeddings, for one corpus.

    Args:
        encoder: what embeds the texts.
        truncate_dim: number of first dimensions that are kept; `None` keeps all.
        precision: format of documents. `int8` divides each dimension into 256 steps between the least and the greatest
            value of the documents that are embedded first, `binary` keeps its sign, and `None` means float32.

    Raises:
        NLTError: the encoder has no more dimensions than `truncate_dim`.
    """

    def __init__(
        self, encoder: EmbeddingCache, *, truncate_dim: int | None = None, precision: Precision | None = None
    ) -> None:
        size = encoder.encoder.get_embedding_dimension()
        if truncate_dim is not None and size is not None and not 0 < truncate_dim < size:
            raise NLTError(
                f"truncate_dims has {truncate_dim}, and the embeddings have {size} dimensions; choose fewer"
            )
        self.encoder, self.truncate_dim, self.precision = encoder, truncate_dim, precision
        self.ranges: np.ndarray | None = None

    def encode_query(self, texts: Sequence[str], **options: Any) -> np.ndarray:
        """Embeddings `(n, H)` of queries, float32."""
        return truncate_embeddings(self.encoder.encode_query(texts, **options), self.truncate_dim)

    def encode_document(self, texts: Sequence[str], **options: Any) -> np.ndarray:
        """Embeddings `(n, H)` of documents, float32. Each value is one that the precision can hold."""
        embeddings = truncate_embeddings(self.encoder.encode_document(texts, **options), self.truncate_dim)
        if self.precision == "binary":
            packed = np.asarray(quantize_embeddings(embeddings, "ubinary"))  # (n, H / 8), eight signs a byte
            bits = np.unpackbits(packed, axis=1, count=embeddings.shape[1])
            return bits.astype(np.float32) * 2 - 1  # 0 and 1 as -1 and 1
        if self.precision == "int8":
            if self.ranges is None:
                self.ranges = np.stack([embeddings.min(0), embeddings.max(0)])  # (2, H)
            codes = np.asarray(quantize_embeddings(embeddings, "uint8", ranges=self.ranges))
            low, high = self.ranges
            return low + (codes + np.float32(0.5)) * (high - low) / 255  # the middle of each step
        return embeddings

    def similarity(self, queries: Any, documents: Any) -> Tensor:
        """Similarities `(number of queries, number of documents)` by the encoder's own function."""
        return self.encoder.similarity(queries, documents)
