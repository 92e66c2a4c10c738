"""The options of `nlt make_queries`."""

from __future__ import annotations

from dataclasses import dataclass

from nlt_trainer.arguments.option import check_values, option
from nlt_trainer.choices import QueryOrigin
from nlt_trainer.errors import NLTError


@dataclass
class QueriesArguments:
    """Parameters that control queries that are made of documents."""

    corpus: str = option(
        decides="nothing",
        path="collection",
        help="BEIR folder whose corpus.jsonl has the passages; ids such as path.md#3 name their documents.",
    )
    kind: QueryOrigin = option(
        default="crop",
        decides="nothing",
        help="What makes the queries: crop (sentences cut out of passages), llm (the recipe's llm writes) or both.",
    )
    num_queries: int = option(
        default=800,
        decides="nothing",
        help="Number of queries to make in all, spread over the documents.",
    )
    crop_titles: bool = option(
        default=True,
        decides="nothing",
        help="Also cut the innermost heading of a title, if no other passage has it.",
    )
    held_out_share: float = option(
        default=0.15,
        decides="nothing",
        help="Share of the queries that is held out from training, by document: at least 50, at most 200.",
    )
    writing_batch: int = option(
        default=16,
        decides="nothing",
        help="Queries that the LLM writes at once.",
    )

    def __post_init__(self) -> None:
        check_values(self)
        for name in ("num_queries", "writing_batch"):
            if (number := getattr(self, name)) < 1:
                raise NLTError(f"{name} is {number}; it must be at least 1")
        if not 0 < self.held_out_share < 1:
            raise NLTError(f"held_out_share is {self.held_out_share}; it must be between 0 and 1")
