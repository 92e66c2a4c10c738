"""Embed some texts with an encoder, in this process or in a worker that has a copy of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from accelerate.utils import extract_model_from_parallel
from sentence_transformers import SentenceTransformer, SentenceTransformerModelCardData
from sentence_transformers.util import get_device_name

from nlt_trainer.errors import NLTError

Role = Literal["query", "document"]


@dataclass(frozen=True)
class Texts:
    """Texts to embed.

    Args:
        role: whether they are queries or documents.
        texts: N texts.
        prompt: text before each; `None` means the encoder's own prompt for the role.
        batch_size: texts embedded at once.
    """

    role: Role
    texts: Sequence[str]
    prompt: str | None
    batch_size: int


@torch.inference_mode()
def embed(encoder: SentenceTransformer, given: Texts, *, bf16: bool, name: str) -> np.ndarray:
    """Embeddings `(N, H)` float32 of texts.

    Args:
        encoder: the encoder.
        given: the texts.
        bf16: whether the encoder multiplies in bfloat16, under autocast.
        name: what an error calls the encoder.

    Raises:
        NLTError: an embedding is not finite; names the encoder, the first such text and the remedy.
    """
    encode = encoder.encode_query if given.role == "query" else encoder.encode_document
    options: dict[str, Any] = {"batch_size": given.batch_size, "convert_to_tensor": True, "show_progress_bar": False}
    with torch.autocast(encoder.device.type, torch.bfloat16, enabled=bf16):
        found: np.ndarray = encode(given.texts, prompt=given.prompt, **options).float().cpu().numpy()
    if (strange := ~np.isfinite(found).all(1)).any():
        remedy = "set bf16_full_eval: false, " if bf16 else ""
        raise NLTError(
            f"{name} gives {strange.sum()} of {len(given.texts)} texts an embedding that is infinite or NaN, the "
            f"first is {given.role} {given.texts[strange.argmax()][:60]!r}; {remedy}take the texts out if they are "
            "few, or train the encoder again with a lower learning rate"
        )
    return found


class EncoderForWorkers:
    """Brings an encoder to a worker, and embeds there; see `RayWorkers`.

    Args:
        encoder: the encoder, of which a copy on the CPU travels, without what mixed precision has put around it and
            without its card, which knows the trainer.
        bf16: see `embed`.
        name: see `embed`.
    """

    def __init__(self, encoder: SentenceTransformer, *, bf16: bool, name: str) -> None:
        plain = extract_model_from_parallel(copy.copy(encoder), keep_fp32_wrapper=False)  # the parts are shared
        plain.model_card_data = SentenceTransformerModelCardData()
        self.encoder = plain if encoder.device.type == "cpu" else copy.deepcopy(plain).cpu()
        self.bf16, self.name = bf16, name

    def __call__(self) -> Callable[[Texts], np.ndarray]:
        """Move the encoder to the worker's device; returns `embed`."""
        self.encoder.to(get_device_name())
        return self.embed

    def embed(self, given: Texts) -> np.ndarray:
        """Embeddings `(N, H)` float32 of texts."""
        return embed(self.encoder, given, bf16=self.bf16, name=self.name)
