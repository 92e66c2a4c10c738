"""Search in the terminal: queries that are typed or piped in, and what one or two encoders find for them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers.utils.logging import set_tqdm_hook

from nlt_trainer.arguments.search import IndexArguments, SearchArguments
from nlt_trainer.data.beir import load_corpus
from nlt_trainer.data.bm25 import BM25Index
from nlt_trainer.encoder.loading import load_encoder
from nlt_trainer.errors import NLTError
from nlt_trainer.report.comparison import LEGEND, Hit, HybridIndex, SearchIndex, side_by_side
from nlt_trainer.terminal import late_bar, say

SNIPPET = 160
"""Characters of a document that are shown."""


def search(args: SearchArguments) -> None:
    """Print what is found for each query."""
    indexes = load_indexes(args)
    console = Console()
    for query in [args.query] if args.query is not None else typed_queries(len(indexes[0].documents)):
        console.print(results_view(query, indexes, top_k=args.top_k))


def load_indexes(args: IndexArguments) -> list[SearchIndex]:
    """Index the corpus with the encoder and, if one is given, with the encoder that it is compared with.

    If BM25 has a weight, it is added to both.

    Raises:
        DataError: the corpus is missing or malformed.
        NLTError: an encoder cannot be loaded.
    """
    set_tqdm_hook(late_bar)
    corpus = load_corpus(args.corpus)
    names = [args.encoder] if args.against is None else [args.encoder, args.against]
    if args.bm25_weight == 0:
        return [SearchIndex(name, load_encoder(name), corpus, cache=args.embeddings) for name in names]
    bm25 = BM25Index(corpus)
    return [
        HybridIndex(name, load_encoder(name), corpus, bm25=bm25, weight=args.bm25_weight, cache=args.embeddings)
        for name in names
    ]


def typed_queries(documents: int) -> Iterator[str]:
    """Queries from the terminal until an empty line, or from standard input until its end.

    Raises:
        NLTError: standard input is not UTF-8.
    """
    if not sys.stdin.isatty():
        try:
            yield from filter(None, map(str.strip, sys.stdin))
        except UnicodeDecodeError as error:
            raise NLTError(f"standard input is not UTF-8 ({error}); convert it, e.g. with iconv") from error
        return
    if importlib.util.find_spec("readline"):  # Windows has no readline and edits lines without it
        importlib.import_module("readline")  # lets input() edit lines and recall earlier ones
    say(f"{documents:,} documents. Type a query and Enter; an empty line leaves.")
    while True:
        try:
            query = input("query> ").strip()
        except EOFError:
            say()
            return
        if not query:
            return
        yield query


def results_view(query: str, indexes: Sequence[SearchIndex], *, top_k: int) -> Table:
    """A table with one row for each rank and one column for each encoder."""
    found = side_by_side(query, indexes, top_k=top_k)
    table = Table(title=Text(printable(query)), title_justify="left", show_lines=True, expand=True)
    if len(indexes) == 2:
        table.caption, table.caption_justify = LEGEND, "left"
    table.add_column("", justify="right", no_wrap=True)
    for index in indexes:
        table.add_column(Text(printable(index.name)), ratio=1, overflow="fold")
    for rank, hits in enumerate(zip(*found, strict=True), start=1):
        table.add_row(str(rank), *map(cell, hits))
    return table


def cell(hit: Hit) -> Text:
    """Score, move and id of a hit, and the beginning of its document."""
    text = Text(f"{hit.score:.3f} ", style="bold")
    colour = "green" if hit.moved > 0 else "red" if hit.moved < 0 else "dim"
    if hit.move:
        text.append(f"{hit.move} ", style=colour)
    text.append(printable(hit.document.id), style="dim")
    text.append("\n" + printable(hit.document.content)[:SNIPPET], style="not bold")
    return text


def printable(text: str) -> str:
    """The text on one line, without characters that control the terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
