"""The scripts of recipes/python at miniature size: what they print and save, and that they use public names alone."""

from __future__ import annotations

import ast
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_server import TOKEN, running_hub
from huggingface_hub import constants
from sentence_transformers import SentenceTransformer

import nlt_trainer
from nlt_trainer.data.beir import load_collection
from nlt_trainer.evaluation.evaluator import evaluate_encoder
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.lm.scoring import LikelihoodScorer

FOLDER = Path(__file__).parents[1] / "recipes" / "python"
SCRIPTS = sorted(FOLDER.glob("*.py"))
TEXTS = ["the largest animal", "bread and gas"]


@pytest.fixture
def run(
    tiny_collection_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Run a script on the tiny collection; returns what it prints."""

    def run(name: str, *flags: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", [name, str(tiny_collection_folder), *map(str, flags)])
        runpy.run_path(str(FOLDER / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_candidates_are_scored(run: Callable[..., str], tiny_llm_folder: Path, tiny_collection_folder: Path) -> None:
    """Reference: the scorer on each pair that is printed; the best candidate comes first."""
    lines = run("score_candidates.py", "--llm", tiny_llm_folder, "--queries", "2").splitlines()
    collection = load_collection(tiny_collection_folder)
    content = {document.title: document.content for document in collection.corpus.values()}
    scorer = LikelihoodScorer(FrozenLM.from_pretrained(str(tiny_llm_folder)), target="query")
    assert len(lines) == 2 * (1 + 4)
    for query, block in zip(("q1", "q2"), (lines[:5], lines[5:]), strict=True):
        text = collection.queries[query].text
        printed = [line.split(maxsplit=1) for line in block[1:]]
        expected = scorer.gain([text], [[content[title] for _, title in printed]])[0]
        assert block[0] == text
        assert [float(gain) for gain, _ in printed] == pytest.approx(expected.tolist(), abs=0.006)
        assert list(expected) == sorted(expected, reverse=True)


@pytest.mark.parametrize("name", ["train_likelihood_gain.py", "train_dream.py"])
def test_an_encoder_is_trained_and_saved(
    run: Callable[..., str],
    tiny_encoder_folder: Path,
    tiny_llm_folder: Path,
    tiny_encoder: SentenceTransformer,
    tmp_path: Path,
    name: str,
) -> None:
    """Reference: the start's embeddings; a loss for each step in the log; no text of the collection in the card."""
    flags = ("--encoder", tiny_encoder_folder, "--llm", tiny_llm_folder, "--steps", "2", "--output", tmp_path / "out")
    printed = run(name, *flags)
    assert printed.count(", loss ") == 2
    trained = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert np.abs(trained.encode(TEXTS) - tiny_encoder.encode(TEXTS)).max() > 1e-5
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "generated_from_trainer" in card
    assert not any(word in card for word in ("whale", "yeast", "tides", "furnace"))


def test_an_encoder_is_evaluated_and_pushed_where_that_is_asked_for(
    run: Callable[..., str],
    tiny_encoder_folder: Path,
    tiny_encoder: SentenceTransformer,
    tiny_collection_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Reference: the evaluation itself; a Hub on the loopback, which gets a private repository with the weights."""
    expected = evaluate_encoder(tiny_encoder, tiny_collection_folder)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with running_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        printed = dict(
            line.split() for line in run("evaluate_and_push.py", "--encoder", tiny_encoder_folder).splitlines()
        )
        assert {name: float(value) for name, value in printed.items()} == pytest.approx(expected, abs=6e-4)
        assert hub.seen == []
        run("evaluate_and_push.py", "--encoder", tiny_encoder_folder, "--split", "dev", "--push_to", "org/name")
        repo = hub.repos["models/org/name"]
    weights = next(tiny_encoder_folder.rglob("model.safetensors"))
    assert repo.private
    assert repo.files[weights.relative_to(tiny_encoder_folder).as_posix()] == weights.read_bytes()


@pytest.mark.parametrize("path", SCRIPTS, ids=[path.stem for path in SCRIPTS])
def test_a_script_is_short_and_uses_public_names(path: Path) -> None:
    """Reference: the package's exports; the command at the top names every option of the parser."""
    source = path.read_text(encoding="utf-8")
    assert 15 <= len(source.splitlines()) <= 30
    tree = ast.parse(source)
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    packages = {
        alias.name: alias.asname for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    assert imported <= {"argparse", "sentence_transformers", "datasets", "huggingface_hub"}
    assert packages == {"nlt_trainer": "nlt"}
    used = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and getattr(n.value, "id", "") == "nlt"}
    assert used
    assert used <= set(nlt_trainer.__all__)
    command = str(ast.get_docstring(tree)).splitlines()[0]
    assert command.startswith(f"python recipes/python/{path.name} [FOLDER]")
    assert set(re.findall(r"--\w+", command)) == options(tree)


def options(tree: ast.Module) -> set[str]:
    """Options of a script's parser."""
    calls: list[Any] = [
        n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "attr", "") == "add_argument"
    ]
    return {call.args[0].value for call in calls} - {"folder"}


def test_the_readmes_commands_are_those_of_the_scripts() -> None:
    """Reference: the scripts' own options and files; every script has a command."""
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"^(?:\$ )?python recipes/python/(\S+)(.*)$", text, flags=re.MULTILINE)
    assert {name for name, _ in shown} == {path.name for path in SCRIPTS}
    for name, arguments in shown:
        assert set(re.findall(r"--\w+", arguments)) <= options(ast.parse((FOLDER / name).read_text(encoding="utf-8")))


def test_the_texts_beside_the_scripts_are_a_collection() -> None:
    """Reference: queries of the test split are not among those of the train split; every query has an answer."""
    collection = load_collection(FOLDER / "collection")
    train, test = ({query.id for query in collection.split_queries(split)} for split in ("train", "test"))
    assert not train & test
    assert train | test == set(collection.queries)
    assert all(query.answer for query in collection.queries.values())
    assert len(collection.corpus) == 24
