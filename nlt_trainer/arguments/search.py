"""The options of `nlt search` and `nlt app`."""

from __future__ import annotations

from dataclasses import dataclass

from nlt_trainer.arguments.data import DataArguments
from nlt_trainer.arguments.model import ModelArguments
from nlt_trainer.arguments.option import check_values, option, same_as
from nlt_trainer.choices import LLMDtype
from nlt_trainer.errors import NLTError


@dataclass
class IndexArguments:
    """Parameters that control the search."""

    encoder: str = option(
        decides="nothing",
        path="model",
        help="Encoder: Hub id, folder, or package:<module>/<path>.",
    )
    corpus: str = option(
        decides="nothing",
        path="collection",
        help="BEIR folder whose corpus.jsonl is searched.",
    )
    against: str | None = option(
        default=None,
        decides="nothing",
        path="model",
        help="Encoder that the first is compared with.",
    )
    top_k: int = option(
        default=10,
        decides="nothing",
        help="Documents shown for each encoder.",
    )
    bm25_weight: float = option(
        default=0.0,
        decides="nothing",
        help="Share of BM25 in the scores, from 0 (the encoder alone) to 1; both are scaled to 0 to 1 before.",
    )
    embeddings: str | None = option(
        default=None,
        decides="nothing",
        path="cache",
        help="Folder in which embeddings are kept; unset: the user's cache.",
    )

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise NLTError(f"top_k is {self.top_k}; it must be at least 1")
        if not 0 <= self.bm25_weight <= 1:
            raise NLTError(f"bm25_weight is {self.bm25_weight}; it must be between 0 (the encoder alone) and 1 (BM25)")


@dataclass
class SearchArguments(IndexArguments):
    """Parameters that control the terminal."""

    query: str | None = option(
        default=None,
        decides="nothing",
        help="Search for this query and exit; unset: ask for queries.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.query is not None and not self.query.strip():
            raise NLTError("query is empty; write what to search for, or leave it out to be asked")


@dataclass
class AppArguments(IndexArguments):
    """Parameters that control the page."""

    llm: str = option(decides="nothing", **same_as("llm", of=ModelArguments))
    llm_dtype: LLMDtype = option(decides="nothing", **same_as("llm_dtype", of=ModelArguments))
    document_prefix: str = option(decides="nothing", **same_as("document_prefix", of=DataArguments))
    query_prefix: str = option(decides="nothing", **same_as("query_prefix", of=DataArguments))
    max_document_tokens: int = option(
        default=DataArguments.max_document_tokens,
        decides="nothing",
        help="The most tokens of a document that the LLM reads.",
    )
    title: str = option(
        default="What do two encoders find?",
        decides="nothing",
        help="Heading of the page.",
    )
    host: str = option(
        default="127.0.0.1",
        decides="nothing",
        help="Address to listen on; with 0.0.0.0 other machines reach the page too.",
    )
    port: int | None = option(
        default=None,
        decides="nothing",
        help="Port; unset: a free one from 7860 on.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_values(self)
        if self.port is not None and not 0 < self.port < 65536:
            raise NLTError(f"port is {self.port}; it must be between 1 and 65535")
