"""Serve a web page that compares two encoders on a corpus, for people on this machine.

```bash
pip install 'nlt_trainer[app]'
nlt app --encoder runs/demo/dream/encoder --against runs/demo/start --corpus runs/demo/collection \
  --document_prefix "Function: " --query_prefix "Description:"
```

Nothing leaves the machine: the page listens on 127.0.0.1 and loads nothing from another host. `recipes/space/` serves
the same page as a Space of the Hub.
"""

from __future__ import annotations

import importlib.util
import os
import threading
from dataclasses import dataclass, field
from functools import cache

from nlt_trainer.errors import NLTError
from nlt_trainer.models.frozen_lm import LLM_DTYPES, FrozenLM
from nlt_trainer.models.scoring import LikelihoodScorer
from nlt_trainer.prompts import PromptTemplate
from nlt_trainer.recipe import parse_recipe
from nlt_trainer.scripts import run_main, shown
from nlt_trainer.scripts.search import IndexArguments, load_indexes
from nlt_trainer.search_page import SearchPage


@dataclass
class AppArguments(IndexArguments):
    """Parameters that control the page."""

    llm: str = field(
        default="HuggingFaceTB/SmolLM2-135M-Instruct",
        metadata={"help": "Frozen LLM whose gain is shown: Hub id, folder, .gguf file, or package:<module>/<path>."},
    )
    llm_dtype: str = field(default="float32", metadata={"help": "float32, bfloat16 or float16."})
    document_prefix: str = field(
        default=PromptTemplate.document_prefix, metadata={"help": "Text before the document in the LLM's prompt."}
    )
    query_prefix: str = field(
        default=PromptTemplate.query_prefix, metadata={"help": "Text before the query in the LLM's prompt."}
    )
    max_document_tokens: int = field(default=192, metadata={"help": "Tokens that the LLM reads of a document."})
    title: str = field(default="What do two encoders find?", metadata={"help": "Heading of the page."})
    host: str = field(default="127.0.0.1", metadata={"help": "Address to listen on; 0.0.0.0: other machines too."})
    port: int | None = field(default=None, metadata={"help": "Port; unset: a free one from 7860 on."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.llm_dtype not in LLM_DTYPES:
            raise NLTError(f"llm_dtype {self.llm_dtype!r} is unknown; choose one of {', '.join(LLM_DTYPES)}")
        if self.port is not None and not 0 < self.port < 65536:
            raise NLTError(f"port is {self.port}; it must be between 1 and 65535")


APP_BLOCKS: dict[str, type] = {"app": AppArguments}


def main(argv: list[str] | None = None) -> None:
    """Serve the page until the process is stopped; prints its address."""
    (args,) = parse_recipe(APP_BLOCKS, argv, description=shown(__doc__))
    address = serve(args)
    print(f"{address} searches {args.corpus}; Ctrl-C stops it", flush=True)
    threading.Event().wait()


def serve(args: AppArguments) -> str:
    """Start the page and return its address; the LLM is loaded when it is asked for.

    Raises:
        DataError: the corpus is missing or malformed.
        NLTError: gradio is not installed, an encoder cannot be loaded, or the port is taken.
    """
    if importlib.util.find_spec("gradio") is None:
        raise NLTError("the page needs gradio, which is not installed; pip install 'nlt_trainer[app]'")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    from nlt_trainer.app import build_app, launch

    @cache
    def scorer() -> LikelihoodScorer:
        return LikelihoodScorer(
            FrozenLM.from_pretrained(args.llm, dtype=args.llm_dtype),
            target="query",
            template=PromptTemplate(document_prefix=args.document_prefix, query_prefix=args.query_prefix),
            max_document_tokens=args.max_document_tokens,
        )

    page = SearchPage(load_indexes(args), scorer, top_k=args.top_k)
    return launch(build_app(page, title=args.title), host=args.host, port=args.port)


if __name__ == "__main__":
    run_main(main)
