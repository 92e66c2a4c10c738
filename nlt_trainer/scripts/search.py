"""Search a corpus with an encoder in the terminal, or with two of them side by side.

```bash
nlt search --encoder runs/demo/dream/encoder --against runs/demo/start --corpus runs/demo/collection
nlt search --encoder runs/demo/dream/encoder --corpus runs/demo/collection --query "open a file for reading"
```

Type a query and Enter; an empty line, Ctrl-D or Ctrl-C leaves. Queries can also be piped in, one a line. Embeddings
are kept on disk by content, so that the second start reads them.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nlt_trainer.comparison import Hit, SearchIndex, side_by_side
from nlt_trainer.data.beir import load_corpus
from nlt_trainer.errors import NLTError
from nlt_trainer.models.encoder import load_encoder
from nlt_trainer.recipe import parse_recipe
from nlt_trainer.scripts import run_main, shown

SNIPPET = 160
"""Characters of a document that are shown."""


@dataclass
class IndexArguments:
    """Parameters that control the search."""

    encoder: str = field(metadata={"help": "Encoder: Hub id, folder, or package:<module>/<path>."})
    corpus: str = field(metadata={"help": "BEIR folder whose corpus.jsonl is searched."})
    against: str | None = field(default=None, metadata={"help": "Encoder that the first is compared with."})
    top_k: int = field(default=10, metadata={"help": "Documents shown for each encoder."})
    embeddings: str | None = field(
        default=None, metadata={"help": "Folder in which embeddings are kept; unset: the user's cache."}
    )

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise NLTError(f"top_k is {self.top_k}; it must be at least 1")


@dataclass
class SearchArguments(IndexArguments):
    """Parameters that control the terminal."""

    query: str | None = field(default=None, metadata={"help": "Search for this and leave; unset: ask for queries."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.query is not None and not self.query.strip():
            raise NLTError("query is empty; write what to search for, or leave it out to be asked")


SEARCH_BLOCKS: dict[str, type] = {"search": SearchArguments}


def main(argv: list[str] | None = None) -> None:
    """Print what is found for each query."""
    (args,) = parse_recipe(SEARCH_BLOCKS, argv, description=shown(__doc__))
    indexes = load_indexes(args)
    console = Console()
    for query in [args.query] if args.query is not None else typed_queries(len(indexes[0].documents)):
        console.print(results_view(query, indexes, top_k=args.top_k))


def load_indexes(args: IndexArguments) -> list[SearchIndex]:
    """The corpus under the encoder and, where there is one, the encoder that it is compared with.

    Raises:
        DataError: the corpus is missing or malformed.
        NLTError: an encoder cannot be loaded.
    """
    corpus = load_corpus(args.corpus)
    names = [args.encoder] if args.against is None else [args.encoder, args.against]
    return [SearchIndex(name, load_encoder(name), corpus, cache=args.embeddings) for name in names]


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
    if importlib.util.find_spec("readline"):  # Windows has none, and edits lines without it
        importlib.import_module("readline")  # lets input() edit lines and recall earlier ones
    print(f"{documents:,} documents. Type a query and Enter; an empty line leaves.")
    while True:
        try:
            query = input("query> ").strip()
        except EOFError:
            print()
            return
        if not query:
            return
        yield query


def results_view(query: str, indexes: Sequence[SearchIndex], *, top_k: int) -> Table:
    """One row a rank, one column an encoder."""
    found = side_by_side(query, indexes, top_k=top_k)
    table = Table(title=Text(printable(query)), title_justify="left", show_lines=True, expand=True)
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
    """On one line, without characters that would steer the terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


if __name__ == "__main__":
    run_main(main)
