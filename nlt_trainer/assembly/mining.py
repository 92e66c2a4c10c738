"""The stage `mine`: find candidate documents for every training query by BM25, an encoder or both, without labels."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState

from nlt_trainer.arguments.data import DataArguments
from nlt_trainer.arguments.model import ModelArguments
from nlt_trainer.assembly.parts import chosen_queries, load_training_collection, load_untrained, processes
from nlt_trainer.data.beir import Collection, Query
from nlt_trainer.data.candidates import QueryCandidates, mine_candidates, ranking_depth, write_candidates
from nlt_trainer.encoder.embedding_cache import EmbeddingCache
from nlt_trainer.encoder.search import nearest
from nlt_trainer.terminal import say
from nlt_trainer.training_arguments import NLTTrainingArguments


def mine(model: ModelArguments, data: DataArguments, args: NLTTrainingArguments) -> None:
    """Write the recipe's `candidates` file. If an encoder mines, several processes share the corpus."""
    state = processes(args)
    collection = load_training_collection(data)
    queries = chosen_queries(collection, data, seed=args.seed)
    folder = Path(f"{data.candidates}.embeddings")
    candidates = find_candidates(model, data, collection, queries, folder=folder, state=state, seed=args.seed)
    if not state.is_main_process:
        return
    write_candidates(data.candidates, candidates)
    shutil.rmtree(folder, ignore_errors=True)
    say(f"{data.candidates}: {len(candidates)} queries with {data.num_candidates} candidates each ({data.miner})")


def find_candidates(
    model: ModelArguments,
    data: DataArguments,
    collection: Collection,
    queries: Sequence[Query],
    *,
    folder: Path,
    state: PartialState,
    seed: int,
) -> list[QueryCandidates]:
    """Find candidates as the recipe's `miner` and `num_candidates` say; nothing in all processes but the main one."""
    rankings = None
    if data.miner != "bm25":
        rankings = rank_by_encoder(model, data, collection, queries, folder=folder, state=state)
    if not state.is_main_process:
        return []
    return mine_candidates(
        collection,
        queries,
        num_candidates=data.num_candidates,
        seed=seed,
        encoder_rankings=rankings,
        fused=data.miner == "fused",
    )


def rank_by_encoder(
    model: ModelArguments,
    data: DataArguments,
    collection: Collection,
    queries: Sequence[Query],
    *,
    folder: Path,
    state: PartialState,
) -> list[list[int]] | None:
    """The best documents for each query by the recipe's encoder; `None` in all processes except the main one."""
    encoder = load_untrained(model)
    contents = [document.content for document in collection.corpus.values()]
    files = EmbeddingCache(encoder, folder, processes=state, progress="embedding").document_files(contents)
    if not state.is_main_process:
        return None
    fused = data.miner == "fused"
    depth = ranking_depth(data.num_candidates, fused=fused)
    asked = encoder.encode_query([query.text for query in queries], convert_to_tensor=True)
    parts = (torch.from_numpy(np.load(file)) for file in files)
    return nearest(asked, parts, top_k=depth, similarity=encoder.similarity)[1].tolist()
