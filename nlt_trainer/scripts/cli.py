"""All stages under one name.

```bash
nlt train --config recipes/demo/dream.yaml
```
"""

from __future__ import annotations

import difflib
import importlib
import sys

from nlt_trainer.program import run_main

STAGES = {
    "plan": ("nlt_trainer.scripts.plan", "say what a recipe will cost before anything runs"),
    "build_stdlib": ("nlt_trainer.scripts.build_stdlib", "write Python's standard library as a BEIR folder"),
    "build_collection": ("nlt_trainer.scripts.build_collection", "write data sets of the Hub as a BEIR folder"),
    "make_encoder": ("nlt_trainer.scripts.make_encoder", "make an encoder that was never trained for retrieval"),
    "mine": ("nlt_trainer.scripts.mine", "find candidate documents for each query"),
    "adapt_scorer": ("nlt_trainer.scripts.adapt_scorer", "fit an adapter of the frozen LLM to a collection"),
    "score": ("nlt_trainer.scripts.score", "compute the gain of each candidate with the frozen LLM"),
    "detect_heads": ("nlt_trainer.scripts.detect_heads", "find the attention heads that read the right document"),
    "compare_heads": ("nlt_trainer.scripts.compare_heads", "say how far several head files agree"),
    "train": ("nlt_trainer.scripts.train", "train an encoder"),
    "evaluate": ("nlt_trainer.scripts.evaluate", "score encoders on collections and on tasks of mteb"),
    "export": ("nlt_trainer.scripts.export", "have a trained encoder in another form, checked against the trainer's"),
    "push": ("nlt_trainer.scripts.push", "publish an encoder on the Hub"),
    "pull": ("nlt_trainer.scripts.pull", "fetch a published encoder or published gains"),
    "report": ("nlt_trainer.scripts.report", "write one page on a run: curves, changed queries, teacher, heads, cost"),
    "search": ("nlt_trainer.scripts.search", "search a corpus in the terminal, with two encoders side by side"),
    "app": ("nlt_trainer.scripts.app", "the same search as a web page, with the LLM's gain of each document"),
    "demo": ("nlt_trainer.scripts.demo", "run everything on the embedded default"),
}


def usage() -> str:
    """Return the help of `nlt` itself."""
    width = max(map(len, STAGES))
    stages = "\n".join(f"  {name:{width}}  {summary}" for name, (_, summary) in STAGES.items())
    return (
        "usage: nlt STAGE [--config FILE.yaml] [--key value ...]\n\n"
        f"stages:\n{stages}\n\n`nlt STAGE --help` lists the keys of a stage."
    )


def main(argv: list[str] | None = None) -> int:
    """Run the stage that the first argument names; its module is imported only then."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    stage = arguments[0].replace("-", "_")
    if stage not in STAGES:
        nearest = difflib.get_close_matches(stage, STAGES, n=1)
        remedy = f"did you mean {nearest[0]}?" if nearest else f"choose from {', '.join(STAGES)}"
        print(f"nlt: error: unknown stage {arguments[0]!r}, {remedy}", file=sys.stderr)
        return 2
    run_main(lambda argv: importlib.import_module(STAGES[stage][0]).main(argv), arguments[1:], stage=stage)


if __name__ == "__main__":
    sys.exit(main())
