"""What single stages take besides a recipe, and the blocks of each stage."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from nlt_trainer.arguments.data import DataArguments
from nlt_trainer.arguments.model import ModelArguments
from nlt_trainer.arguments.training import NLTTrainingArguments
from nlt_trainer.choices import ExportForm, LLMDtype, Precision, RepoType, check_choice
from nlt_trainer.errors import NLTError
from nlt_trainer.locations import cache_folder
from nlt_trainer.prompts import PromptTemplate


@dataclass
class EvaluationArguments:
    """Parameters that control the evaluation."""

    tasks: list[str] = field(
        default_factory=list,
        metadata={
            "help": "What to evaluate on in place of the recipe's collections: tasks and benchmarks of mteb by name "
            "(SciFact, NanoBEIR, BEIR, CoIR, 'MTEB(eng, v2)', 'RTEB(beta)'), BEIR and TREC folders as FOLDER:SPLIT."
        },
    )
    checkpoints: list[str] = field(
        default_factory=list,
        metadata={"help": "Encoders beside the recipe's run: Hub ids, folders, output folders of other runs."},
    )
    run_files: list[str] = field(
        default_factory=list, metadata={"help": "Runs in trec_eval's format, as further rows; with one task alone."}
    )
    fused: bool = field(
        default=False, metadata={"help": "Add each encoder fused with BM25 by reciprocal ranks (k = 60, 100 each)."}
    )
    truncate_dims: list[int] = field(
        default_factory=list, metadata={"help": "Add each encoder with its first dimensions alone, e.g. 256 128."}
    )
    quantisations: list[str] = field(
        default_factory=list,
        metadata={"help": f"Add each encoder, in every size, with documents in {' or '.join(get_args(Precision))}."},
    )
    against: str | None = field(
        default=None,
        metadata={
            "help": "Row that the others are compared with, one by one, so that p is not corrected for their number; "
            "unset: the first encoder's."
        },
    )
    encode_batch_size: int = field(default=32, metadata={"help": "Texts that an encoder embeds at once."})
    evaluation_cache: str | None = field(
        default=None,
        metadata={"help": "Folder of results and embeddings that are kept; unset: the user's cache (NLT_CACHE)."},
    )
    embedding_cache_gib: float = field(
        default=20.0,
        metadata={"help": "Embeddings that stay there afterwards, GiB, those used last; 0: none."},
    )

    def __post_init__(self) -> None:
        for precision in self.quantisations:
            check_choice("quantisations", precision, Precision)
        if wrong := [dim for dim in self.truncate_dims if dim < 1]:
            raise NLTError(f"truncate_dims has {wrong[0]}; it must be at least 1")
        if self.encode_batch_size < 1:
            raise NLTError(f"encode_batch_size is {self.encode_batch_size}; it must be at least 1")

    @property
    def cache(self) -> Path:
        return cache_folder() if self.evaluation_cache is None else Path(self.evaluation_cache).expanduser()


@dataclass
class ExportArguments:
    """Parameters that control the export."""

    form: ExportForm = field(
        default="merged",
        metadata={
            "help": f"{', '.join(get_args(ExportForm))}: the whole encoder, its adapter alone, or in the format of a "
            "runtime that Sentence-Transformers exports to."
        },
    )


@dataclass
class PushArguments:
    """Parameters that control what is published and where."""

    repo: str = field(metadata={"help": "Hub id of the encoder, ORG/NAME; created where there is none."})
    gains_repo: str | None = field(
        default=None,
        metadata={
            "help": "Hub id of a data set for gains and candidates; these hold the texts of the training queries."
        },
    )
    tag: str | None = field(default=None, metadata={"help": "Tag of the release; unset: the next of v1, v2, ..."})
    private: bool = field(default=True, metadata={"help": "Whether a new repository is private."})
    dry_run: bool = field(default=False, metadata={"help": "List files and sizes, and send nothing."})

    def __post_init__(self) -> None:
        if self.tag is not None and not re.fullmatch(r"[A-Za-z0-9](\.?[\w+-])*", self.tag):
            raise NLTError(f"tag {self.tag!r} is none; use letters, digits, '.', '-', '_' and '+', e.g. v1.2")


@dataclass
class PullArguments:
    """Parameters that control what is fetched."""

    repo: str = field(metadata={"help": "Hub id, ORG/NAME."})
    folder: str = field(metadata={"help": "Folder to write; one that an earlier pull has written is replaced."})
    revision: str | None = field(default=None, metadata={"help": "Tag, branch or commit; unset: the newest."})
    repo_type: str = field(default="model", metadata={"help": "model, or dataset for published gains."})
    dry_run: bool = field(default=False, metadata={"help": "List files and sizes, and fetch nothing."})

    def __post_init__(self) -> None:
        check_choice("repo_type", self.repo_type, RepoType)


@dataclass
class IndexArguments:
    """Parameters that control the search."""

    encoder: str = field(metadata={"help": "Encoder: Hub id, folder, or package:<module>/<path>."})
    corpus: str = field(metadata={"help": "BEIR folder whose corpus.jsonl is searched."})
    against: str | None = field(default=None, metadata={"help": "Encoder that the first is compared with."})
    top_k: int = field(default=10, metadata={"help": "Documents shown for each encoder."})
    embeddings: str | None = field(
        default=None, metadata={"help": "Folder in which embeddings are kept; unset: the user's cache."}
    )

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise NLTError(f"top_k is {self.top_k}; it must be at least 1")


@dataclass
class SearchArguments(IndexArguments):
    """Parameters that control the terminal."""

    query: str | None = field(default=None, metadata={"help": "Search for this and leave; unset: ask for queries."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.query is not None and not self.query.strip():
            raise NLTError("query is empty; write what to search for, or leave it out to be asked")


@dataclass
class AppArguments(IndexArguments):
    """Parameters that control the page."""

    llm: str = field(
        default="HuggingFaceTB/SmolLM2-135M-Instruct",
        metadata={"help": "Frozen LLM whose gain is shown: Hub id, folder, .gguf file, or package:<module>/<path>."},
    )
    llm_dtype: str = field(default="float32", metadata={"help": "float32, bfloat16 or float16."})
    document_prefix: str = field(
        default=PromptTemplate.document_prefix, metadata={"help": "Text before the document in the LLM's prompt."}
    )
    query_prefix: str = field(
        default=PromptTemplate.query_prefix, metadata={"help": "Text before the query in the LLM's prompt."}
    )
    max_document_tokens: int = field(default=192, metadata={"help": "Tokens that the LLM reads of a document."})
    title: str = field(default="What do two encoders find?", metadata={"help": "Heading of the page."})
    host: str = field(default="127.0.0.1", metadata={"help": "Address to listen on; 0.0.0.0: other machines too."})
    port: int | None = field(default=None, metadata={"help": "Port; unset: a free one from 7860 on."})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("llm_dtype", self.llm_dtype, LLMDtype)
        if self.port is not None and not 0 < self.port < 65536:
            raise NLTError(f"port is {self.port}; it must be between 1 and 65535")


@dataclass
class PlanArguments:
    """Parameters that control the plan."""

    accelerator: str | None = field(
        default=None, metadata={"help": "Also say how long an accelerator of this name would take, e.g. A100 bf16."}
    )
    accelerator_tflops: float | None = field(
        default=None, metadata={"help": "The same for one with this matrix-multiply peak, TFLOP/s."}
    )
    utilisation: float = field(
        default=0.4, metadata={"help": "Share of its peak that the accelerator sustains: 0.4 is a common figure."}
    )
    plan_file: str | None = field(default=None, metadata={"help": "Write the plan as JSON too."})

    def __post_init__(self) -> None:
        if not 0 < self.utilisation <= 1:
            raise NLTError(f"utilisation is {self.utilisation}; it must be above 0 and at most 1")


@dataclass
class CollectionArguments:
    """Parameters that control a collection from the Hub."""

    folder: str = field(default="collection", metadata={"help": "BEIR folder to write."})
    beir: str | None = field(
        default=None, metadata={"help": "Data set in BEIR's layout (corpus, queries, qrels): Hub id or folder."}
    )
    beir_revision: str | None = field(default=None, metadata={"help": "Its revision, where it is a Hub id."})
    beir_qrels: str | None = field(
        default=None, metadata={"help": "Data set of its judgements, where they lie apart, e.g. BeIR/nq-qrels."}
    )
    beir_qrels_revision: str | None = field(default=None, metadata={"help": "Revision of that one."})
    beir_splits: dict[str, str] = field(
        default_factory=lambda: {"test": "test"},
        metadata={"help": "Its splits and what to call them here, e.g. {validation: dev}; {}: the corpus alone."},
    )
    questions: str | None = field(default=None, metadata={"help": "Question-answer set: Hub id or folder."})
    questions_revision: str | None = field(default=None, metadata={"help": "Its revision, where it is a Hub id."})
    questions_config: str | None = field(
        default=None, metadata={"help": "Its configuration; unset: default, or the only one."}
    )
    question_splits: dict[str, str] = field(
        default_factory=lambda: {"train": "train"}, metadata={"help": "Its splits and what to call them here."}
    )
    held_out: dict[str, float] = field(
        default_factory=dict,
        metadata={"help": "Shares of train that a hash of the question's id sends elsewhere, e.g. {dev: 0.01}."},
    )
    id_column: str | None = field(default=None, metadata={"help": "Id of a question; unset: a hash of its text."})
    question_column: str = field(default="question", metadata={"help": "Text of a question."})
    answer_column: str | None = field(
        default=None, metadata={"help": "Its answer; of several the first. Questions without one are left out."}
    )
    passage_column: str | None = field(
        default=None,
        metadata={"help": "Its passage or passages, which join the corpus; a.b is part b of column a. Unset: none."},
    )
    title_column: str | None = field(default=None, metadata={"help": "Title of each passage."})
    gold_column: str | None = field(
        default=None,
        metadata={"help": "Which passages answer the question: their titles, or a 0 or 1 each; unset: all."},
    )


RECIPE_BLOCKS: dict[str, type] = {"model": ModelArguments, "data": DataArguments, "trainer": NLTTrainingArguments}
"""Blocks of a recipe, for the stages that take no others."""
EVALUATION_BLOCKS: dict[str, type] = {**RECIPE_BLOCKS, "evaluation": EvaluationArguments}
EXPORT_BLOCKS: dict[str, type] = {**RECIPE_BLOCKS, "export": ExportArguments}
PUSH_BLOCKS: dict[str, type] = {**EXPORT_BLOCKS, "push": PushArguments}
PULL_BLOCKS: dict[str, type] = {"pull": PullArguments}
SEARCH_BLOCKS: dict[str, type] = {"search": SearchArguments}
APP_BLOCKS: dict[str, type] = {"app": AppArguments}
PLAN_BLOCKS: dict[str, type] = {**RECIPE_BLOCKS, "plan": PlanArguments}
COLLECTION_BLOCKS: dict[str, type] = {"collection": CollectionArguments}
