"""`nlt adapt`: from a folder of documents to an encoder, which is kept only if it finds more than the one before."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer

from nlt_trainer.adapt.collection import (
    DEV,
    HELD_OUT,
    check_made,
    judge_held_out,
    judged_queries,
    mostly_code,
    write_dev,
    write_query_collection,
)
from nlt_trainer.adapt.decision import (
    ENOUGH,
    ENOUGH_BY_LLM,
    SURE,
    advice_where_nothing_is_gained,
    as_it_was,
    decide,
    of_kind,
)
from nlt_trainer.adapt.length import CUT, LENGTHS, best_length, lengths_tried
from nlt_trainer.adapt.settings import (
    Adaptation,
    blocks,
    check_inputs,
    chooses,
    inputs,
    of_mining,
    of_queries,
    of_scoring,
    of_training,
    prepared,
    with_length,
    write_recipe,
)
from nlt_trainer.arguments.adapt import AUTO, AdaptArguments
from nlt_trainer.arguments.data import DataArguments
from nlt_trainer.arguments.documents import DocumentArguments
from nlt_trainer.arguments.model import ModelArguments
from nlt_trainer.arguments.queries import QueriesArguments
from nlt_trainer.assembly.advice import take_advice
from nlt_trainer.assembly.corpus import corpus
from nlt_trainer.assembly.mining import mine
from nlt_trainer.assembly.parts import load_start, load_untrained, processes, ray_workers, reads_whole_texts
from nlt_trainer.assembly.queries import make_queries
from nlt_trainer.assembly.scoring import score
from nlt_trainer.assembly.training import check_options, train
from nlt_trainer.choices import QueryOrigin
from nlt_trainer.content import encoder_content
from nlt_trainer.data.beir import load_collection, load_corpus
from nlt_trainer.data.bm25 import bm25_rankings
from nlt_trainer.data.query_file import read_query_file
from nlt_trainer.documents.corpus import REPORT_FILE
from nlt_trainer.documents.report import read_report
from nlt_trainer.encoder.embedding_cache import EmbeddingCache
from nlt_trainer.encoder.loading import load_encoder
from nlt_trainer.errors import NLTError
from nlt_trainer.evaluation.evaluator import search
from nlt_trainer.evaluation.folder_task import TOP_K
from nlt_trainer.files import check_folder
from nlt_trainer.release.card import write_card
from nlt_trainer.release.export import check_saved, save_trained
from nlt_trainer.report.page import write_report
from nlt_trainer.run.results import Result, as_results, results_table, write_results
from nlt_trainer.run.resume import is_another_training, run_settings
from nlt_trainer.run.stages import Stage, run_stages
from nlt_trainer.terminal import say
from nlt_trainer.text_files import read_json, write_json
from nlt_trainer.training_arguments import NLTTrainingArguments

NO_GAIN = 3
"""Exit code where the start is kept."""


def adapt(model: ModelArguments, data: DataArguments, args: NLTTrainingArguments, options: AdaptArguments) -> int:
    """Run all stages that are not done; returns the exit code, 0 or `NO_GAIN`.

    Raises:
        NLTError: an option is refused, or documents or queries are too few.
        DataError: a file is malformed.
    """
    if processes(args).num_processes > 1:
        raise NLTError(
            "adapt runs in one process; run it without accelerate launch, or run the stages one by one with the "
            "recipe that it writes, which take several processes"
        )
    check_inputs(prepared(model, data, args, options))
    model = with_lengths_of_encoder(model)
    work = prepared(model, data, args, options)
    check_folder(work.run.encoder, stage="nlt train")
    check_options(*blocks(work))  # training comes last, and would refuse these only when the LLM has read everything
    load_start(model)
    data = work.data
    mining, scoring = of_mining(work), of_scoring(work)
    if not options.makes_queries:
        read_query_file(options.queries)
    check_same_documents(work)
    write_recipe(work)  # the length that an earlier call has chosen may be another encoder's
    write_documents(work)
    work = with_origin(work)
    both, limits = f"{mining} {scoring}", f"{LENGTHS} {CUT} {SURE}"
    queries = of_queries(work, both)
    stages = [
        Stage("queries", lambda: write_collection_of(work), Path(data.collection), queries, inputs(work)),
        *([] if options.makes_queries else [Stage("judge", lambda: judge(work), Path(work.judging.gains), both)]),
        *([] if model.max_seq_length else [Stage("length", lambda: choose_length(work), work.length_file, limits)]),
        Stage("mine", lambda: mine_candidates(work), Path(data.candidates), mining),
        Stage("score", lambda: score(*blocks(with_length(work))), Path(data.gains), scoring),
        Stage("train", lambda: train_encoder(work), work.run.training_file, of_training(work)),
        Stage("decide", lambda: write_decision(work), work.run.decision_file, f"{ENOUGH} {ENOUGH_BY_LLM} {SURE}"),
        Stage("keep", lambda: keep(work), work.run.page_file),
    ]
    seconds = run_stages(stages, work.run.folder / "stamps")
    return conclude(work, seconds)


def with_lengths_of_encoder(model: ModelArguments) -> ModelArguments:
    """The same without `train_max_length`, which the defaults set, where the encoder reads whole texts."""
    if model.train_max_length is None or not reads_whole_texts(load_untrained(model)):
        return model
    say(f"{model.encoder} is a table of embeddings, which reads whole texts in training, too")
    return dataclasses.replace(model, train_max_length=None)


def with_origin(work: Adaptation) -> Adaptation:
    """The same with what makes the queries, where the documents decide it."""
    if work.options.queries != AUTO:
        return work
    code = mostly_code(load_corpus(work.documents).values())
    options = work.options.with_origin(code=code)
    told = (
        "Most passages are source code, so the LLM writes the queries" if code else "Queries are cut out of passages"
    )
    say(f"{told}; --queries names another way, or a file with those that people have typed")
    return dataclasses.replace(work, options=options)


def check_same_documents(work: Adaptation) -> None:
    """Refuse to write over an encoder that was adapted to other documents, whose search reads these documents.

    Raises:
        NLTError: the output folder belongs to another folder of documents; names both.
    """
    report = read_report(work.documents / REPORT_FILE) if work.run.encoder.is_dir() else None
    if report and Path(report.documents).resolve() != Path(work.options.documents).resolve():
        raise NLTError(
            f"{work.run.folder} holds what was made of {report.documents}, and documents is {work.options.documents}; "
            "name another output, or remove that folder"
        )


def write_documents(work: Adaptation) -> None:
    """Write the documents' passages as a corpus; this takes little time where they have not changed."""
    options = work.options
    queries = None if options.makes_queries else Path(options.queries)
    corpus(DocumentArguments(documents=options.documents, corpus=str(work.documents)), queries=queries)


def write_collection_of(work: Adaptation) -> None:
    """Write the collection from the documents and from given or made queries."""
    options = work.options
    number, held_out = options.numbers
    if options.makes_queries:
        kind: QueryOrigin = options.queries  # type: ignore[assignment]  # makes_queries has checked the word
        made = QueriesArguments(str(work.documents), kind=kind, num_queries=number)
        make_queries(*blocks(work), made, held_out=held_out)
        check_made(Path(work.data.collection))
        return
    write_query_collection(
        Path(work.data.collection),
        list(load_corpus(work.documents).values()),
        read_query_file(work.options.queries),
        held_out=held_out,
        most=number,
        seed=work.args.seed,
    )


def mine_candidates(work: Adaptation) -> None:
    """Find candidates for the queries to train on, where the encoder reads as much as was chosen."""
    mine(*blocks(with_length(work)), embeddings=work.embeddings)


def judge(work: Adaptation) -> None:
    """Let the LLM judge the held-out queries, of which nobody knows what is relevant to them."""
    mine(work.model, work.judging, work.args, embeddings=work.embeddings)
    score(work.model, work.judging, work.args)
    judge_held_out(work.model, work.judging)


def choose_length(work: Adaptation) -> None:
    """Choose how many tokens of a passage the encoder reads, by what the start finds for the held-out queries."""
    start, bf16 = load_untrained(work.model), work.args.bf16_full_eval
    tried = lengths_tried(
        start, Path(work.data.collection), embeddings=work.embeddings, bf16=bf16, workers=ray_workers(work.args)
    )
    chosen = best_length(tried)
    for length in tried[1:]:
        say(
            f"Of a passage the start reads {tried[0].tokens} tokens and has nDCG@10 {tried[0].ndcg_at_10:.3f}; with "
            f"{length.tokens} it has {length.ndcg_at_10:.3f} (p = {length.p:.2g})"
        )
    if chosen is not None:
        say(f"From here on the encoder reads {chosen.tokens} tokens; --max_seq_length {tried[0].tokens} prevents it")
    choice = {"max_seq_length": chosen and chosen.tokens, "tried": [dataclasses.asdict(length) for length in tried]}
    write_json(work.length_file, choice)


def train_encoder(work: Adaptation) -> None:
    """Train on from the last checkpoint; checkpoints and report of another training are removed."""
    work = with_length(work)
    write_recipe(work)
    # training takes the advice into a copy, so that the recipe that is written last keeps `auto`
    work = dataclasses.replace(work, args=dataclasses.replace(work.args))
    take_advice(work.args, work.data)
    run = work.run
    if chooses(work.args):
        write_dev(Path(work.data.collection))
    if is_another_training(run, run_settings(*blocks(work))):
        for checkpoint in run.checkpoints().values():
            shutil.rmtree(checkpoint)
        run.training_file.unlink(missing_ok=True)
    run.decision_file.unlink(missing_ok=True)  # a later stage decides again
    train(*blocks(work))


def trained_encoder(work: Adaptation, start: SentenceTransformer) -> SentenceTransformer:
    """Load the trained encoder; where an earlier call has put the start in its place, the last checkpoint has it."""
    trained = load_encoder(str(work.run.encoder))
    if encoder_content(trained) != encoder_content(start):
        return trained
    train_encoder(work)
    return load_encoder(str(work.run.encoder))


def write_decision(work: Adaptation) -> None:
    """Rank the corpus for the judged held-out queries by BM25, the start and the trained encoder, and decide."""
    folder = Path(work.data.collection)
    collection, qrels = load_collection(folder, splits=[]), judged_queries(folder, HELD_OUT)
    if chooses(work.args):
        dev = judged_queries(folder, DEV)
        qrels = {query: grades for query, grades in qrels.items() if query not in dev}
    queries = [collection.queries[query] for query in qrels]
    model = with_length(work).model
    start = load_untrained(model)
    encoders = {"start": start, "adapted": trained_encoder(work, start)}
    lengths = None
    if model.max_seq_length is not None and work.model.max_seq_length is None:
        own = load_untrained(work.model)
        lengths = model.max_seq_length, int(own.max_seq_length or 0)
        encoders = {as_it_was(lengths[1]): own, **encoders}
    rankings = {"bm25": bm25_rankings(collection, queries, top_k=TOP_K)}
    cache = partial(EmbeddingCache, workers=ray_workers(work.args), bf16=work.args.bf16_full_eval)
    rankings |= {
        name: search(cache(encoder, work.embeddings), collection, queries) for name, encoder in encoders.items()
    }
    name = Path(work.options.documents).resolve().name
    made = work.options.makes_queries
    advice = advice_where_nothing_is_gained(
        made=made,
        target=work.data.target,
        answered=any(query.answer for query in collection.queries.values()),
    )
    found = decide(
        rankings,
        qrels,
        collection=name,
        split=HELD_OUT,
        cost=work.run.cost,
        judged_by_llm=not made,
        asked=of_kind(work.options.queries),
        advice=advice,
        lengths=lengths,
    )
    write_results(work.run.results_file, found.rows)
    write_json(work.run.decision_file, dataclasses.asdict(found), checksum=True)


def keep(work: Adaptation) -> None:
    """Leave the encoder that is kept as `OUT/encoder`, with its card, and write the report."""
    decision = read_json(work.run.decision_file)
    if decision["kept"] == "start":
        save_trained(work.run, load_untrained(with_length(work).model), merge=False, keep_adapter=False)
        shutil.rmtree(work.run.adapter, ignore_errors=True)  # of the encoder that is not kept
        check_saved(work.run)
    write_card(work.run, rows_of(work, decision))
    write_report(work.run.folder, embeddings=work.embeddings)


def rows_of(work: Adaptation, decision: Mapping[str, Any]) -> list[Result]:
    """The results by which a decision was made; `nlt evaluate` may have replaced the run's results since."""
    return as_results(decision["rows"], work.run.decision_file)


def conclude(work: Adaptation, seconds: Mapping[str, float]) -> int:
    """Complete the recipe; print the table, the verdict and what to do with the encoder; return the exit code."""
    write_recipe(with_length(work))
    decision = read_json(work.run.decision_file)
    run = work.run
    say(f"\n{results_table(rows_of(work, decision))}\n")
    say(decision["sentence"])
    say(f"It took {sum(seconds.values()) / 60:.0f} minutes. Report: {run.page_file}")
    weight = decision["bm25_weight"]
    mixed = f" --bm25_weight {weight}" if weight else ""
    say(f'Use it: SentenceTransformer("{run.encoder}")')
    say(f"Search: nlt search --encoder {run.encoder} --corpus {work.documents}{mixed}")
    return NO_GAIN if decision["kept"] == "start" else 0
