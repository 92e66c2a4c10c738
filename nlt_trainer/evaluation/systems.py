"""The systems that an evaluation compares: BM25, encoders, variants of these encoders, and runs read from files."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from nlt_trainer.choices import Precision
from nlt_trainer.content import model_content
from nlt_trainer.data.bm25 import bm25_fingerprint, unmatched_line
from nlt_trainer.data.trec import read_run
from nlt_trainer.encoder.embedding_cache import EmbeddingCache, Processes
from nlt_trainer.encoder.loading import load_encoder
from nlt_trainer.errors import NLTError
from nlt_trainer.evaluation.evaluator import best
from nlt_trainer.evaluation.folder_task import TOP_K
from nlt_trainer.evaluation.task_scores import TaskRankings, fuse, rank_bm25, rank_encoder
from nlt_trainer.evaluation.tasks import EvaluationTask
from nlt_trainer.ray_workers import RayWorkers
from nlt_trainer.run.folder import Run
from nlt_trainer.run.trained_queries import trained_queries_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class System:
    """A system, which is one row of the table.

    Args:
        name: name of the row.
        fingerprint: identifies everything on which the system's rankings depend, except the task.
        rank: takes a loaded task and returns the system's rankings.
        embed: takes a loaded task and makes the embeddings that `rank` needs; `None` if `rank` needs none.
        is_encoder: whether the system is a checkpoint whose embeddings are used unchanged.
        train_seconds: seconds that its training took, see `Result`.
        lm_tokens: tokens that the LLM read for its training.
        seed: seed of its training.
        trained_queries: keys of the queries that it was trained on, see `query_keys`; `None` where they are not known.
    """

    name: str
    fingerprint: str
    rank: Callable[[EvaluationTask], TaskRankings]
    embed: Callable[[EvaluationTask], object] | None = None
    is_encoder: bool = False
    train_seconds: float = 0
    lm_tokens: int = 0
    seed: int | None = None
    trained_queries: frozenset[int] | None = frozenset()


class BM25:
    """BM25 as a system.

    Args:
        keep: whether its rankings are kept in memory, because encoders' rankings will be fused with them.
    """

    def __init__(self, *, keep: bool) -> None:
        self.keep = keep
        self.kept: dict[str, TaskRankings] = {}
        self.fingerprint = bm25_fingerprint()

    def systems(self) -> list[System]:
        """BM25's row."""
        return [System("bm25", self.fingerprint, self.rank)]

    def rank(self, entry: EvaluationTask) -> TaskRankings:
        """BM25's rankings of a loaded task."""
        if entry.fingerprint in self.kept:
            return self.kept[entry.fingerprint]
        rankings = rank_bm25(entry)
        found = [ranking for of_part in rankings.values() for ranking in of_part.values()]
        if unmatched := sum(not ranking for ranking in found):
            logger.warning("%s: %s", entry.title, unmatched_line(unmatched, len(found)))
        if self.keep:
            self.kept[entry.fingerprint] = {
                part: {query_id: best(ranking, TOP_K) for query_id, ranking in of_part.items()}
                for part, of_part in rankings.items()
            }
        return rankings

    def release(self) -> None:
        """Do nothing, because an encoder may still need BM25's rankings."""


@dataclass(frozen=True)
class Checkpoint:
    """An encoder that can be loaded.

    Args:
        name: name of its row.
        location: Hub id, folder, or anything else that `load_encoder` takes.
        loading: further arguments of `load_encoder`.
        cost: `train_seconds`, `lm_tokens` and `seed`, if they are known.
    """

    name: str
    location: str
    loading: Mapping[str, Any] = field(default_factory=dict)
    cost: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of_run(cls, name: str, run: Run) -> Checkpoint:
        """The encoder of a finished run. The start that `nlt adapt` has kept has cost nothing."""
        return cls(name, str(run.encoder), cost={} if run.keeps_start else run.cost)

    @classmethod
    def named(cls, name: str) -> Checkpoint:
        """The checkpoint that a user names: by Hub id, folder of an encoder, or output folder of a training run.

        Raises:
            NLTError: the run has no finished encoder.
        """
        run = Run(Path(name).expanduser())
        if run.is_finished:
            return cls.of_run(name, run)
        if run.settings_file.is_file():
            raise NLTError(
                f"{name} has no finished encoder; run `nlt train` to its end, or name one of its checkpoints"
            )
        return cls(name, name)

    @cached_property
    def fingerprint(self) -> str:
        """Its content, see `model_content`, and the arguments with which it is loaded.

        Raises:
            NLTError: the checkpoint cannot be found.
        """
        content = model_content(self.location, revision=self.loading.get("revision"))
        return f"{content} {json.dumps({k: v for k, v in self.loading.items() if v is not None}, sort_keys=True)}"


class EncoderSystems:
    """The systems of one checkpoint: the encoder itself, fused with BM25, and with smaller embeddings.

    The encoder is loaded when it is first needed.

    Args:
        checkpoint: the encoder.
        folder: where its embeddings are kept, see `EmbeddingCache`.
        batch_size: texts encoded at once.
        bm25: BM25, for the rows in which both are fused.
        reciprocal_ranks: whether there is a row in which both are fused by reciprocal ranks.
        bm25_weights: weights of BM25's scores in rows of weighted sums.
        truncate_dims: numbers of dimensions to which embeddings are cut.
        precisions: precisions of the documents' embeddings, see `CompressedEncoder`; every number of dimensions is
            evaluated with each of them.
        processes: the processes that share the embedding.
        workers: workers of Ray, which embed in their place.
        bf16: whether texts are embedded in bfloat16, see `EmbeddingCache`.
        show_progress: whether a progress bar is shown.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        folder: str | Path | None,
        batch_size: int,
        bm25: BM25 | None = None,
        reciprocal_ranks: bool = True,
        bm25_weights: Sequence[float] = (),
        truncate_dims: Sequence[int] = (),
        precisions: Sequence[Precision] = (),
        processes: Processes | None = None,
        workers: RayWorkers | None = None,
        bf16: bool = False,
        show_progress: bool = False,
    ) -> None:
        self.checkpoint, self.folder, self.batch_size, self.bm25 = checkpoint, folder, batch_size, bm25
        self.reciprocal_ranks, self.bm25_weights = reciprocal_ranks, bm25_weights
        self.sizes: list[tuple[int | None, Precision | None]] = [
            (dim, precision) for dim in (None, *truncate_dims) for precision in (None, *precisions)
        ]
        self.processes, self.workers = processes, workers
        self.bf16, self.show_progress = bf16, show_progress
        self.encoder: EmbeddingCache | None = None
        self.last: tuple[str, TaskRankings] | None = None

    def systems(self) -> list[System]:
        """The checkpoint's rows."""
        name, content = self.checkpoint.name, self.checkpoint.fingerprint + (", bf16" if self.bf16 else "")
        make = functools.partial(System, trained_queries=trained_queries_of(self.checkpoint.location))
        rows = [make(name, content, self.rank, self.rank, is_encoder=True, **self.checkpoint.cost)]
        if self.bm25 is not None:
            both = f"{content} + {self.bm25.fingerprint}"
            if self.reciprocal_ranks:
                rows.append(make(f"{name} + bm25", both, self.fused, self.rank))
            for weight in self.bm25_weights:
                fused = functools.partial(self.fused, weight=weight)
                rows.append(make(f"{name} + {weight:g} bm25", f"{both}, {weight!r}", fused, self.rank))
        for dim, precision in self.sizes[1:]:
            size = ", ".join(([f"{dim} dimensions"] if dim else []) + ([precision] if precision else []))
            rank = self._smaller(dim, precision)
            rows.append(make(f"{name}, {size}", f"{content}, {size}", rank, rank))
        return rows

    def rank(self, entry: EvaluationTask) -> TaskRankings:
        """The encoder's rankings of a loaded task; those of the last task are kept for `fused`."""
        if self.last is None or self.last[0] != entry.fingerprint:
            self.last = entry.fingerprint, self._rank(entry, None, None)
        return self.last[1]

    def fused(self, entry: EvaluationTask, *, weight: float | None = None) -> TaskRankings:
        """The encoder's rankings fused with BM25's: by this weight of BM25, or without one by reciprocal ranks."""
        assert self.bm25 is not None
        return fuse(self.rank(entry), self.bm25.rank(entry), weight=weight)

    def release(self) -> None:
        """Free the memory of the encoder and of its rankings."""
        self.encoder = self.last = None

    def _smaller(self, dim: int | None, precision: Precision | None) -> Callable[[EvaluationTask], TaskRankings]:
        return lambda entry: self._rank(entry, dim, precision)

    def _rank(self, entry: EvaluationTask, dim: int | None, precision: Precision | None) -> TaskRankings:
        if self.encoder is None:
            encoder = load_encoder(self.checkpoint.location, **self.checkpoint.loading)
            self.encoder = EmbeddingCache(
                encoder,
                self.folder,
                processes=self.processes,
                workers=self.workers,
                bf16=self.bf16,
                name=self.checkpoint.location,
            )
        self.encoder.progress = f"{entry.title} {self.checkpoint.name}" if self.show_progress else None
        return rank_encoder(entry, self.encoder, batch_size=self.batch_size, truncate_dim=dim, precision=precision)


class RunFile:
    """A run in trec_eval's format as a system, for one task.

    Args:
        path: the file.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.rankings = read_run(path)

    def systems(self) -> list[System]:
        """The run's row."""
        return [System(self.path, hashlib.sha256(Path(self.path).read_bytes()).hexdigest(), self.rank)]

    def rank(self, entry: EvaluationTask) -> TaskRankings:
        """The file's rankings; a query that the file lacks retrieves nothing.

        Raises:
            NLTError: the file has none of the task's queries, or the task has several splits or languages.
        """
        if len(parts := entry.parts()) > 1:
            named = ", ".join("/".join(part) for part in parts)
            raise NLTError(f"{self.path} is one run, and {entry.title} has {len(parts)} parts ({named}); leave it out")
        split, subset = parts[0]
        queries = entry.task.dataset[subset][split]["queries"]["id"]
        if self.rankings.keys().isdisjoint(queries):
            raise NLTError(f"{self.path} ranks for no query of {entry.title}; name the task that it is a run of")
        return {(split, subset): {query_id: self.rankings.get(query_id, {}) for query_id in queries}}

    def release(self) -> None:
        """Do nothing, because the rankings take little memory."""


Family = BM25 | EncoderSystems | RunFile
"""A group of systems that share what they need, such as a loaded encoder."""
