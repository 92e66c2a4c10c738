"""The stage `train`: train an encoder with a recipe's objective and save it as `<output_dir>/encoder`."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset
from sentence_transformers import SentenceTransformer
from torch import Tensor
from transformers import IntervalStrategy, TrainerState, set_seed

from nlt_trainer.arguments.data import DataArguments
from nlt_trainer.arguments.model import ModelArguments
from nlt_trainer.assembly.advice import take_advice
from nlt_trainer.assembly.gains import make_dataset
from nlt_trainer.assembly.losses import Parts, make_collator, make_loss
from nlt_trainer.assembly.parts import (
    check_batches,
    load_candidates,
    load_llm,
    load_start,
    load_training_collection,
    peak_memory,
    processes,
    target_of,
)
from nlt_trainer.assembly.refresh import Refresh
from nlt_trainer.assembly.start_share import average_with_start, share_line
from nlt_trainer.data.beir import Collection, load_collection
from nlt_trainer.data.collator import NLTCollator
from nlt_trainer.data.current_rows import CurrentRows
from nlt_trainer.data.fewer_documents import with_fewer_documents
from nlt_trainer.data.gains import read_audit
from nlt_trainer.data.known_queries import count_known, query_keys, write_query_keys
from nlt_trainer.encoder.averaging import start_weights
from nlt_trainer.errors import NLTError
from nlt_trainer.evaluation.evaluator import RetrievalEvaluator
from nlt_trainer.evaluation.folder_task import METRICS
from nlt_trainer.files import check_folder
from nlt_trainer.injection.heads import HeadSet
from nlt_trainer.release.card import encoder_facts, prepare_card, write_card
from nlt_trainer.release.export import check_saved, save_trained
from nlt_trainer.run.checkpoints import check_best
from nlt_trainer.run.early_stopping import EarlyStopping
from nlt_trainer.run.folder import CHECKPOINT, Run
from nlt_trainer.run.progress import dev_gain
from nlt_trainer.run.resume import (
    AdapterCallback,
    CostCallback,
    logged_cost,
    run_settings,
    start_checkpoint,
)
from nlt_trainer.run.termination import CheckpointOnTermination
from nlt_trainer.run.trained_queries import trained_queries_of
from nlt_trainer.terminal import say
from nlt_trainer.text_files import read_json, write_json
from nlt_trainer.trainer import NLTTrainer
from nlt_trainer.training_arguments import NLTTrainingArguments

logger = logging.getLogger(__name__)


def train(model: ModelArguments, data: DataArguments, args: NLTTrainingArguments) -> None:
    """Train the encoder, save it and check that it is loaded as it was in the trainer; prints its folder."""
    processes(args)
    run = Run(str(args.output_dir))
    for folder in (run.encoder, *([run.adapter] if model.keep_adapter else [])):
        check_folder(folder, stage="nlt train")
    collection = load_training_collection(data)
    candidates = load_candidates(data, collection)
    take_advice(args, data)
    settings = run_settings(model, data, args)
    checkpoint = start_checkpoint(args, settings)
    before = cost_before_training(model, data, args)
    check_options(model, data, args)
    target = target_of(data, candidates) if args.reads_llm or args.reads_gains(data) else None
    dataset = make_dataset(model, data, args, collection=collection, candidates=candidates)
    set_seed(args.seed)  # the random start of an adapter
    backbone = load_llm(model) if model.shared_backbone else None
    encoder = load_start(model, backbone)
    start = start_weights(encoder) if args.average_with_start else {}
    parts = Parts(encoder, model, data, args, candidates, backbone)
    trainer, collator = make_trainer(parts, dataset, checkpoint=checkpoint, collection=collection)
    truncated = collator.truncated_documents(dataset)  # also finds prompts that do not fit, before training
    left_out = check_batches(len(dataset), args)
    trained_on = [*query_keys(dataset["query"]), *(trained_queries_of(model.encoder) or ())]
    if trainer.is_world_process_zero():
        write_json(run.settings_file, settings, checksum=True)
        write_query_keys(run.trained_queries_file, trained_on)
        if left_out:
            say(f"Each epoch leaves out {left_out} of {len(dataset)} rows, which do not fill a batch")
    if model.shared_backbone and trainer.is_sharded:
        raise NLTError("shared_backbone: the LLM would be divided with the encoder; leave it or the sharding out")
    trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.is_sharded:
        encoder = trainer.model = whole_encoder(trainer, model)
    if trainer.is_world_process_zero():
        # with bf16 the trainer lets the encoder compute in bfloat16, in which evaluations would go on
        trainer.accelerator.unwrap_model(encoder, keep_fp32_wrapper=False)
        saved = choose_weights(trainer, start)
        finished = was_finished(run, checkpoint, steps=trainer.state.global_step, saved=saved)
        if not finished or run.decision_file.is_file():
            forget_results(run)
        save_trained(run, encoder, merge=model.merge_lora, keep_adapter=model.keep_adapter)
        if finished:
            write_card(run, run.results)
            check_saved(run)
            say(f"{run.encoder}: all {trainer.state.global_step} steps were done before")
            return
        report = {
            "objective": args.objective,
            "target": target,
            "reads_gains": args.reads_gains(data),
            "scorer": read_audit(data.gains).get("scorer") if args.reads_gains(data) else None,
            "seed": args.seed,
            "steps": trainer.state.global_step,
            "queries": len(dataset),
            "train_seconds": round(logged_cost(trainer.state, "train_seconds") + before["seconds"], 1),
            "lm_tokens": int(logged_cost(trainer.state, "lm_tokens")) + before["lm_tokens"],
            **peak_memory(),
            **({"truncated_documents": round(truncated, 4)} if args.reads_llm else {}),
            "encoder": encoder_facts(encoder),
            **saved,
            "log": trainer.state.log_history,
        }
        write_json(run.training_file, report, checksum=True)
        write_card(run)
        check_saved(run)
        if truncated:
            say(f"{truncated:.0%} of the documents were cut to {data.max_document_tokens} tokens for the LLM")
        say(last_line(run, trainer.state, data))


def whole_encoder(trainer: NLTTrainer, model: ModelArguments) -> SentenceTransformer:
    """The start anew, in the main process with the weights of an encoder that was trained in parts.

    All processes have to call it, before any of them ends.
    """
    weights, encoder = trainer.whole_weights(), load_start(model, None)
    if weights:
        encoder.load_state_dict(weights)
    prepare_card(encoder, name=f"{Path(str(trainer.args.output_dir)).name} encoder")
    return encoder


def choose_weights(trainer: NLTTrainer, start: Mapping[str, Tensor]) -> dict[str, Any]:
    """Average the trained encoder with its start where the recipe says so.

    Args:
        trainer: after training, with the best weights where the recipe asks for them.
        start: the weights before training; empty where nothing is averaged.

    Returns:
        `best_step`, whose weights were taken if the best ones were, and `average`, as `average_with_start` returns it.

    Raises:
        NLTError: the best checkpoint is not whole.
    """
    args, evaluator = trainer.args, trainer.evaluator
    best = None
    if args.load_best_model_at_end:
        check_best(trainer.state)
        checkpoint = trainer.state.best_model_checkpoint
        best = int(Path(checkpoint).name.removeprefix(CHECKPOINT)) if checkpoint else None
    if not start:
        return {"best_step": best, "average": None}
    assert isinstance(evaluator, RetrievalEvaluator | None)
    average = average_with_start(trainer.model, start, args.average_with_start, evaluator=evaluator)
    say(share_line(average, evaluator.split if evaluator else None))
    return {"best_step": best, "average": average}


def last_line(run: Run, state: TrainerState, data: DataArguments) -> str:
    """Say what was trained, what the dev queries gained where the log knows it, and what to run next."""
    step, average = run.report["best_step"] or state.global_step, run.report["average"] or {"dev": []}
    now = next((row["ndcg_at_10"] for row in average["dev"] if row["share"] == average["share"]), None)
    parts = [
        f"{run.encoder}: trained with {run.report['objective']}",
        dev_gain(state, data.dev_split, step=step, now=now),
        "`nlt evaluate` with the same recipe says what was gained",
    ]
    return "; ".join(part for part in parts if part)


def was_finished(run: Run, checkpoint: str | None, *, steps: int, saved: Mapping[str, Any]) -> bool:
    """Whether all steps were done before, so that this run only read the last checkpoint, and saves the same weights.

    The earlier report, which has the whole cost, is then still correct.
    """
    done = checkpoint is not None and Path(checkpoint) == run.checkpoint(steps)
    return done and run.training_file.is_file() and _which(run.report) == _which(saved)


def _which(saved: Mapping[str, Any]) -> tuple[int | None, float]:
    """Best step and share of the start in a report; one of an earlier version has neither."""
    return saved.get("best_step"), (saved.get("average") or {"share": 0.0})["share"]


def forget_results(run: Run) -> None:
    """Remove the results and the decision that were written for an encoder that is about to be replaced.

    The encoder that `nlt adapt` has kept may be the start, while this run has trained the adapted one.
    """
    if run.encoder.is_dir():
        if run.decision_file.is_file():
            say(f"{run.decision_file} was about another encoder and is removed; run `nlt adapt` again to decide")
        run.results_file.unlink(missing_ok=True)
        run.decision_file.unlink(missing_ok=True)
        shutil.rmtree(run.evaluation, ignore_errors=True)


def make_trainer(
    parts: Parts, dataset: Dataset, *, checkpoint: str | None = None, collection: Collection | None = None
) -> tuple[NLTTrainer, NLTCollator]:
    """Make the recipe's trainer, which will continue from `checkpoint`, and its collator.

    Without the collection, in which new candidates are found, the candidates stay although the recipe has `refresh`.
    """
    encoder, args = parts.encoder, parts.args
    prepare_card(encoder, name=f"{Path(str(args.output_dir)).name} encoder")
    loss = make_loss(parts)
    collator = make_collator(parts, loss)
    rows = CurrentRows(collator, dataset)
    refreshes = [Refresh(parts, collection, rows, checkpoint=checkpoint)] if args.refresh and collection else []
    trainer = NLTTrainer(
        encoder,
        args,
        train_dataset=rows.numbered() if refreshes else dataset,
        loss=loss,
        data_collator=rows if refreshes else collator,  # type: ignore[arg-type]  # any callable
        evaluator=dev_evaluator(parts.data, seed=args.seed, trained=dataset["query"]),
        callbacks=[
            CheckpointOnTermination(),
            *refreshes,
            CostCallback(loss, *refreshes),
            AdapterCallback(encoder, checkpoint, loads_best=args.load_best_model_at_end),
            *([EarlyStopping(args.early_stopping_patience)] if args.early_stopping_patience else []),
        ],
    )
    return trainer, collator


def check_options(model: ModelArguments, data: DataArguments, args: NLTTrainingArguments) -> None:
    """Refuse options for an LLM that training does not use, and options that contradict each other.

    Raises:
        NLTError: an option is refused; the message names it.
    """
    if model.llm_lora is not None and "revela" not in args.objectives:
        raise NLTError(f"llm_lora: objective {args.objective!r} trains no LLM, only revela does; leave llm_lora out")
    for key in ("shared_backbone", "llm_process"):
        if getattr(model, key) and not args.reads_llm:
            raise NLTError(f"{key}: objective {args.objective!r} reads no LLM in training; leave {key} out")
        if getattr(model, key) and model.llm_lora is not None:
            raise NLTError(f"{key}: llm_lora trains the LLM in the trainer's own process; leave one of the two out")
    if args.eval_strategy != "no" and data.dev_split is None:
        raise NLTError(
            f"eval_strategy is {IntervalStrategy(args.eval_strategy).value} and there is nothing to evaluate on; set "
            "dev_split, or eval_strategy: 'no'"
        )
    if args.refresh is not None and data.miner == "bm25":
        raise NLTError(
            f"refresh {args.refresh!r}: miner is bm25, which finds the same candidates whatever the encoder has "
            "learned; set miner to encoder or fused, or leave refresh out"
        )
    if args.average_with_start == "auto" and data.dev_split is None:
        raise NLTError(
            "average_with_start: auto chooses the share on dev queries; set dev_split, or a share from 0 to 1"
        )
    if args.load_best_model_at_end:
        args.metric_for_best_model = best_metric(args.metric_for_best_model, data.dev_split)
    if args.in_batch_candidates and "dream" in args.objectives and data.document_layout != "independent":
        raise NLTError(
            f"in_batch_candidates: dream needs documents that do not see each other, and document_layout is "
            f"{data.document_layout}; set it to independent"
        )
    if args.in_batch_candidates and model.llm_process and args.world_size > 1:
        raise NLTError(
            "in_batch_candidates: each of the LLM's processes would know its own documents alone; set llm_process: "
            "false or train in one process"
        )


def best_metric(name: str | None, dev_split: str | None) -> str:
    """The full name of the metric that finds the best checkpoint; `eval_` and the split may be left out.

    Raises:
        NLTError: training has no such metric; names those that it has.
    """
    for metric in METRICS:
        if name in (metric, f"{dev_split}_{metric}", f"eval_{dev_split}_{metric}"):
            return f"eval_{dev_split}_{metric}"
    raise NLTError(f"metric_for_best_model {name!r} is unknown; choose one of {', '.join(METRICS)}, all on dev_split")


def dev_evaluator(data: DataArguments, *, seed: int, trained: Iterable[str]) -> RetrievalEvaluator | None:
    """Make the evaluator for the judged queries of `dev_split`, whose judgements the objective never sees.

    Args:
        data: block `data:`; with `dev_documents` so many documents are searched.
        seed: of the documents that are drawn.
        trained: the queries of training; a warning says how many of the evaluator's are among them.
    """
    split = data.dev_split
    if split is None:
        return None
    collection = load_collection(data.collection, splits=[split])
    asked = [query.text for query in collection.split_queries(split)]
    if known := count_known(asked, set(query_keys(trained))):
        logger.warning(
            "%d of %d queries of dev_split %s are trained on, so that they do not show how others fare; set "
            "train_split to queries that are not among them",
            known, len(asked), split,
        )  # fmt: skip
    if data.dev_documents is not None:
        collection = with_fewer_documents(collection, split=split, num_documents=data.dev_documents, seed=seed)
    return RetrievalEvaluator(collection, split=split)


def cost_before_training(model: ModelArguments, data: DataArguments, args: NLTTrainingArguments) -> dict[str, Any]:
    """Seconds and LLM tokens of the earlier stages adaptation, scoring and head detection; unknown costs count 0."""
    cost = {"seconds": 0.0, "lm_tokens": 0}
    sources = []
    reads_heads = "dream" in args.objectives
    if args.reads_gains(data) or (reads_heads and data.head_qrels is None):
        sources.append(read_audit(data.gains))
    if reads_heads:
        sources.append(HeadSet.load(model.heads).settings)
    if model.adapter is not None and (report := Run(Path(model.adapter).parent).adaptation_file).is_file():
        sources.append(read_json(report))
    for source in sources:
        cost["seconds"] += source.get("seconds", 0.0)
        cost["lm_tokens"] += source.get("lm_tokens", 0)
    return cost
