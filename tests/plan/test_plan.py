"""`nlt plan` against what the stages then really read, and what it says where something is missing."""

from __future__ import annotations

import json
import resource
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from nlt_trainer.assembly import parts as common
from nlt_trainer.errors import NLTError
from nlt_trainer.plan import stages as plan_stages
from nlt_trainer.plan import table as plan_table
from nlt_trainer.scripts import detect_heads, make_encoder, mine, plan, score, train

LORA = {"r": 1, "target_modules": ["query"]}


class Recipe:
    """A tiny recipe whose files all stand in one folder."""

    def __init__(self, root: Path, llm: str) -> None:
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
            block = "data" if key in ("document_layout", "eval_split", "miner") else block
            blocks[block][key] = value
        self.path.write_text(yaml.safe_dump(blocks))
        stage.main(["--config", str(self.path), *extra])

    def plan(self, *extra: str, **settings: Any) -> tuple[dict[str, dict[str, Any]], list[str]]:
        """Stages by name, and the notes."""
        self.run(plan, *extra, "--plan_file", f"{self.root}/plan.json", **settings)
        found = json.loads((self.root / "plan.json").read_text())
        return {stage["stage"]: stage for stage in found["stages"]}, found["notes"]


@pytest.fixture
def recipe(tiny_llm_folder: Path, tiny_collection_folder: Path, tmp_path: Path) -> Recipe:
    recipe = Recipe(tmp_path, str(tiny_llm_folder))
    recipe.run(make_encoder)
    return recipe


def test_tokens_of_scoring_are_those_that_it_reads(recipe: Recipe) -> None:
    """Reference: the audit of the same recipe, run afterwards; the plan is the same before and after mining."""
    before, notes = recipe.plan()
    assert notes[0].startswith("LLM tokens are counted on what BM25 finds in 12 documents, as ")
    recipe.run(mine)
    stages, notes = recipe.plan()
    assert notes[0] == f"LLM tokens are counted on {recipe.root}/candidates.jsonl."
    recipe.run(score)
    read = json.loads((recipe.root / "gains.audit.json").read_text())["lm_tokens"]
    assert before["score"]["lm_tokens"] == stages["score"]["lm_tokens"] == read
    assert list(stages) == ["mine", "score", "train", "evaluate", "total"]
    parts = [stage for name, stage in stages.items() if name != "total"]
    assert stages["total"]["seconds"] == pytest.approx(sum(part["seconds"] for part in parts))
    assert stages["total"]["memory"] == max(part["memory"] for part in parts)
    assert all(part["seconds"] >= part["other_seconds"] > 0 for part in parts)
    assert not (recipe.root / "run").exists()


OBJECTIVES: dict[str, dict[str, Any]] = {
    "likelihood_gain": {},
    "dream": {},
    "dream, documents kept": {"document_layout": "independent", "document_cache_gib": 1.0},
    "revela": {},
    "loop + adist + revela": {"llm_lora": {"r": 2, "target_modules": ["q_proj"]}},
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_training_reads_the_planned_tokens(recipe: Recipe, name: str) -> None:
    """Reference: `lm_tokens` of the training report, less those of the stages before, where they count."""
    objective, settings = name.split(",")[0], OBJECTIVES[name]
    recipe.run(mine)
    recipe.run(score)
    stages, notes = recipe.plan(objective=objective, **settings)
    earlier = stages["score"]["lm_tokens"] if objective in ("likelihood_gain", "dream") else 0
    if objective == "dream":
        recipe.run(detect_heads, objective=objective, **settings)
        heads = json.loads((recipe.root / "heads.json").read_text())["settings"]
        earlier += heads["lm_tokens"]
        each = heads["lm_tokens"] / heads["num_queries"]  # some of the four have no candidate of positive gain
        assert stages["detect_heads"]["lm_tokens"] / 4 == pytest.approx(each, rel=0.1)
    recipe.run(train, objective=objective, **settings)
    report = json.loads((recipe.root / "run" / "training.json").read_text())
    assert stages["train"]["lm_tokens"] == report["lm_tokens"] - earlier
    assert bool(stages["train"]["lm_tokens"]) == (objective != "likelihood_gain")
    assert any("if document_cache_gib holds all" in note for note in notes) == ("kept" in name)


def test_heads_by_gradient_take_the_planned_tokens(recipe: Recipe) -> None:
    """Reference: `lm_tokens` of the head file, a query; some of the four have no candidate of positive gain."""
    recipe.run(mine)
    recipe.run(score)
    given = ["--head_method", "gradient"]
    stages, _ = recipe.plan(*given, objective="dream")
    recipe.run(detect_heads, *given, objective="dream")
    heads = json.loads((recipe.root / "heads.json").read_text())["settings"]
    each = heads["lm_tokens"] / heads["num_queries"]
    assert stages["detect_heads"]["lm_tokens"] / 4 == pytest.approx(each, rel=0.1)


def test_documents_that_are_not_kept_are_an_upper_bound(recipe: Recipe) -> None:
    """Reference: a run in which queries of a batch share documents; the note says so."""
    settings = {"objective": "loop", "document_layout": "independent"}
    stages, notes = recipe.plan(**settings)
    recipe.run(mine)
    recipe.run(train, **settings)
    read = json.loads((recipe.root / "run" / "training.json").read_text())["lm_tokens"]
    assert read <= stages["train"]["lm_tokens"] < 1.5 * read
    assert any("LLM tokens are at most these" in note for note in notes)


def test_a_sample_stands_for_a_large_collection(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: the whole, of which a half of the queries says about as much twice; notes name both sizes."""
    whole, _ = recipe.plan(objective="revela")
    monkeypatch.setattr(plan_stages, "MINED_DOCUMENTS", 3)
    stages, notes = recipe.plan(objective="revela")
    assert "estimated from 4 of 4 queries with what BM25 finds in 3 documents" in notes[0]
    assert stages["train"]["lm_tokens"] == pytest.approx(whole["train"]["lm_tokens"], rel=0.2)
    recipe.run(mine)
    monkeypatch.setattr(plan_stages, "COUNTED_QUERIES", 2)
    stages, notes = recipe.plan(objective="revela")
    assert f"estimated from 2 of 4 queries with {recipe.root}/candidates.jsonl" in notes[0]
    assert stages["train"]["lm_tokens"] == pytest.approx(whole["train"]["lm_tokens"], rel=0.2)


def test_a_model_without_weights_is_counted_and_not_timed(recipe: Recipe, tiny_encoder_folder: Path) -> None:
    """Reference: tokens and FLOPs of the same models with their weights; a note names what is missing."""
    bert = tiny_encoder_folder.parent / "bert"
    recipe.blocks["model"]["max_seq_length"] = 64
    settings = {"encoder": str(bert), "pooling": "mean", "objective": "dream"}
    complete, _ = recipe.plan(**settings)
    for name, folder in (("llm", Path(recipe.blocks["model"]["llm"])), ("encoder", bert)):
        without = recipe.root / f"{name} without weights"
        shutil.copytree(folder, without, ignore=shutil.ignore_patterns("*.safetensors"))
        settings[name] = str(without)
    stages, notes = recipe.plan("--accelerator", "1", **settings)
    for stage, key in [(stage, key) for stage in complete for key in ("lm_tokens", "flops")]:
        assert stages[stage][key] == complete[stage][key]
    timed = {name: stage["seconds"] for name, stage in stages.items()}
    assert timed == dict.fromkeys(stages) | {"mine": timed["mine"]}
    assert all(stage["accelerator_seconds"] > 0 for stage in stages.values())
    for name in ("llm", "encoder"):
        assert any(note.startswith(f"The {name} is not timed: ") and settings[name] in note for note in notes)


def test_a_clock_that_goes_back_changes_nothing(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: a step takes time, whatever the machine's clock says when it begins and when it ends."""
    monkeypatch.setattr(time, "time", lambda: 1e9 - time.monotonic())
    stages, _ = recipe.plan()
    assert stages["train"]["seconds"] > 0


def test_a_model_that_is_nowhere_is_a_note(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    """Reference: question marks and the loader's reason; what does not need the LLM is planned."""
    stages, notes = recipe.plan(llm="nobody/nothing")
    for name in ("score", "total"):
        assert [stages[name][key] for key in ("lm_tokens", "flops", "seconds")] == [None] * 3
    assert stages["mine"]["seconds"] > 0
    assert stages["train"]["seconds"] > 0
    assert any("The llm is not timed: LLM 'nobody/nothing' cannot be loaded" in note for note in notes)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("| score "))
    assert [cell.strip() for cell in line.strip("|").split("|")] == ["score", "?", "?", "?", "?"]
    stages, notes = recipe.plan(encoder=f"{recipe.root}/nothing", objective="revela")
    assert stages["train"]["lm_tokens"] > 0
    assert stages["train"]["flops"] is None
    assert any("The encoder is not timed: model " in note and "does not exist" in note for note in notes)


def test_an_adapter_that_is_not_there_yet_changes_nothing(recipe: Recipe) -> None:
    """Reference: the plan without it, because it is merged."""
    plain, _ = recipe.plan()
    stages, _ = recipe.plan(adapter=f"{recipe.root}/adapter")
    assert stages["score"]["flops"] == plain["score"]["flops"]
    assert stages["score"]["seconds"] > 0


@pytest.mark.parametrize(("accelerator", "peak"), [("2e-6", 2e6), ("A100 bf16", 312e12)])
def test_an_accelerator_computes_and_waits_for_the_rest(
    recipe: Recipe, accelerator: str, peak: float, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reference: FLOPs over half of the peak beside the other seconds; a table of embeddings takes what it takes."""
    stages, _ = recipe.plan("--accelerator", accelerator, "--utilisation", "0.5")
    scoring, training = stages["score"], stages["train"]
    expected = scoring["other_seconds"] + scoring["flops"] / (0.5 * peak)
    assert scoring["accelerator_seconds"] == pytest.approx(expected)
    assert (training["flops"], training["accelerator_seconds"]) == (0, pytest.approx(training["seconds"]))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert {len(line) for line in lines} == {len(lines[0])}
    assert f"{'A100 bf16' if peak > 1e9 else '2e-6 TFLOP/s'} at 50%" in lines[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--accelerator", "A101"], r"accelerator 'A101' is unknown; choose one of T4 fp16, .*, or give its peak"),
        (["--accelerator", "0"], r"accelerator '0' is unknown"),
        (["--accelerator", "nan"], r"accelerator 'nan' is unknown"),
        (["--utilisation", "40"], r"utilisation is 40.0; it must be above 0 and at most 1"),
    ],
)
def test_a_wrong_accelerator_is_refused(words: list[str], message: str) -> None:
    """Reference: the value and the remedy in the message."""
    with pytest.raises(NLTError, match=message):
        plan.main(words)


def test_an_encoder_that_is_trained_with_lora(
    recipe: Recipe, tiny_encoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: of 6 FLOPs a weight and token the gradient of frozen weights, a third, is not computed."""
    monkeypatch.setattr(common, "resident_peak", lambda: 0)  # which grows from plan to plan of one process
    bert = {"encoder": str(tiny_encoder_folder.parent / "bert"), "pooling": "mean"}
    full, _ = recipe.plan(**bert)
    lora, _ = recipe.plan(**bert, lora=LORA)
    assert 0.6 < lora["train"]["flops"] / full["train"]["flops"] < 0.75
    assert lora["train"]["memory"] < full["train"]["memory"]
    assert full["evaluate"]["seconds"] > full["evaluate"]["other_seconds"]


def test_several_processes_are_refused(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: the remedy in the message; a trainer in one of several processes would wait for the others."""
    monkeypatch.setattr(plan_table, "processes", lambda args: SimpleNamespace(num_processes=2))
    with pytest.raises(NLTError, match="2 processes were started, and plan times one; start it alone"):
        recipe.run(plan)


def test_an_encoder_that_mines_is_not_known_yet(recipe: Recipe) -> None:
    """Reference: notes that BM25's candidates stand for those of an encoder, and that mine takes longer."""
    _, notes = recipe.plan(miner="encoder")
    assert notes[0].startswith("LLM tokens are estimated from 4 of 4 queries with what BM25 finds")
    assert any("mine is without the encoder" in note for note in notes)


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
