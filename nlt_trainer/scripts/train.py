"""Train an encoder with the recipe's objective.

```bash
accelerate launch -m nlt_trainer.scripts.train --config recipes/demo/dream.yaml
```

`<output_dir>/encoder` is a Sentence-Transformers folder; checkpoints stand beside it, and a killed run goes on from
the last whole one.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from pathlib import Path
from typing import Any

from datasets import Dataset
from sentence_transformers import SentenceTransformer
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from nlt_trainer.arguments import RECIPE_BLOCKS, DataArguments, ModelArguments, NLTTrainingArguments
from nlt_trainer.data.beir import Collection, load_collection
from nlt_trainer.data.candidates import QueryCandidates, read_candidates
from nlt_trainer.data.collator import NLTCollator, PromptBuilder
from nlt_trainer.data.gains import read_gains
from nlt_trainer.data.training import training_dataset
from nlt_trainer.errors import NLTError
from nlt_trainer.evaluation import RetrievalEvaluator
from nlt_trainer.files import atomic_folder, read_json, write_json
from nlt_trainer.models.encoder import load_encoder
from nlt_trainer.models.heads import HeadSet
from nlt_trainer.objectives.dream import DREAMLoss
from nlt_trainer.objectives.info_nce import InfoNCELoss
from nlt_trainer.objectives.likelihood_gain import LikelihoodGainLoss
from nlt_trainer.recipe import parse_recipe
from nlt_trainer.scripts import run_main
from nlt_trainer.scripts.common import load_llm, load_training_collection, prompt_tokens, target_of
from nlt_trainer.scripts.score import audit_file
from nlt_trainer.trainer import NLTTrainer

logger = logging.getLogger(__name__)

# What decides a run's trajectory besides model and data; a run with other values must not resume from its checkpoints.
TRAJECTORY = (
    "objective temperature teacher_temperature null_candidate null_similarity query_weight in_batch_negatives seed "
    "learning_rate lr_scheduler_type warmup_steps weight_decay num_train_epochs max_steps per_device_train_batch_size "
    "gradient_accumulation_steps max_grad_norm"
).split()


def main(argv: list[str] | None = None) -> None:
    """Train and save; prints where the encoder is."""
    model, data, args = parse_recipe(RECIPE_BLOCKS, argv)
    collection = load_training_collection(data)
    candidates = read_candidates(data.candidates, collection)
    settings = run_settings(model, data, args)
    check_settings(Path(args.output_dir), settings)
    encoder = load_encoder(
        model.encoder,
        prompts=model.encoder_prompts,
        max_seq_length=model.max_seq_length,
        pooling=model.pooling,
        lora=model.lora,
    )
    dataset = make_dataset(collection, data, args, candidates=candidates)
    loss, prompts = make_loss(encoder, model, data, args=args, candidates=candidates)
    collator = NLTCollator(encoder, prompts=prompts, max_length=model.train_max_length, seed=args.seed)
    trainer = NLTTrainer(
        encoder,
        args,
        train_dataset=dataset,
        loss=loss,
        data_collator=collator,  # type: ignore[arg-type]  # any callable
        evaluator=RetrievalEvaluator(load_collection(data.collection), split=data.dev_split)
        if data.dev_split
        else None,
        callbacks=[SecondsCallback()],
    )
    if trainer.is_world_process_zero():
        write_json(Path(args.output_dir, "settings.json"), settings)
    trainer.train(resume_from_checkpoint=last_checkpoint(Path(args.output_dir)))
    if trainer.is_world_process_zero():
        report = summary(trainer, model, data, dataset=dataset, prompts=prompts)
        save(Path(args.output_dir), encoder, report)
        print(f"{args.output_dir}/encoder: trained with {args.objective}; SentenceTransformer(path) loads it")


def make_dataset(
    collection: Collection, data: DataArguments, args: NLTTrainingArguments, *, candidates: list[QueryCandidates]
) -> Dataset:
    """The objective's training rows: gains only where it reads them, labels only where the recipe asks for them."""
    labelled = args.objective == "info_nce" and data.labels
    if labelled and data.train_split is None:
        raise NLTError("labels: true takes positives from qrels/<train_split>.tsv; set train_split")
    needs_gain = args.objective == "likelihood_gain" or (args.objective == "info_nce" and not labelled)
    return training_dataset(
        collection,
        candidates,
        gain=read_gains(data.gains, candidates) if needs_gain else None,
        qrels=collection.split_qrels(str(data.train_split)) if labelled else None,
    )


def make_loss(
    encoder: SentenceTransformer,
    model: ModelArguments,
    data: DataArguments,
    *,
    args: NLTTrainingArguments,
    candidates: list[QueryCandidates],
) -> tuple[nn.Module, PromptBuilder | None]:
    """The objective and, where it reads the LLM, what builds its prompts."""
    if args.objective == "likelihood_gain":
        loss: nn.Module = LikelihoodGainLoss(
            encoder,
            temperature=args.temperature,
            teacher_temperature=args.teacher_temperature,
            null_candidate=args.null_candidate,
            null_similarity=args.null_similarity,
            query_weight=args.query_weight,  # type: ignore[arg-type]  # checked by the loss
        )
        return loss, None
    if args.objective == "info_nce":
        loss = InfoNCELoss(encoder, temperature=args.temperature, in_batch_negatives=args.in_batch_negatives)
        return loss, None
    heads, lm = HeadSet.load(model.heads), load_llm(model)
    loss = DREAMLoss(encoder, lm, heads=heads, temperature=args.temperature, micro_batch_size=args.lm_micro_batch_size)
    return loss, PromptBuilder(prompt_tokens(lm, data), target_of(data, candidates), lm.context_length)


class SecondsCallback(TrainerCallback):
    """Writes the seconds of training so far, those before a resume included, into each entry of the log."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.earlier = max((entry.get("train_seconds", 0.0) for entry in state.log_history), default=0.0)
        self.begin = time.monotonic()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.log_history:
            state.log_history[-1]["train_seconds"] = round(self.earlier + time.monotonic() - self.begin, 1)


def run_settings(model: ModelArguments, data: DataArguments, args: NLTTrainingArguments) -> dict[str, Any]:
    """What a run is made of, for the check before a resume and for the model card."""
    values = args.to_dict()
    return {
        "model": dataclasses.asdict(model),
        "data": dataclasses.asdict(data),
        "trainer": {name: values[name] for name in TRAJECTORY},
    }


def check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Refuse to resume a run with other settings.

    Raises:
        NLTError: the folder has checkpoints of another run; names the settings that differ.
    """
    if not (folder / "settings.json").is_file() or last_checkpoint(folder) is None:
        return
    found = read_json(folder / "settings.json")
    reporting = {"eval_split", "eval_collections"}
    different = [
        f"{key}: {found.get(block, {}).get(key)!r} there, {value!r} now"
        for block, values in settings.items()
        for key, value in values.items()
        if key not in reporting and found.get(block, {}).get(key) != value
    ]
    if different:
        raise NLTError(
            f"{folder} holds checkpoints of a run with other settings ({'; '.join(different)}); "
            "choose another output_dir or remove the folder"
        )


def last_checkpoint(folder: Path) -> str | None:
    """The last whole checkpoint; the trainer's state is written last, so a folder without it was cut short."""
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    for checkpoint in reversed(checkpoints):
        if (checkpoint / "trainer_state.json").is_file():
            return str(checkpoint)
        logger.warning("%s is half-written and ignored; remove it", checkpoint)
    return None


def summary(
    trainer: NLTTrainer,
    model: ModelArguments,
    data: DataArguments,
    *,
    dataset: Dataset,
    prompts: PromptBuilder | None,
) -> dict[str, Any]:
    """Cost and course of a run: seconds and LLM tokens of training and of the LLM stage before it."""
    args, state = trainer.args, trainer.state
    tokens, before = 0, {"seconds": 0.0, "lm_tokens": 0}
    if prompts is not None:
        before = HeadSet.load(model.heads).settings
        tokens = round(prompts.count_tokens(dataset) * float(state.epoch or 0))
    elif not data.labels:
        before = read_json(audit_file(data.gains))
    seconds = max((entry.get("train_seconds", 0.0) for entry in state.log_history), default=0.0)
    return {
        "objective": args.objective,
        "seed": args.seed,
        "steps": state.global_step,
        "queries": len(dataset),
        "train_seconds": round(seconds + float(before["seconds"]), 1),
        "lm_tokens": tokens + int(before["lm_tokens"]),
        "log": state.log_history,
    }


def save(folder: Path, encoder: SentenceTransformer, report: dict[str, Any]) -> None:
    """Write `<folder>/encoder`, whole or not at all, and `training.json`."""
    with atomic_folder(folder / "encoder") as partial:
        encoder.save_pretrained(str(partial))
    write_json(folder / "training.json", report)


if __name__ == "__main__":
    run_main(main)
