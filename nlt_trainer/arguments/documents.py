"""The options of `nlt build_corpus`."""

from __future__ import annotations

from dataclasses import dataclass

from nlt_trainer.arguments.option import option
from nlt_trainer.errors import NLTError


@dataclass
class DocumentArguments:
    """Parameters that control a corpus of your own documents."""

    documents: str = option(
        decides="nothing",
        path="folder",
        help="Folder that is read with its subfolders, or one file. A BEIR folder or its corpus.jsonl stays as it is.",
    )
    corpus: str = option(
        default="corpus",
        decides="nothing",
        path="collection",
        help="BEIR folder to write: corpus.jsonl, and corpus.report.json, which says what was left out.",
    )
    passage_words: int = option(
        default=180,
        decides="nothing",
        help="The most words of a passage without its title; a punctuation mark counts as one.",
    )

    def __post_init__(self) -> None:
        if self.passage_words < 10:
            raise NLTError(f"passage_words is {self.passage_words}; it must be at least 10")
