"""`nlt plan` against what the stages then really read and write, and what it says where something is missing."""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from nlt_trainer.assembly import parts as common
from nlt_trainer.errors import NLTError
from nlt_trainer.plan import context as plan_context
from nlt_trainer.plan import evaluation as plan_evaluation
from nlt_trainer.plan import scoring as plan_scoring
from nlt_trainer.plan import training as plan_training
from nlt_trainer.scripts import detect_heads, make_encoder, mine, plan, score, train


class Recipe:
    """A tiny recipe whose files all stand in one folder."""

    def __init__(self, root: Path, llm: str, **settings: Any) -> None:
        shutil.copytree(root / "source", root / "collection", dirs_exist_ok=True)
        self.root, self.path = root, root / "recipe.yaml"
        self.blocks: dict[str, dict[str, Any]] = {
            "model": {"encoder": f"{root}/encoder", "llm": llm, "heads": f"{root}/heads.json", "num_heads": 3},
            "data": {
                "collection": f"{root}/collection",
                "train_split": "train",
                "candidates": f"{root}/candidates.jsonl",
                "num_candidates": 3,
                "gains": f"{root}/gains.jsonl",
                "score_cache": f"{root}/scores",
                "max_document_tokens": 24,
            },
            "trainer": {
                "output_dir": f"{root}/run",
                "num_train_epochs": 2,
                "per_device_train_batch_size": 2,
                "save_strategy": "no",
                "report_to": "none",
                "use_cpu": True,
                "disable_tqdm": True,
            },
        }

    def run(self, stage: Any, *extra: str, **settings: Any) -> None:
        """Run a stage with further settings of any block."""
        blocks = {name: dict(block) for name, block in self.blocks.items()}
        for key, value in settings.items():
            block = "model" if key in ("llm", "adapter", "encoder", "pooling", "lora", "llm_lora") else "trainer"
            block = "data" if key in ("document_layout", "dev_split", "eval_split", "miner", "labels") else block
            blocks[block][key] = value
        self.path.write_text(yaml.safe_dump(blocks))
        stage.main(["--config", str(self.path), *extra])

    def plan(self, **settings: Any) -> tuple[dict[str, dict[str, Any]], list[str]]:
        """Stages by name, and the notes."""
        self.run(plan, "--plan_file", f"{self.root}/plan.json", **settings)
        found = json.loads((self.root / "plan.json").read_text())
        return {stage["stage"]: stage for stage in found["stages"]}, found["notes"]


@pytest.fixture
def recipe(
    tiny_llm_folder: Path, tiny_collection_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Recipe:
    monkeypatch.setattr(plan_evaluation, "ENCODING_SECONDS", 0.05)
    monkeypatch.setattr(plan_scoring, "SCORING_SECONDS", 0.05)
    shutil.copytree(tiny_collection_folder, tmp_path / "source")
    recipe = Recipe(tmp_path, str(tiny_llm_folder))
    recipe.run(make_encoder)
    return recipe


def test_tokens_and_files_are_those_of_the_stages(recipe: Recipe) -> None:
    """Reference: audit, gains file and training reports of the same recipe, run afterwards."""
    root = recipe.root
    before, notes = recipe.plan(eval_strategy="steps", eval_steps=1, dev_split="dev")
    assert any("counted on those that mine will find" in note for note in notes)
    recipe.run(mine)
    stages, notes = recipe.plan(eval_strategy="steps", eval_steps=1, dev_split="dev")
    assert any("are counted on the candidates" in note for note in notes)
    assert before["score"]["lm_tokens"] == stages["score"]["lm_tokens"]
    recipe.run(score)
    assert stages["score"]["lm_tokens"] == json.loads((root / "gains.audit.json").read_text())["lm_tokens"]
    written = (root / "gains.jsonl").stat().st_size + next((root / "scores").iterdir()).stat().st_size
    assert stages["score"]["file_bytes"] == pytest.approx(written, rel=0.25)
    assert stages["total"]["seconds"] == sum(s["seconds"] for name, s in stages.items() if name != "total")
    assert all(s["memory"] > 0 and s["seconds"] > s["other_seconds"] * 0.999 for s in stages.values())


OBJECTIVES: dict[str, dict[str, Any]] = {
    "dream": {"document_layout": "independent", "document_cache_gib": 1.0, "contrast_targets": 2},
    "dream without a cache": {},
    "loop + adist + revela": {"llm_lora": {"r": 2, "target_modules": ["q_proj"]}},
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_training_reads_the_planned_tokens(recipe: Recipe, name: str) -> None:
    """Reference: `lm_tokens` of the training report, less those of the stages before."""
    objective, settings = name.removesuffix(" without a cache"), OBJECTIVES[name]
    recipe.run(mine)
    recipe.run(score)
    recipe.run(detect_heads, objective=objective, **settings)
    stages, _ = recipe.plan(objective=objective, **settings)
    recipe.run(train, objective=objective, **settings)
    report = json.loads((recipe.root / "run" / "training.json").read_text())
    earlier = 0
    if "dream" in objective:
        heads = json.loads((recipe.root / "heads.json").read_text())["settings"]["lm_tokens"]
        earlier = heads + stages["score"]["lm_tokens"]
        assert stages["detect_heads"]["lm_tokens"] == heads
    assert stages["train"]["lm_tokens"] == report["lm_tokens"] - earlier
    assert stages["train"]["flops"] > 0


def test_a_configuration_stands_in_for_weights(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    """Reference: tokens and FLOPs of the same model with weights; a note says so."""
    complete, _ = recipe.plan()
    folder = recipe.root / "without weights"
    shutil.copytree(recipe.blocks["model"]["llm"], folder)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    stages, notes = recipe.plan(llm=str(folder))
    assert stages["score"]["lm_tokens"] == complete["score"]["lm_tokens"]
    assert stages["score"]["flops"] == complete["score"]["flops"]
    assert stages["score"]["seconds"] > 0
    assert any("has no weights here: its speed is that of 2 of its 2 layers" in note for note in notes)


def test_an_adapter_that_is_not_there_yet(recipe: Recipe) -> None:
    """Reference: the plan without it, which has the LLM's own weights; a note says what is missing."""
    complete, _ = recipe.plan()
    stages, notes = recipe.plan(adapter=str(recipe.root / "adapter"))
    for key in ("lm_tokens", "flops"):
        assert stages["score"][key] == complete["score"][key]
    assert any("timed without its adapter" in note and "cannot be loaded" in note for note in notes)
    assert not any("has no weights here" in note for note in notes)


def test_what_cannot_be_known_is_said(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    """Reference: a model that is nowhere leaves question marks and its reason; the rest is planned."""
    stages, notes = recipe.plan(llm="nobody/nothing")
    assert (stages["score"]["lm_tokens"], stages["score"]["seconds"], stages["total"]["seconds"]) == (None,) * 3
    assert stages["mine"]["seconds"] > 0
    assert any("LLM 'nobody/nothing' cannot be loaded: it is not in the Hub's cache" in note for note in notes)
    assert "| score | ? | ? | ? |" in capsys.readouterr().out


def test_an_accelerator_changes_what_is_computed_alone(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    """Reference: FLOPs over 40 % of the peak, beside the seconds that no accelerator changes."""
    recipe.run(plan, "--accelerator_tflops", "1e-6", "--plan_file", f"{recipe.root}/plan.json")
    found = json.loads((recipe.root / "plan.json").read_text())["stages"]
    scoring = next(stage for stage in found if stage["stage"] == "score")
    expected = scoring["other_seconds"] + scoring["flops"] / 0.4e6
    assert scoring["accelerator_seconds"] == pytest.approx(expected)
    training = next(stage for stage in found if stage["stage"] == "train")  # of a table of embeddings
    assert (training["flops"], training["accelerator_seconds"]) == (0, pytest.approx(training["seconds"]))
    assert "1e-06 TFLOP/s at 40%" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--accelerator", "A101"], r"accelerator 'A101' is unknown; choose one of T4 fp16, "),
        (["--accelerator_tflops", "0"], r"accelerator_tflops is 0.0; it must be greater than 0"),
        (["--accelerator", "A100 bf16", "--accelerator_tflops", "312"], r"leave one of accelerator, "),
        (["--utilisation", "40"], r"utilisation is 40.0; it must be above 0 and at most 1"),
    ],
)
def test_a_wrong_accelerator_is_refused(words: list[str], message: str) -> None:
    """Reference: the value and the remedy in the message."""
    with pytest.raises(NLTError, match=message):
        plan.main(words)


def test_an_encoder_that_is_trained_with_lora(
    recipe: Recipe, tiny_encoder_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reference: of 6 FLOPs a weight and token the gradient of the frozen weights is not computed."""
    bert = str(tiny_encoder_folder.parent / "bert")
    full, _ = recipe.plan(encoder=bert, pooling="mean", eval_split="test")
    lora, _ = recipe.plan(encoder=bert, pooling="mean", lora={"r": 1, "target_modules": ["query"]})
    assert 0.6 < lora["train"]["flops"] / full["train"]["flops"] < 0.75
    assert full["evaluate"]["flops"] > 0


@pytest.mark.parametrize("lora", [None, {"r": 8, "target_modules": ["query", "value"]}])
def test_what_training_saves(recipe: Recipe, tiny_encoder_folder: Path, lora: dict[str, Any] | None) -> None:
    """Reference: weights and moments of the encoder and of checkpoints, which a LoRA run has of its adapter alone."""
    recipe.run(mine)
    recipe.run(score)
    settings = {
        "encoder": str(tiny_encoder_folder.parent / "bert"), "pooling": "mean", "lora": lora, "num_train_epochs": 3,
        "save_strategy": "steps", "save_steps": 4,
    }  # fmt: skip
    stages, _ = recipe.plan(**settings)
    recipe.run(train, **settings)
    run = recipe.root / "run"
    assert len(list(run.glob("checkpoint-*"))) == 2  # one after the last of 6 steps
    written = sum(f.stat().st_size for name in ("*model*.safetensors", "optimizer.pt") for f in run.rglob(name))
    assert stages["train"]["file_bytes"] == pytest.approx(written, rel=0.25)


def test_the_memory_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: Linux's own figures, of which a sandbox may lack the peak."""
    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("needs /proc")
    here = {line.split(":")[0]: line.split()[1] for line in status.read_text().splitlines() if line.endswith(" kB")}
    assert common.resident_peak() >= int(here["VmRSS"]) << 10
    monkeypatch.setattr(Path, "read_text", lambda _: "VmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n")
    assert common.resident_peak() == 2 << 20
    monkeypatch.setattr(Path, "read_text", lambda _: "VmRSS:\t    1024 kB\n")
    assert common.resident_peak() == resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def test_memory_begins_without_a_model(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: the order of events; each stage adds the weights of the models that it loads."""
    events: list[str] = []
    load, measure = plan_context.load_start, plan_context.peak_memory

    def loaded(*args: Any) -> Any:
        events.append("loaded")
        return load(*args)

    def measured() -> float:
        events.append("measured")
        return measure()

    monkeypatch.setattr(plan_context, "load_start", loaded)
    monkeypatch.setattr(plan_context, "peak_memory", measured)
    recipe.plan(eval_split="test")
    assert events == ["measured", "loaded"]


def test_a_part_of_the_corpus_says_nothing_of_labels(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: all four queries, of which few have their gold among half of the documents; the whole corpus."""
    _, notes = recipe.plan(objective="info_nce", labels=True)
    assert not any("relevant candidate" in note for note in notes)
    monkeypatch.setattr(plan_context, "MINED_DOCUMENTS", 3)
    stages, notes = recipe.plan(objective="info_nce", labels=True)
    assert any("estimated from 4 of 4 queries and 3 of 12 documents" in note for note in notes)
    assert any("how many queries have a relevant candidate is not known" in note for note in notes)
    assert stages["train"]["seconds"] > 0
    judgements = recipe.root / "collection" / "qrels" / "train.tsv"
    lines = judgements.read_text().splitlines()
    judgements.write_text("\n".join([lines[0], *(line.rsplit("\t", 1)[0] + "\t0" for line in lines[1:])]) + "\n")
    monkeypatch.setattr(plan_context, "MINED_DOCUMENTS", 5000)
    with pytest.raises(NLTError, match="no query has a relevant candidate"):
        recipe.run(plan, objective="info_nce", labels=True)


def test_documents_that_are_not_kept_are_timed_with_the_rest(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: documents are timed apart only where the cache holds those of the rows that are timed."""
    apart: list[float] = []
    probe = plan_training.probe_documents

    def probed(*args: Any) -> Any:
        apart.append(1)
        return probe(*args)

    monkeypatch.setattr(plan_training, "probe_documents", probed)
    for cache in (1.0, 1e-5):
        stages, _ = recipe.plan(objective="dream", document_layout="independent", document_cache_gib=cache)
        assert stages["train"]["seconds"] > 0
        assert len(apart) == 1


def test_several_processes_are_refused(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: the remedy in the message; a trainer in one of several processes would wait for the others."""
    monkeypatch.setattr(plan, "processes", lambda args: SimpleNamespace(num_processes=2))
    with pytest.raises(NLTError, match="2 processes were started, and plan times one; start it alone"):
        recipe.run(plan)


def test_an_encoder_that_mines(recipe: Recipe) -> None:
    """Reference: BM25 alone holds no encoder; a note says that another miner's candidates are not known yet."""
    plain, _ = recipe.plan()
    stages, notes = recipe.plan(miner="encoder")
    assert stages["mine"]["memory"] > plain["mine"]["memory"]
    assert any("estimated from what BM25 finds" in note for note in notes)
