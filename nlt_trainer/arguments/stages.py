"""What single stages take besides a recipe, and the blocks of each stage."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from nlt_trainer.arguments.data import DataArguments
from nlt_trainer.arguments.inherited import DECIDING, OTHER, REFUSED
from nlt_trainer.arguments.model import ModelArguments
from nlt_trainer.arguments.option import check_words, option
from nlt_trainer.arguments.trainer import TrainerArguments
from nlt_trainer.choices import ExportForm, LLMDtype, Precision, RepoType
from nlt_trainer.errors import NLTError
from nlt_trainer.files import cache_folder
from nlt_trainer.prompts import PromptTemplate
from nlt_trainer.recipe.keys import Block, Blocks


@dataclass
class EvaluationArguments:
    """Parameters that control the evaluation."""

    tasks: list[str] = option(
        default_factory=list,
        decides="nothing",
        help=(
            "What to evaluate on in place of the recipe's collections: tasks and benchmarks of mteb by name "
            "(SciFact, NanoBEIR, BEIR, CoIR, 'MTEB(eng, v2)', 'RTEB(beta)'), BEIR and TREC folders as FOLDER:SPLIT."
        ),
    )
    checkpoints: list[str] = option(
        default_factory=list,
        decides="nothing",
        help="Encoders beside the recipe's run: Hub ids, folders, output folders of other runs.",
    )
    run_files: list[str] = option(
        default_factory=list,
        decides="nothing",
        help="Runs in trec_eval's format, as further rows; with one task alone.",
    )
    fused: bool = option(
        default=False,
        decides="nothing",
        help="Add each encoder fused with BM25 by reciprocal ranks (k = 60, 100 each).",
    )
    truncate_dims: list[int] = option(
        default_factory=list,
        decides="nothing",
        help="Add each encoder with its first dimensions alone, e.g. 256 128.",
    )
    quantisations: list[Precision] = option(
        default_factory=list,
        decides="nothing",
        help=f"Add each encoder, in every size, with documents in {' or '.join(get_args(Precision))}.",
    )
    against: str | None = option(
        default=None,
        decides="nothing",
        help=(
            "Row that the others are compared with, one by one, so that p is not corrected for their number; "
            "unset: the first encoder's."
        ),
    )
    encode_batch_size: int = option(
        default=32,
        decides="nothing",
        help="Texts that an encoder embeds at once.",
    )
    evaluation_cache: str | None = option(
        default=None,
        decides="nothing",
        help="Folder of results and embeddings that are kept; unset: the user's cache (NLT_CACHE).",
    )
    embedding_cache_gib: float = option(
        default=20.0,
        decides="nothing",
        help="Embeddings that stay there afterwards, GiB, those used last; 0: none.",
    )

    def __post_init__(self) -> None:
        check_words(self)
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

    form: ExportForm = option(
        default="merged",
        decides="nothing",
        help=(
            f"{', '.join(get_args(ExportForm))}: the whole encoder, its adapter alone, or in the format of a "
            "runtime that Sentence-Transformers exports to."
        ),
    )


@dataclass
class PushArguments:
    """Parameters that control what is published and where."""

    repo: str = option(
        decides="nothing",
        help="Hub id of the encoder, ORG/NAME; created where there is none.",
    )
    gains_repo: str | None = option(
        default=None,
        decides="nothing",
        help="Hub id of a data set for gains and candidates; these hold the texts of the training queries.",
    )
    tag: str | None = option(
        default=None,
        decides="nothing",
        help="Tag of the release; unset: the next of v1, v2, ...",
    )
    private: bool = option(
        default=True,
        decides="nothing",
        help="Whether a new repository is private.",
    )
    dry_run: bool = option(
        default=False,
        decides="nothing",
        help="List files and sizes, and send nothing.",
    )

    def __post_init__(self) -> None:
        if self.tag is not None and not re.fullmatch(r"[A-Za-z0-9](\.?[\w+-])*", self.tag):
            raise NLTError(f"tag {self.tag!r} is none; use letters, digits, '.', '-', '_' and '+', e.g. v1.2")


@dataclass
class PullArguments:
    """Parameters that control what is fetched."""

    repo: str = option(
        decides="nothing",
        help="Hub id, ORG/NAME.",
    )
    folder: str = option(
        decides="nothing",
        help="Folder to write; one that an earlier pull has written is replaced.",
    )
    revision: str | None = option(
        default=None,
        decides="nothing",
        help="Tag, branch or commit; unset: the newest.",
    )
    repo_type: RepoType = option(
        default="model",
        decides="nothing",
        help="model, or dataset for published gains.",
    )
    dry_run: bool = option(
        default=False,
        decides="nothing",
        help="List files and sizes, and fetch nothing.",
    )

    def __post_init__(self) -> None:
        check_words(self)


@dataclass
class IndexArguments:
    """Parameters that control the search."""

    encoder: str = option(
        decides="nothing",
        help="Encoder: Hub id, folder, or package:<module>/<path>.",
    )
    corpus: str = option(
        decides="nothing",
        help="BEIR folder whose corpus.jsonl is searched.",
    )
    against: str | None = option(
        default=None,
        decides="nothing",
        help="Encoder that the first is compared with.",
    )
    top_k: int = option(
        default=10,
        decides="nothing",
        help="Documents shown for each encoder.",
    )
    embeddings: str | None = option(
        default=None,
        decides="nothing",
        help="Folder in which embeddings are kept; unset: the user's cache.",
    )

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise NLTError(f"top_k is {self.top_k}; it must be at least 1")


@dataclass
class SearchArguments(IndexArguments):
    """Parameters that control the terminal."""

    query: str | None = option(
        default=None,
        decides="nothing",
        help="Search for this and leave; unset: ask for queries.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.query is not None and not self.query.strip():
            raise NLTError("query is empty; write what to search for, or leave it out to be asked")


@dataclass
class AppArguments(IndexArguments):
    """Parameters that control the page."""

    llm: str = option(
        default="HuggingFaceTB/SmolLM2-135M-Instruct",
        decides="nothing",
        help="Frozen LLM whose gain is shown: Hub id, folder, .gguf file, or package:<module>/<path>.",
    )
    llm_dtype: LLMDtype = option(
        default="float32",
        decides="nothing",
        help="float32, bfloat16 or float16.",
    )
    document_prefix: str = option(
        default=PromptTemplate.document_prefix,
        decides="nothing",
        help="Text before the document in the LLM's prompt.",
    )
    query_prefix: str = option(
        default=PromptTemplate.query_prefix,
        decides="nothing",
        help="Text before the query in the LLM's prompt.",
    )
    max_document_tokens: int = option(
        default=192,
        decides="nothing",
        help="Tokens that the LLM reads of a document.",
    )
    title: str = option(
        default="What do two encoders find?",
        decides="nothing",
        help="Heading of the page.",
    )
    host: str = option(
        default="127.0.0.1",
        decides="nothing",
        help="Address to listen on; 0.0.0.0: other machines too.",
    )
    port: int | None = option(
        default=None,
        decides="nothing",
        help="Port; unset: a free one from 7860 on.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_words(self)
        if self.port is not None and not 0 < self.port < 65536:
            raise NLTError(f"port is {self.port}; it must be between 1 and 65535")


@dataclass
class PlanArguments:
    """Parameters that control the plan."""

    accelerator: str | None = option(
        default=None,
        decides="nothing",
        help="Also say how long an accelerator of this name would take, e.g. A100 bf16.",
    )
    accelerator_tflops: float | None = option(
        default=None,
        decides="nothing",
        help="The same for one with this matrix-multiply peak, TFLOP/s.",
    )
    utilisation: float = option(
        default=0.4,
        decides="nothing",
        help="Share of its peak that the accelerator sustains: 0.4 is a common figure.",
    )
    plan_file: str | None = option(
        default=None,
        decides="nothing",
        help="Write the plan as JSON too.",
    )

    def __post_init__(self) -> None:
        if not 0 < self.utilisation <= 1:
            raise NLTError(f"utilisation is {self.utilisation}; it must be above 0 and at most 1")


@dataclass
class CollectionArguments:
    """Parameters that control a collection from the Hub."""

    folder: str = option(
        default="collection",
        decides="nothing",
        help="BEIR folder to write.",
    )
    beir: str | None = option(
        default=None,
        decides="nothing",
        help="Data set in BEIR's layout (corpus, queries, qrels): Hub id or folder.",
    )
    beir_revision: str | None = option(
        default=None,
        decides="nothing",
        help="Its revision, where it is a Hub id.",
    )
    beir_qrels: str | None = option(
        default=None,
        decides="nothing",
        help="Data set of its judgements, where they lie apart, e.g. BeIR/nq-qrels.",
    )
    beir_qrels_revision: str | None = option(
        default=None,
        decides="nothing",
        help="Revision of that one.",
    )
    beir_splits: dict[str, str] = option(
        default_factory=lambda: {"test": "test"},
        decides="nothing",
        help="Its splits and what to call them here, e.g. {validation: dev}; {}: the corpus alone.",
    )
    questions: str | None = option(
        default=None,
        decides="nothing",
        help="Question-answer set: Hub id or folder.",
    )
    questions_revision: str | None = option(
        default=None,
        decides="nothing",
        help="Its revision, where it is a Hub id.",
    )
    questions_config: str | None = option(
        default=None,
        decides="nothing",
        help="Its configuration; unset: default, or the only one.",
    )
    question_splits: dict[str, str] = option(
        default_factory=lambda: {"train": "train"},
        decides="nothing",
        help="Its splits and what to call them here.",
    )
    held_out: dict[str, float] = option(
        default_factory=dict,
        decides="nothing",
        help="Shares of train that a hash of the question's id sends elsewhere, e.g. {dev: 0.01}.",
    )
    id_column: str | None = option(
        default=None,
        decides="nothing",
        help="Id of a question; unset: a hash of its text.",
    )
    question_column: str = option(
        default="question",
        decides="nothing",
        help="Text of a question.",
    )
    answer_column: str | None = option(
        default=None,
        decides="nothing",
        help="Its answer; of several the first. Questions without one are left out.",
    )
    passage_column: str | None = option(
        default=None,
        decides="nothing",
        help="Its passage or passages, which join the corpus; a.b is part b of column a. Unset: none.",
    )
    title_column: str | None = option(
        default=None,
        decides="nothing",
        help="Title of each passage.",
    )
    gold_column: str | None = option(
        default=None,
        decides="nothing",
        help="Which passages answer the question: their titles, or a 0 or 1 each; unset: all.",
    )


_TRAINER = Block(
    own=TrainerArguments,
    full="nlt_trainer.training_arguments:NLTTrainingArguments",
    inherited=DECIDING | OTHER,
    refused=REFUSED,
    documentation="https://sbert.net/docs/package_reference/sentence_transformer/training_args.html",
)
RECIPE_BLOCKS: Blocks = {"model": ModelArguments, "data": DataArguments, "trainer": _TRAINER}
"""Blocks of a recipe, for the stages that take no others."""
EVALUATION_BLOCKS: Blocks = {**RECIPE_BLOCKS, "evaluation": EvaluationArguments}
EXPORT_BLOCKS: Blocks = {**RECIPE_BLOCKS, "export": ExportArguments}
PUSH_BLOCKS: Blocks = {**EXPORT_BLOCKS, "push": PushArguments}
PULL_BLOCKS: Blocks = {"pull": PullArguments}
SEARCH_BLOCKS: Blocks = {"search": SearchArguments}
APP_BLOCKS: Blocks = {"app": AppArguments}
PLAN_BLOCKS: Blocks = {**RECIPE_BLOCKS, "plan": PlanArguments}
COLLECTION_BLOCKS: Blocks = {"collection": CollectionArguments}
