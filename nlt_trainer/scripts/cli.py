"""The program `nlt`, which runs every stage by its name.

```bash
nlt train --config recipes/demo/dream.yaml
```
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import sys

from nlt_trainer.program import run_main

STAGES = {
    "adapt": "adapt an encoder to a folder of documents, and keep it only if it gained",
    "plan": "say what a recipe will cost before anything runs",
    "build_corpus": "write a folder of your own documents as the corpus of a BEIR folder",
    "build_stdlib": "write Python's standard library as a BEIR folder",
    "build_collection": "write data sets of the Hub as a BEIR folder",
    "make_queries": "make queries of documents that have none",
    "make_encoder": "make an encoder that was never trained for retrieval",
    "mine": "find candidate documents for each query",
    "adapt_scorer": "fit an adapter of the frozen LLM to a collection",
    "score": "compute the gain of each candidate with the frozen LLM",
    "detect_heads": "find the attention heads that read the right document",
    "compare_heads": "say how far several head files agree",
    "train": "train an encoder",
    "evaluate": "score encoders on collections and on tasks of mteb",
    "export": "write a trained encoder in another form, and check it against the original",
    "push": "publish an encoder, gains or scores on the Hub",
    "pull": "fetch a published encoder, or published gains or scores",
    "report": "write one page on a run: curves, changed queries, teacher, heads, cost",
    "search": "search a corpus in the terminal, with two encoders side by side",
    "app": "the same search as a web page, with the LLM's gain of each document",
    "demo": "run everything on the embedded default",
}
"""Each stage with what it does. The program of a stage is the module of the same name in this folder."""


def usage() -> str:
    """Return the help of `nlt` itself."""
    width = max(map(len, STAGES))
    stages = "\n".join(f"  {name:{width}}  {summary}" for name, summary in STAGES.items())
    return (
        "usage: nlt STAGE [--config FILE.yaml] [--key value ...]\n\n"
        f"stages:\n{stages}\n\n"
        "`nlt STAGE --help` lists the keys of a stage, `nlt --version` says which version this is."
    )


def main(argv: list[str] | None = None) -> int:
    """Run the stage that the first argument names, whose module is imported only now."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"nlt_trainer {importlib.metadata.version('nlt_trainer')}")
        return 0
    stage = arguments[0].replace("-", "_")
    if stage not in STAGES:
        nearest = difflib.get_close_matches(stage, STAGES, n=1)
        remedy = f"did you mean {nearest[0]}?" if nearest else f"choose from {', '.join(STAGES)}"
        print(f"nlt: error: unknown stage {arguments[0]!r}, {remedy}", file=sys.stderr)
        return 2
    module = f"nlt_trainer.scripts.{stage}"
    run_main(lambda argv: importlib.import_module(module).main(argv), arguments[1:], stage=stage)


if __name__ == "__main__":
    sys.exit(main())
