"""A pool of all documents of a batch: keys and values among which selected heads choose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import pad_across_processes
from sentence_transformers.util import all_gather
from torch import Tensor
from transformers import DynamicCache

from nlt_trainer.errors import NLTError
from nlt_trainer.injection.document_prompts import DocumentPrompts

LayerKeysValues = tuple[Tensor, Tensor]
"""A layer's keys and values of N tokens, each `(N, key-value heads, head size)`."""


@dataclass(frozen=True)
class DocumentPool:
    """Keys and values of U documents with N tokens. Each document was read alone, so any prompt can attend to it.

    Args:
        layers: layer to its keys and values, for the layers with injected heads.
        documents: `(N,)` int64, each token's document from 0 to U - 1.
        num_candidates: K, the number of documents that each prompt of the batch has itself.
        end: the position behind the longest document, at which suffixes begin.
    """

    layers: Mapping[int, LayerKeysValues]
    documents: Tensor
    num_candidates: int
    end: int

    @property
    def num_documents(self) -> int:
        """The number of documents, U."""
        return int(self.documents.max()) + 1

    @classmethod
    def of_batch(
        cls, prompts: DocumentPrompts, cache: DynamicCache, *, num_candidates: int, layers: Iterable[int]
    ) -> DocumentPool:
        """Make a pool of the K documents of each of B prompts, numbered `b * K + k`.

        Args:
            prompts: B prompts.
            cache: keys and values of their documents' part.
            num_candidates: K.
            layers: the layers to keep.

        Raises:
            NLTError: the documents see each other, so that their keys belong to one prompt.
        """
        if not prompts.prompt_segments.any():
            raise NLTError(
                "in_batch_candidates lets a query attend to documents of other prompts, and these have seen others "
                "before them; set document_layout: independent"
            )
        b, column = (prompts.documents < num_candidates).nonzero(as_tuple=True)
        kept = {}
        for layer in layers:
            states: Any = cache.layers[layer]  # filled, so that it has keys and values
            kept[layer] = tuple(x.transpose(1, 2)[b, column] for x in (states.keys, states.values))  # (N, heads, size)
        documents = b * num_candidates + prompts.documents[b, column]
        return cls(kept, documents, num_candidates, int(prompts.prompt_positions.max()) + 1)

    def gathered(self, num_documents: int, device: torch.device) -> DocumentPool:
        """Join the pools of all processes. The documents of process r are numbered from `r * num_documents`.

        Args:
            num_documents: number of documents in each pool.
            device: on which the processes exchange tensors; the pool stays where it is.
        """

        def gather(tensor: Tensor, padding: int = 0) -> Tensor:
            return all_gather(pad_across_processes(tensor.to(device), dim=0, pad_index=padding)).to(tensor.device)

        rank = torch.distributed.get_rank()
        documents = gather(self.documents + rank * num_documents, -1)
        real = documents >= 0
        layers = {
            layer: (gather(keys)[real], gather(values)[real]) for layer, (keys, values) in sorted(self.layers.items())
        }
        end = int(gather(torch.tensor([self.end])).max())
        return DocumentPool(layers, documents[real], self.num_candidates, end)

    def keys_values(self, layer: int, batch: int) -> LayerKeysValues:
        """A layer's keys and values for each of B prompts, `(B, key-value heads, N, head size)`."""
        keys, values = (x.transpose(0, 1).expand(batch, -1, -1, -1) for x in self.layers[layer])
        return keys, values

    def only(self, documents: Tensor) -> DocumentPool:
        """Keep only the given documents `(U,)`, renumbered in that order."""
        number = documents.new_full((self.num_documents,), -1)
        number[documents] = torch.arange(len(documents), device=documents.device)
        renumbered = number[self.documents]
        kept = renumbered >= 0
        layers = {layer: (keys[kept], values[kept]) for layer, (keys, values) in self.layers.items()}
        return DocumentPool(layers, renumbered[kept], self.num_candidates, self.end)


def cache_rows(cache: DynamicCache, part: Tensor) -> DynamicCache:
    """Copy some rows of a cache into a new cache."""
    rows = DynamicCache()
    filled: list[Any] = cache.layers
    for number, layer in enumerate(filled):
        rows.update(layer.keys[part], layer.values[part], number)
    return rows
