"""`nlt adapt`: from a folder of documents to an encoder, which is kept only if it finds more than the one before."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path

from nlt_trainer.adapt.collection import HELD_OUT, TRAIN, judge_held_out, write_query_collection
from nlt_trainer.adapt.decision import decide
from nlt_trainer.arguments.adapt import AdaptArguments
from nlt_trainer.arguments.data import DataArguments
from nlt_trainer.arguments.documents import DocumentArguments
from nlt_trainer.arguments.inherited import DECIDING
from nlt_trainer.arguments.model import ModelArguments, start_options
from nlt_trainer.arguments.option import options_deciding
from nlt_trainer.arguments.queries import QueriesArguments
from nlt_trainer.arguments.trainer import TrainerArguments
from nlt_trainer.assembly.advice import take_advice
from nlt_trainer.assembly.corpus import corpus
from nlt_trainer.assembly.mining import mine
from nlt_trainer.assembly.parts import load_untrained, processes
from nlt_trainer.assembly.queries import make_queries
from nlt_trainer.assembly.scoring import score
from nlt_trainer.assembly.training import train
from nlt_trainer.choices import QueryOrigin
from nlt_trainer.data.beir import CORPUS_FILE, load_collection, load_corpus
from nlt_trainer.data.bm25 import bm25_rankings
from nlt_trainer.data.query_file import read_query_file
from nlt_trainer.encoder.embedding_cache import EmbeddingCache
from nlt_trainer.encoder.loading import load_encoder
from nlt_trainer.errors import NLTError
from nlt_trainer.evaluation.evaluator import search
from nlt_trainer.evaluation.folder_task import TOP_K
from nlt_trainer.files import atomic_write, check_folder, read_json, write_json
from nlt_trainer.release.card import write_card
from nlt_trainer.release.card_rendering import dump_recipe
from nlt_trainer.release.export import save_trained
from nlt_trainer.report.page import write_report
from nlt_trainer.run.folder import Run, changed_settings
from nlt_trainer.run.results import read_results, results_table, write_results
from nlt_trainer.run.stages import Stage, run_stages
from nlt_trainer.terminal import say
from nlt_trainer.training_arguments import NLTTrainingArguments

NO_GAIN = 3
"""Exit code where the start is kept."""

OWN_KEYS = ("collection", "train_split", "candidates", "gains", "score_cache", "dev_split", "max_queries")
"""Keys of the data block that `nlt adapt` sets itself."""

FURTHER_KEYS = ("output_dir", "use_cpu", "eval_strategy", "logging_steps", "save_strategy", "save_total_limit")
"""Keys of the library in the trainer block that the written recipe has beside those that decide the training."""


@dataclasses.dataclass(frozen=True)
class Adaptation:
    """The blocks of the recipe, with the files that `nlt adapt` writes in its output folder.

    Args:
        model: block `model:`.
        data: block `data:`.
        args: block `trainer:`.
        options: block `adapt:`.
    """

    model: ModelArguments
    data: DataArguments
    args: NLTTrainingArguments
    options: AdaptArguments

    @property
    def run(self) -> Run:
        return Run(self.options.output)

    @property
    def documents(self) -> Path:
        """BEIR folder of the documents alone, as a search reads them."""
        return self.run.folder / "documents"

    @property
    def embeddings(self) -> Path:
        """Embeddings of the corpus, which mining and the decision share."""
        return self.run.folder / "embeddings"

    @property
    def judging(self) -> DataArguments:
        """The data block with which the held-out queries get candidates and gains."""
        folder = self.run.folder / HELD_OUT
        return dataclasses.replace(
            self.data,
            train_split=HELD_OUT,
            candidates=str(folder / "candidates.jsonl"),
            gains=str(folder / "gains.jsonl"),
        )


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
    work = prepared(model, data, args, options)
    check_folder(work.run.encoder)
    recipe, data, prior = write_recipe(work), work.data, f"{args.prior} {args.prior_weight}"
    write_documents(work)
    stages = [
        Stage("queries", lambda: write_collection_of(work), Path(data.collection), of_queries(work), inputs(work)),
        Stage("mine", lambda: mine(*blocks(work), embeddings=work.embeddings), Path(data.candidates), of_mining(work)),
        Stage("score", lambda: score(*blocks(work)), Path(data.gains), of_scoring(work)),
        *([] if options.makes_queries else [Stage("judge", lambda: judge(work), Path(work.judging.gains), prior)]),
        Stage(
            "train",
            lambda: train(*blocks(work)),
            work.run.training_file,
            recipe,
            forget=lambda: forget_training(work.run),
        ),
        Stage("decide", lambda: write_decision(work), work.run.decision_file),
        Stage("keep", lambda: keep(work), work.run.page_file),
    ]
    seconds = run_stages(stages, work.run.folder / "stamps")
    return conclude(work, seconds)


def prepared(
    model: ModelArguments, data: DataArguments, args: NLTTrainingArguments, options: AdaptArguments
) -> Adaptation:
    """Point the recipe at the files in the output folder.

    Raises:
        NLTError: the recipe sets a key that `nlt adapt` sets itself.
    """
    default = DataArguments()
    if given := [key for key in OWN_KEYS if getattr(data, key) != getattr(default, key)]:
        raise NLTError(f"{given[0]} is set, and adapt writes its own files into {options.output}; leave it out")
    folder = Path(options.output)
    args.output_dir = str(folder)
    data = dataclasses.replace(
        data,
        collection=str(folder / "collection"),
        candidates=str(folder / "candidates.jsonl"),
        gains=str(folder / "gains.jsonl"),
        score_cache=str(folder / "scores"),
        train_split=TRAIN,
        dev_split=HELD_OUT,
        eval_split=HELD_OUT,
    )
    return Adaptation(model, data, args, options)


def blocks(work: Adaptation) -> tuple[ModelArguments, DataArguments, NLTTrainingArguments]:
    """The blocks that the stages take."""
    return work.model, work.data, work.args


def write_recipe(work: Adaptation) -> str:
    """Write the recipe with which each stage can be run alone, and return it."""
    values = work.args.to_dict()
    names = [*options_deciding("training", "result", "nothing", of=TrainerArguments), *sorted(DECIDING), *FURTHER_KEYS]
    settings = {
        "model": dataclasses.asdict(work.model),
        "data": dataclasses.asdict(work.data),
        "trainer": {name: values[name] for name in names if name in values},
    }
    changed = changed_settings(settings)
    recipe = {block: {k: v for k, v in values.items() if k in changed} for block, values in settings.items()}
    text = dump_recipe(recipe)
    with atomic_write(work.run.folder / "recipe.yaml") as handle:
        handle.write(f"# nlt train --config {work.run.folder / 'recipe.yaml'}\n{text}")
    return text


def of_queries(work: Adaptation) -> str:
    """The settings on which the queries depend."""
    options = work.options
    made = of_scoring(work) if options.queries in ("llm", "both") else ""
    return f"{options.queries} {options.num_queries} {options.held_out} {work.args.seed} {made}"


def of_mining(work: Adaptation) -> str:
    """The settings on which the candidates depend."""
    encoder = {"encoder": work.model.encoder} | start_options(vars(work.model))
    return f"{encoder} {work.data.miner} {work.data.num_candidates} {work.args.seed}"


def of_scoring(work: Adaptation) -> str:
    """The settings on which the gains depend."""
    parts = (work.model, work.data)
    return str([{name: getattr(part, name) for name in options_deciding("llm", of=type(part))} for part in parts])


def inputs(work: Adaptation) -> list[Path]:
    """The files on which the collection depends."""
    files = [] if work.options.makes_queries else [Path(work.options.queries)]
    return [work.documents / CORPUS_FILE, *files]


def write_documents(work: Adaptation) -> None:
    """Write the documents' passages as a corpus; this takes little time where they have not changed."""
    options = work.options
    queries = None if options.makes_queries else Path(options.queries)
    corpus(DocumentArguments(documents=options.documents, corpus=str(work.documents)), queries=queries)


def write_collection_of(work: Adaptation) -> None:
    """Write the collection from the documents and from given or made queries."""
    options = work.options
    if options.makes_queries:
        number = options.num_queries
        kind: QueryOrigin = options.queries  # type: ignore[assignment]  # makes_queries has checked the word
        share = options.held_out / number
        made = QueriesArguments(str(work.documents), kind=kind, num_queries=number, held_out_share=share)
        make_queries(*blocks(work), made)
        return
    write_query_collection(
        Path(work.data.collection),
        list(load_corpus(work.documents).values()),
        read_query_file(work.options.queries),
        held_out=work.options.held_out,
        most=work.options.num_queries,
        seed=work.args.seed,
    )


def judge(work: Adaptation) -> None:
    """Let the LLM judge the held-out queries, of which nobody knows what is relevant to them."""
    mine(work.model, work.judging, work.args, embeddings=work.embeddings)
    score(work.model, work.judging, work.args)
    args = dataclasses.replace(work.args)
    take_advice(args, work.data)
    judge_held_out(
        Path(work.data.collection),
        candidates=Path(work.judging.candidates),
        gains=Path(work.judging.gains),
        prior=args.prior,
        prior_weight=args.number("prior_weight"),
    )


def forget_training(run: Run) -> None:
    """Remove the checkpoints and the report of a training with other settings."""
    for checkpoint in run.checkpoints().values():
        shutil.rmtree(checkpoint)
    run.training_file.unlink(missing_ok=True)


def write_decision(work: Adaptation) -> None:
    """Rank the corpus for the judged held-out queries by BM25, the start and the trained encoder, and decide."""
    collection = load_collection(work.data.collection, splits=[HELD_OUT])
    qrels = {query: grades for query, grades in collection.split_qrels(HELD_OUT).items() if any(grades.values())}
    queries = [collection.queries[query] for query in qrels]
    start, adapted = load_untrained(work.model), load_encoder(str(work.run.encoder))
    rankings = {
        "bm25": bm25_rankings(collection, queries, top_k=TOP_K),
        "start": search(EmbeddingCache(start, work.embeddings), collection, queries),
        "adapted": search(EmbeddingCache(adapted, work.embeddings), collection, queries),
    }
    name = Path(work.options.documents).resolve().name
    made = work.options.makes_queries
    found = decide(rankings, qrels, collection=name, split=HELD_OUT, cost=work.run.cost, made=made)
    write_results(work.run.results_file, found.rows)
    write_json(work.run.decision_file, {k: v for k, v in vars(found).items() if k != "rows"})


def keep(work: Adaptation) -> None:
    """Leave the encoder that is kept as `OUT/encoder`, with its card, and write the report."""
    if read_json(work.run.decision_file)["kept"] == "start":
        save_trained(work.run, load_untrained(work.model), merge=False, keep_adapter=False)
    write_card(work.run, read_results(work.run.results_file))
    write_report(work.run.folder, embeddings=work.embeddings)


def conclude(work: Adaptation, seconds: Mapping[str, float]) -> int:
    """Print the table, the verdict and what to do with the encoder; returns the exit code."""
    decision = read_json(work.run.decision_file)
    results, run = read_results(work.run.results_file), work.run
    say(f"\n{results_table(results)}\n")
    say(decision["sentence"])
    say(f"It took {sum(seconds.values()) / 60:.0f} minutes. Report: {run.page_file}")
    weight = decision["bm25_weight"]
    mixed = f" --bm25_weight {weight}" if weight else ""
    say(f'Use it: SentenceTransformer("{run.encoder}")')
    say(f"Search: nlt search --encoder {run.encoder} --corpus {work.documents}{mixed}")
    return NO_GAIN if decision["kept"] == "start" else 0
