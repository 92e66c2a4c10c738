"""Stages with an LLM on a server: `score` asks it, training reads its gains, and what needs weights is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from completions import Completions, running_completions

from nlt_trainer.errors import NLTError
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.scripts import detect_heads, mine, plan, score, train


@pytest.fixture
def server(tiny_lm: FrozenLM) -> Iterator[Completions]:
    with running_completions(tiny_lm) as running:
        yield running


@pytest.fixture
def words(tiny_encoder_folder: Path, tiny_collection_folder: Path, tmp_path: Path) -> list[str]:
    """The command line of a recipe without an LLM, with candidates."""
    given = {
        "encoder": tiny_encoder_folder, "max_seq_length": 32, "collection": tiny_collection_folder,
        "train_split": "train", "num_candidates": 3, "candidates": tmp_path / "candidates.jsonl",
        "gains": tmp_path / "gains.jsonl", "output_dir": tmp_path / "run", "objective": "likelihood_gain",
        "max_steps": 2, "per_device_train_batch_size": 2, "use_cpu": "true", "report_to": "none",
        "heads": tmp_path / "heads.json", "score_cache": tmp_path / "scores",
    }  # fmt: skip
    found = [word for key, value in given.items() for word in (f"--{key}", str(value))]
    mine.main(found)
    return found


def test_a_server_scores_and_training_reads_its_gains(
    words: list[str], server: Completions, tiny_llm_folder: Path, tmp_path: Path
) -> None:
    """Reference: gains of the same LLM in this process; a second call sends nothing but the probes."""
    remote = ["--llm", server.url, "--llm_tokenizer", str(tiny_llm_folder)]
    local = ["--llm", str(tiny_llm_folder), "--llm_dtype", "float32", "--gains", str(tmp_path / "local.jsonl")]
    score.main([*words, *remote])
    score.main([*words, *local])
    found, expected = (
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        for name in ("gains.jsonl", "local.jsonl")
    )
    np.testing.assert_allclose([r["gain"] for r in found], [r["gain"] for r in expected], atol=1e-4)
    audit = json.loads((tmp_path / "gains.audit.json").read_text())
    assert audit["scorer"]["model"]["llm"] == server.url
    assert "llm_dtype" not in audit["scorer"]["model"]
    server.prompts.clear()
    score.main([*words, *remote])
    assert len(server.prompts) == 2
    train.main([*words, *remote])
    card = (tmp_path / "run" / "encoder" / "README.md").read_text()
    assert "llm_model `'tiny'`" in card


def test_a_server_scores_the_pairs_of_a_refresh(
    words: list[str], server: Completions, tiny_llm_folder: Path, tmp_path: Path
) -> None:
    """Reference: gains of the same LLM in this process, for the candidates that the refresh has mined."""
    refreshed = ["--miner", "fused", "--refresh", "0-2:1"]
    remote = ["--llm", server.url, "--llm_tokenizer", str(tiny_llm_folder)]
    score.main([*words, *remote])
    train.main([*words, *remote, *refreshed])
    run = tmp_path / "run"
    local = ["--llm", str(tiny_llm_folder), "--llm_dtype", "float32", "--gains", str(tmp_path / "local.jsonl")]
    score.main([*words, *local, "--candidates", str(run / "candidates-1.jsonl")])
    found, expected = (
        [json.loads(line)["gain"] for line in path.read_text().splitlines()]
        for path in (run / "gains-1.jsonl", tmp_path / "local.jsonl")
    )
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_what_needs_weights_is_refused(words: list[str], server: Completions, tiny_llm_folder: Path) -> None:
    remote = ["--llm", server.url, "--llm_tokenizer", str(tiny_llm_folder)]
    score.main([*words, *remote])
    for stage, flags in ((detect_heads, []), (train, ["--objective", "loop"])):
        with pytest.raises(NLTError, match=r"is a server, which is asked for nothing but the likelihoods"):
            stage.main([*words, *remote, *flags])
    with pytest.raises(NLTError, match=r"adapter belongs to an LLM on this machine"):
        score.main([*words, *remote, "--adapter", "org/adapter"])


def test_the_plan_says_what_it_cannot_time(
    words: list[str], server: Completions, tiny_llm_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan.main([*words, "--llm", server.url, "--llm_tokenizer", str(tiny_llm_folder)])
    assert "is a server" in capsys.readouterr().out
