"""Turn data sets of the Hub into a BEIR folder.

```bash
nlt build_collection --config recipes/collections/hotpotqa.yaml
nlt build_collection --folder data/scifact --beir mteb/scifact --beir_revision d56462d0e63a25450459c4f213e49ffdb866f7f9
```

A local folder with the same layout works in place of an id. `<folder>/source.json` says what came from where, and
what was left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from nlt_trainer.data.hub_collection import BEIRSource, QuestionSource, build_hub_collection
from nlt_trainer.data.questions import Columns
from nlt_trainer.recipe import parse_recipe
from nlt_trainer.scripts import run_main, shown


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


COLLECTION_BLOCKS: dict[str, type] = {"collection": CollectionArguments}


def main(argv: list[str] | None = None) -> None:
    """Write the BEIR folder; prints what is in it."""
    (c,) = parse_recipe(COLLECTION_BLOCKS, argv, description=shown(__doc__))
    beir = questions = None
    if c.beir is not None:
        beir = BEIRSource(c.beir, c.beir_revision, c.beir_qrels, c.beir_qrels_revision, c.beir_splits)
    if c.questions is not None:
        columns = Columns(
            c.question_column, c.answer_column, c.passage_column, c.title_column, c.gold_column, c.id_column
        )
        questions = QuestionSource(
            c.questions, columns, c.questions_revision, c.questions_config, c.question_splits, c.held_out
        )
    report = build_hub_collection(c.folder, beir=beir, questions=questions)
    judged = ", ".join(f"{split} {count}" for split, count in report["judged_queries"].items()) or "none"
    print(f"{c.folder}: {report['documents']} documents, {report['queries']} queries; judged: {judged}")
    for what, count in report["left_out"].items():
        print(f"  left out: {count} {what}")


if __name__ == "__main__":
    run_main(main)
