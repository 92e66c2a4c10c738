"""The options that `nlt adapt` takes besides a recipe."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from nlt_trainer.arguments.option import option
from nlt_trainer.choices import QueryOrigin
from nlt_trainer.errors import NLTError

LEAST_HELD_OUT = 20
"""The least number of held-out queries that can decide: with 5, no gain is sure enough."""
AUTO = "auto"
"""What makes the queries depends on the documents."""
QUERIES, WRITTEN = 960, 480
"""Number of queries, and of those that an LLM writes: it writes one or two in a second on a core."""


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
        default="auto",
        decides="nothing",
        path="file",
        help=(
            "Queries to train on: a file with one that people have typed on each line, or JSONL; or how to make them: "
            "crop (sentences and headings cut out of the documents), llm (written by the LLM), both, or auto: llm if "
            "most passages are source code, else crop."
        ),
    )
    num_queries: int | None = option(
        default=None,
        decides="nothing",
        help=(
            f"Number of queries to make, or to draw by seed from those that are given; unset: {QUERIES}, or {WRITTEN} "
            "if the LLM writes all of them, which takes long."
        ),
    )
    held_out: int | None = option(
        default=None,
        decides="nothing",
        help=(
            "Number of these that do not train but decide whether the trained encoder is kept: at most a quarter of "
            f"them, of made ones also {LEAST_HELD_OUT} if that is no more than half; unset: a quarter."
        ),
    )

    def __post_init__(self) -> None:
        for name in ("num_queries", "held_out"):
            if (given := getattr(self, name)) is not None and given < 1:
                raise NLTError(f"{name} is {given}; give at least 1, or leave it out")
        number, held_out = self.numbers
        if not held_out < number:
            raise NLTError(f"held_out is {held_out} of num_queries {number}; leave some to train on")
        if held_out < LEAST_HELD_OUT:
            raise NLTError(f"held_out is {held_out}; fewer than {LEAST_HELD_OUT} queries decide nothing")

    @property
    def numbers(self) -> tuple[int, int]:
        """The number of queries, and how many of these are held out."""
        number = self.num_queries or (WRITTEN if self.queries == "llm" else QUERIES)
        return number, self.held_out or number // 4

    def with_origin(self, *, code: bool) -> AdaptArguments:
        """The same with what makes the queries in place of `auto`.

        Args:
            code: whether most passages are source code, of which a cut sentence is code, too, as nobody searches.
        """
        return replace(self, queries="llm" if code else "crop") if self.queries == AUTO else self

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
                f"{', '.join((AUTO, *get_args(QueryOrigin)))}"
            )

    @property
    def makes_queries(self) -> bool:
        """Whether queries are made from the documents."""
        return self.queries in (AUTO, *get_args(QueryOrigin))
