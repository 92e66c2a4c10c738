"""Evaluate one system on one task: rank its documents, score the rankings with trec_eval and mteb, keep the result.

A result is kept under a hash of the system's content, the task's data and the versions of the libraries. It is
therefore never taken for the result of another checkpoint, and a killed evaluation continues where it stopped.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from mteb.models import SearchEncoderWrapper, SentenceTransformerEncoderWrapper
from pydantic import TypeAdapter, ValidationError

from nlt_trainer.choices import Precision
from nlt_trainer.data.beir import Collection, Document, Query
from nlt_trainer.data.bm25 import bm25_rankings
from nlt_trainer.data.fusion import reciprocal_ranks, weighted_fusion
from nlt_trainer.encoder.embedding_cache import EmbeddingCache
from nlt_trainer.errors import DataError, NLTError
from nlt_trainer.evaluation.compression import CompressedEncoder
from nlt_trainer.evaluation.evaluator import FixedRankings, Rankings, best, check_weights, quiet, run_mteb
from nlt_trainer.evaluation.folder_task import METRICS, TOP_K, Part
from nlt_trainer.evaluation.retrieval_metric import query_values
from nlt_trainer.evaluation.tasks import EvaluationTask
from nlt_trainer.run.results import FORBID_OTHERS, Share
from nlt_trainer.text_files import read_json, write_json

logger = logging.getLogger(__name__)

LIBRARIES = ("mteb", "sentence-transformers", "transformers", "torch", "bm25s", "pytrec_eval-terrier")
FORMAT = 1
"""Version of the files that are kept. It must be raised when their content changes its meaning."""

TaskRankings = dict[Part, Rankings]


@dataclass(frozen=True)
class TaskScores:
    """The scores of one system on one task.

    Args:
        queries: part of the task, as `split/subset` -> ids of its judged queries.
        values: part of the task -> metric -> value of each of these queries by trec_eval.
        mteb: mteb's result, in its own format.
    """

    __pydantic_config__ = FORBID_OTHERS

    queries: dict[str, list[str]]
    values: dict[str, dict[str, list[Share]]]
    mteb: dict[str, Any]

    @property
    def ndcg_at_10(self) -> float:
        """Mean over the parts of the task; the value of a part is the mean over its queries."""
        return float(np.mean([np.mean(values[METRICS[0]]) for values in self.values.values()]))


def rank_bm25(entry: EvaluationTask) -> TaskRankings:
    """BM25's rankings of a loaded task."""
    rankings: TaskRankings = {}
    for split, subset in entry.parts():
        data = entry.task.dataset[subset][split]
        corpus = {row["id"]: Document(row["id"], row.get("title") or "", row["text"]) for row in data["corpus"]}
        queries = [Query(row["id"], _query_text(row["text"])) for row in data["queries"]]
        collection = Collection(entry.collection, Path(), corpus, {}, {})
        rankings[split, subset] = bm25_rankings(
            collection, queries, top_k=max(entry.task.k_values), keep_own=not entry.task.ignore_identical_ids
        )
    return rankings


def _query_text(text: Any) -> str:
    """The text of a query; mteb represents a conversation as a list of turns."""
    if isinstance(text, str):
        return text
    return "; ".join(turn if isinstance(turn, str) else turn["content"] for turn in text)


def rank_encoder(
    entry: EvaluationTask,
    encoder: EmbeddingCache,
    *,
    batch_size: int,
    truncate_dim: int | None = None,
    precision: Precision | None = None,
) -> TaskRankings:
    """An encoder's rankings of a loaded task, found by mteb's own search with the prompts that mteb chooses.

    A document that is the query itself is left out where the task ignores it.

    Args:
        entry: the task.
        encoder: the encoder, whose embeddings are kept on disk.
        batch_size: texts encoded at once.
        truncate_dim: number of dimensions that are kept of an embedding; `None` keeps all.
        precision: precision of the documents' embeddings, see `CompressedEncoder`.

    Raises:
        NLTError: a weight of the encoder or an embedding is not finite.
    """
    check_weights(encoder.encoder, encoder.name)
    rankings: TaskRankings = {}
    with quiet():
        wrapper = SentenceTransformerEncoderWrapper(encoder.encoder)
        for split, subset in entry.parts():
            data = entry.task.dataset[subset][split]
            model: Any = copy.copy(wrapper)
            model.model = CompressedEncoder(encoder, truncate_dim=truncate_dim, precision=precision)
            of_task: Any = {"task_metadata": entry.task.metadata, "hf_split": split, "hf_subset": subset}
            of_task["encode_kwargs"] = {"batch_size": batch_size, "show_progress_bar": False}
            search = SearchEncoderWrapper(model)
            search.index(data["corpus"], **of_task)
            found = search.search(data["queries"], top_k=max(entry.task.k_values), **of_task)
            if entry.task.ignore_identical_ids:
                for query_id, ranking in found.items():
                    ranking.pop(query_id, None)
            rankings[split, subset] = found
    return rankings


def fuse(encoder: TaskRankings, bm25: TaskRankings, *, weight: float | None = None) -> TaskRankings:
    """Fusion of the first 100 documents of both rankings: by `weighted_fusion`, or by reciprocal ranks (k = 60).

    Args:
        encoder: rankings of an encoder.
        bm25: rankings of BM25 on the same task.
        weight: BM25's share; `None` fuses by reciprocal ranks.
    """

    def both(found: Mapping[str, float], words: Mapping[str, float]) -> dict[str, float]:
        if weight is None:
            return reciprocal_ranks(best(words, TOP_K), best(found, TOP_K))
        return weighted_fusion(found, words, weight=weight)

    return {
        part: {query_id: both(ranking, bm25[part][query_id]) for query_id, ranking in encoder[part].items()}
        for part in encoder
    }


def score(entry: EvaluationTask, rankings: TaskRankings) -> TaskScores:
    """Score rankings of a loaded task: each query with trec_eval's code, and the whole task with mteb.

    Raises:
        NLTError: trec_eval and mteb disagree.
    """
    found = run_mteb(FixedRankings(rankings), entry.task, batch_size=1)
    queries, values = {}, {}
    for split, subset in entry.parts():
        data = entry.task.dataset[subset][split]
        qrels = {query_id: data["relevant_docs"][query_id] for query_id in data["queries"]["id"]}  # mteb has filtered
        run = {q: _as_mteb_scores(entry, q, ranking) for q, ranking in rankings[split, subset].items()}
        part = f"{split}/{subset}"
        queries[part], values[part] = list(qrels), query_values(run, qrels)
        scores = next(row for row in found.scores[split] if row["hf_subset"] == subset)
        for name in METRICS:
            mean = sum(values[part][name]) / len(qrels)
            if abs(mean - scores.get(name, mean)) > 1e-4:
                raise NLTError(
                    f"{entry.title}: {name} is {scores[name]} by mteb and {mean} by trec_eval, so the task scores in "
                    "a way of its own; leave it out"
                )
    return TaskScores(queries, values, json.loads(found.model_dump_json()))


def _as_mteb_scores(entry: EvaluationTask, query_id: str, ranking: Mapping[str, float]) -> dict[str, float]:
    """A ranking without the documents that mteb leaves out in this task: the query itself, or the first document."""
    kept = best(ranking, max(entry.task.k_values))
    if entry.task.ignore_identical_ids:
        kept.pop(query_id, None)
    return dict(list(kept.items())[1:]) if entry.task.skip_first_result else kept


class TaskScoreCache:
    """A folder of results, with one file for each system and task.

    Args:
        folder: the folder, which is created when a result is stored; any file in it can be removed.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.versions = {name: version(name) for name in LIBRARIES}

    def path(self, system: str, entry: EvaluationTask) -> Path:
        """The file for the result of a system, which is given by its fingerprint, on a task."""
        content = json.dumps([FORMAT, system, entry.fingerprint, self.versions], sort_keys=True)
        return self.folder / f"{hashlib.blake2b(content.encode(), digest_size=16).hexdigest()}.json"

    def get(self, system: str, entry: EvaluationTask) -> TaskScores | None:
        """The stored result; `None` if there is none, or if the file is damaged, which a warning says.

        A file that an older version wrote has no checksum, and counts as whole.
        """
        path = self.path(system, entry)
        if not path.is_file():
            return None
        try:
            value = read_json(path)
            scores = TypeAdapter(TaskScores).validate_python(value)
            if _is_complete(scores):
                return scores
        except (DataError, ValidationError):
            pass
        logger.warning("%s is damaged, and the result is computed again", path)
        return None

    def put(self, system: str, entry: EvaluationTask, scores: TaskScores) -> None:
        """Store a result with its checksum."""
        write_json(self.path(system, entry), asdict(scores), checksum=True)


def _is_complete(scores: TaskScores) -> bool:
    """Whether there is a part, and each has a value of each metric for each of its queries."""
    return scores.queries.keys() == scores.values.keys() != set() and all(
        {*METRICS} <= values.keys() and {len(numbers) for numbers in values.values()} == {len(scores.queries[part])}
        for part, values in scores.values.items()
    )
