"""The standard library as a collection: what is kept, how it is split, and that two builds are the same bytes."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from nlt_trainer.data.beir import Collection, load_collection
from nlt_trainer.data.stdlib import build_stdlib_collection
from nlt_trainer.errors import NLTError
from nlt_trainer.release.licences import data_licence

SPECIAL = '''
import functools

class Stack:
    @functools.cache
    def push_item(self, item):
        """Put one item on top of the stack.

        This second paragraph is not a part of the query.
        """

        # kept comment
        self.items.append(item)

    def __len__(self):
        """Return the number of items on the stack."""
        return len(self.items) + self.offset

    def _grow(self):
        """Make room for twice as many items as before."""
        self.items.extend([None] * len(self.items))

    def pop_item(self):
        """Short docstring."""
        return self.items.pop() if self.items else None

    def clear_items(self):
        """Remove every item that the stack holds now."""
        pass

class _Hidden:
    def visible(self):
        """Do a thing that nobody outside should see."""
        return [number for number in range(10)]

try:
    import missing
except ImportError:
    def fallback_function(count):
        """Count upwards where the fast module is missing."""
        return list(range(count, count + count))

def same_query(count):
    """PUT one item on top of the stack."""
    return [count for _ in range(count)]

def same_source_a(count):
    """Repeat the number as often as it says."""
    return [count] * count + [count]

def on_one_line(): "A docstring beside its own definition here."; return [1, 2, 3, 4, 5, 6]

def repeat_signature(a=1, b=2, c=3, d=4, e=5):
    """a=1, b=2, c=3, d=4, e=5"""
    return [a, b, c, d, e] * 2

async def wait_for_it(event):
    """Wait until the event was set by another."""
    await event.wait_for_longer_than_usual()
'''


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small standard library: one module of special cases, thirty plain ones, and folders to leave out."""
    root = tmp_path / "lib"
    (root / "package").mkdir(parents=True)
    (root / "package" / "__init__.py").write_text(SPECIAL)
    plain = '''def function_{0}(value):
    """Return the value with number {0} added to it."""
    return value + {0} * 1000000
'''
    for number in range(30):
        (root / f"module{number}.py").write_text(plain.format(number))
    for folder in ("site-packages", "test", "idlelib", "config-3.11-linux"):
        (root / folder).mkdir()
        (root / folder / "code.py").write_text(plain.format(900))
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(root))
    return root


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    """The collection of the running interpreter, built once."""
    return build_stdlib_collection(tmp_path_factory.mktemp("real") / "stdlib")


def test_a_document_is_the_source_without_the_docstring(library: Path, tmp_path: Path) -> None:
    collection = build_stdlib_collection(tmp_path / "out")
    document = collection.corpus["package.Stack.push_item"]
    assert document.title == "package.Stack.push_item"
    assert document.text == (
        "@functools.cache\ndef push_item(self, item):\n    # kept comment\n    self.items.append(item)"
    )
    assert collection.queries["query:package.Stack.push_item"].text == "Put one item on top of the stack."


def test_the_collection_states_its_licence(library: Path, tmp_path: Path) -> None:
    """Reference: the licence of CPython."""
    build_stdlib_collection(tmp_path / "out")
    assert data_licence(tmp_path / "out") == "psf-2.0"


def test_private_tiny_and_double_functions_are_left_out(library: Path, tmp_path: Path) -> None:
    collection = build_stdlib_collection(tmp_path / "out")
    kept = [name.removeprefix("package.") for name in collection.corpus if name.startswith("package.")]
    assert kept == ["Stack.push_item", "Stack.__len__", "fallback_function", "same_source_a", "wait_for_it"]
    assert sum(name.startswith("module") for name in collection.corpus) == 30
    assert len(collection.corpus) == len(kept) + 30


def test_a_source_that_was_seen_before_is_left_out(library: Path, tmp_path: Path) -> None:
    body = 'return "a sentence" * 20'
    first = f'class A:\n    def run(self):\n        """Say the first of the two sentences."""\n        {body}\n'
    second = first.replace("class A", "class B").replace("first", "second")
    (library / "twins.py").write_text(first + second)
    assert [name for name in build_stdlib_collection(tmp_path / "out").corpus if "twins" in name] == ["twins.A.run"]


def test_unreadable_sources_are_skipped_and_counted(
    library: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (library / "broken.py").write_text("def broken(:\n")
    (library / "latin.py").write_bytes(b"# \xff\xfe\n")
    with caplog.at_level(logging.WARNING):
        build_stdlib_collection(tmp_path / "out")
    assert "skipped 2 source files" in caplog.text
    assert "broken.py" in caplog.text and "latin.py" in caplog.text


def test_splits_share_no_module_and_follow_the_seed(library: Path, tmp_path: Path) -> None:
    def modules(seed: int) -> dict[str, set[str]]:
        qrels = build_stdlib_collection(tmp_path / f"out{seed}", seed=seed).qrels
        return {s: {next(iter(grades)).split(".")[0] for grades in q.values()} for s, q in qrels.items()}

    first = modules(0)
    assert sum(map(len, first.values())) == 31
    assert first["train"].isdisjoint(first["test"] | first["dev"]) and first["test"].isdisjoint(first["dev"])
    assert first != modules(1)


def test_a_library_without_sources_is_refused_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lib").mkdir()
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / "lib"))
    with pytest.raises(NLTError, match="too few documented functions"):
        build_stdlib_collection(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_real_library_has_thousands_of_functions_in_the_right_shares(real: Collection) -> None:
    total = len(real.corpus)
    assert total > 3000
    assert len(real.queries) == total
    shares = {split: len(queries) / total for split, queries in real.qrels.items()}
    assert shares == pytest.approx({"train": 0.6, "dev": 0.1, "test": 0.3}, abs=0.02)
    assert all(5 <= len(query.text.split()) <= 40 for query in real.queries.values())
    assert "textwrap.dedent" in real.corpus


def test_no_document_holds_its_own_query(real: Collection) -> None:
    sources = {name: " ".join(document.text.split()) for name, document in real.corpus.items()}
    assert [
        query.id for query in real.queries.values() if query.text in sources[query.id.removeprefix("query:")]
    ] == []


def test_two_builds_are_the_same_bytes(real: Collection, tmp_path: Path) -> None:
    code = "import sys; from nlt_trainer.data.stdlib import build_stdlib_collection as b; b(sys.argv[1])"
    again = tmp_path / "again"
    subprocess.run(
        [sys.executable, "-c", code, str(again)],
        check=True,
        env={"PYTHONHASHSEED": "12345", "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    names = [path.relative_to(again) for path in sorted(again.rglob("*")) if path.is_file()]
    assert len(names) == 7  # five of BEIR, its card, and the mark of who wrote them
    assert all((again / name).read_bytes() == (real.folder / name).read_bytes() for name in names)
    assert load_collection(again).qrels == real.qrels
