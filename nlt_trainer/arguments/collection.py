"""What `nlt build_collection` takes."""

from __future__ import annotations

from dataclasses import dataclass

from nlt_trainer.arguments.option import option


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
