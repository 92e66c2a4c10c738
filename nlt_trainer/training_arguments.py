"""Arguments of the trainer: Sentence Transformers' own and those of the objectives."""

from __future__ import annotations

import dataclasses
import logging
import os
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from sentence_transformers import SentenceTransformerTrainingArguments
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import SchedulerType, Trainer, TrainingArguments, get_scheduler
from transformers.training_args import OptimizerNames

from nlt_trainer.arguments.inherited import REFUSED
from nlt_trainer.arguments.trainer import TrainerArguments
from nlt_trainer.errors import NLTError
from nlt_trainer.lm.dtypes import resolved_dtype

logger = logging.getLogger(__name__)

UNKNOWN_STEPS = 1_000_000
"""Number of steps with which a schedule is tried where only the data will say how many there are."""
WITHOUT_WARMUP = ("constant", "reduce_lr_on_plateau", "greedy")
"""Schedules of the library that begin with the whole learning rate, whatever `warmup_steps` says."""
MAIN_METRIC = "ndcg_at_10"
"""The metric by which the best checkpoint is found where a recipe names none."""


@dataclass
class NLTTrainingArguments(TrainerArguments, SentenceTransformerTrainingArguments):
    """The options of `NLTTrainer`: those of a recipe's block `trainer:`, and all of Sentence Transformers'.

    Example:
        ```python
        NLTTrainingArguments(output_dir="runs/mine", objective="dream", temperature=0.05, learning_rate=1e-4)
        ```
    """

    def __post_init__(self) -> None:
        TrainerArguments.__post_init__(self)
        for name in ("push_to_hub", "hub_token"):  # the library would write a pickle with the token, and publish it
            if getattr(self, name):
                raise NLTError(f"{name}: {REFUSED[name]}")
        self._check_numbers()
        self._choose_precision()
        if self.early_stopping_patience is not None:
            self._stop_early()
        if self.load_best_model_at_end and self.metric_for_best_model is None:
            self.metric_for_best_model = MAIN_METRIC  # the library would take the loss of an evaluation dataset
        # Sentence-Transformers would set this for several processes, and every one of them would warn.
        self.dataloader_drop_last |= int(os.environ.get("WORLD_SIZE", "1")) > 1
        SentenceTransformerTrainingArguments.__post_init__(self)
        assert isinstance(self.learning_rate_mapping, dict)  # of a text the library has made one
        for pattern, rate in self.learning_rate_mapping.items():
            if rate < 0:
                raise NLTError(f"learning_rate_mapping of {pattern!r} is {rate}; it must be a number of at least 0")
        _check_schedule(self)
        _check_optimizer(self)
        # torch warns at every epoch where there is no accelerator to pin memory for
        self.dataloader_pin_memory &= torch.cuda.is_available()
        # torch refuses persistent workers where there are no workers
        self.dataloader_persistent_workers &= self.dataloader_num_workers > 0

    def _choose_precision(self) -> None:
        """Let the encoder train and embed in bfloat16, where `encoder_precision` leaves that to the machine."""
        if self.encoder_precision != "auto" or self.bf16 or self.fp16 or self.bf16_full_eval:
            return
        accelerator = None if self.use_cpu else torch.accelerator.current_accelerator(check_available=True)
        if resolved_dtype("auto", accelerator or "cpu") == "bfloat16":
            self.bf16 = self.bf16_full_eval = True
            self.use_cpu = accelerator is None  # the library refuses bf16 on a CPU that it was not told to use

    def _stop_early(self) -> None:
        """Set what early stopping needs: the best checkpoint in the end, and a checkpoint at each evaluation.

        Raises:
            NLTError: nothing is evaluated.
        """
        if self.eval_strategy == "no":
            raise NLTError(
                f"early_stopping_patience is {self.early_stopping_patience}, and training evaluates nothing; set "
                "dev_split, and eval_strategy: epoch or steps"
            )
        self.load_best_model_at_end = True
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        if self.save_strategy == defaults["save_strategy"] and self.save_steps == defaults["save_steps"]:
            self.save_strategy = self.eval_strategy
            self.save_steps = self.eval_steps or self.logging_steps

    def _check_numbers(self) -> None:
        """Raise `NLTError` for numbers that fail late in the trainer, or train nothing."""
        lowest = dict.fromkeys(
            ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"), 1
        ) | dict.fromkeys(
            ("seed", "data_seed", "dataloader_num_workers", "warmup_steps", "weight_decay", "max_grad_norm"), 0
        )
        for name, bound in lowest.items():
            if (number := getattr(self, name)) is not None and number < bound:
                raise NLTError(f"{name} is {number}; it must be a number of at least {bound}")
        for name in ("save_steps", "eval_steps", "logging_steps"):  # the library would leave out what 0 stands for
            if (number := getattr(self, name)) is not None and number <= 0:
                raise NLTError(f"{name} is {number}; it must be above 0")
        for name in ("seed", "data_seed"):
            if (number := getattr(self, name)) is not None and number >= 2**32:
                raise NLTError(f"{name} is {number}; it must be below 2 ** 32, as numpy's")
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise NLTError(f"{name} is {getattr(self, name)}; it must be at least 0 and below 1")
        if self.learning_rate < 0:
            raise NLTError(f"learning_rate is {self.learning_rate}; it must be a number of at least 0, such as 2e-5")
        if self.max_steps != -1 and self.max_steps < 1:
            raise NLTError(f"max_steps is {self.max_steps}; it must be at least 1, or -1 to train num_train_epochs")
        if self.max_steps < 1 and self.num_train_epochs <= 0:
            raise NLTError(f"num_train_epochs is {self.num_train_epochs}; it must be above 0, or set max_steps")


def _check_schedule(args: NLTTrainingArguments) -> None:
    """Make the schedule of a weight that stands for all, and read its learning rates.

    Raises:
        NLTError: `lr_scheduler_kwargs` has what the schedule does not read, or makes rates of it that are no rates.
    """
    kind, options = SchedulerType(args.lr_scheduler_type), args.lr_scheduler_kwargs
    if options and kind in (SchedulerType.CONSTANT, SchedulerType.CONSTANT_WITH_WARMUP):
        raise NLTError(
            f"lr_scheduler_kwargs is {options}, and lr_scheduler_type {kind.value} reads none of it; leave it out, or "
            "choose another schedule, such as cosine_with_min_lr"
        )
    assert not isinstance(options, str)  # the library has made a mapping of a text
    for key, value in (options or {}).items():
        if isinstance(value, int | float) and value < 0:  # some schedules would stop at 0 in silence
            raise NLTError(f"lr_scheduler_kwargs has {key} {value}; it must be a number of at least 0")
    steps = args.max_steps if args.max_steps > 0 else UNKNOWN_STEPS
    fault = f"lr_scheduler_kwargs is {options}, which does not fit lr_scheduler_type {kind.value}"
    try:
        schedule = get_scheduler(
            kind,
            SGD([torch.zeros(1)], lr=args.learning_rate),
            num_warmup_steps=args.get_warmup_steps(steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=options,
        )
        factors = schedule.lr_lambdas if isinstance(schedule, LambdaLR) else []
        rates = [factor(steps * part // 100) for factor in factors for part in range(101)]
        wrong = [rate for rate in rates if not 0 <= rate < float("inf")]
    except (ArithmeticError, TypeError, ValueError) as error:
        raise NLTError(f"{fault}: {error}") from error
    if wrong:
        raise NLTError(f"{fault}: the learning rate becomes {wrong[0]:g} times learning_rate")


def warn_of_warmup(args: TrainingArguments) -> None:
    """Warn where `warmup_steps` does nothing, because the schedule has no warm-up; called when training begins."""
    kind = SchedulerType(args.lr_scheduler_type).value
    if args.should_log and args.warmup_steps and kind in WITHOUT_WARMUP:
        logger.warning(
            "warmup_steps %g does nothing, because lr_scheduler_type %s has no warm-up; set constant_with_warmup or "
            "another schedule that has one, or warmup_steps: 0",
            args.warmup_steps, kind,
        )  # fmt: skip


def _check_optimizer(args: NLTTrainingArguments) -> None:
    """Make the optimizer of two weights that stand for all. One whose library is not installed is not checked.

    Raises:
        NLTError: an option of the optimizer is wrong, or `optim_args` has one that it does not read.
    """
    # without random numbers, of which the next would otherwise be others
    weights = torch.nn.Sequential(torch.nn.utils.skip_init(torch.nn.Linear, 1, 1))

    def made(optim_args: str | None) -> tuple[Any, dict[str, Any]]:
        tried = copy(args)
        tried.optim_args, tried.optim_target_modules = optim_args, args.optim_target_modules and "all-linear"
        return Trainer.get_optimizer_cls_and_kwargs(tried, weights)  # type: ignore[arg-type]  # any module

    name = OptimizerNames(args.optim).value
    try:
        made(None)
    except (ImportError, ValueError):
        return
    try:
        kind, options = made(args.optim_args)
        if isinstance(kind, type) and issubclass(kind, Optimizer) and "params" not in options:
            kind(weights.parameters(), **options)
    except (AttributeError, TypeError, ValueError) as error:
        raise NLTError(f"optim {name} with optim_args {args.optim_args!r} cannot be made: {error}") from error
    pairs = [pair.partition("=") for pair in (args.optim_args or "").split(",") if pair]
    for key, _, _ in pairs:
        others = [f"{other}={value}" for other, _, value in pairs if other != key]
        try:
            read = repr(made(",".join(others))) != repr(made(",".join([*others, f"{key}=0.123"])))
        except (AttributeError, TypeError, ValueError):  # of a key that is not read, no value is wrong
            continue
        if not read:
            raise NLTError(f"optim_args has {key.strip()!r}, which optim {name} does not read; leave it out")
