"""Every recipe of recipes/objectives at miniature size, by the commands that it shows, through the real stages."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from sentence_transformers import SentenceTransformer
from test_readme import commands, header, stage_of

from nlt_trainer.arguments.stages import RECIPE_BLOCKS
from nlt_trainer.arguments.trainer import OBJECTIVES, parse_objective
from nlt_trainer.objectives.likelihood_gain import DIVERGENCES
from nlt_trainer.recipe.parsing import parse_recipe

RECIPES = sorted(Path("recipes/objectives").glob("*.yaml"))
SHARED = (
    "collection train_split max_queries candidates num_candidates eval_split num_train_epochs "
    "per_device_train_batch_size learning_rate lr_scheduler_type seed encoder llm"
).split()
SHARED_BY_GAIN = ["max_document_tokens", "score_cache"]


def miniature(path: Path, root: Path, *, collection: Path, llm: Path) -> Path:
    """A recipe with everything under another folder, and with a tiny LLM and collection."""
    blocks: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text())
    for block in blocks.values():
        for key, value in block.items():
            if isinstance(value, str) and value.startswith("runs/objectives"):
                block[key] = value.replace("runs/objectives", str(root / "run"))
    blocks["model"]["llm"] = str(llm)
    blocks["data"] |= {"collection": str(collection), "num_candidates": 3, "max_document_tokens": 16}
    if "heads" in blocks["model"]:
        blocks["model"]["num_heads"] = 2
    blocks["trainer"] |= {"use_cpu": True, "disable_tqdm": True, "logging_steps": 1, "learning_rate": 0.1}
    blocks["trainer"]["per_device_train_batch_size"] = 2
    copy = root / path.name
    copy.write_text(yaml.safe_dump(blocks))
    return copy


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_a_recipe_trains_and_evaluates(
    path: Path, tiny_llm_folder: Path, tiny_collection_folder: Path, tmp_path: Path
) -> None:
    """Reference: an encoder that has moved from its start, a result, and a log that names the recipe's terms."""
    recipe = miniature(path, tmp_path, collection=tiny_collection_folder, llm=tiny_llm_folder)
    for words in commands(header(path.read_text())):
        module, arguments = stage_of(words)
        assert arguments == ["--config", str(path)]
        importlib.import_module(module).main(["--config", str(recipe)])
    run = tmp_path / "run" / path.stem
    report = json.loads((run / "training.json").read_text())
    terms = set(parse_objective(yaml.safe_load(path.read_text())["trainer"]["objective"]))
    assert report["log"]
    assert all(terms <= set(entry) for entry in report["log"] if "loss" in entry)
    results = json.loads((run / "results.json").read_text())
    assert [row["name"] for row in results] == ["bm25", "start", report["objective"]]
    start, trained = (SentenceTransformer(str(folder)) for folder in (tmp_path / "run" / "start", run / "encoder"))
    text = ["the largest animal that ever lived"]
    assert abs(trained.encode(text) - start.encode(text)).max() > 1e-3


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_recipes_differ_in_their_objective_alone(path: Path) -> None:
    """Reference: the likelihood-gain recipe's model, data and optimizer; at most 60 lines; files of its own name."""

    def settings(path: Path) -> dict[str, Any]:
        blocks = parse_recipe(RECIPE_BLOCKS, ["--config", str(path)])
        return {key: value for block in blocks for key, value in vars(block).items()}

    found, expected = settings(path), settings(path.with_name("likelihood_gain.yaml"))
    _, data, args = parse_recipe(RECIPE_BLOCKS, ["--config", str(path)])
    keys = [*SHARED, *(SHARED_BY_GAIN if args.reads_gains(data) else [])]
    assert {key: found[key] for key in keys} == {key: expected[key] for key in keys}
    assert len(path.read_text().splitlines()) <= 60
    assert args.output_dir == f"runs/objectives/{path.stem}"


def test_every_objective_and_divergence_has_a_recipe() -> None:
    """Reference: the names that a recipe may use."""
    trainers = [parse_recipe(RECIPE_BLOCKS, ["--config", str(path)])[2] for path in RECIPES]
    assert {name for args in trainers for name in args.objectives} == set(OBJECTIVES)
    assert {args.divergence for args in trainers} == set(DIVERGENCES)


def test_the_named_methods_have_their_settings() -> None:
    """Reference: PDist, RePlug-LSR and ART: direction, both temperatures, target."""
    found = {}
    for name in ("pdist", "replug", "art"):
        _, data, args = parse_recipe(RECIPE_BLOCKS, ["--config", f"recipes/objectives/{name}.yaml"])
        found[name] = (args.divergence, args.temperature, args.teacher_temperature, data.target)
    assert found == {
        "pdist": ("forward_kl", pytest.approx(0.01 * 576**0.5), 0.01, "joint"),
        "replug": ("reverse_kl", 0.1, 0.1, "joint"),
        "art": ("forward_kl", 1.0, 1.0, "query"),
    }
