"""Evaluate an encoder or BM25 on a BEIR folder: with mteb for reported figures, or quickly during training."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import mteb
import torch
from datasets import Dataset
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.models import ModelMeta, SearchProtocol
from mteb.results import TaskResult
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.evaluation import BaseEvaluator

from nlt_trainer.data.beir import Collection, Query
from nlt_trainer.data.bm25 import bm25_rankings
from nlt_trainer.encoder.embedding_cache import EmbeddingCache
from nlt_trainer.encoder.search import PART, nearest
from nlt_trainer.errors import NLTError
from nlt_trainer.evaluation.folder_task import METRICS, TOP_K, BEIRFolderRetrieval, Part, as_collection
from nlt_trainer.evaluation.retrieval_metric import RetrievalMetric

logger = logging.getLogger(__name__)

Rankings = Mapping[str, Mapping[str, float]]
"""Query id -> document id -> score."""


def evaluate_encoder(
    encoder: SentenceTransformer, collection: Collection | str | Path, *, split: str = "test", batch_size: int = 32
) -> dict[str, float]:
    """Evaluate an encoder with mteb.

    Queries are encoded with the encoder's `query` prompt, and documents with its `document` prompt. No result is
    cached.

    Args:
        encoder: the encoder; its own similarity function ranks the documents.
        collection: a collection, or the BEIR folder to read.
        split: the qrels to evaluate on.
        batch_size: texts encoded at once.

    Returns:
        `ndcg_at_10`, `mrr_at_10` and `recall_at_100`, means over the queries; mteb rounds nDCG and recall to 5 digits.

    Raises:
        DataError: the folder is malformed.
        NLTError: the collection has no such split, or a weight of the encoder is not finite.
    """
    check_weights(encoder)
    return _run_mteb(encoder, BEIRFolderRetrieval(collection, split=split), batch_size=batch_size)


def check_weights(encoder: SentenceTransformer, name: str = "the encoder") -> None:
    """Refuse an encoder, by its name, whose training has diverged; mteb would still report a figure for it.

    Raises:
        NLTError: a weight is not finite.
    """
    for weight, parameter in encoder.named_parameters():
        if not parameter.isfinite().all():
            raise NLTError(f"{name}: weight {weight} is infinite or NaN; train it again with a lower learning rate")


def evaluate_bm25(collection: Collection | str | Path, *, split: str = "test") -> dict[str, float]:
    """Evaluate BM25 with mteb's scoring. It returns and raises the same as `evaluate_encoder`.

    Args:
        collection: a collection, or the BEIR folder to read.
        split: the qrels to evaluate on.
    """
    task = BEIRFolderRetrieval(collection, split=split)
    rankings = bm25_rankings(task.collection, task.collection.split_queries(split), top_k=TOP_K)
    return _run_mteb(FixedRankings({(split, "default"): rankings}), task, batch_size=1)


class FixedRankings:
    """Existing rankings in the form of a search model of mteb.

    Args:
        rankings: for each part of the task: query id -> document id -> score, for every query.
    """

    def __init__(self, rankings: Mapping[Part, Rankings]):
        self.rankings = rankings
        self.mteb_model_meta = ModelMeta.create_empty()

    def index(self, corpus: Dataset, **kwargs: Any) -> None:
        """Do nothing, because the corpus has been searched before."""

    def search(
        self, queries: Dataset, *, top_k: int, hf_split: str, hf_subset: str, **kwargs: Any
    ) -> dict[str, dict[str, float]]:
        """Return the `top_k` best documents of each query."""
        rankings = self.rankings[hf_split, hf_subset]
        return {query_id: best(rankings[query_id], top_k) for query_id in queries["id"]}


class RetrievalEvaluator(BaseEvaluator):
    """Retrieval metrics of a split, for the trainer's `evaluator`.

    It encodes the corpus and the queries (prompts `document` and `query`), keeps the 100 most similar documents of
    each query and scores them with `RetrievalMetric`. It does not change random generators and does not run mteb. Its
    figures differ from those of `evaluate_encoder` only by mteb's rounding to 5 digits and by ties at rank 100.

    The primary metric is `NAME_ndcg_at_10`; for the trainer write `metric_for_best_model="eval_NAME_ndcg_at_10"`.

    Args:
        collection: a collection, or the BEIR folder to read.
        split: the qrels to evaluate on.
        name: prefix of the metrics; the default is the split's name.
        batch_size: texts encoded at once.

    Raises:
        DataError: the folder is malformed.
        NLTError: the collection has no such split.
    """

    def __init__(
        self, collection: Collection | str | Path, *, split: str = "dev", name: str = "", batch_size: int = 32
    ):
        super().__init__()
        self.collection = as_collection(collection, split)
        self.split = split
        self.name = name or split
        self.batch_size = batch_size
        self.primary_metric = f"{self.name}_{METRICS[0]}"

    def __call__(  # type: ignore[override]  # an encoder of texts is asked for, as in the library's own evaluators
        self, model: SentenceTransformer, output_path: str | None = None, epoch: int = -1, steps: int = -1
    ) -> dict[str, float]:
        """Return `NAME_ndcg_at_10`, `NAME_mrr_at_10` and `NAME_recall_at_100`; no file is written."""
        qrels = self.collection.split_qrels(self.split)
        queries = self.collection.split_queries(self.split)
        rankings = search(model, self.collection, queries, batch_size=self.batch_size)
        metrics = RetrievalMetric(keep_in_memory=True).compute(
            predictions=[{"document_ids": list(r), "scores": list(r.values())} for r in rankings.values()],
            references=[{"document_ids": list(qrels[q]), "grades": list(qrels[q].values())} for q in rankings],
        )
        metrics = self.prefix_name_to_metrics(metrics, self.name)
        self.store_metrics_in_model_card_data(model, metrics, epoch, steps)
        return metrics


@torch.no_grad()
def search(
    encoder: SentenceTransformer | EmbeddingCache,
    collection: Collection,
    queries: Sequence[Query],
    *,
    top_k: int = TOP_K,
    batch_size: int = 32,
) -> dict[str, dict[str, float]]:
    """Rank the corpus for each query by the similarity of embeddings.

    Args:
        encoder: the encoder, or an encoder whose embeddings are kept; its own similarity function (cosine unless it
            says otherwise) ranks the documents.
        collection: the corpus to search.
        queries: the queries.
        top_k: number of documents for each query.
        batch_size: texts encoded at once.

    Returns:
        query id -> document id -> similarity, best first, without the document that is the query itself, see
        `Collection.own_document`.
    """
    options: dict[str, Any] = {"batch_size": batch_size, "convert_to_tensor": True, "show_progress_bar": False}
    document_ids = list(collection.corpus)
    contents = [document.content for document in collection.corpus.values()]
    document_embeddings = torch.as_tensor(encoder.encode_document(contents, **options)).float()  # (N, H)
    query_embeddings = torch.as_tensor(encoder.encode_query([q.text for q in queries], **options)).float()  # (B, H)
    scores, rows = nearest(  # (B, top_k + 1) each: one may be the query itself
        query_embeddings, document_embeddings.split(PART), top_k=top_k + 1, similarity=encoder.similarity
    )
    rankings = {}
    for query, found, values in zip(queries, rows.tolist(), scores.tolist(), strict=True):
        ranking = {document_ids[i]: score for i, score in zip(found, values, strict=True)}
        ranking.pop(collection.own_document(query.id), None)
        rankings[query.id] = dict(islice(ranking.items(), top_k))
    return rankings


def best(ranking: Mapping[str, float], top_k: int) -> dict[str, float]:
    """The `top_k` best documents of a ranking, best first. Equal scores have trec_eval's order: the last id first."""
    return dict(sorted(ranking.items(), key=lambda item: (item[1], item[0]), reverse=True)[:top_k])


def _run_mteb(
    model: SentenceTransformer | SearchProtocol, task: BEIRFolderRetrieval, *, batch_size: int
) -> dict[str, float]:
    scores = run_mteb(model, task, batch_size=batch_size).scores[task.split][0]
    return {name: float(scores[name]) for name in METRICS}


def run_mteb(model: Any, task: AbsTaskRetrieval, *, batch_size: int) -> TaskResult:
    """Let mteb evaluate a model on one task, without cache, bars or carbon tracking; returns mteb's own result."""
    encode_kwargs: Any = {"batch_size": batch_size, "show_progress_bar": False}
    with quiet():
        result = mteb.evaluate(
            model, task, cache=None, co2_tracker=False, encode_kwargs=encode_kwargs, show_progress_bar=False
        )
    found = result.task_results[0]
    assert isinstance(found, TaskResult)
    return found


@contextmanager
def quiet() -> Iterator[None]:
    """Hide mteb's messages on model cards and on its own deprecated calls, and the bars of its conversions."""
    card_logger = logging.getLogger("mteb.models.model_meta")
    level, had_bars = card_logger.level, not datasets.are_progress_bars_disabled()
    card_logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"mteb\.")
            warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"mteb\.")
            yield
    finally:
        card_logger.setLevel(level)
        if had_bars:
            datasets.enable_progress_bars()
