"""What version 0.1 has written is read by today's code, with its values; kept_formats.py says how it was made."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kept_formats import ADAPT, REFRESHED
from sentence_transformers import SentenceTransformer

from nlt_trainer.adapt.pipeline import NO_GAIN
from nlt_trainer.content import check_files
from nlt_trainer.data.beir import load_collection
from nlt_trainer.data.candidates import candidates_hash, read_candidates, write_candidates
from nlt_trainer.data.gains import read_gains, read_likelihoods
from nlt_trainer.encoder.embedding_cache import EmbeddingCache
from nlt_trainer.encoder.loading import load_encoder
from nlt_trainer.encoder.probes import Probe
from nlt_trainer.errors import NLTError
from nlt_trainer.evaluation.task_scores import TaskScoreCache
from nlt_trainer.file_hashes import file_hash
from nlt_trainer.injection.heads import HeadSet
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.lm.score_cache import ScoreCache
from nlt_trainer.release.card import read_release
from nlt_trainer.release.export import check_saved
from nlt_trainer.run.folder import Run
from nlt_trainer.scripts import adapt, score, train
from nlt_trainer.text_files import read_json, write_json

KEPT = Path(__file__).parent / "kept"
RECIPE = ["--config", "recipe.yaml"]


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder, in which the test works; its paths are relative."""
    folder = shutil.copytree(KEPT, tmp_path / "kept")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("NLT_CACHE", "cache")
    return folder


@pytest.mark.parametrize(
    ("name", "flags", "losses", "lm_tokens", "embedding"),
    [
        (
            "stopped",
            [],
            [0.063521, 0.017506, 0.004919, 0.009715, 0.001386, 0.013082],
            1153,
            [0.906550, 1.195042, 0.390002, -1.538380, -0.129701, -0.226192, -0.864479, 0.278945],
        ),
        (
            "refreshed",
            REFRESHED,
            [0.063521, 0.008876, 0.006366, 0.039383, 0.009697, 0.028069],
            1231,
            [0.657454, 1.364822, -0.262661, -1.115022, 0.072812, -0.529462, -0.739603, 0.551659],
        ),
    ],
)
def test_a_run_goes_on_from_its_checkpoint(
    name: str, flags: list[str], losses: list[float], lm_tokens: int, embedding: list[float]
) -> None:
    """Reference: losses, costs and an embedding of a run of version 0.1 that did not stop; three steps are not new."""
    before = read_json(Path(name, "checkpoint-3", "trainer_state.json"))["log_history"]
    train.main([*RECIPE, *flags])
    report = Run(name).report
    assert report["log"][:3] == before
    assert [entry["loss"] for entry in report["log"][:6]] == pytest.approx(losses, abs=2e-5)
    assert (report["steps"], report["lm_tokens"]) == (6, lm_tokens)
    found = SentenceTransformer(f"{name}/encoder", device="cpu").encode("the blue whale")
    np.testing.assert_allclose(found, embedding, atol=1e-3)


def test_an_option_that_a_run_does_not_know_had_its_default() -> None:
    """Reference: an option of this package and one of the library that have their default in the run, then one that
    has not. A later version has options that the settings of an earlier run do not name.
    """
    settings = read_json("stopped/settings.json")
    for key in ("document_mass", "adam_beta2"):
        del settings["trajectory"][key]
    write_json("stopped/settings.json", settings)
    train.main(RECIPE)
    assert Run("stopped").report["log"][:3] == read_json("stopped/checkpoint-3/trainer_state.json")["log_history"]
    del settings["trajectory"]["learning_rate"]
    write_json("stopped/settings.json", settings)
    with pytest.raises(NLTError, match=r"other settings .learning_rate: 5e-05 there, 0.01 now"):
        train.main(RECIPE)


def test_candidates_and_gains() -> None:
    """Reference: ids and numbers of the first query."""
    collection = load_collection("collection", splits=["train"])
    candidates = read_candidates("candidates.jsonl", collection)
    assert [row.query_id for row in candidates] == ["q1", "q2", "q3", "q4"]
    write_candidates("again.jsonl", candidates, corpus=collection.corpus)
    assert candidates_hash(Path("again.jsonl")) == file_hash(Path("candidates.jsonl")), (
        "a run goes on with the new file"
    )
    first = candidates[0]
    assert (first.query, first.answer) == ("which animal is the largest of all", "the blue whale")
    assert first.document_ids == ("d01", "d11", "d07", "d09")
    assert first.bm25 == pytest.approx((1.839445, 0, 0, 0), abs=1e-6)
    gain = read_gains("gains.jsonl", candidates, corpus=collection.corpus)
    assert gain[0].tolist() == [0.047051, 0.067744, 0.048, 0.011091]
    names = ("target_tokens", "log_likelihood", "token_log_likelihoods")
    columns = read_likelihoods("gains.jsonl", candidates, names, corpus=collection.corpus)
    assert columns["target_tokens"][0] == 30
    assert columns["log_likelihood"][0][0] == -172.718699
    assert columns["token_log_likelihoods"][0][0][:2] == [-5.061255, -5.431213]


def test_heads() -> None:
    """Reference: heads and scores of the file; they belong to the LLM in the folder."""
    heads = HeadSet.load("heads.json")
    assert heads.heads == ((1, 2), (0, 1), (0, 0))
    assert heads.scores[1] == (0.726469, 0.672747, 2.352084, 0.393347)
    heads.check(FrozenLM.from_pretrained("llm", dtype="float32", device="cpu"))


def test_scores_are_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: the gains that were written with them, byte by byte."""

    def put(*values: Any) -> None:
        raise AssertionError("a score was computed")

    monkeypatch.setattr(ScoreCache, "put", put)
    score.main([*RECIPE, "--gains", "again.jsonl"])
    assert Path("again.jsonl").read_bytes() == Path("gains.jsonl").read_bytes()


def test_embeddings_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: what the encoder gives today. The folder has the name that another version of a library gives it."""
    texts = [document.content for document in load_collection("collection", splits=["test"]).corpus.values()]
    encoder = load_encoder("encoder", device="cpu")
    expected = encoder.encode_document(texts)
    cache = EmbeddingCache(encoder, "embeddings")
    files = [file for file in Path("cache/embeddings").glob("*/*.npy") if np.load(file).shape == expected.shape]
    assert len(files) == 2  # of the start and of what was trained
    cache.folder.mkdir(parents=True)
    monkeypatch.setattr(SentenceTransformer, "encode_document", lambda *_, **options: pytest.fail("embedded again"))
    differences = []
    for file in files:
        shutil.copy(file, cache.folder)
        differences.append(np.abs(cache.encode_document(texts) - expected).max())
    assert min(differences) < 1e-5 < 0.1 < max(differences)


def test_results_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: nDCG@10 of three systems; the names of their files depend on the versions of the libraries."""
    found = []
    for file in Path("cache/results").glob("*.json"):
        monkeypatch.setattr(TaskScoreCache, "path", lambda *_, file=file: file)
        entry: Any = None
        scores = TaskScoreCache("cache/results").get("system", entry)
        assert scores is not None
        found.append(round(scores.ndcg_at_10, 3))
    assert sorted(found) == [0.658, 0.658, 1.0]


def test_an_adapted_folder_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    """Reference: the verdict, and that no stage runs again, with whatever Python and wherever the folder lies."""
    assert adapt.main(ADAPT) == NO_GAIN
    printed = capsys.readouterr().out
    assert printed.count("done before") == 7
    assert "NO GAIN: nDCG@10 on held-out sentences and headings that were cut out of the documents was 0." in printed


def test_a_finished_run() -> None:
    """Reference: values of its files; the encoder is loaded as it was in the trainer."""
    run = Run("adapted")
    assert run.is_finished
    assert (run.report["objective"], run.report["steps"], run.report["lm_tokens"]) == ("likelihood_gain", 4, 6688)
    assert run.settings["data"]["num_candidates"] == 3
    assert run.decision is not None
    assert (run.decision["kept"], run.decision["bm25_weight"]) == ("start", 0.0)
    rows = {row.name: row for row in run.results}
    assert (round(rows["bm25"].ndcg_at_10, 4), rows["adapted"].lm_tokens, rows["start"].kept) == (0.0469, 6688, True)
    assert len(run.trained_queries) == 30
    assert Probe.load(run.probe_file).query.shape == (4, 8)
    check_saved(run)
    check_files(run.encoder)
    recipe, record = read_release(run.encoder)
    assert recipe["data"]["num_candidates"] == 3
    assert set(record["weights"]) == {"model.safetensors"}
