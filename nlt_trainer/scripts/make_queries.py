"""Make training queries of documents alone, and write passages and queries as a BEIR folder.

```bash
nlt make_queries --corpus data/passages --collection data/made
nlt make_queries --corpus data/passages --collection data/made --kind both
```

With `--kind crop` a query is a sentence that is cut out of its passage. With `--kind llm` the recipe's `llm` writes
questions, titles, claims and keywords; only queries are kept that lead back to their passage. `qrels/train.tsv` and
`qrels/held_out.tsv` say which passage each query was made of, and have no document in common. What the LLM has written
is kept in `<collection>.written.jsonl`, so a killed run goes on from there.
"""

from __future__ import annotations

from nlt_trainer.arguments.stages import QUERIES_BLOCKS
from nlt_trainer.data.beir import check_corpus
from nlt_trainer.program import run_main, shown
from nlt_trainer.recipe.parsing import parse_recipe


def main(argv: list[str] | None = None) -> None:
    """Write the BEIR folder that the recipe's `collection` names."""
    model, data, args, queries = parse_recipe(
        QUERIES_BLOCKS,
        argv,
        description=shown(__doc__),
        writes=["collection", "score_cache"],
        check=lambda _, __, ___, queries: check_corpus(queries.corpus),
    )
    from nlt_trainer.assembly.queries import make_queries

    make_queries(model, data, args, queries)


if __name__ == "__main__":
    run_main(main)
