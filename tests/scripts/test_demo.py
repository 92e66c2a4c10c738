"""The demo with tiny models: its stamps, what it writes, and that a second call repeats nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from nlt_trainer.arguments.data import DataArguments
from nlt_trainer.assembly import demo as assembly_demo
from nlt_trainer.errors import NLTError
from nlt_trainer.run.folder import REPORT_KEYS, Run
from nlt_trainer.run.results import Result
from nlt_trainer.run.stages import run_stages
from nlt_trainer.scripts import demo
from nlt_trainer.text_files import write_json


def write_recipes(root: Path, llm: Path, encoder: Path, **trainer: Any) -> Path:
    """The two recipes of the demo at miniature size, on the shipped ones' stages."""
    folder = root / "recipes"
    folder.mkdir(exist_ok=True)
    for objective in ("likelihood_gain", "dream"):
        blocks = yaml.safe_load((Path("recipes/demo") / f"{objective}.yaml").read_text())
        for block in blocks.values():
            for key, value in block.items():
                if isinstance(value, str) and value.startswith("runs/demo"):
                    block[key] = value.replace("runs/demo", str(root / "run"))
        blocks["model"] |= {"llm": str(llm), "encoder": str(encoder), "num_heads": 2}
        blocks["data"] |= {"max_queries": 8, "num_candidates": 3, "max_document_tokens": 8, "head_queries": 4}
        blocks["trainer"] |= {"num_train_epochs": 1, "use_cpu": True, "disable_tqdm": True, **trainer}
        (folder / f"{objective}.yaml").write_text(yaml.safe_dump(blocks))
    return folder


@pytest.fixture
def small_library(monkeypatch: pytest.MonkeyPatch, tiny_collection_folder: Path) -> None:
    """A small collection in place of the standard library."""

    def build(model: Any, data: DataArguments, args: Any) -> None:
        target = Path(data.collection)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(tiny_collection_folder)

    monkeypatch.setattr(assembly_demo, "build_stdlib", build)


def test_the_demo_runs_once_and_repeats_only_what_changed(
    small_library: None,
    tiny_llm_folder: Path,
    tiny_encoder_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Against the rows that results.json promises, and the stages that are printed as done before."""
    arguments = ["--recipes", str(write_recipes(tmp_path, tiny_llm_folder, tiny_encoder_folder))]
    demo.main(arguments)
    first = capsys.readouterr().out
    assert "done before" not in first
    assert "the same as in the trainer when loaded by SentenceTransformer and by mteb\n" in first
    assert ' --query "open a file for reading"\n' in first
    assert "use it:       from sentence_transformers import SentenceTransformer\n" in first
    last = first.splitlines()[-3:]
    assert (last[0], [line[: line.index(" is ")] for line in last[1:]]) == (
        "",
        [f"{name}: On collection test its nDCG@10" for name in ("likelihood_gain", "dream")],
    )
    rows = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [row["name"] for row in rows] == ["bm25", "start", "likelihood_gain", "dream"]
    needed = {"name", "ndcg_at_10", "mrr_at_10", "recall_at_100", "train_seconds", "lm_tokens", "seed"}
    assert all(needed <= set(row) for row in rows)
    assert rows[3]["lm_tokens"] > rows[2]["lm_tokens"] > 0
    for picture in ("loss_dream.png", "heads.png"):
        assert (tmp_path / "run" / picture).read_bytes().startswith(b"\x89PNG")

    demo.main(arguments)
    assert capsys.readouterr().out.count("done before") == 10
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == rows

    write_recipes(tmp_path, tiny_llm_folder, tiny_encoder_folder, learning_rate=0.02)
    demo.main(arguments)
    changed = json.loads((tmp_path / "run" / "likelihood_gain" / "settings.json").read_text())
    assert changed["trainer"]["learning_rate"] == 0.02


def test_the_better_run_is_shown(tmp_path: Path) -> None:
    """Reference: the higher nDCG@10; baselines are no runs."""
    runs = [Run(tmp_path / "a"), Run(tmp_path / "b")]
    for run, objective in zip(runs, ("likelihood_gain", "dream"), strict=True):
        write_json(run.training_file, {**dict.fromkeys(REPORT_KEYS, 0), "objective": objective})

    def best(gain: float, dream: float) -> Run:
        values = {"bm25": 0.9, "likelihood_gain": gain, "dream": dream}
        rows = [Result(name, value, 0, 0, 0, 0, None, "c", "test") for name, value in values.items()]
        return assembly_demo.best_run(runs, rows)

    assert (best(0.3, 0.4), best(0.4, 0.3), best(0.3, 0.3)) == (runs[1], runs[0], runs[0])


def test_a_killed_training_keeps_its_checkpoints_until_the_recipe_changes(tmp_path: Path) -> None:
    """Against the calls of a stage that dies once."""
    recipe, output, calls, trained = tmp_path / "r.yaml", tmp_path / "out", [], Run(tmp_path / "run")
    recipe.write_text("data: {}")
    trained.folder.mkdir()

    def run(*blocks: Any) -> None:
        calls.append(trained.folder.exists())
        if len(calls) == 1:
            raise KeyboardInterrupt
        output.write_text("whole")

    def attempt() -> None:
        run_stages([assembly_demo.stage_of("train", run, recipe, output, trained)], tmp_path / "stamps")

    with pytest.raises(KeyboardInterrupt):
        attempt()
    attempt()
    attempt()
    assert calls == [True, True]
    recipe.write_text("data: {collection: other}")
    attempt()
    assert calls == [True, True, False]


def test_another_folder_names_the_remedy(tmp_path: Path) -> None:
    """Against the message."""
    with pytest.raises(NLTError, match="repository's root"):
        demo.main(["--recipes", str(tmp_path)])
