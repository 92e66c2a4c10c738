"""The options of `nlt build_collection`."""

from __future__ import annotations

from dataclasses import dataclass

from nlt_trainer.arguments.option import check_values, option


@dataclass
class CollectionArguments:
    """Parameters that control a collection from the Hub."""

    folder: str = option(
        default="collection",
        decides="nothing",
        path="collection",
        help="BEIR folder to write.",
    )
    beir: str | None = option(
        default=None,
        decides="nothing",
        path="folder",
        help="Data set in BEIR's layout (corpus, queries, qrels): Hub id or folder.",
    )
    beir_revision: str | None = option(
        default=None,
        decides="nothing",
        help="Revision of beir, if that is a Hub id.",
    )
    beir_qrels: str | None = option(
        default=None,
        decides="nothing",
        path="folder",
        help="Data set with the judgements of beir, if they lie elsewhere, e.g. BeIR/nq-qrels.",
    )
    beir_qrels_revision: str | None = option(
        default=None,
        decides="nothing",
        help="Revision of beir_qrels, if that is a Hub id.",
    )
    beir_splits: dict[str, str] = option(
        default_factory=lambda: {"test": "test"},
        decides="nothing",
        help="Splits of beir and what to call them here, e.g. {validation: dev}; {}: take only the corpus.",
    )
    questions: str | None = option(
        default=None,
        decides="nothing",
        path="folder",
        help="Question-answer set: Hub id or folder.",
    )
    questions_revision: str | None = option(
        default=None,
        decides="nothing",
        help="Revision of questions, if that is a Hub id.",
    )
    questions_config: str | None = option(
        default=None,
        decides="nothing",
        help="Configuration of questions; unset: default, or the only one.",
    )
    question_splits: dict[str, str] = option(
        default_factory=lambda: {"train": "train"},
        decides="nothing",
        help="Splits of questions and what to call them here.",
    )
    held_out: dict[str, float] = option(
        default_factory=dict,
        decides="nothing",
        help="Shares of train to move to other splits, e.g. {dev: 0.01}; a hash of a question's id decides.",
    )
    id_column: str | None = option(
        default=None,
        decides="nothing",
        help="Column of a question's id; unset: the id is a hash of its text.",
    )
    question_column: str = option(
        default="question",
        decides="nothing",
        help="Column of a question's text.",
    )
    answer_column: str | None = option(
        default=None,
        decides="nothing",
        help="Column of a question's answer, or answers, of which the first counts. Questions without are left out.",
    )
    passage_column: str | None = option(
        default=None,
        decides="nothing",
        help="Column of a question's passages, which join the corpus; a.b is part b of column a. Unset: none.",
    )
    title_column: str | None = option(
        default=None,
        decides="nothing",
        help="Column of the title of each passage.",
    )
    gold_column: str | None = option(
        default=None,
        decides="nothing",
        help="Column that says which passages answer: their titles, or a 0 or 1 for each; unset: all do.",
    )

    def __post_init__(self) -> None:
        check_values(self)
