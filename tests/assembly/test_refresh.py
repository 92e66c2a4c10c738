"""Refresh of the candidates while training: what is mined, when it is read, and the trajectory after a kill."""

from __future__ import annotations

import json
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from sentence_transformers import SentenceTransformer

from nlt_trainer.arguments.beside import audit_file
from nlt_trainer.assembly import mining, refresh, training
from nlt_trainer.assembly.refresh import Refresh, same_judged, undisturbed
from nlt_trainer.data.beir import load_collection
from nlt_trainer.data.candidates import QueryCandidates, read_candidates
from nlt_trainer.data.collator import NLTCollator
from nlt_trainer.data.gains import read_gains
from nlt_trainer.data.prior import with_prior
from nlt_trainer.errors import DataError, NLTError
from nlt_trainer.run.folder import Run
from nlt_trainer.run.resume import CostCallback
from nlt_trainer.scripts import detect_heads, mine, score, train

Batch = list[tuple[str, list[str], Any]]
"""Query, documents and gain of each row of a batch."""


class Project:
    """A collection with candidates and gains, a recipe whose refreshes are after steps 3 and 5 of 6, and its runs."""

    def __init__(self, root: Path, *, encoder: Path, llm: Path, collection: Path) -> None:
        self.root, self.recipe, self.collection = root, root / "recipe.yaml", collection
        blocks: dict[str, dict[str, Any]] = {
            "model": {"encoder": str(encoder), "llm": str(llm), "heads": f"{root}/heads.json", "num_heads": 3},
            "data": {
                "collection": str(collection),
                "candidates": f"{root}/candidates.jsonl",
                "num_candidates": 3,
                "gains": f"{root}/gains.jsonl",
                "token_likelihoods": True,
                "score_cache": f"{root}/scores",
                "max_document_tokens": 24,
                "miner": "fused",
            },
            "trainer": {
                "refresh": "0-3:3,3-100:2",
                "max_steps": 6,
                "per_device_train_batch_size": 3,
                "learning_rate": 0.01,
                "logging_steps": 1,
                "save_steps": 2,
                "report_to": "none",
                "use_cpu": True,
                "disable_tqdm": True,
            },
        }
        self.recipe.write_text(yaml.safe_dump(blocks))
        self.stage(mine, "--miner", "bm25")
        self.stage(score)

    def stage(self, stage: Any, *flags: str) -> None:
        stage.main(["--config", str(self.recipe), *flags])

    def train(self, name: str, *flags: str) -> Run:
        self.stage(train, "--output_dir", str(self.root / name), *flags)
        return Run(self.root / name)


@pytest.fixture
def project(tiny_encoder_folder: Path, tiny_llm_folder: Path, tiny_collection_folder: Path, tmp_path: Path) -> Project:
    """The project with an encoder that has dropout, so that a random state that is not kept is seen."""
    encoder = tmp_path / "encoder"
    shutil.copytree(tiny_encoder_folder, encoder)
    config = json.loads((encoder / "config.json").read_text())
    (encoder / "config.json").write_text(json.dumps({**config, "hidden_dropout_prob": 0.3}))
    return Project(tmp_path, encoder=encoder, llm=tiny_llm_folder, collection=tiny_collection_folder)


def weights(run: Run) -> bytes:
    return next(run.encoder.rglob("model.safetensors")).read_bytes()


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """The batches that are collated in the test, in their order."""
    seen: list[Batch] = []
    collate = NLTCollator.__call__

    def spy(self: NLTCollator, rows: Any) -> dict[str, Any]:
        seen.append([(row["query"], row["documents"], row.get("gain")) for row in rows])
        return collate(self, rows)

    monkeypatch.setattr(NLTCollator, "__call__", spy)
    return seen


def test_the_encoder_of_the_step_mines_and_the_llm_scores(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reference: the stages `mine` and `score` with the checkpoint of that step, each in files of its own."""
    run = project.train("run", "--save_steps", "1")
    printed = capsys.readouterr().out
    files = ("--candidates", f"{project.root}/own.jsonl", "--gains", f"{project.root}/own.gains.jsonl")
    before = rows_of(project.root / "candidates.jsonl")
    news = []
    for step in (3, 5):
        project.stage(mine, *files, "--encoder", str(run.checkpoint(step)))
        project.stage(score, *files)
        own = rows_of(project.root / "own.jsonl")
        assert rows_of(run.refreshed_candidates(step)) == own
        assert rows_of(run.refreshed_gains(step)) == rows_of(project.root / "own.gains.jsonl")
        news.append(
            sum(len(set(a["document_ids"]) - set(b["document_ids"])) for a, b in zip(own, before, strict=True))
        )
        assert f"step {step} of 6: {news[-1]} of 24 candidates are new (fused), after " in printed
        before = own
        assert not Path(f"{run.refreshed_candidates(step)}.embeddings").exists()
    assert news[0] > 0
    assert not run.refreshed_candidates(6).exists()
    audits = [json.loads(run.refreshed_gains(step).with_suffix(".audit.json").read_text()) for step in (3, 5)]
    start = json.loads((project.root / "gains.audit.json").read_text())["lm_tokens"]
    assert run.report["lm_tokens"] == start + sum(audit["lm_tokens"] for audit in audits) > start


@pytest.mark.parametrize(
    ("objective", "flags"),
    [
        ("likelihood_gain", ("--prior_weight", "0.5")),
        ("likelihood_gain", ("--gradient_accumulation_steps", "2")),
        ("likelihood_gain", ("--dataloader_num_workers", "2")),
        ("likelihood_gain", ("--train_sampling_strategy", "group_by_length")),
        ("emdr2", ("--emdr2_level", "token")),
        ("dream", ()),
        ("info_nce", ("--labels", "true", "--train_split", "train", "--per_device_train_batch_size", "2")),
    ],
)
def test_new_candidates_are_read_from_the_next_step_on(
    project: Project, batches: list[Batch], objective: str, flags: tuple[str, ...]
) -> None:
    """Reference: the files, which were written before; a data loader has the batch of the next step already then."""
    if objective == "dream":
        project.stage(detect_heads)
    if "--labels" in flags:
        project.stage(mine, "--miner", "bm25", "--train_split", "train")
    run = project.train("run", "--objective", objective, *flags)
    reads_gains = objective in ("likelihood_gain", "emdr2")
    collection = load_collection(project.collection)
    candidates = [project.root / "candidates.jsonl", *map(run.refreshed_candidates, (3, 5))]
    gains = [project.root / "gains.jsonl", *map(run.refreshed_gains, (3, 5))]
    # an epoch has three batches, and two of them make a step
    steps = (0, 0, 1, 2, 2, 3, 4, 4, 5) if "--gradient_accumulation_steps" in flags else range(6)
    for step, batch in zip(steps, batches, strict=True):
        file = (step >= 3) + (step >= 5)
        rows = {row.query: row for row in read_candidates(candidates[file], collection)}
        for query, documents, gain in batch:
            row = rows[query]
            assert documents == [collection.corpus[document_id].content for document_id in row.document_ids]
            if reads_gains:
                weight = 0.5 if "--prior_weight" in flags else 0.0
                scored = read_gains(gains[file], [row], corpus=collection.corpus)
                expected = with_prior(scored, [row], prior="bm25", weight=weight)
                assert gain == pytest.approx(expected[0])
    assert run.refreshed_gains(3).exists() == reads_gains


def test_an_adapter_that_is_trained_does_not_score(project: Project) -> None:
    """Reference: the stage `score` on the same candidates, with a cache of its own."""
    lora = ("--llm_lora", '{"r": 2, "lora_alpha": 64, "target_modules": "all-linear"}')
    run = project.train("run", "--objective", "likelihood_gain + revela", *lora, "--learning_rate", "0.1")
    own = project.root / "own.gains.jsonl"
    files = ("--candidates", str(run.refreshed_candidates(5)), "--gains", str(own))
    project.stage(score, *files, "--score_cache", f"{project.root}/own")
    for found, expected in zip(rows_of(run.refreshed_gains(5)), rows_of(own), strict=True):
        assert found["gain"] == pytest.approx(expected["gain"], abs=1e-4)


def test_a_refresh_changes_nothing_but_the_candidates(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: the weights of a run without a refresh, whose encoder has the same dropout; and the run with it."""
    recipe = yaml.safe_load(project.recipe.read_text())
    refreshed = weights(project.train("refreshed"))
    monkeypatch.setattr(Refresh, "use", lambda self, data: None)
    unused = weights(project.train("unused"))
    del recipe["trainer"]["refresh"]
    project.recipe.write_text(yaml.safe_dump(recipe))
    plain = weights(project.train("plain"))
    assert unused == plain
    assert refreshed != plain


def test_modes_and_random_states_stay(tiny_encoder: SentenceTransformer) -> None:
    """Reference: those before; the block has changed all of them."""
    tiny_encoder.train()
    tiny_encoder[0].eval()
    modes = [module.training for module in tiny_encoder.modules()]

    def states() -> list[Any]:
        return [torch.get_rng_state().tolist(), random.getstate(), pickle.dumps(np.random.get_state())]

    before = states()
    with undisturbed(tiny_encoder):
        tiny_encoder.encode(["a text"])
        torch.rand(2), random.random(), np.random.rand()
        assert not any(module.training for module in tiny_encoder.modules())
        assert all(a != b for a, b in zip(before, states(), strict=True))
    assert states() == before
    assert [module.training for module in tiny_encoder.modules()] == modes
    assert any(modes)


def kill(*args: Any, **kwargs: Any) -> None:
    raise KeyboardInterrupt


def kill_after(step: int) -> Callable[..., None]:
    """A `CostCallback.on_step_end`, which comes after the refresh and before the checkpoint of a step."""
    whole = CostCallback.on_step_end

    def on_step_end(self: CostCallback, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == step:
            raise KeyboardInterrupt
        whole(self, args, state, control, **kwargs)

    return on_step_end


@pytest.mark.parametrize(
    ("place", "resumes_from"),
    [
        ((mining, "nearest", kill), 2),  # the corpus is embedded, and no candidates are written
        ((refresh, "score_candidates", kill), 2),  # candidates are written, and no gains
        ((CostCallback, "on_step_end", kill_after(3)), 2),  # after the refresh, before the next checkpoint
        ((CostCallback, "on_step_end", kill_after(4)), 2),  # a step with the new candidates is made
        ((CostCallback, "on_step_end", kill_after(5)), 4),  # after a checkpoint and another refresh
        ((CostCallback, "on_step_end", kill_after(6)), 4),
    ],
)
def test_a_killed_run_ends_with_the_same_weights(
    project: Project, monkeypatch: pytest.MonkeyPatch, place: tuple[Any, str, Any], resumes_from: int
) -> None:
    """Reference: weights, log and LLM tokens of a run that was not killed."""
    whole = project.train("whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(*place)
        project.train("run")
    assert max(Run(project.root / "run").checkpoints()) == resumes_from
    run = project.train("run")
    assert weights(run) == weights(whole)
    assert [entry.get("loss") for entry in run.log] == [entry.get("loss") for entry in whole.log]
    assert run.report["lm_tokens"] == whole.report["lm_tokens"]


def test_a_run_goes_on_from_the_checkpoint_of_another(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: weights of the whole run; the second time, the run has files of its own to resume with."""
    whole = project.train("whole")
    named = ("--resume_from_checkpoint", str(whole.checkpoint(4)))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(CostCallback, "on_step_end", kill_after(5))
        project.train("branch", *named)
    branch = Run(project.root / "branch")
    assert branch.refreshed_candidates(3).read_bytes() == whole.refreshed_candidates(3).read_bytes()
    assert audit_file(branch.refreshed_gains(3)).read_bytes() == audit_file(whole.refreshed_gains(3)).read_bytes()
    assert weights(project.train("branch", *named)) == weights(whole)
    gains = whole.refreshed_gains(3)
    gains.write_text(gains.read_text().replace('"gain": [', '"gain": [1', 1))
    with pytest.raises(DataError, match=r"other/gains-3.jsonl: is not as `nlt score` wrote it"):
        project.train("other", *named)
    gains.unlink()
    with pytest.raises(NLTError, match=r"gains-3.jsonl is missing, which the refresh after step 3 wrote .*; put it"):
        project.train("other", *named)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--miner", "bm25"),
            r"refresh '0-3:3,3-100:2': miner is bm25, which finds the same .*; set miner to encoder",
        ),
        (("--refresh", "6-100:1"), r"refresh '6-100:1' names no step before the last one, 6; name an earlier one"),
    ],
)
def test_a_refresh_that_would_do_nothing_is_refused(project: Project, flags: tuple[str, ...], message: str) -> None:
    """Reference: the value and the remedy in the message."""
    with pytest.raises(NLTError, match=message):
        project.train("run", *flags)


def test_a_run_that_stopped_early_before_a_refresh_is_saved_by_the_next_call(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: the steps by hand; without learning the second evaluation is no better, and patience is 1."""
    stopping = {"early_stopping_patience": 1, "eval_strategy": "steps", "eval_steps": 1, "save_steps": 1}
    settings = {"refresh": "5-6:1", "learning_rate": 0, "train_split": "train", "dev_split": "dev", **stopping}
    flags = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    project.stage(mine, "--miner", "bm25", "--train_split", "train")
    project.stage(score, "--train_split", "train")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "save_trained", kill)
        project.train("run", *flags)
    assert max(Run(project.root / "run").checkpoints()) == 2
    assert project.train("run", *flags).report["steps"] == 2


def test_another_miner_or_prompt_is_another_trajectory(project: Project) -> None:
    """Reference: what differs, in the message; without a refresh neither matters to an objective of stored gains."""
    project.train("run")
    with pytest.raises(NLTError, match=r"other settings \(miner: 'fused' there, 'encoder' now\)"):
        project.train("run", "--miner", "encoder")
    with pytest.raises(NLTError, match=r"other settings \(index: 'exact' there, 'ivf_pq' now\)"):
        project.train("run", "--index", "ivf_pq")
    (project.root / "gains.audit.json").unlink()
    with pytest.raises(NLTError, match=r"other settings \(max_document_tokens: 24 there, 20 now\)"):
        project.train("run", "--max_document_tokens", "20")


def test_rows_with_labels_stay_those_of_the_start() -> None:
    """Reference: by hand; a query keeps its former candidates where it would lose or get a relevant one."""

    def candidates(*documents: str) -> list[QueryCandidates]:
        return [QueryCandidates(f"q{b}", "text", None, tuple(d), (0.0,) * 2) for b, d in enumerate(documents)]

    qrels = {"q0": {"a": 1}, "q1": {"a": 1}, "q2": {"a": 1}, "q3": {"a": 0}}
    found = same_judged(candidates("ca", "bc", "ab", "ac"), candidates("ab", "ab", "bc", "bc"), qrels)
    assert found == candidates("ca", "ab", "bc", "ac")
