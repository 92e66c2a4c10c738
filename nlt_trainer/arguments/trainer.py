"""The recipe's block `trainer:`: the options of the objectives; `inherited` has those of the library's trainer."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Literal

from nlt_trainer.arguments.data import DataArguments
from nlt_trainer.arguments.option import check_values, option
from nlt_trainer.choices import Divergence, DocumentMass, EncoderPrecision, Engine, MarginalLevel, Prior
from nlt_trainer.errors import NLTError

OBJECTIVES = ("likelihood_gain", "dream", "emdr2", "loop", "adist", "revela", "info_nce")
PROMPT_OBJECTIVES = frozenset({"dream", "loop", "adist"})
"""Objectives that read the LLM at every step, in prompts that hold the K documents of a query."""
LLM_OBJECTIVES = PROMPT_OBJECTIVES | {"revela"}
"""All objectives that read the LLM at every step."""


@dataclass
class TrainerArguments:
    """Parameters that control the objective."""

    objective: str = option(
        default="likelihood_gain",
        decides="training",
        help=(
            f"What trains the encoder: {', '.join(OBJECTIVES)}, or a weighted sum of them such as "
            "likelihood_gain + 0.5*dream; the log shows each term times its weight."
        ),
    )
    temperature: float = option(
        default=0.05,
        decides="training",
        help="Temperature of the encoder's cosines.",
    )
    temperatures: dict[str, float] | None = option(
        default=None,
        decides="training",
        help="Other temperatures for single objectives of a sum, e.g. {dream: 0.2}; the rest use `temperature`.",
    )
    teacher_temperature: float | Literal["auto"] = option(
        default=0.2,
        decides="training",
        help=(
            "Temperature of the teacher, which is gains in nats per token or in nats (likelihood_gain), losses in "
            "nats per token (loop), or attention over its mean (adist). auto: what the audit of the gains proposes."
        ),
    )
    divergence: Divergence = option(
        default="forward_kl",
        decides="training",
        help=(
            "Loss that fits scores to gains: forward_kl, reverse_kl, jensen_shannon, margin_mse or listwise "
            "(likelihood_gain)."
        ),
    )
    prior: Prior = option(
        default="bm25",
        decides="training",
        help="What is mixed into the gains, with prior_weight: bm25 (its scores) or order (of the miner).",
    )
    prior_weight: float | Literal["auto"] = option(
        default=0.0,
        decides="training",
        help=(
            "Weight of the prior beside the gains, both standardised over a query's candidates; 0: the gains alone; "
            "auto: what the audit of the gains proposes for bm25."
        ),
    )
    emdr2_level: MarginalLevel = option(
        default="sequence",
        decides="training",
        help="Whose likelihood is marginalised over candidates: the whole target (sequence) or each token (emdr2).",
    )
    lm_micro_batch_size: int = option(
        default=2,
        decides="nothing",
        help=(
            "Queries that the LLM reads at once in training. Each is a prompt of K documents (dream, adist), K such "
            "prompts (loop) or K + 1 chunks (revela). This changes memory, not the gradient."
        ),
    )
    document_cache_gib: float = option(
        default=0.0,
        decides="nothing",
        help="GiB in which documents' keys and values are kept from step to step (dream, independent layout).",
    )
    document_mass: DocumentMass = option(
        default="one",
        decides="training",
        help=(
            "Attention divided among the documents: all that a head has (one), or what it gives them by itself, as in "
            "the paper (kept) (dream)."
        ),
    )
    hide_documents: bool = option(
        default=True,
        decides="training",
        help=(
            "Hide the documents from all heads but the injected ones, whose shares then matter more; false is the "
            "paper's form (dream)."
        ),
    )
    in_batch_candidates: bool = option(
        default=False,
        decides="training",
        help=(
            "Let the candidates of the whole batch compete for a query: in the encoder's softmax (likelihood_gain "
            "with forward_kl), or for the attention of the heads (dream with independent documents)."
        ),
    )
    false_negative_margin: float | None = option(
        default=None,
        decides="training",
        help=(
            "Candidates are not negatives if their gain is above the positive's gain less this margin, in nats per "
            "token; unset: all are negatives but texts equal to the positive (info_nce)."
        ),
    )
    refresh: str | None = option(
        default=None,
        decides="training",
        help=(
            "Steps after which the encoder, as it is then, mines new candidates by the recipe's miner, for example "
            "0-1000:500,1000-10000:2000. A range from-to:every means from, from + every and so on below to, but 0. "
            "If the objective reads gains, the LLM scores the new pairs. Unset: the candidates stay."
        ),
    )
    disable_dropout: bool = option(
        default=False,
        decides="training",
        help=(
            "Train the encoder, and an adapter of it, without dropout. On a CPU, where drawing random numbers is "
            "slow, a step in float32 then takes about two thirds of the time."
        ),
    )
    engine: Engine = option(
        default="local",
        decides="nothing",
        help=(
            "What embeds and scores: local (the processes that were started), or ray (workers of Ray, each with its "
            "own copy of the model; it needs the extra ray)."
        ),
    )
    ray_address: str | None = option(
        default=None,
        decides="nothing",
        help="Cluster of engine: ray; auto: the one that this machine belongs to. Unset: this machine alone.",
    )
    ray_workers: int | None = option(
        default=None,
        decides="nothing",
        help="Number of workers of engine: ray; unset: one for each GPU of the cluster or, without GPUs, CPU core.",
    )
    encoder_micro_batch_size: int | None = option(
        default=None,
        decides="nothing",
        help=(
            "Texts that the encoder embeds at once. Gradient caching then embeds each text twice, which changes "
            "memory, not the gradient. Unset: without gradient caching."
        ),
    )
    encoder_precision: EncoderPrecision = option(
        default="float32",
        decides="nothing",  # bf16 and bf16_full_eval say what was chosen
        help=(
            "What the encoder multiplies in while it trains and embeds: float32, or auto (bfloat16 where the machine "
            "multiplies it, else float32). With bf16 or fp16, or bf16_full_eval for embedding, only these count."
        ),
    )
    average_with_start: float | Literal["auto"] = option(
        default=0.0,
        decides="result",
        help=(
            "Share of the start's weights in the encoder that is saved: 0.3 is 0.3 of the start and 0.7 of what was "
            "trained, 0 the trained weights alone. auto: the share from 0 to 1 with the highest nDCG@10 on dev_split, "
            "or a larger one that is less than 0.002 below it, because the start knows more than the collection. "
            "With lora, the adapter is scaled."
        ),
    )
    early_stopping_patience: int | None = option(
        default=None,
        decides="result",
        help=(
            "Stop when so many evaluations in a row have found no better value on dev_split, and save the encoder of "
            "the best one. This needs eval_strategy; the value is nDCG@10 unless metric_for_best_model names another."
        ),
    )

    def __post_init__(self) -> None:
        check_values(self)
        if not isinstance(self.prior_weight, str) and self.prior_weight < 0:
            raise NLTError(f"prior_weight is {self.prior_weight}; it must be at least 0, where nothing is mixed in")
        if self.prior_weight == "auto" and self.prior != "bm25":
            raise NLTError(
                "prior_weight is auto, which the audit of gains proposes for BM25's scores, and prior is "
                f"{self.prior}; give a number, or set prior: bm25"
            )
        _ = self.refresh_ranges  # refuses what is no schedule
        if not isinstance(self.average_with_start, str) and not 0 <= self.average_with_start <= 1:
            raise NLTError(f"average_with_start is {self.average_with_start}; it must be from 0 to 1, or auto")
        if self.early_stopping_patience is not None and self.early_stopping_patience < 1:
            raise NLTError(f"early_stopping_patience is {self.early_stopping_patience}; it must be at least 1")
        if self.ray_workers is not None and self.ray_workers < 1:
            raise NLTError(f"ray_workers is {self.ray_workers}; it must be at least 1")
        if self.engine != "ray" and (self.ray_workers or self.ray_address):
            name = "ray_workers" if self.ray_workers else "ray_address"
            raise NLTError(f"{name} belongs to engine: ray, and engine is {self.engine}; set that or leave it out")
        names = self.objectives  # refuses unknown ones
        if self.teacher_temperature == "auto" and (others := {"loop", "adist"} & set(names)):
            raise NLTError(
                f"teacher_temperature is auto, which the audit of gains proposes, and {sorted(others)[0]} reads no "
                "gains; give a number"
            )
        if strange := set(self.temperatures or {}) - set(names):
            raise NLTError(
                f"temperatures names {sorted(strange)}, which objective {self.objective!r} does not have; remove them"
            )

    @property
    def objectives(self) -> dict[str, float]:
        """Weight of each objective."""
        return parse_objective(self.objective)

    def number(self, name: Literal["teacher_temperature", "prior_weight"]) -> float:
        """The value of an option that may also be `auto`; `take_advice` must have replaced that word by now."""
        value = getattr(self, name)
        assert not isinstance(value, str), f"{name} is {value!r}"
        return float(value)

    @property
    def refresh_ranges(self) -> list[range]:
        """The steps after which candidates are mined anew."""
        return [] if self.refresh is None else parse_refresh(self.refresh)

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
            place = "" if name == text else f" in {text!r}"
            raise NLTError(f"objective {name!r}{place} is unknown; {remedy}")
        if name in weights:
            raise NLTError(f"objective {name!r} stands twice in {text!r}; add its weights")
        try:
            weights[name] = float(factor or 1)
        except ValueError as error:
            raise NLTError(f"weight {factor!r} in {text!r} is not a number; write for example 0.5*{name}") from error
        if not 0 < weights[name] < float("inf"):
            raise NLTError(f"weight {factor} in {text!r} is not a positive number; leave {name} out")
    return weights


def parse_refresh(text: str) -> list[range]:
    """The ranges of steps in `0-1000:500,1000-10000:2000`, which is the grammar of Atlas (Izacard et al. 2023).

    Raises:
        NLTError: a part is not `from-to:every`, its range is empty, or `every` is 0.
    """
    ranges = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d+)-(\d+):(\d+)\s*", part)
        begin, end, every = map(int, found.groups()) if found else (0, 0, 0)
        if begin >= end or not every:
            raise NLTError(
                f"refresh {text!r}: {part.strip()!r} is no range of steps; write from-to:every with from below to and "
                "every at least 1, and a comma between ranges, for example 0-1000:500,1000-10000:2000"
            )
        ranges.append(range(begin, end, every))
    return ranges
