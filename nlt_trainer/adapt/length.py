"""Choose how many tokens of a passage the encoder reads, by what the start finds for held-out queries.

An encoder that averages over a long passage may lose what a query asks for, and one that reads too little of it never
sees it. Which is worse depends on the documents: of functions of Python's standard library all-MiniLM-L6-v2 finds more
with 128 tokens than with its own 256, and of passages of COVID-QA much less.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer
from transformers import PreTrainedTokenizerBase

from nlt_trainer.adapt.collection import HELD_OUT, judged_queries
from nlt_trainer.adapt.decision import SURE
from nlt_trainer.data.beir import Collection, load_collection
from nlt_trainer.encoder.embedding_cache import EmbeddingCache
from nlt_trainer.evaluation.evaluator import search
from nlt_trainer.evaluation.folder_task import METRICS
from nlt_trainer.evaluation.retrieval_metric import query_values
from nlt_trainer.evaluation.significance import randomisation_test
from nlt_trainer.ray_workers import RayWorkers

LENGTHS = (512, 256, 128)
"""The lengths that are tried where the encoder reads more, in tokens."""
CUT = 0.05
"""The least share of the passages that must be longer than a length for it to be tried."""


@dataclass(frozen=True)
class Length:
    """A number of tokens that the start may read of a passage, and what it finds with it.

    Args:
        tokens: the number.
        ndcg_at_10: on the judged held-out queries.
        p: of the paired randomisation test against the encoder's own length; 1 for that itself.
    """

    tokens: int
    ndcg_at_10: float
    p: float


def lengths_tried(
    encoder: SentenceTransformer, folder: Path, *, embeddings: Path, bf16: bool, workers: RayWorkers | None = None
) -> list[Length]:
    """What an encoder finds when it reads less of a passage; its own length comes first.

    Lengths are tried from the longest on, until one finds less than that before it.

    Args:
        encoder: the start; its `max_seq_length` is the same afterwards.
        folder: the collection with the judged held-out queries.
        embeddings: folder in which embeddings are kept.
        bf16: whether passages are embedded in bfloat16.
        workers: workers of Ray, which embed in the place of this process.

    Returns:
        Only the own length where no other is worth a trial, and nothing where the encoder has no limit.
    """
    own = encoder.max_seq_length
    if own is None or not isinstance(encoder.tokenizer, PreTrainedTokenizerBase):  # a table of tokens or of words
        return []
    collection, qrels = load_collection(folder, splits=[]), judged_queries(folder, HELD_OUT)
    found: list[Length] = []
    values: list[np.ndarray] = []
    tokens_of = _tokens(encoder, collection)
    shorter = [length for length in LENGTHS if length < own and np.mean(tokens_of > length) >= CUT]
    for tokens in (own, *shorter):
        encoder.max_seq_length = tokens
        title = f"embedding {tokens} tokens"
        cache = EmbeddingCache(encoder, embeddings, workers=workers, bf16=bf16, progress=title)
        rankings = search(cache, collection, [collection.queries[query] for query in qrels])
        values.append(np.array(query_values(rankings, qrels)[METRICS[0]]))
        p = randomisation_test([values[-1] - values[0]], [1.0])
        found.append(Length(tokens, float(values[-1].mean()), p))
        if len(found) > 1 and found[-1].ndcg_at_10 < found[-2].ndcg_at_10:
            break
    encoder.max_seq_length = own
    return found


def best_length(tried: list[Length]) -> Length | None:
    """The length with the highest nDCG@10, if that is surely above the own length's; `None` leaves the own one."""
    if not tried:
        return None
    own, *shorter = tried
    sure = [length for length in shorter if length.ndcg_at_10 > own.ndcg_at_10 and length.p <= SURE]
    return max(sure, key=lambda length: length.ndcg_at_10, default=None)


def _tokens(encoder: SentenceTransformer, collection: Collection) -> np.ndarray:
    """Number of tokens of each passage, counted as far as one more than the longest length that is tried."""
    prompt = encoder.prompts.get("document") or ""
    texts = [prompt + document.content for document in collection.corpus.values()]
    ids = encoder.tokenizer(texts, truncation=True, max_length=max(LENGTHS) + 1)["input_ids"]
    return np.array([len(row) for row in ids])
