"""The stage `adapt_scorer`: fit a LoRA adapter of the scoring LLM to a collection by plain next-token prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import IntervalStrategy, Trainer, set_seed

from nlt_trainer.arguments.data import DataArguments
from nlt_trainer.arguments.model import ModelArguments
from nlt_trainer.assembly.gains import load_gains
from nlt_trainer.assembly.parts import (
    check_batches,
    load_candidates,
    load_llm,
    load_training_collection,
    processes,
    prompt_tokens,
    target_of,
)
from nlt_trainer.content import record_files
from nlt_trainer.data.adaptation import (
    IGNORED,
    AdaptationTexts,
    adaptation_rows,
    best_pairs,
    choose_texts,
    pad_rows,
)
from nlt_trainer.data.beir import Collection
from nlt_trainer.data.candidates import QueryCandidates
from nlt_trainer.errors import NLTError
from nlt_trainer.files import atomic_folder, check_folder
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.locations import adapter_base, resolve_model
from nlt_trainer.run.checkpoints import CheckpointFiles
from nlt_trainer.run.early_stopping import no_step_is_left
from nlt_trainer.run.folder import Run
from nlt_trainer.run.progress import show_progress
from nlt_trainer.run.resume import (
    CostCallback,
    adaptation_settings,
    logged_cost,
    start_checkpoint,
)
from nlt_trainer.run.termination import CheckpointOnTermination
from nlt_trainer.terminal import say
from nlt_trainer.text_files import write_json
from nlt_trainer.training_arguments import NLTTrainingArguments, warn_of_warmup


def adapt_scorer(model: ModelArguments, data: DataArguments, args: NLTTrainingArguments) -> None:
    """Train and save the adapter; prints its folder and how it changes the loss of held-out documents."""
    processes(args)
    if model.adapter is not None:
        raise NLTError(f"adapter is {model.adapter!r}; an adapter is fitted to the plain LLM, leave `adapter` out")
    run = Run(str(args.output_dir))
    check_folder(run.adapter, stage="nlt adapt_scorer")
    settings = adaptation_settings(model, data, args)
    checkpoint = start_checkpoint(args, settings)
    collection = load_training_collection(data)
    candidates = load_candidates(data, collection) if data.adapt_pairs else []
    pairs: list[tuple[str, QueryCandidates]] = []
    if candidates:
        gain = load_gains(model, data, collection=collection, candidates=candidates, as_labels=True)
        pairs = best_pairs(candidates, gain)
    texts = choose_texts(collection, pairs, num_documents=data.adapt_documents, seed=args.seed)
    lm = load_llm(model)
    rows, held_out = make_rows(lm, data, collection, texts=texts, candidates=candidates)
    check_batches(len(rows), args)
    set_seed(args.seed)  # the adapter's random start
    adapted = add_adapter(lm, model)
    before = mean_loss(adapted, held_out)  # the adapter does nothing yet
    args.eval_strategy, args.load_best_model_at_end = IntervalStrategy.NO, False  # these are about the encoder
    callbacks = [CheckpointOnTermination(), CostCallback(), CheckpointFiles()]
    trainer = Trainer(adapted, args, train_dataset=rows, data_collator=pad_rows, callbacks=callbacks)
    show_progress(trainer)
    warn_of_warmup(args)
    if trainer.is_world_process_zero():
        write_json(run.settings_file, settings, checksum=True)
    if checkpoint is not None and no_step_is_left(Path(checkpoint), patience=None):
        args.max_steps, args.num_train_epochs = -1, 0  # the library makes a step before it stops
    trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.is_world_process_zero():
        save_adapter(run.adapter, adapted)
        after = mean_loss(adapted, held_out)
        report = {
            "documents": len(texts.documents),
            "pairs": len(texts.pairs),
            "steps": trainer.state.global_step,
            "seconds": logged_cost(trainer.state, "train_seconds"),
            "lm_tokens": round(sum(rows["length"]) * float(trainer.state.epoch or 0)),
            "held_out_documents": len(texts.held_out),
            "held_out_loss_before": round(before, 4),
            "held_out_loss_after": round(after, 4),
        }
        write_json(run.adaptation_file, report, checksum=True)
        say(f"{run.adapter}: loss of held-out documents {before:.3f} before, {after:.3f} after, nats per token")


def make_rows(
    lm: FrozenLM,
    data: DataArguments,
    collection: Collection,
    *,
    texts: AdaptationTexts,
    candidates: list[QueryCandidates],
) -> tuple[Dataset, Dataset]:
    """Make the training rows and the held-out rows."""

    def rows(chosen: list[tuple[str, Any]]) -> Dataset:
        contents = [(collection.corpus[document_id].content, asked) for document_id, asked in chosen]
        return adaptation_rows(tokens, contents, target=target, context_length=lm.context_length)

    tokens, target = prompt_tokens(lm.tokenizer, data), target_of(data, candidates)
    alone = [(document_id, None) for document_id in texts.documents]
    return rows([*alone, *texts.pairs]), rows([(document_id, None) for document_id in texts.held_out])


def add_adapter(lm: FrozenLM, model: ModelArguments) -> PeftModel:
    """Give the LLM a new adapter, whose configuration names the LLM so that `FrozenLM` accepts it.

    Raises:
        NLTError: `adapter_lora` does not fit the LLM.
    """
    try:
        adapted = get_peft_model(lm.model, LoraConfig(task_type="CAUSAL_LM", **model.adapter_lora))  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise NLTError(f"adapter_lora {model.adapter_lora!r} does not fit LLM {model.llm!r}: {error}") from error
    config = adapted.peft_config["default"]
    config.base_model_name_or_path = adapter_base(resolve_model(model.llm))
    config.revision = model.llm_revision
    return adapted


@torch.no_grad()
def mean_loss(model: PeftModel, rows: Dataset) -> float:
    """Mean negative log-likelihood of the rows' labels, nats per token."""
    model.eval()
    total, count = 0.0, 0
    for row in rows:
        batch = {name: tensor.to(model.device) for name, tensor in pad_rows([row]).items()}
        number = int((batch["labels"][:, 1:] != IGNORED).sum())
        total += float(model(**batch).loss) * number
        count += number
    return total / count


def save_adapter(folder: Path, adapted: PeftModel) -> None:
    """Write a PEFT folder. It appears complete or not at all.

    Raises:
        NLTError: a weight is not finite.
    """
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad and not parameter.isfinite().all():
            raise NLTError(f"training has made {name} infinite or NaN, nothing is saved; lower learning_rate")
    with atomic_folder(folder, stage="nlt adapt_scorer") as partial:
        # An adapter never contains the LLM's own embeddings; the value "auto" would ask the Hub about them.
        adapted.save_pretrained(str(partial), save_embedding_layers=False)
        record_files(partial)
