"""Everything that a recipe can set: three dataclasses, one a block; the help of a field is its documentation."""

from __future__ import annotations

import difflib
import math
import os
from dataclasses import dataclass, field
from typing import get_args

import torch
from sentence_transformers import SentenceTransformerTrainingArguments

from nlt_trainer.data.candidates import MINERS
from nlt_trainer.errors import NLTError
from nlt_trainer.models.document_prompts import DocumentLayout
from nlt_trainer.models.encoder import ENCODER_DTYPES
from nlt_trainer.models.frozen_lm import LLM_DTYPES
from nlt_trainer.models.heads import HEAD_SELECTIONS
from nlt_trainer.prompts import PromptTemplate

OBJECTIVES = ("likelihood_gain", "dream", "emdr2", "loop", "adist", "revela", "info_nce")
PROMPT_OBJECTIVES = frozenset({"dream", "loop", "adist"})
"""Those that read the LLM at every step, in one prompt of K documents a query."""
LLM_OBJECTIVES = PROMPT_OBJECTIVES | {"revela"}
"""Those that read the LLM at every step."""
HEAD_METHODS = ("gain", "correlation", "needle", "qrels")


@dataclass
class ModelArguments:
    """Parameters that control the models."""

    encoder: str = field(
        default="sentence-transformers/all-MiniLM-L6-v2",
        metadata={"help": "Encoder to start from: Hub id, folder, or package:<module>/<path>."},
    )
    encoder_revision: str | None = field(default=None, metadata={"help": "Revision of an encoder from the Hub."})
    encoder_dtype: str = field(
        default="float32", metadata={"help": "float32, or bfloat16 for a base that only carries a LoRA adapter."}
    )
    pooling: str | None = field(
        default=None,
        metadata={"help": "Pooling added to a plain transformer: mean, cls or lasttoken; unset for an encoder."},
    )
    max_seq_length: int | None = field(
        default=None, metadata={"help": "Tokens that the encoder reads of a text; unset: what the encoder has."}
    )
    train_max_length: int | None = field(
        default=None,
        metadata={"help": "Tokens that the encoder reads of a text in training; unset: as many as at inference."},
    )
    encoder_prompts: dict[str, str] | None = field(
        default=None, metadata={"help": "Texts put before queries and documents, under the keys query and document."}
    )
    lora: dict[str, int | float | str | list[str]] | None = field(
        default=None, metadata={"help": "Arguments of peft.LoraConfig for the encoder, e.g. {r: 16, lora_alpha: 32}."}
    )
    llm: str = field(
        default="HuggingFaceTB/SmolLM2-135M-Instruct",
        metadata={"help": "Frozen LLM: Hub id, folder, .gguf file, or package:<module>/<path>."},
    )
    llm_revision: str | None = field(default=None, metadata={"help": "Revision of an LLM from the Hub."})
    adapter: str | None = field(
        default=None,
        metadata={
            "help": "LoRA adapter of the LLM, Hub id or folder (adapt_scorer makes one); merged into it and frozen."
        },
    )
    llm_lora: dict[str, int | float | str | list[str]] | None = field(
        default=None,
        metadata={
            "help": "Arguments of peft.LoraConfig for an adapter of the LLM that is trained with the encoder and then "
            "dropped (revela); unset: the LLM is frozen."
        },
    )
    llm_dtype: str = field(default="float32", metadata={"help": "float32, bfloat16 or float16."})
    llm_device: str | None = field(
        default=None,
        metadata={"help": "Device of the LLM, e.g. cuda:1 or cpu; unset: the current accelerator, else the CPU."},
    )
    llm_process: bool = field(
        default=False,
        metadata={"help": "Keep the LLM that training reads in a process of its own; changes no loss, no gradient."},
    )
    shared_backbone: bool = field(
        default=False,
        metadata={
            "help": "Let the encoder be a LoRA adapter on the weights of the LLM that training reads, one copy in "
            "memory, in llm_dtype; encoder and llm name the same model, pooling and lora are set."
        },
    )
    merge_lora: bool = field(
        default=True,
        metadata={
            "help": "Save the encoder with its adapter merged, a folder that stands alone; false: save the adapter "
            "alone, a small folder that names its base."
        },
    )
    adapter_lora: dict[str, int | float | str | list[str]] = field(
        default_factory=lambda: {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
        metadata={"help": "Arguments of peft.LoraConfig for the adapter of the LLM that adapt_scorer fits."},
    )
    heads: str = field(
        default="heads.json", metadata={"help": "File of query-focused heads: detect_heads writes it, dream reads it."}
    )
    num_heads: int = field(default=16, metadata={"help": "Heads that detect_heads keeps (DREAM's paper has 16)."})
    head_selection: str = field(
        default="best",
        metadata={"help": "Heads that detect_heads keeps: best, or as a control worst or random (from all, by seed)."},
    )
    head_scores: str | None = field(
        default=None,
        metadata={"help": "Head file whose scores detect_heads selects from; unset: it observes the LLM's attention."},
    )

    def __post_init__(self) -> None:
        choices = {"encoder_dtype": ENCODER_DTYPES, "llm_dtype": LLM_DTYPES, "head_selection": HEAD_SELECTIONS}
        for name, known in choices.items():
            if (value := getattr(self, name)) not in known:
                raise NLTError(f"{name} {value!r} is unknown; choose one of {', '.join(known)}")
        if self.shared_backbone and (self.llm_device is not None or self.llm_process):
            raise NLTError("shared_backbone keeps encoder and LLM on one device; leave llm_device and llm_process out")
        if self.shared_backbone and self.encoder_revision != self.llm_revision:
            raise NLTError(
                f"shared_backbone: encoder_revision is {self.encoder_revision!r} and llm_revision "
                f"{self.llm_revision!r}; set both to one"
            )
        if not self.merge_lora and not self.lora:
            raise NLTError("merge_lora: false saves the encoder's adapter alone, and there is none; set lora")
        if not self.merge_lora and not self.keep_adapter:
            raise NLTError(
                "merge_lora: false saves an adapter that names its base and neither a revision nor another adapter; "
                "set merge_lora: true"
            )

    @property
    def keep_adapter(self) -> bool:
        """Whether the encoder's adapter is worth saving alone: its base has neither a revision nor an adapter of its
        own, of which a saved adapter would say nothing."""
        return bool(self.lora) and not (self.encoder_revision or (self.shared_backbone and self.adapter))


@dataclass
class DataArguments:
    """Parameters that control the data."""

    collection: str = field(default="collection", metadata={"help": "BEIR folder: corpus.jsonl, queries.jsonl."})
    train_split: str | None = field(
        default=None,
        metadata={
            "help": "Train on the queries that qrels/<split>.tsv names (its judgements go into score's audit alone); "
            "unset: on all queries."
        },
    )
    max_queries: int | None = field(
        default=None, metadata={"help": "Train on this many of them, drawn by seed; unset: on all."}
    )
    candidates: str = field(
        default="candidates.jsonl", metadata={"help": "File of candidates: mine writes it, later stages read it."}
    )
    num_candidates: int = field(default=8, metadata={"help": "K, candidates a query."})
    num_random_candidates: int = field(
        default=0, metadata={"help": "How many of the K are drawn at random from the corpus instead of by the miner."}
    )
    miner: str = field(
        default="bm25",
        metadata={
            "help": "What chooses candidates: bm25, encoder (cosines of the recipe's encoder) or fused (both, by "
            "reciprocal rank fusion)."
        },
    )
    gains: str = field(
        default="gains.jsonl", metadata={"help": "File of likelihood gains: score writes it, later stages read it."}
    )
    token_likelihoods: bool = field(
        default=False,
        metadata={"help": "Let score write the log-likelihood of each target token too (emdr2_level: token)."},
    )
    score_cache: str = field(default="scores", metadata={"help": "Folder of the score cache."})
    target: str | None = field(
        default=None,
        metadata={
            "help": "Text whose likelihood counts: answer, query or joint; unset: joint with answers, else query."
        },
    )
    document_prefix: str = field(
        default=PromptTemplate.document_prefix, metadata={"help": "Text before each document in the LLM's prompt."}
    )
    document_suffix: str = field(
        default=PromptTemplate.document_suffix, metadata={"help": "Text after each document in the LLM's prompt."}
    )
    query_prefix: str = field(
        default=PromptTemplate.query_prefix, metadata={"help": "Text before the query in the LLM's prompt."}
    )
    answer_prefix: str = field(
        default=PromptTemplate.answer_prefix, metadata={"help": "Text before the answer in the LLM's prompt."}
    )
    max_document_tokens: int = field(
        default=192,
        metadata={"help": "Tokens that the LLM reads of a document; longer documents are cut and counted."},
    )
    document_layout: str = field(
        default="sequential",
        metadata={
            "help": "Documents in the LLM's prompt (dream, loop, adist, detect_heads): sequential (one after the "
            "other) or independent (none sees another, so that each is read once)."
        },
    )
    head_layout: str | None = field(
        default=None, metadata={"help": "Layout in which detect_heads observes the heads; unset: document_layout."}
    )
    batch_tokens: int = field(
        default=2048,
        metadata={"help": "Tokens, with padding, in one forward pass of scoring; 2048 suits a CPU, a GPU takes more."},
    )
    adapt_documents: int | None = field(
        default=None, metadata={"help": "Documents, drawn by seed, that adapt_scorer reads alone; unset: all."}
    )
    adapt_pairs: bool = field(
        default=False,
        metadata={"help": "Let adapt_scorer also read each query after its candidate of the highest gain."},
    )
    head_queries: int = field(default=64, metadata={"help": "Queries that detect_heads looks at."})
    head_method: str = field(
        default="gain",
        metadata={
            "help": "What detect_heads scores heads by: the rank of the candidate with the highest gain (gain), the "
            "correlation with all gains (correlation), the rank of the document that a sentence was cut out of "
            "(needle: needs a corpus alone) or the rank of what head_qrels judges relevant (qrels)."
        },
    )
    head_qrels: str | None = field(
        default=None, metadata={"help": "Split whose judgements name gold for head_method qrels."}
    )
    labels: bool = field(
        default=False, metadata={"help": "Take info_nce's positives from qrels/<train_split>.tsv, not from the gain."}
    )
    dev_split: str | None = field(
        default=None, metadata={"help": "Split evaluated during training, where eval_strategy says so."}
    )
    eval_split: str | None = field(
        default="test", metadata={"help": "Split that evaluate reports on; null: only on eval_collections."}
    )
    eval_collections: list[str] = field(
        default_factory=list, metadata={"help": "Further collections to report on, each FOLDER:SPLIT."}
    )

    def __post_init__(self) -> None:
        if self.head_method not in HEAD_METHODS:
            raise NLTError(f"head_method {self.head_method!r} is unknown; choose one of {', '.join(HEAD_METHODS)}")
        if (self.head_method == "qrels") != (self.head_qrels is not None):
            raise NLTError(
                f"head_method is {self.head_method!r} and head_qrels {self.head_qrels!r}; judgements are read where "
                "head_method is qrels and head_qrels names their split"
            )
        for name in ("max_queries", "max_document_tokens", "batch_tokens", "adapt_documents", "head_queries"):
            if (number := getattr(self, name)) is not None and number < 1:
                raise NLTError(f"{name} is {number}; it must be at least 1")
        if self.num_candidates < 2:
            raise NLTError(f"num_candidates is {self.num_candidates}; a distribution needs at least 2 candidates")
        for name, layout in (("document_layout", self.document_layout), ("head_layout", self.head_layout)):
            if layout is not None and layout not in get_args(DocumentLayout):
                raise NLTError(f"{name} {layout!r} is unknown; choose one of {', '.join(get_args(DocumentLayout))}")
        if self.miner not in MINERS:
            raise NLTError(f"miner {self.miner!r} is unknown; choose one of {', '.join(MINERS)}")
        if not 0 <= self.num_random_candidates <= self.num_candidates:
            raise NLTError(
                f"num_random_candidates is {self.num_random_candidates}; "
                f"choose 0 to num_candidates ({self.num_candidates})"
            )
        if self.miner != "bm25" and self.num_random_candidates == self.num_candidates:
            raise NLTError(
                f"miner {self.miner!r} has nothing to choose: num_random_candidates and num_candidates are both "
                f"{self.num_candidates}; lower the former"
            )

    @property
    def template(self) -> PromptTemplate:
        return PromptTemplate(self.document_prefix, self.document_suffix, self.query_prefix, self.answer_prefix)


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


RECIPE_BLOCKS: dict[str, type] = {"model": ModelArguments, "data": DataArguments, "trainer": NLTTrainingArguments}
