"""Arguments of the trainer: Sentence Transformers' own and those of the objectives."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass

import torch
from sentence_transformers import SentenceTransformerTrainingArguments

from nlt_trainer.arguments.inherited import REFUSED
from nlt_trainer.arguments.trainer import TrainerArguments
from nlt_trainer.errors import NLTError
from nlt_trainer.lm.dtypes import resolved_dtype

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
        for name in ("seed", "data_seed"):
            if (number := getattr(self, name)) is not None and number >= 2**32:
                raise NLTError(f"{name} is {number}; it must be below 2 ** 32, as numpy's")
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise NLTError(f"{name} is {getattr(self, name)}; it must be at least 0 and below 1")
        if self.learning_rate < 0:
            raise NLTError(f"learning_rate is {self.learning_rate}; it must be a number of at least 0, such as 2e-5")
        if self.max_steps < 1 and self.num_train_epochs <= 0:
            raise NLTError(f"num_train_epochs is {self.num_train_epochs}; it must be above 0, or set max_steps")
