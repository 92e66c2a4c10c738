"""The recipe's block `trainer:`: the objective and the trainer."""

from __future__ import annotations

import difflib
import math
import os
from dataclasses import dataclass, field

import torch
from sentence_transformers import SentenceTransformerTrainingArguments

from nlt_trainer.arguments.data import DataArguments
from nlt_trainer.errors import NLTError

OBJECTIVES = ("likelihood_gain", "dream", "emdr2", "loop", "adist", "revela", "info_nce")
PROMPT_OBJECTIVES = frozenset({"dream", "loop", "adist"})
"""Those that read the LLM at every step, in one prompt of K documents a query."""
LLM_OBJECTIVES = PROMPT_OBJECTIVES | {"revela"}
"""Those that read the LLM at every step."""


@dataclass
class NLTTrainingArguments(SentenceTransformerTrainingArguments):
    """Parameters that control the objective and the trainer."""

    objective: str = field(
        default="likelihood_gain",
        metadata={
            "help": f"What trains the encoder: {', '.join(OBJECTIVES)}, or a weighted sum of them such as "
            "likelihood_gain + 0.5*dream; the log shows each term times its weight."
        },
    )
    temperature: float = field(default=0.05, metadata={"help": "Temperature of the encoder's cosines."})
    temperatures: dict[str, float] | None = field(
        default=None,
        metadata={
            "help": "Other temperatures for objectives of a sum, e.g. {dream: 0.2}; the rest has `temperature`."
        },
    )
    teacher_temperature: float = field(
        default=0.2,
        metadata={
            "help": "Temperature of the teacher: gains in nats per token, or nats (likelihood_gain), losses in nats "
            "per token (loop), attention over its mean (adist)."
        },
    )
    divergence: str = field(
        default="forward_kl",
        metadata={
            "help": "What fits scores to gains: forward_kl, reverse_kl, jensen_shannon, margin_mse or listwise "
            "(likelihood_gain)."
        },
    )
    gain_score: str = field(
        default="mean",
        metadata={"help": "Gain in nats per target token (mean) or of the whole target (sum) (likelihood_gain)."},
    )
    null_candidate: bool = field(
        default=False, metadata={"help": "Let 'no document' compete with the candidates (likelihood_gain)."}
    )
    null_similarity: float = field(
        default=0.0, metadata={"help": "Cosine of the null candidate: where a document is no better than none."}
    )
    query_weight: str = field(
        default="none",
        metadata={"help": "Weight of a query by its best gain: none, positive or gain (likelihood_gain)."},
    )
    emdr2_level: str = field(
        default="sequence", metadata={"help": "What is marginalised over candidates: sequence or token (emdr2)."}
    )
    lm_micro_batch_size: int = field(
        default=2,
        metadata={
            "help": "Queries that the LLM reads at once in training, in prompts of K documents (dream, adist), K such "
            "prompts each (loop) or K + 1 chunks each (revela); changes memory, not the gradient."
        },
    )
    document_cache_gib: float = field(
        default=0.0,
        metadata={"help": "Memory for documents' keys and values from step to step (dream, independent layout), GiB."},
    )
    share_floor: float = field(
        default=0.0,
        metadata={"help": "Part of the documents' shares that all of them get alike, 0 to below 1 (dream)."},
    )
    contrast_targets: int = field(
        default=0,
        metadata={
            "help": "Other queries' targets, a query, whose mean loss after the same documents is subtracted (dream)."
        },
    )
    document_mass: str = field(
        default="kept",
        metadata={
            "help": "Attention that is divided among documents: kept (what a head gives them) or one (all) (dream)."
        },
    )
    injected_rows: str = field(
        default="all",
        metadata={
            "help": "Rows whose attention is divided: all from the query on (all), or those that predict a token of "
            "the target (target) (dream)."
        },
    )
    in_batch_candidates: bool = field(
        default=False,
        metadata={"help": "Let a query's heads choose among the candidates of the whole batch (dream, independent)."},
    )
    in_batch_negatives: bool = field(
        default=True, metadata={"help": "Use the other queries' candidates as negatives (info_nce)."}
    )
    false_negative_margin: float | None = field(
        default=None,
        metadata={
            "help": "No negatives are candidates whose gain is above the positive's less this, nats per token; unset: "
            "all but equal texts are (info_nce)."
        },
    )
    encoder_micro_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Texts that the encoder embeds at once, each twice (gradient caching); unset: each once. "
            "Changes memory, not the gradient."
        },
    )
    dataloader_persistent_workers: bool = field(
        default=True,
        metadata={"help": "Keep data loader workers from epoch to epoch, and with them what they have tokenised."},
    )

    def __post_init__(self) -> None:
        self._check_numbers()
        # Sentence-Transformers sets it for several processes, and every one of them warns.
        self.dataloader_drop_last |= int(os.environ.get("WORLD_SIZE", "1")) > 1
        super().__post_init__()
        # torch warns at every epoch where there is no accelerator to pin memory for
        self.dataloader_pin_memory &= torch.cuda.is_available()
        # torch refuses it without workers
        self.dataloader_persistent_workers &= self.dataloader_num_workers > 0
        names = self.objectives  # refuses unknown ones
        if strange := set(self.temperatures or {}) - set(names):
            raise NLTError(
                f"temperatures names {sorted(strange)}, which objective {self.objective!r} does not have; remove them"
            )

    def _check_numbers(self) -> None:
        """Raise `NLTError` for numbers that fail late in the trainer, or train nothing."""
        lowest = dict.fromkeys(
            ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"), 1
        ) | dict.fromkeys(("seed", "data_seed", "dataloader_num_workers", "warmup_steps", "weight_decay"), 0)
        for name, bound in lowest.items():
            if (number := getattr(self, name)) is not None and not bound <= number < math.inf:
                raise NLTError(f"{name} is {number}; it must be a number of at least {bound}")
        if not 0 <= self.learning_rate < math.inf:
            raise NLTError(f"learning_rate is {self.learning_rate}; it must be a number of at least 0, such as 2e-5")
        if self.max_steps < 1 and not 0 < self.num_train_epochs < math.inf:
            raise NLTError(f"num_train_epochs is {self.num_train_epochs}; it must be above 0, or set max_steps")

    @property
    def objectives(self) -> dict[str, float]:
        """Weight of each objective."""
        return parse_objective(self.objective)

    @property
    def reads_llm(self) -> bool:
        """Whether an objective reads the LLM at every step."""
        return not LLM_OBJECTIVES.isdisjoint(self.objectives)

    def reads_labels(self, data: DataArguments) -> bool:
        """Whether an objective reads relevance judgements."""
        return data.labels and "info_nce" in self.objectives

    def reads_gains(self, data: DataArguments) -> bool:
        """Whether an objective reads the gains file."""
        readers = {"likelihood_gain", "emdr2"}
        if not data.labels or self.false_negative_margin is not None:
            readers.add("info_nce")
        return not readers.isdisjoint(self.objectives)

    @property
    def reads_likelihoods(self) -> list[str]:
        """Further columns of the gains file that the objectives read."""
        names = set()
        if "likelihood_gain" in self.objectives and self.gain_score == "sum":
            names |= {"target_tokens"}
        if "emdr2" in self.objectives:
            names |= {"target_tokens", "token_log_likelihoods" if self.emdr2_level == "token" else "log_likelihood"}
        return sorted(names)


def parse_objective(text: str) -> dict[str, float]:
    """Weight of each objective in `likelihood_gain + 0.5*dream`.

    Raises:
        NLTError: an unknown name, a weight that is no positive number, or an objective that stands twice.
    """
    weights: dict[str, float] = {}
    for term in text.split("+"):
        factor, _, name = (part.strip() for part in term.rpartition("*"))
        if name not in OBJECTIVES:
            near = difflib.get_close_matches(name, OBJECTIVES, n=1)
            remedy = f"did you mean {near[0]}?" if near else f"choose of {', '.join(OBJECTIVES)}"
            raise NLTError(f"objective {name!r} in {text!r} is unknown; {remedy}")
        if name in weights:
            raise NLTError(f"objective {name!r} stands twice in {text!r}; add its weights")
        try:
            weights[name] = float(factor or 1)
        except ValueError as error:
            raise NLTError(f"weight {factor!r} in {text!r} is not a number; write for example 0.5*{name}") from error
        if not 0 < weights[name] < float("inf"):
            raise NLTError(f"weight {factor} in {text!r} is not a positive number; leave {name} out")
    return weights
