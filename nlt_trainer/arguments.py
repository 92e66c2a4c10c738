"""Everything that a recipe can set: three dataclasses, one a block; the help of a field is its documentation."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from sentence_transformers import SentenceTransformerTrainingArguments

from nlt_trainer.errors import NLTError
from nlt_trainer.models.heads import HEAD_SELECTIONS
from nlt_trainer.prompts import PromptTemplate

OBJECTIVES = ("likelihood_gain", "dream", "info_nce")
HEAD_METHODS = ("gain", "correlation", "needle", "qrels")


@dataclass
class ModelArguments:
    """Parameters that control the models."""

    encoder: str = field(
        default="sentence-transformers/all-MiniLM-L6-v2",
        metadata={"help": "Encoder to start from: Hub id, folder, or package:<module>/<path>."},
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
        default=None, metadata={"help": "LoRA adapter of the LLM, Hub id or folder; merged into it and frozen."}
    )
    llm_dtype: str = field(default="float32", metadata={"help": "float32, bfloat16 or float16."})
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
        if self.head_selection not in HEAD_SELECTIONS:
            raise NLTError(
                f"head_selection {self.head_selection!r} is unknown; choose one of {', '.join(HEAD_SELECTIONS)}"
            )


@dataclass
class DataArguments:
    """Parameters that control the data."""

    collection: str = field(default="collection", metadata={"help": "BEIR folder: corpus.jsonl, queries.jsonl."})
    train_split: str | None = field(
        default=None, metadata={"help": "Train on the queries that qrels/<split>.tsv names; unset: on all queries."}
    )
    max_queries: int | None = field(
        default=None, metadata={"help": "Train on this many of them, drawn by seed; unset: on all."}
    )
    candidates: str = field(
        default="candidates.jsonl", metadata={"help": "File of candidates: mine writes it, later stages read it."}
    )
    num_candidates: int = field(default=8, metadata={"help": "K, candidates a query."})
    num_random_candidates: int = field(
        default=0, metadata={"help": "How many of the K are drawn at random from the corpus instead of from BM25."}
    )
    gains: str = field(
        default="gains.jsonl", metadata={"help": "File of likelihood gains: score writes it, later stages read it."}
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
    batch_tokens: int = field(default=4096, metadata={"help": "Tokens, with padding, in one forward pass of scoring."})
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
    eval_split: str = field(default="test", metadata={"help": "Split that evaluate reports on."})
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
        if self.num_candidates < 2:
            raise NLTError(f"num_candidates is {self.num_candidates}; a distribution needs at least 2 candidates")
        if not 0 <= self.num_random_candidates <= self.num_candidates:
            raise NLTError(
                f"num_random_candidates is {self.num_random_candidates}; "
                f"choose 0 to num_candidates ({self.num_candidates})"
            )

    @property
    def template(self) -> PromptTemplate:
        return PromptTemplate(self.document_prefix, self.document_suffix, self.query_prefix, self.answer_prefix)


@dataclass
class NLTTrainingArguments(SentenceTransformerTrainingArguments):
    """Parameters that control the objective and the trainer."""

    objective: str = field(
        default="likelihood_gain", metadata={"help": f"What trains the encoder: {', '.join(OBJECTIVES)}."}
    )
    temperature: float = field(default=0.05, metadata={"help": "Temperature of the encoder's cosines."})
    teacher_temperature: float = field(
        default=0.2, metadata={"help": "Temperature of the gains in nats per token (likelihood_gain)."}
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
    lm_micro_batch_size: int = field(
        default=2, metadata={"help": "Queries that the LLM reads at once (dream); changes memory, not the gradient."}
    )
    in_batch_negatives: bool = field(
        default=True, metadata={"help": "Use the other queries' candidates as negatives (info_nce)."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        # torch warns at every epoch where there is no accelerator to pin memory for
        self.dataloader_pin_memory &= torch.cuda.is_available()
        if self.objective not in OBJECTIVES:
            raise NLTError(f"objective {self.objective!r} is unknown; choose one of {', '.join(OBJECTIVES)}")


RECIPE_BLOCKS: dict[str, type] = {"model": ModelArguments, "data": DataArguments, "trainer": NLTTrainingArguments}
