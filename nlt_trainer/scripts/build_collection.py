"""Turn data sets of the Hub into a BEIR folder.

```bash
nlt build_collection --config recipes/collections/hotpotqa.yaml
nlt build_collection --folder data/scifact --beir mteb/scifact --beir_revision d56462d0e63a25450459c4f213e49ffdb866f7f9
```

In place of a Hub id you can give a local folder with the same layout. `<folder>/source.json` says where the documents
and queries come from and what was left out.
"""

from __future__ import annotations

from nlt_trainer.arguments.stages import COLLECTION_BLOCKS
from nlt_trainer.program import run_main, shown
from nlt_trainer.recipe.parsing import parse_recipe


def main(argv: list[str] | None = None) -> None:
    """Write the BEIR folder; prints what it contains."""
    (c,) = parse_recipe(COLLECTION_BLOCKS, argv, description=shown(__doc__), writes=["folder"])
    from nlt_trainer.data.hub_collection import BEIRSource, QuestionSource, build_hub_collection
    from nlt_trainer.data.questions import Columns

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
