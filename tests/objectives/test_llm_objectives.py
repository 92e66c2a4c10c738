"""The recipes of LOOP, ADist and Revela at miniature size, from mining to a saved encoder, alone and in a sum."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from sentence_transformers import SentenceTransformer

from nlt_trainer.arguments.stages import RECIPE_BLOCKS
from nlt_trainer.assembly.losses import Parts, make_collator, make_loss
from nlt_trainer.data.beir import load_collection
from nlt_trainer.data.candidates import read_candidates
from nlt_trainer.data.training import training_dataset
from nlt_trainer.errors import NLTError
from nlt_trainer.injection.heads import HeadSet
from nlt_trainer.objectives.mixture import MixtureLoss
from nlt_trainer.objectives.revela import RevelaLoss
from nlt_trainer.recipe.parsing import parse_recipe
from nlt_trainer.scripts import evaluate, make_encoder, mine, train

ROOT = Path(__file__).parents[2]
NAMES = ("loop", "adist", "revela", "revela_trained")


@pytest.fixture
def root(tiny_collection_folder: Path, tiny_llm_folder: Path) -> Path:
    """A folder with the four recipes on a tiny collection and a tiny LLM, with start and candidates."""
    root = tiny_collection_folder.parent
    for name in NAMES:
        blocks: dict[str, Any] = yaml.safe_load((ROOT / "recipes" / "objectives" / f"{name}.yaml").read_text())
        blocks["model"] |= {"encoder": f"{root}/start", "llm": str(tiny_llm_folder)}
        blocks["data"] |= {"collection": str(tiny_collection_folder), "candidates": f"{root}/candidates.jsonl"}
        blocks["data"] |= {"num_candidates": 3, "max_document_tokens": 12, "gains": f"{root}/no_gains.jsonl"}
        blocks["trainer"] |= {"output_dir": f"{root}/{name}", "per_device_train_batch_size": 2, "logging_steps": 1}
        blocks["trainer"] |= {"num_train_epochs": 2, "use_cpu": True, "disable_tqdm": True}
        (root / f"{name}.yaml").write_text(yaml.safe_dump(blocks))
    make_encoder.main(["--config", str(root / "loop.yaml")])
    mine.main(["--config", str(root / "loop.yaml")])
    return root


def parts_of(root: Path, name: str, *extra: str) -> Parts:
    model, data, args = parse_recipe(RECIPE_BLOCKS, ["--config", str(root / f"{name}.yaml"), *extra])
    candidates = read_candidates(data.candidates, load_collection(data.collection))
    encoder = SentenceTransformer(str(root / "start"), device="cpu")
    return Parts(encoder, model, data, args, candidates)


def expected_tokens(root: Path, name: str) -> int:
    """The reference: tokens of every text, counted with the tokenizer, times how often the LLM reads it."""
    parts = parts_of(root, name)

    def count(text: str) -> int:
        return len(parts.lm.tokenizer(text, add_special_tokens=False).input_ids)

    collection, total = load_collection(parts.data.collection), 0
    for c in parts.candidates:
        texts = [collection.corpus[d].content for d in c.document_ids]
        documents = sum(min(count(text), 12) for text in texts)
        question = count("Question:") + count(f" {c.query}")
        if name.startswith("revela"):
            total += 2 * (question + documents)
        else:
            suffix = question + count("\nAnswer:") + count(f" {c.answer}")
            frames = 4 * count("Document: ") + 3 * count("\n\n")  # what they share is read by itself too
            total += documents + frames + suffix * (3 if name == "loop" else 1)
    return total


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_in_miniature(root: Path, name: str) -> None:
    """Reference: the start, the checkpoint's encoder, tokens counted text by text; a second run changes nothing."""
    recipe, folder = ["--config", str(root / f"{name}.yaml"), "--lm_micro_batch_size", "1"], root / name
    train.main(recipe)
    texts = ["the largest animal", "bread and gas"]
    start, encoder, checkpoint = (
        SentenceTransformer(str(path), device="cpu").encode(texts)
        for path in (root / "start", folder / "encoder", folder / "checkpoint-4")
    )
    np.testing.assert_allclose(encoder, checkpoint, atol=1e-6)
    assert np.abs(encoder - start).max() > 1e-4
    report = json.loads((folder / "training.json").read_text())
    assert (report["steps"], report["queries"]) == (4, 4)
    assert report["lm_tokens"] == 2 * expected_tokens(root, name)
    term = name.removesuffix("_trained")
    losses = [entry for entry in report["log"] if "loss" in entry]
    assert [entry[term] for entry in losses] == pytest.approx([entry["loss"] for entry in losses], abs=1e-3)
    weights = next((folder / "encoder").rglob("model.safetensors"))
    assert sum(path.stat().st_size for path in (folder / "encoder").rglob("*.safetensors")) == weights.stat().st_size
    before = weights.read_bytes()
    train.main(recipe)
    assert weights.read_bytes() == before
    evaluate.main(recipe)
    card = (folder / "encoder" / "README.md").read_text()
    assert ("an LLM with an adapter that was trained too" in card) == (name == "revela_trained")
    with pytest.raises(NLTError, match=r"max_document_tokens: 12 there, 11 now"):
        train.main([*recipe, "--max_document_tokens", "11"])


def test_the_adapter_has_its_learning_rate(root: Path) -> None:
    """Reference: the groups of the saved optimizer; the adapter's tensors in the checkpoint alone."""
    train.main(["--config", str(root / "revela_trained.yaml")])
    checkpoint = root / "revela_trained" / "checkpoint-4"
    groups = torch.load(checkpoint / "optimizer.pt", weights_only=True)["param_groups"]
    sizes: dict[float, int] = {}
    for group in groups:
        sizes[group["lr"]] = sizes.get(group["lr"], 0) + len(group["params"])
    with safe_open(checkpoint / "objective.safetensors", "pt") as file:
        names = list(file.keys())
    assert sizes == {1e-3: 1, 1e-4: len(names)}
    assert names
    assert all(name.startswith("llm.") and "lora" in name for name in names)
    with pytest.raises(NLTError, match=r"llm_lora: .*'r': 16.* there, None now"):
        train.main(["--config", str(root / "revela.yaml"), "--output_dir", str(root / "revela_trained")])


def test_in_a_sum_the_others_keep_a_frozen_llm(root: Path) -> None:
    """Reference: trained parameters of the LLM that the other objective reads; both terms in the log."""
    objective = "adist + 0.5*revela"
    parts = parts_of(root, "revela_trained", "--objective", objective)
    loss = make_loss(parts)
    assert isinstance(loss, MixtureLoss)
    revela = loss.objectives[1]
    assert isinstance(revela, RevelaLoss)
    assert revela.reader.lm is not parts.lm
    assert not any(p.requires_grad for p in parts.lm.model.parameters())
    rows = training_dataset(load_collection(parts.data.collection), parts.candidates)
    cut = [len(parts.lm.tokenizer(t, add_special_tokens=False).input_ids) > 12 for r in rows for t in r["documents"]]
    assert make_collator(parts, loss).truncated_documents(rows) == pytest.approx(np.mean(cut)) != 0
    output = root / "sum"
    train.main(["--config", str(root / "revela_trained.yaml"), "--objective", objective, "--output_dir", str(output)])
    entry = json.loads((output / "training.json").read_text())["log"][0]
    assert entry["adist"] + entry["revela"] == pytest.approx(entry["loss"], abs=1e-3)


def test_an_adapter_that_nobody_trains_is_refused(root: Path) -> None:
    """Reference: the remedy in the message."""
    with pytest.raises(
        NLTError, match=r"llm_lora: objective 'adist' trains no LLM, only revela does; leave llm_lora out"
    ):
        train.main(["--config", str(root / "revela_trained.yaml"), "--objective", "adist"])


def test_heads_are_read_by_dream_alone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: a head file that cannot be read."""

    def refuse(path: str) -> HeadSet:
        raise AssertionError(path)

    monkeypatch.setattr(HeadSet, "load", refuse)
    train.main(["--config", str(root / "adist.yaml"), "--max_steps", "1"])
