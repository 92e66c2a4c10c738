"""The options that `nlt adapt` takes besides a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from nlt_trainer.arguments.option import option
from nlt_trainer.choices import QueryOrigin
from nlt_trainer.errors import NLTError

LEAST_HELD_OUT = 20
"""The least number of held-out queries that can decide: with 5, no gain is sure enough."""


@dataclass
class AdaptArguments:
    """Parameters that control what is adapted to."""

    documents: str = option(
        decides="nothing",
        path="folder",
        help=(
            "Folder of documents, a single document, or a BEIR folder, whose corpus.jsonl is then taken as it is. The "
            "first word of the command may be this folder without its flag."
        ),
    )
    output: str = option(
        decides="nothing",
        path="folder",
        help="Folder for everything that is made; the encoder is its subfolder `encoder`.",
    )
    queries: str = option(
        default="crop",
        decides="nothing",
        path="file",
        help=(
            "Queries to train on: a file with one that people have typed on each line, or JSONL; or how to make them: "
            "crop (sentences and headings cut out of the documents), llm (written by the LLM) or both."
        ),
    )
    num_queries: int = option(
        default=960,
        decides="nothing",
        help="Number of queries to make, or to draw by seed from those that are given.",
    )
    held_out: int = option(
        default=240,
        decides="nothing",
        help=(
            "Number of these that do not train but decide whether the trained encoder is kept: at most a quarter of "
            "given queries and half of made ones."
        ),
    )

    def __post_init__(self) -> None:
        if not self.held_out < self.num_queries:
            raise NLTError(f"held_out is {self.held_out} of num_queries {self.num_queries}; leave some to train on")
        if self.held_out < LEAST_HELD_OUT:
            raise NLTError(f"held_out is {self.held_out}; fewer than {LEAST_HELD_OUT} queries decide nothing")

    def check_files(self) -> None:
        """Refuse input that is not there; a script calls this before it imports any large library.

        Raises:
            NLTError: the documents or the file of queries are missing, or the output lies among the documents.
        """
        if not Path(self.documents).exists():
            raise NLTError(f"documents is {self.documents!r}, and there is no such folder or file; name yours")
        if Path(self.output).resolve().is_relative_to(Path(self.documents).resolve()):
            raise NLTError(
                f"output {self.output} lies in {self.documents}, where it would be read as documents; name a folder "
                "outside"
            )
        if not self.makes_queries and not Path(self.queries).is_file():
            raise NLTError(
                f"queries is {self.queries!r}, and there is no such file; name a file, or one of "
                f"{', '.join(get_args(QueryOrigin))}"
            )

    @property
    def makes_queries(self) -> bool:
        """Whether queries are made from the documents."""
        return self.queries in get_args(QueryOrigin)
