"""The stage `mine`: find candidate documents for every training query by BM25, an encoder or both, without labels."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from sentence_transformers import SentenceTransformer

from nlt_trainer.arguments.beside import embeddings_folder
from nlt_trainer.arguments.data import DataArguments
from nlt_trainer.arguments.model import ModelArguments
from nlt_trainer.assembly.parts import chosen_queries, load_training_collection, load_untrained, processes, ray_workers
from nlt_trainer.data.beir import Collection, Query
from nlt_trainer.data.bm25 import unmatched_line
from nlt_trainer.data.candidates import QueryCandidates, mine_candidates, ranking_depth, write_candidates
from nlt_trainer.data.document import Contents
from nlt_trainer.encoder.embedding_cache import EmbeddingCache, remove_cache
from nlt_trainer.encoder.search import nearest
from nlt_trainer.encoder.similarity import ranks_by_cosine
from nlt_trainer.errors import NLTError
from nlt_trainer.files import alone_in
from nlt_trainer.terminal import say
from nlt_trainer.training_arguments import NLTTrainingArguments


def mine(
    model: ModelArguments, data: DataArguments, args: NLTTrainingArguments, *, embeddings: Path | None = None
) -> None:
    """Write the recipe's `candidates` file. If an encoder mines, several processes share the corpus.

    Args:
        model: names the encoder.
        data: names the files.
        args: has the seed and the precision of embeddings.
        embeddings: folder in which an encoder's embeddings stay; `None`: they are removed when the file is written.

    Raises:
        NLTError: another program keeps its embeddings in the same folder, and would remove it.
    """
    state = processes(args)
    collection = load_training_collection(data)
    queries = chosen_queries(collection, data, seed=args.seed)
    encoder = None if data.miner == "bm25" else load_untrained(model)
    folder = embeddings or embeddings_folder(data.candidates)
    embeds = encoder is not None and state.is_main_process
    with alone_in(folder) if embeds else nullcontext():
        candidates = mined(encoder, data, args, collection, queries, embeddings=folder, state=state)
        if candidates is None:
            return
        write_mined(data, candidates, collection)
    say(f"{data.candidates}: {len(candidates)} queries with {data.num_candidates} candidates each ({data.miner})")
    if own := sum(collection.own_document(query.id) is not None for query in queries):
        say(
            f"{own:,} of {len(queries):,} queries have the id of a document, which is taken for the query itself and "
            "is none of its candidates; if it is another text, give the queries ids of their own"
        )
    if (unmatched := sum(not any(row.bm25) for row in candidates)) and data.miner != "encoder":
        whose = "random documents" if data.miner == "bm25" else "the encoder's"
        say(f"{unmatched_line(unmatched, len(candidates))}. Their candidates are {whose}")


def mined(
    encoder: SentenceTransformer | None,
    data: DataArguments,
    args: NLTTrainingArguments,
    collection: Collection,
    queries: Sequence[Query],
    *,
    embeddings: Path,
    state: PartialState,
) -> list[QueryCandidates] | None:
    """Find the candidates of queries by the recipe's miner, with `encoder` unless that is BM25 alone.

    The encoder's embeddings of the corpus are kept in the folder `embeddings`.

    Returns:
        The candidates, in the order of the queries; `None` in all processes except the main one.
    """
    rankings = None
    if encoder is not None:
        bf16 = args.bf16_full_eval
        cache = EmbeddingCache(
            encoder, embeddings, processes=state, workers=ray_workers(args), bf16=bf16, progress="embedding"
        )
        rankings = rank_by_encoder(cache, data, collection, queries, state=state)
    if not state.is_main_process:
        return None
    return mine_candidates(
        collection,
        queries,
        num_candidates=data.num_candidates,
        seed=args.seed,
        encoder_rankings=rankings,
        fused=data.miner == "fused",
    )


def write_mined(data: DataArguments, candidates: Sequence[QueryCandidates], collection: Collection) -> None:
    """Write the recipe's `candidates` file, and remove embeddings that nothing needs any more."""
    write_candidates(data.candidates, candidates, corpus=collection.corpus)
    remove_cache(embeddings_folder(data.candidates))


def rank_by_encoder(
    cache: EmbeddingCache,
    data: DataArguments,
    collection: Collection,
    queries: Sequence[Query],
    *,
    state: PartialState,
) -> list[list[int]] | None:
    """The best documents for each query by an encoder; `None` in all processes except the main one.

    Raises:
        NLTError: the recipe's index does not find what the encoder's similarity ranks first.
    """
    if data.index != "exact" and not ranks_by_cosine(cache.encoder):
        raise NLTError(
            f"index {data.index!r} finds documents by their cosines, and the encoder compares texts by "
            f"{cache.encoder.similarity_fn_name!r}; set index: exact"
        )
    files = cache.document_files(Contents(collection.corpus))
    asked = torch.as_tensor(cache.encode_query([query.text for query in queries]))
    if not state.is_main_process:
        return None
    depth = ranking_depth(data.num_candidates, fused=data.miner == "fused") + 1  # one may be the query itself
    if data.index == "exact":
        parts = (torch.from_numpy(np.load(file)) for file in files)
        return nearest(asked, parts, top_k=depth, similarity=cache.similarity)[1].tolist()
    from nlt_trainer.encoder.approximate_search import approximate  # FAISS is imported only where it is asked for

    return approximate(asked, files, cache=cache, top_k=depth)
