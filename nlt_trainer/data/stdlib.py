"""The Python standard library as a code-search collection: find the function that a sentence describes.

It is built with `ast` from the source files of the running interpreter; no code of the library is imported, run or
shipped. Each document is a function. Its title is the qualified name, and its text is the source without the
docstring. Its query is the first paragraph of that docstring, so the one relevant document is known without a person's
judgement.
"""

from __future__ import annotations

import ast
import hashlib
import logging
import platform
import re
import sysconfig
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nlt_trainer.data.beir import Collection, Document, Qrels, Query, load_collection, write_collection
from nlt_trainer.errors import NLTError
from nlt_trainer.files import atomic_write, check_folder

logger = logging.getLogger(__name__)

# Third-party code, tests, demonstrations, compiled or generated files: not the library's own functions.
EXCLUDED_FOLDERS = frozenset(
    "site-packages dist-packages test tests idle_test idlelib lib2to3 turtledemo ensurepip lib-dynload pydoc_data "
    "__pycache__ __phello__".split()
)
MIN_QUERY_WORDS, MAX_QUERY_WORDS = 5, 40
MIN_SOURCE_CHARACTERS = 20  # of the body, without white space: leaves out `pass` and `raise NotImplementedError`
SPLIT_SHARES = {"test": 0.3, "dev": 0.1}  # the rest is train

CARD = """---
license: other
license_name: psf-2.0
license_link: https://docs.python.org/3/license.html
---

# The standard library of Python {version}
"""

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class _Function:
    name: str  # module.Class.function
    query: str
    source: str

    @property
    def module(self) -> str:
        return self.name.partition(".")[0]


def build_stdlib_collection(folder: str | Path, *, seed: int = 0) -> Collection:
    """Write the standard library of the running interpreter as a BEIR folder with train, dev and test qrels.

    A function or method is kept if the first paragraph of its docstring has 5 to 40 words. These are left out:

    - private ones: a function or class name has a leading underscore and is not `__dunder__` (a module may be private,
      since modules such as `_pydecimal` hold the source of public names);
    - bodies under 20 characters;
    - queries that the source contains, such as a repeated signature;
    - functions whose name, query or source was seen before.

    Each top-level module goes to one split as a whole, in the order of a hash of its name, until test has about 30 %
    and dev about 10 % of the queries. The same Python version gives the same bytes.

    Args:
        folder: where to write; replaced if this has written it before, absent if the build fails.
        seed: another seed takes the modules in another order.

    Raises:
        NLTError: the interpreter comes without the source of its standard library, or the folder is not replaced, see
            `check_folder`.
    """
    check_folder(Path(folder), stage="nlt build_stdlib")
    library = Path(sysconfig.get_path("stdlib"))
    functions = _distinct(_collect(library))
    splits = _split_modules(functions, seed=seed)
    if not set(splits.values()) >= {"train", *SPLIT_SHARES}:
        raise NLTError(f"{library}: too few documented functions; use a Python with the source of its library")
    qrels: dict[str, Qrels] = {split: {} for split in ("train", "dev", "test")}
    for function in functions:
        qrels[splits[function.module]][_query_id(function)] = {function.name: 1}
    write_collection(
        folder,
        corpus=(Document(function.name, function.name, function.source) for function in functions),
        queries=(Query(_query_id(function), function.query) for function in functions),
        qrels=qrels,
        stage="nlt build_stdlib",
    )
    with atomic_write(Path(folder) / "README.md") as handle:
        handle.write(CARD.format(version=platform.python_version()))
    sizes = ", ".join(f"{split} {len(judgements)}" for split, judgements in qrels.items())
    logger.info("%s: %d documents, queries: %s", folder, len(functions), sizes)
    return load_collection(folder)


def _query_id(function: _Function) -> str:
    return f"query:{function.name}"


def _collect(library: Path) -> Iterator[_Function]:
    """Yield the documented functions of every readable source file, in the order of the files' paths."""
    unreadable: list[str] = []
    for path in sorted(library.rglob("*.py")):
        parts = path.relative_to(library).with_suffix("").parts
        if any(part in EXCLUDED_FOLDERS or part.startswith("config-") for part in parts):
            continue
        try:
            source = path.read_text(encoding="utf-8")
            tree = ast.parse(source)
        except (OSError, SyntaxError, ValueError):
            unreadable.append(str(path))
            continue
        module = parts[:-1] if parts[-1] == "__init__" else parts
        lines = source.split("\n")
        for names, node in _walk(tree.body, names=()):
            function = _describe(".".join((*module, *names)), node=node, lines=lines)
            if function is not None:
                yield function
    if unreadable:
        logger.warning("skipped %d source files that cannot be read: %s", len(unreadable), ", ".join(unreadable))


def _walk(body: Iterable[ast.AST], *, names: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], FunctionNode]]:
    """Yield `(class and function names, node)` of public functions, also those defined under `if`, `try` or `with`."""
    for node in body:
        if isinstance(node, FunctionNode):
            if not _is_private(node.name):
                yield (*names, node.name), node
        elif isinstance(node, ast.ClassDef):
            if not _is_private(node.name):
                yield from _walk(node.body, names=(*names, node.name))
        elif isinstance(node, (ast.If, ast.Try, ast.With, ast.ExceptHandler)):
            yield from _walk(ast.iter_child_nodes(node), names=names)


def _is_private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def _describe(name: str, *, node: FunctionNode, lines: list[str]) -> _Function | None:
    """Return the function with its query and its source, or `None` where a filter leaves it out."""
    docstring = ast.get_docstring(node)
    if not docstring:
        return None
    query = " ".join(re.split(r"\n\s*\n", docstring, maxsplit=1)[0].split())
    if not MIN_QUERY_WORDS <= len(query.split()) <= MAX_QUERY_WORDS:
        return None
    first, *rest = node.body
    if not rest or first.end_lineno is None or node.end_lineno is None or rest[0].lineno <= first.end_lineno:
        return None
    body = "\n".join(lines[first.end_lineno : node.end_lineno])
    if len("".join(body.split())) < MIN_SOURCE_CHARACTERS:
        return None
    start = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    header = "\n".join(lines[start - 1 : first.lineno - 1])
    source = textwrap.dedent(header + "\n" + body.lstrip("\n")).strip("\n")
    return None if query in " ".join(source.split()) else _Function(name, query, source)


def _distinct(functions: Iterable[_Function]) -> list[_Function]:
    """Keep the first of all functions that share a name, a query (case aside) or a source."""
    names: set[str] = set()
    queries: set[str] = set()
    sources: set[str] = set()
    kept = []
    for function in functions:
        query, source = function.query.casefold(), " ".join(function.source.split())
        if function.name in names or query in queries or source in sources:
            continue
        names.add(function.name)
        queries.add(query)
        sources.add(source)
        kept.append(function)
    return kept


def _split_modules(functions: list[_Function], *, seed: int) -> dict[str, str]:
    """Return top-level module -> split; a module goes to the first split that it does not overfill."""
    sizes = Counter(function.module for function in functions)
    room = {split: share * len(functions) for split, share in SPLIT_SHARES.items()}
    splits = {}
    for module in sorted(sizes, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()):
        split = next((split for split in room if room[split] >= sizes[module]), "train")
        splits[module] = split
        if split in room:
            room[split] -= sizes[module]
    return splits
