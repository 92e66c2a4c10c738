"""Serve the search page. The frozen LLM is loaded when someone asks for gains for the first time."""

from __future__ import annotations

import importlib.util
import os
import threading
from functools import cache

from nlt_trainer.arguments.search import AppArguments
from nlt_trainer.errors import NLTError
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.lm.scoring import LikelihoodScorer
from nlt_trainer.prompts import PromptTemplate
from nlt_trainer.report.search_page import SearchPage
from nlt_trainer.report.search_terminal import load_indexes
from nlt_trainer.terminal import say


def run_app(args: AppArguments) -> None:
    """Serve the page until the process is stopped; prints its address."""
    address = serve(args)
    say(f"{address} searches {args.corpus}; Ctrl-C stops it")
    threading.Event().wait()


def serve(args: AppArguments) -> str:
    """Start the page and return its address; the LLM is loaded when it is first needed.

    Raises:
        DataError: the corpus is missing or malformed.
        NLTError: gradio is not installed, an encoder cannot be loaded, or the port is taken.
    """
    if importlib.util.find_spec("gradio") is None:
        raise NLTError("the page needs gradio, which is not installed; pip install 'nlt_trainer[app]'")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    from nlt_trainer.report.app import build_app, launch

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
