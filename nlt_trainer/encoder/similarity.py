"""Functions with which objectives read a batch: cosines of the encoder's embeddings, and labels such as gains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize
from sentence_transformers.util import all_gather, all_gather_with_grad, truncate_embeddings
from torch import Tensor, nn

from nlt_trainer.errors import NLTError

Features = Iterable[dict[str, Tensor]]
"""First tokenised queries (B texts), then tokenised candidates (B * K texts, query-major: row `b * K + k`)."""


def ranks_by_cosine(encoder: SentenceTransformer) -> bool:
    """Whether an encoder ranks documents as the cosine does.

    Embeddings of unit length are ranked by the dot product and by the distance as they are by the cosine.
    """
    name = encoder.similarity_fn_name
    unit_length = isinstance(encoder[-1], Normalize) and encoder.truncate_dim is None
    return name == "cosine" or (unit_length and name in ("dot", "euclidean"))


def check_similarity(encoder: SentenceTransformer) -> None:
    """Refuse to train cosines where the encoder would afterwards rank documents by something else.

    Raises:
        NLTError: the encoder's similarity ranks documents otherwise than the cosine.
    """
    if not ranks_by_cosine(encoder):
        raise NLTError(
            f"the encoder compares texts by {encoder.similarity_fn_name!r}, and training improves cosines, so that "
            "evaluation and search would rank by what was not trained; save it as one that compares by cosine and "
            "train that: SentenceTransformer(ENCODER, similarity_fn_name='cosine').save_pretrained(FOLDER)"
        )


def embed(
    model: Callable[[dict[str, Any]], Any], features: Features, *, dimensions: int | None = None
) -> tuple[Tensor, Tensor]:
    """Unit-length embeddings in float32: queries `(B, D)` and candidates `(B, K, D)`.

    Args:
        model: the encoder, wrapped or not.
        features: the encoder's inputs.
        dimensions: how many of the encoder's dimensions are kept, its `truncate_dim`; `None` keeps all.
    """
    whole = (model(dict(f))["sentence_embedding"].float() for f in features)
    queries, documents = (
        nn.functional.normalize(truncate_embeddings(embeddings, dimensions), dim=-1) for embeddings in whole
    )
    return queries, documents.unflatten(0, (len(queries), -1))  # (B * K, D) -> (B, K, D)


def own_cosines(queries: Tensor, documents: Tensor) -> Tensor:
    """Cosine of each query `(B, D)` with its own candidates `(B, K, D)`: `(B, K)`, in float32 even under autocast."""
    with torch.autocast(queries.device.type, enabled=False):  # near 1, bfloat16 has steps of 0.004
        return torch.einsum("bd,bkd->bk", queries, documents)


def all_cosines(queries: Tensor, documents: Tensor) -> Tensor:
    """Cosine of each query `(B, D)` with every document `(N, D)`: `(B, N)`, in float32 even under autocast."""
    with torch.autocast(queries.device.type, enabled=False):
        return queries @ documents.T


def pairwise_cosines(texts: Tensor) -> Tensor:
    """Cosine of every pair of C texts `(B, C, D)`: `(B, C, C)`, in float32 even under autocast."""
    with torch.autocast(texts.device.type, enabled=False):
        return texts @ texts.transpose(1, 2)


def first_of_equals(keys: Tensor) -> Tensor:
    """Index of the first occurrence of each distinct value of `(N,)` keys: `(U,)`, ascending."""
    distinct, group = keys.unique(return_inverse=True)
    places = torch.arange(len(keys), device=keys.device)
    first = places.new_full((len(distinct),), len(keys)).scatter_reduce(0, group, places, "amin")
    return first.sort().values


def documents_of_batch(documents: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Collect the candidates of all queries of the global batch, each text once.

    Args:
        documents: embeddings of the queries' own candidates, `(B, K, D)`. Several processes exchange them together
            with their gradient, and all of these processes need the same B.
        keys: `(B, K)` int64, equal for equal texts.

    Returns:
        Embeddings `(U, D)` of the different documents, and their keys `(U,)`.
    """
    everyone, all_keys = documents.flatten(0, 1), keys.flatten()  # (B * K, D), (B * K,)
    if torch.distributed.is_initialized():  # W processes: (W * B * K, D), (W * B * K,)
        everyone, all_keys = all_gather_with_grad(everyone), all_gather(all_keys)
    first = first_of_equals(all_keys)
    return everyone[first], all_keys[first]


def no_negatives(labels: Mapping[str, Tensor], keys: Tensor, own_keys: Tensor) -> Tensor:
    """Mark the documents that stand beside a query's own candidates and are no negatives of it.

    Args:
        labels: optionally with `no_negatives`, `(B, R)` int64, keys of further texts, padded with -1.
        keys: `(N,)` int64, of the documents among which every query chooses.
        own_keys: `(B, K)` int64, of the queries' own candidates, which are never marked.

    Returns:
        `(B, N)` bool.
    """
    if (others := labels.get("no_negatives")) is None:
        return torch.zeros(len(own_keys), len(keys), dtype=torch.bool, device=keys.device)
    return has_key(keys, others) & ~has_key(keys, own_keys)


def has_key(keys: Tensor, of_queries: Tensor) -> Tensor:
    """Mark which of the documents `(N,)` have a key that the query has `(B, R)`: `(B, N)` bool."""
    return (keys[:, None] == of_queries[:, None, :]).any(-1)


def gain_of(labels: Mapping[str, Tensor]) -> Tensor:
    """The batch's likelihood gains, `(B, K)`, nats per target token.

    Raises:
        NLTError: the batch has no gains.
    """
    return label_of(labels, "gain", remedy="run `nlt score` first or give NLTCollator a scorer")


def label_of(labels: Mapping[str, Tensor], name: str, *, remedy: str) -> Tensor:
    """An entry of the batch other than the encoder's inputs.

    Raises:
        NLTError: the batch does not have this entry.
    """
    if name not in labels:
        raise NLTError(f"the batch has no {name}; {remedy}")
    return labels[name]
