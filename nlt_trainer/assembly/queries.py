"""The stage `make_queries`: make queries of passages by cutting, by the LLM or both, and write a BEIR folder."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from accelerate import PartialState

from nlt_trainer.arguments.beside import embeddings_folder, written_file
from nlt_trainer.arguments.data import DataArguments
from nlt_trainer.arguments.model import ModelArguments
from nlt_trainer.arguments.queries import QueriesArguments
from nlt_trainer.assembly.mining import mined
from nlt_trainer.assembly.parts import load_llm, load_untrained, make_scorer, processes
from nlt_trainer.data.beir import Collection, Query, load_corpus, write_collection
from nlt_trainer.encoder.embedding_cache import remove_cache
from nlt_trainer.errors import DataError, NLTError
from nlt_trainer.files import CORPUS_FILE, check_folder
from nlt_trainer.queries.crop import crop_queries
from nlt_trainer.queries.generation import generate_queries
from nlt_trainer.queries.made import MadeQueries
from nlt_trainer.queries.round_trip import RETRIEVED, returns
from nlt_trainer.queries.sources import split_by_source
from nlt_trainer.queries.writer import QueryWriter
from nlt_trainer.terminal import say
from nlt_trainer.training_arguments import NLTTrainingArguments


def make_queries(
    model: ModelArguments,
    data: DataArguments,
    args: NLTTrainingArguments,
    queries: QueriesArguments,
    *,
    held_out: int | None = None,
) -> None:
    """Write the recipe's `collection`: the passages of `corpus`, queries that were made of them, and two splits.

    Args:
        model: names the models that write queries and check them.
        data: names the collection.
        args: has the seed.
        queries: says how the queries are made.
        held_out: number of queries to hold out; `None` takes the share that `queries` has.

    Raises:
        DataError: the corpus is malformed or has fewer than 2 passages.
        NLTError: there are several processes, or too few queries can be made.
    """
    state = processes(args)
    if state.num_processes > 1:
        raise NLTError(f"{state.num_processes} processes were started, and make_queries works in one; start it alone")
    out = Path(data.collection)
    check_folder(out, stage="nlt make_queries")
    corpus = dict(load_corpus(queries.corpus).items())
    if len(corpus) < 2:
        raise DataError(
            Path(queries.corpus) / CORPUS_FILE, "has one passage, which every query would find; give more documents"
        )
    made = MadeQueries(corpus, {}, {})
    if queries.kind != "llm":
        wanted = queries.num_queries if queries.kind == "crop" else queries.num_queries // 2
        made = crop_queries(corpus, num_queries=wanted, titles=queries.crop_titles, seed=args.seed)
    if queries.kind != "crop":
        written = _written(model, data, args, queries, made, state=state)
        made = MadeQueries(made.corpus, made.queries | written.queries, made.sources | written.sources)
    titles = {document.id: document.title for document in corpus.values()}
    share = queries.held_out_share
    qrels = split_by_source(made.sources, titles=titles, held_out_share=share, held_out=held_out, seed=args.seed)
    write_collection(
        out, corpus=made.corpus.values(), queries=made.queries.values(), qrels=qrels, stage="nlt make_queries"
    )
    kinds = Counter(query_id.partition(":")[0] for query_id in made.queries)
    say(
        f"{out}: {len(made.corpus)} passages, {len(made.queries)} queries "
        f"({', '.join(f'{kind} {count}' for kind, count in kinds.items())}); "
        f"{', '.join(f'{split} {len(judged)}' for split, judged in qrels.items())}"
    )


def _written(
    model: ModelArguments,
    data: DataArguments,
    args: NLTTrainingArguments,
    queries: QueriesArguments,
    made: MadeQueries,
    *,
    state: PartialState,
) -> MadeQueries:
    """Let the recipe's LLM write the queries that are still missing, about passages as they now are."""
    lm, corpus, out = load_llm(model), made.corpus, Path(data.collection)
    scorer = make_scorer(lm, data, target="query")
    collection = Collection(out.name, out, corpus, {}, {})
    minable = sum(bool(document.content) for document in corpus.values())
    retrieval = dataclasses.replace(data, num_candidates=min(RETRIEVED, minable))
    folder = embeddings_folder(out)
    encoder = None if data.miner == "bm25" else load_untrained(model)

    def keep(asked: Sequence[Query], sources: Sequence[str]) -> Sequence[bool]:
        if not asked:
            return []
        candidates = mined(encoder, retrieval, args, collection, asked, embeddings=folder, state=state)
        return returns(candidates or [], sources, corpus, scorer=scorer, by_words=data.miner == "bm25")

    writer = QueryWriter(
        lm,
        max_document_tokens=data.max_document_tokens,
        batch_size=queries.writing_batch,
        seed=args.seed,
        file=written_file(out),
    )
    missing = queries.num_queries - len(made.queries)
    written, counts = generate_queries(writer, corpus, num_queries=missing, keep=keep, seed=args.seed)
    remove_cache(folder)
    say(_told(counts))
    return written


def _told(counts: Mapping[str, Counter[str]]) -> str:
    """How many texts of each kind were written, were queries, and led back to their passage."""
    lines = ["written, of these queries, of these leading back to their passage:"]
    return "\n".join([*lines, *(f"  {k}: {c['generated']}, {c['cleaned']}, {c['kept']}" for k, c in counts.items())])
