"""Stages with `engine: ray`: they leave what they leave without it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from nlt_trainer.arguments.data import DataArguments
from nlt_trainer.arguments.model import ModelArguments
from nlt_trainer.assembly import parts
from nlt_trainer.errors import NLTError
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.ray_workers import RayWorkers
from nlt_trainer.scripts import evaluate, mine, score, train

RAY = ["--engine", "ray", "--ray_workers", "2"]
Words = Callable[[str], list[str]]


@pytest.fixture
def words(tiny_llm_folder: Path, tiny_encoder_folder: Path, tiny_collection_folder: Path, tmp_path: Path) -> Words:
    """The command line of a recipe whose files lie in a folder of the given name."""

    def make(name: str) -> list[str]:
        folder = tmp_path / name
        given = {
            "llm": tiny_llm_folder, "llm_dtype": "float32", "encoder": tiny_encoder_folder, "max_seq_length": 32,
            "collection": tiny_collection_folder, "train_split": "train", "num_candidates": 3, "miner": "fused",
            "candidates": folder / "candidates.jsonl", "gains": folder / "gains.jsonl",
            "score_cache": folder / "scores", "output_dir": folder / "run", "objective": "likelihood_gain",
            "max_steps": 2, "per_device_train_batch_size": 2, "use_cpu": "true", "report_to": "none",
            "refresh": "0-2:1",
        }  # fmt: skip
        return [word for key, value in given.items() for word in (f"--{key}", str(value))]

    return make


def test_stages_leave_what_they_leave_without_ray(
    words: Words,
    ray_workers: RayWorkers,
    tiny_collection_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Reference: the same stages in this process: candidates and gains, encoders, and results."""
    on = ["--eval_split", "dev"]
    for name, engine in (("local", []), ("ray", RAY)):
        given = [*words(name), *engine]
        mine.main(given)
        score.main(given)
        train.main(given)
        monkeypatch.setenv("NLT_CACHE", str(tmp_path / name / "cache"))
        evaluate.main([*given, *on])
    local, found = tmp_path / "local", tmp_path / "ray"
    for file in ("candidates.jsonl", "run/candidates-1.jsonl"):
        assert (found / file).read_text() == (local / file).read_text()
    for file in ("gains.jsonl", "run/gains-1.jsonl"):
        gains = [[json.loads(row)["gain"] for row in (at / file).open()] for at in (found, local)]
        np.testing.assert_allclose(gains[0], gains[1], atol=1e-5)
    encoders = [SentenceTransformer(str(at / "run" / "encoder")) for at in (found, local)]
    embeddings = [encoder.encode("a mouse under the snow") for encoder in encoders]
    np.testing.assert_allclose(embeddings[0], embeddings[1], atol=1e-4)
    caches = [sorted(path.name for path in (at / "scores").glob("*.sqlite")) for at in (found, local)]
    assert caches[0] == caches[1] != []
    results = [json.loads((at / "run" / "results.json").read_text()) for at in (found, local)]
    assert [row["ndcg_at_10"] for row in results[0]] == pytest.approx([row["ndcg_at_10"] for row in results[1]])


def test_a_worker_in_another_folder_finds_the_llm(
    tiny_llm_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: the weights of the LLM that a relative path names here; and of many GPUs the worker sees one."""
    made: list[Any] = []
    monkeypatch.setattr(parts, "RayScorer", lambda make, **options: made.append(make))
    monkeypatch.chdir(tiny_llm_folder.parent)
    workers: Any = object()
    for device in (None, "cpu", "cuda:3"):
        model = ModelArguments(llm=tiny_llm_folder.name, llm_device=device)
        parts.load_scorer(model, DataArguments(), target="query", workers=workers)
    assert [make.args[0].llm_device for make in made] == [None, "cpu", "cuda"]
    monkeypatch.chdir(tmp_path)
    expected = FrozenLM.from_pretrained(str(tiny_llm_folder), device="cpu").fingerprint["weights"]
    assert made[0]().fingerprint["weights"] == expected


def test_ray_is_refused_where_processes_were_started(words: Words, monkeypatch: pytest.MonkeyPatch) -> None:
    class Two:
        num_processes = 2

    monkeypatch.setattr(parts, "processes", lambda args: Two())
    with pytest.raises(NLTError, match=r"^engine: ray starts its workers itself, and 2 processes were started; run"):
        mine.main([*words("two"), *RAY])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--ray_workers", "2"], "ray_workers belongs to engine: ray, and engine is local; set that or leave it out"),
        (["--ray_address", "auto"], "ray_address belongs to engine: ray, and engine is local"),
        (["--engine", "ray", "--ray_workers", "0"], "ray_workers is 0; it must be at least 1"),
        (["--engine", "spark"], "engine"),
    ],
)
def test_a_wrong_engine_is_refused(words: Words, given: list[str], message: str) -> None:
    with pytest.raises((NLTError, SystemExit), match=message):
        mine.main([*words("wrong"), *given])
