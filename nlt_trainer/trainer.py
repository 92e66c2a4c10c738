"""The trainer, which is the same for all objectives."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformerTrainer
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.base.training_args import BatchSamplers
from sentence_transformers.sentence_transformer.modules import Normalize
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import BatchSampler
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_pt_utils import LengthGroupedSampler

from nlt_trainer.data.current_rows import CurrentRows
from nlt_trainer.errors import NLTError
from nlt_trainer.lm.cpu import float32_attention
from nlt_trainer.run.checkpoints import CheckpointFiles, awaits_evaluation, last_checkpoint
from nlt_trainer.run.early_stopping import no_step_is_left
from nlt_trainer.run.losses import RunningLosses
from nlt_trainer.run.progress import show_progress
from nlt_trainer.run.termination import CheckpointOnTermination
from nlt_trainer.training_arguments import MAIN_METRIC, NLTTrainingArguments, warn_of_warmup

ENCODER_INPUTS = ("query_", "document_")
OBJECTIVE_FILE = "objective.safetensors"
CLOCK_TIMES = ("_runtime", "_per_second")
"""Ends of the names under which the library logs how long something took, by the clock."""
DROPOUT_ATTRIBUTES = ("dropout", "attention_dropout", "activation_dropout")
"""Attributes in which modules of transformers keep a probability that they hand to a function."""


class UnitLength(Normalize):
    """`Normalize` under a name that accelerate leaves alone.

    Accelerate takes a child of the model with "Norm" in its class's name for a layer with weights, which FSDP2 shards.
    """


class NLTTrainer(SentenceTransformerTrainer):
    """`SentenceTransformerTrainer` for batches of queries with K candidates each.

    Only the encoder is wrapped and saved, because an objective that reads an LLM holds it as a plain object. An
    objective may train parameters beside the encoder, as Revela trains an adapter of its LLM. Their gradients are
    averaged over processes here, a checkpoint keeps them in `OBJECTIVE_FILE`, and `max_grad_norm` leaves them alone.

    FSDP2 and DeepSpeed may divide the encoder among processes, see `is_sharded`; each has the whole LLM.

    Losses are means over queries. A query's term does not depend on the rest of the batch, except that in-batch
    negatives come from the global batch. One process and several therefore give the same loss for the same global
    batch.

    Args are those of `SentenceTransformerTrainer`; `loss` is one of `nlt_trainer.objectives`, and `data_collator` the
    one that its `collator` makes, or a `CurrentRows` around it.

    Example:
        ```python
        encoder = load_encoder("sentence-transformers/all-MiniLM-L6-v2")
        loss = LikelihoodGainLoss(encoder)
        trainer = NLTTrainer(
            encoder,
            NLTTrainingArguments(output_dir="runs/mine"),
            train_dataset=dataset,  # columns query, documents, gain
            loss=loss,
            data_collator=loss.collator(),
        )
        trainer.train()
        ```
    """

    args: NLTTrainingArguments

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Let Sentence Transformers fill the encoder's model card in, but for its examples: they are the user's texts.

        A card is published with the encoder.
        """
        card = self.model.model_card_data
        card.widget = [{}]  # where it is empty, examples are drawn from the training data
        super().add_model_card_callback(default_args_dict)
        card.train_datasets, card.eval_datasets, card.widget = [], [], []

    def collect_features(  # type: ignore[override]  # labels are named tensors here; only the loss reads them
        self, inputs: dict[str, Any]
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Split a batch of `NLTCollator` into encoder inputs (queries, documents) and everything else by name.

        Raises:
            NLTError: the batch does not come from `NLTCollator`.
        """
        texts = {name: value for name, value in inputs.items() if name.startswith(ENCODER_INPUTS)}
        features, _ = super().collect_features(texts)
        if len(features) != len(ENCODER_INPUTS):
            raise NLTError(f"a batch has the entries {sorted(inputs)}; pass data_collator=loss.collator(...)")
        return features, {name: value for name, value in inputs.items() if name not in texts}

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The objective's loss of a batch.

        Raises:
            NLTError: the loss is infinite or NaN, which the trainer's log would show as 0.
        """
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = result[0] if isinstance(result, tuple) else result
        if not torch.isfinite(loss):
            raise NLTError(
                f"the loss is {loss.item()} after {self.state.global_step} steps; lower learning_rate "
                f"({self.args.learning_rate}) or raise temperature ({self.args.temperature})"
            )
        return result

    def get_batch_sampler(
        self,
        dataset: Dataset,
        batch_size: int,
        drop_last: bool,
        valid_label_columns: list[str] | None = None,
        generator: torch.Generator | None = None,
        seed: int = 0,
    ) -> BatchSampler | None:
        """Random batches or, with `train_sampling_strategy: group_by_length`, random batches of similar lengths.

        Rows are grouped for the batches of all processes together, so that several processes train in the order of
        one.

        Raises:
            NLTError: another strategy, or another `batch_sampler` beside this one, which would be ignored.
        """
        strategy = self.args.train_sampling_strategy
        if strategy == "random":
            return super().get_batch_sampler(dataset, batch_size, drop_last, valid_label_columns, generator, seed)
        if strategy != "group_by_length":
            raise NLTError(f"train_sampling_strategy {strategy!r} is not known here; choose random or group_by_length")
        if self.args.batch_sampler != BatchSamplers.BATCH_SAMPLER:
            raise NLTError(
                f"batch_sampler is {self.args.batch_sampler} and train_sampling_strategy group_by_length, which makes "
                "batches itself; leave one of them out"
            )
        lengths = [len(row["query"]) + sum(map(len, row["documents"])) for row in dataset]
        rows = LengthGroupedSampler(batch_size * self.args.world_size, lengths=lengths, generator=generator)
        return DefaultBatchSampler(rows, batch_size=batch_size, drop_last=drop_last)

    def get_batch_samples(self, *args: Any) -> tuple[list[Any], Tensor | int | None]:
        """The batches of the step that begins. Those of `CurrentRows` get their content only now."""
        batches, items = super().get_batch_samples(*args)
        rows: Any = self.data_collator
        return [rows.collated(batch) for batch in batches] if isinstance(rows, CurrentRows) else batches, items

    def objective_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that the objective trains beside the encoder, by name."""
        encoder = {id(parameter) for parameter in self.model.parameters()}
        parameters = self.loss.named_parameters()  # type: ignore[attr-defined]  # one loss, not a dict
        return {name: parameter for name, parameter in parameters if id(parameter) not in encoder}

    @property
    def is_sharded(self) -> bool:
        """Whether each process holds a part of the encoder alone, as with FSDP2 and with DeepSpeed's ZeRO-3."""
        if self.is_deepspeed_enabled:
            return bool(self.accelerator.state.deepspeed_plugin.zero_stage == 3)
        return bool(self.is_fsdp_enabled)

    def whole_weights(self) -> dict[str, Tensor]:
        """The weights of an encoder that is divided among processes, on the CPU; empty but in the main process.

        All processes have to call it.
        """
        if self.is_deepspeed_enabled:
            gathered: dict[str, Tensor] = self.accelerator.get_state_dict(self.model_wrapped) or {}
            return gathered
        weights = {}
        for name, value in self.model.state_dict().items():
            whole = value.full_tensor() if isinstance(value, DTensor) else value
            if self.is_world_process_zero():
                weights[name] = whole.cpu()
        return weights

    def _check_sharding(self, resume_from_checkpoint: object) -> None:
        """Refuse what an encoder that is divided among processes cannot do.

        Raises:
            NLTError: names the setting and the remedy.
        """
        kind = "DeepSpeed" if self.is_deepspeed_enabled else "FSDP"
        if self.objective_parameters():
            raise NLTError(f"{kind} does not know the LLM's adapter that is trained; leave llm_lora or {kind} out")
        if not self.is_sharded:
            return
        if self.is_fsdp_enabled and not self.accelerator.is_fsdp2:
            raise NLTError("FSDP has version 1 here, which training is not written for; set fsdp_version: 2")
        if self.args.save_strategy != "no" or resume_from_checkpoint:
            raise NLTError(
                f"with {kind} each process holds a part of the encoder, and checkpoints need the whole; set "
                "save_strategy: 'no' and leave resume_from_checkpoint out, or train with ZeRO-2 or without sharding"
            )
        if self.args.refresh:
            raise NLTError(
                f"refresh: each process embeds documents by itself, and with {kind} it holds a part of the encoder; "
                "leave refresh out, or train with ZeRO-2 or without sharding"
            )
        self.pop_callback(CheckpointOnTermination)
        self._rename(Normalize, UnitLength)

    def _rename(self, old: type[nn.Module], new: type[nn.Module]) -> None:
        """Give the encoder's modules of one class another one that does the same."""
        for module in self.model.modules():
            if type(module) is old:
                module.__class__ = new

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Loss and gradients of a batch; gradients that `DistributedDataParallel` does not know are averaged here.

        The loss is averaged too, because the trainer's `train_loss` takes the steps after the last entry of the log
        from one process alone.
        """
        half = self.args.device.type == "cpu" and (self.args.bf16 or self.args.fp16)
        with float32_attention() if half else nullcontext():
            loss = super().training_step(*args, **kwargs)
        if self.accelerator.sync_gradients:
            for parameter in self.objective_parameters().values():
                parameter.grad = self.accelerator.reduce(parameter.grad, reduction="mean")
        loss = self.accelerator.reduce(loss, reduction="mean")
        self.losses.add(loss)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the losses as means over the whole run, see `RunningLosses`, and leave out the library's own times.

        The library takes those from a clock that may be set back meanwhile; `CostCallback` counts time without it.
        """
        if {"loss", "train_loss"} & logs.keys():  # an evaluation may also be logged without any training
            logs = self.losses.entry(logs, self.state.global_step)
        super().log({k: v for k, v in logs.items() if not k.endswith(CLOCK_TIMES)}, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the encoder and, in a checkpoint, the parameters that the objective trains beside it.

        The library also pickles its arguments, which nothing reads, and which name folders of this machine.
        """
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            Path(str(output_dir or self.args.output_dir), TRAINING_ARGS_NAME).unlink(missing_ok=True)
        parameters = self.objective_parameters()
        if _internal_call and parameters and self.args.should_save:
            tensors = {name: parameter.detach().contiguous() for name, parameter in parameters.items()}
            save_file(tensors, Path(str(output_dir), OBJECTIVE_FILE))

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train, from a checkpoint if one is given; `True` takes the last whole one.

        Raises:
            NLTError: no checkpoint is whole, or it lacks the parameters that the objective trains beside the encoder;
                or the encoder is divided among processes, and a setting does not go with that.
        """
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            self._check_sharding(resume_from_checkpoint)
        show_progress(self)
        warn_of_warmup(self.args)
        if self.args.disable_dropout:
            disable_dropout(self.model)
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_checkpoint(Path(str(self.args.output_dir)))
            if resume_from_checkpoint is None:
                raise NLTError(f"{self.args.output_dir} has no whole checkpoint; leave resume_from_checkpoint out")
        resumed = resume_from_checkpoint if isinstance(resume_from_checkpoint, str) else None
        self.losses = RunningLosses(self.accum_loss_components["train"])
        for callback in (self.losses, CheckpointFiles(resumed)):
            self.pop_callback(type(callback))  # left by an earlier call
            self.add_callback(callback)
        parameters = self.objective_parameters()
        if isinstance(resume_from_checkpoint, str) and parameters:
            file = Path(resume_from_checkpoint, OBJECTIVE_FILE)
            if not file.is_file():
                raise NLTError(
                    f"{file} not found: in that run the encoder was trained alone; choose another output_dir"
                )
            tensors = load_file(file)
            for name, parameter in parameters.items():
                parameter.data.copy_(tensors[name])
        self._name_best_metric()
        given = self.args.max_steps, self.args.num_train_epochs, self.args.eval_on_start, self.args.save_steps
        if self.args.load_best_model_at_end and self.args.eval_steps is not None:
            self.args.save_steps = self.args.eval_steps  # the best evaluation may be one without a checkpoint
        if isinstance(resume_from_checkpoint, str):
            checkpoint = Path(resume_from_checkpoint)
            self.args.eval_on_start = awaits_evaluation(checkpoint, self.args)
            if no_step_is_left(checkpoint, patience=self.args.early_stopping_patience):
                self.args.max_steps, self.args.num_train_epochs = -1, 0  # the library makes a step before it stops
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self.args.max_steps, self.args.num_train_epochs, self.args.eval_on_start, self.args.save_steps = given
            self._rename(UnitLength, Normalize)  # by whose name a saved encoder is loaded

    def _name_best_metric(self) -> None:
        """Give `MAIN_METRIC` its full name: the evaluator's main metric, or the loss where there is no evaluator."""
        if self.args.metric_for_best_model == MAIN_METRIC:
            main = None if self.evaluator is None else self.evaluator.primary_metric
            self.args.metric_for_best_model = f"eval_{main}" if main else "eval_loss"
            self.args.greater_is_better = main is not None


def disable_dropout(model: nn.Module) -> None:
    """Set every probability of dropout to 0: of modules, and of those that are numbers, as T5's attention has one."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in DROPOUT_ATTRIBUTES:
            if isinstance(vars(module).get(name), float):
                setattr(module, name, 0.0)
