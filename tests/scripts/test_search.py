"""`nlt search` and `nlt app` against what they print, and the Space against the keys of the page."""

from __future__ import annotations

import io
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nlt_trainer.arguments.stages import APP_BLOCKS
from nlt_trainer.encoder.embedding_cache import EmbeddingCache
from nlt_trainer.errors import NLTError
from nlt_trainer.recipe.parsing import parse_recipe
from nlt_trainer.report import search_terminal, serving
from nlt_trainer.report.comparison import LEGEND
from nlt_trainer.scripts import app, search

ROOT = Path(__file__).parents[2]


@pytest.fixture
def arguments(tiny_encoder_folder: Path, tiny_collection_folder: Path, tmp_path: Path) -> list[str]:
    folders = {"encoder": tiny_encoder_folder, "corpus": tiny_collection_folder, "embeddings": tmp_path / "embeddings"}
    return [word for key, value in folders.items() for word in (f"--{key}", str(value))]


def test_one_query_is_answered_side_by_side(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Reference: the same encoder twice gives the same rows and no move; the second start embeds nothing."""
    monkeypatch.setenv("COLUMNS", "120")
    (tmp_path / "collection" / "queries.jsonl").unlink()  # a corpus is enough
    command = [*arguments, "--against", arguments[1], "--query", "green tea", "--top_k", "3"]
    search.main(command)
    out = capsys.readouterr().out
    assert out.startswith("green tea ")
    rows = re.findall(r"│ +(\d) │ (-?[\d.]+) = (d\d\d) +│ (-?[\d.]+) = (d\d\d) +│", out)
    assert [row[0] for row in rows] == ["1", "2", "3"]
    assert all((row[1], row[2]) == (row[3], row[4]) for row in rows)
    assert " ".join(out.split()).endswith(LEGEND)
    monkeypatch.setattr(EmbeddingCache, "_embed", lambda *_: pytest.fail("embedded again"))
    search.main(command)
    assert capsys.readouterr().out == out


def test_bm25_is_added_with_its_weight(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: BM25 alone puts first the document that has both words, with score 1; the column names the weight."""
    monkeypatch.setenv("COLUMNS", "120")
    search.main([*arguments, "--query", "Green teas", "--top_k", "1", "--bm25_weight", "1"])
    out = capsys.readouterr().out
    assert ", 100% BM25" in "".join(out.split("\n")[2:4])
    assert re.search(r"│ +1 │ 1\.000 d04 ", out)
    assert LEGEND not in " ".join(out.split())


def test_piped_queries_are_answered_one_by_one(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: one table a line that is not blank, and no prompt."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("green tea\n\n the moon \n"))
    search.main([*arguments, "--top_k", "1"])
    out = capsys.readouterr().out
    shown = [line.strip() for line in out.splitlines() if line.startswith(("green", "the"))]
    assert shown == ["green tea", "the moon"]
    assert "query>" not in out


def test_queries_that_are_not_utf_8_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: the query before, and the byte."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"tea\n" * 3000 + b"\xff\n"), encoding="utf-8"))
    queries = search_terminal.typed_queries(12)
    assert next(queries) == "tea"
    with pytest.raises(NLTError, match=r"standard input is not UTF-8 \(.*0xff.*\); convert it"):
        list(queries)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("end", ["", EOFError])
def test_the_terminal_asks_until_an_empty_line_or_its_end(
    end: str | type[EOFError], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: the queries typed before."""
    typed: Iterator[str | type[EOFError]] = iter(["tea ", "moon", end, "never asked"])

    def ask(prompt: str) -> str:
        assert prompt == "query> "
        answer = next(typed)
        if isinstance(answer, str):
            return answer
        raise answer

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr("builtins.input", ask)
    assert list(search_terminal.typed_queries(1234)) == ["tea", "moon"]
    assert capsys.readouterr().out.startswith("1,234 documents. Type a query and Enter")


def test_texts_do_not_steer_the_terminal() -> None:
    """Reference: a sequence that clears the screen, and line breaks."""
    assert search_terminal.printable("a\x1b[2J\x07b\n\tc\u202e d") == "a [2J b c d"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--top_k", "0"], "top_k is 0"),
        (["--bm25_weight", "1.5"], r"bm25_weight is 1\.5; it must be between 0"),
        (["--query", " "], "query is empty; write what to search for"),
        (["--corpus", "nowhere"], r"nowhere/corpus\.jsonl: file not found"),
        (["--against", "./nothing"], "does not exist"),
    ],
)
def test_wrong_input_names_the_remedy(flags: list[str], message: str, arguments: list[str]) -> None:
    """Reference: the message."""
    with pytest.raises(NLTError, match=message):
        search.main([*arguments, "--query", "tea", *flags])


def test_the_app_says_what_it_needs(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: the message where gradio is not installed."""
    monkeypatch.setattr(serving.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NLTError, match=r"pip install 'nlt_trainer\[app\]'"):
        app.main(arguments)
    with pytest.raises(NLTError, match="--llm_dtype: is 'int3', expected one of auto, float32"):
        app.main([*arguments, "--llm_dtype", "int3"])
    with pytest.raises(NLTError, match="port is 99999; it must be between 1 and 65535"):
        app.main([*arguments, "--port", "99999"])


def test_the_space_starts_the_page_with_its_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: the keys of the page; an address that the Hub reaches."""
    seen: list[list[str]] = []
    monkeypatch.setattr(app, "main", seen.append)
    for name in ("ENCODER", "AGAINST", "LLM", "TITLE", "QUERY_PREFIX", "DOCUMENT_PREFIX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ENCODER", "org/trained")
    monkeypatch.setenv("AGAINST", "org/start")
    runpy.run_path(str(ROOT / "recipes" / "space" / "app.py"), run_name="__main__")
    (found,) = parse_recipe(APP_BLOCKS, seen[0])
    assert (found.encoder, found.against, found.host) == ("org/trained", "org/start", "0.0.0.0")
    assert (ROOT / "recipes" / "space" / found.corpus).parent.is_dir()
