"""Audit the forms of DREAM in a grid as teachers: how well the gradient of each ranks candidates before training.

```bash
python recipes/study/audit.py recipes/study/dream.yaml --data data --folder runs/study
```

The grid is that of `study.py`, whose tuning comes first if it has not been run. Of every combination of start,
collection and form of DREAM in its runs, or of those that are named, this takes the training queries that have both
relevant and other candidates, as people have judged them. It prints two figures at equal scores and at the start's
scores: the mean reciprocal rank of the best relevant candidate, ordered by the push on its score, and the push on
relevant candidates less that on the others, over its standard deviation across queries. Each audit leaves a file in
the folder, so a second call goes on where the first was stopped.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import yaml
from study import AFTER, Settings, Study, blocks, command_line, digest

from nlt_trainer.assembly.losses import Parts, make_collator, make_loss
from nlt_trainer.assembly.parts import load_candidates, load_llm, load_training_collection, load_untrained
from nlt_trainer.data.training import relevance
from nlt_trainer.injection.document_reader import DocumentReader
from nlt_trainer.objectives.dream import DREAMLoss
from nlt_trainer.objectives.gradient_audit import audit_gradient
from nlt_trainer.run.results import table_row
from nlt_trainer.terminal import say
from nlt_trainer.text_files import read_json, write_json

READING_GIB = 8
"""Memory for the keys and values of documents, which all forms on one collection read."""


@cache
def reader_of(llm: str) -> DocumentReader:
    """The LLM's reader, which keeps what it has read."""
    model, *_ = blocks({"llm": llm})
    return DocumentReader(load_llm(model), cache_bytes=READING_GIB * 2**30)


def audited(settings: Settings, *, queries: int, seed: int) -> dict[str, Any]:
    """The two figures at both kinds of scores, for one prepared recipe.

    Args:
        settings: keys of the recipe.
        queries: the most queries that are audited.
        seed: of the queries that are drawn.
    """
    model, data, args = blocks(settings)
    collection = load_training_collection(data)
    candidates = load_candidates(data, collection)
    known = relevance(candidates, collection.qrels[data.train_split or ""])
    usable = np.flatnonzero((known.max(1) > 0) & (known.min(1) <= 0))
    rows = [
        {
            "query": candidates[i].query,
            "answer": candidates[i].answer,
            "documents": [collection.corpus[d].content for d in candidates[i].document_ids],
            "gain": (known[i] > 0).astype(float).tolist(),
        }
        for i in np.random.default_rng(seed).permutation(usable)[:queries]
    ]
    reader = reader_of(model.llm)
    parts = Parts(load_untrained(model), model, data, args, candidates, reader.lm)
    loss = make_loss(parts)
    assert isinstance(loss, DREAMLoss)
    loss.reader = reader
    found = audit_gradient(loss, make_collator(parts, loss), rows)
    figures = {f"{name}_{field}": value for name, audit in found.items() for field, value in vars(audit).items()}
    return {"queries": len(rows), **figures}


def main(argv: list[str] | None = None) -> None:
    """Audit what is missing, then print the table."""
    parser = command_line(__doc__)
    parser.add_argument("--queries", type=int, default=64)
    options = parser.parse_args(argv)
    grid = yaml.safe_load(options.grid.read_text())
    study = Study(grid, data=options.data, folder=options.folder, only=vars(options))
    rows = {}  # forms that are trained with several seeds are audited once
    for run in study.grid["runs"]:
        for encoder, train_data, objective in study.combinations(run):
            own = study.grid["objectives"].get(objective, {})
            if own.get("objective") != "dream" or AFTER in own:
                continue
            settings = study.tuned_settings(objective, encoder, train_data)
            file = study.folder / "audits" / f"{digest(settings, options.queries)}.json"
            if not file.is_file():
                say(f"\n{encoder}, {train_data}, {objective}")
                write_json(file, audited(study.prepare(settings, seed=0), queries=options.queries, seed=0))
            names = {"encoder": encoder, "train_data": train_data, "objective": objective}
            rows[encoder, train_data, objective] = {**names, **read_json(file)}
    head, *_ = rows.values()
    say()
    for cells in (head, ["---"] * len(head), *(row.values() for row in rows.values())):
        say(table_row(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in cells))


if __name__ == "__main__":
    main()
