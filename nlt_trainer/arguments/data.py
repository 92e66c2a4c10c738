"""The recipe's block `data:`: collection, candidates, gains, and the prompt that the LLM reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import get_args

from nlt_trainer.data.candidates import MINERS
from nlt_trainer.errors import NLTError
from nlt_trainer.injection.document_prompts import DocumentLayout
from nlt_trainer.prompts import PromptTemplate

HEAD_METHODS = ("gain", "correlation", "needle", "qrels")


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
