"""What `nlt train` saves: the best checkpoint, an average with the start, and embeddings in float32."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from sentence_transformers import SentenceTransformer
from torch import Tensor

from nlt_trainer.arguments.stages import RECIPE_BLOCKS
from nlt_trainer.errors import NLTError
from nlt_trainer.recipe.parsing import parse_recipe
from nlt_trainer.scripts import evaluate, export, train
from nlt_trainer.text_files import write_jsonl

CANDIDATES = {"q1": ("d01", "d05", "d09"), "q2": ("d07", "d04", "d01"), "q3": ("d08", "d11", "d02")}


class Training:
    """Candidates and gains by hand, and a recipe of 3 steps, 2 of which fill an epoch."""

    def __init__(self, root: Path, encoder: Path) -> None:
        self.root, self.run = root, root / "run"
        texts = {row["_id"]: row for row in map(json.loads, (root / "collection/queries.jsonl").open())}
        rows = [{"query_id": q, "document_ids": list(d), "bm25": [1.0] * 3} for q, d in CANDIDATES.items()]
        queries: list[dict[str, Any]] = [
            {**row, "query": texts[row["query_id"]]["text"], "answer": texts[row["query_id"]]["answer"]}
            for row in rows
        ]
        write_jsonl(root / "candidates.jsonl", queries)
        gains = {"gain": [1.0, 0.2, 0.0], "target_tokens": 4, "log_likelihood": [-4.0, -5.0, -6.0]}
        write_jsonl(root / "gains.jsonl", ({**row, **gains} for row in rows))
        recipe = {
            "model": {"encoder": str(encoder)},
            "data": {
                "collection": f"{root}/collection", "train_split": "train", "dev_split": "dev", "num_candidates": 3,
                "candidates": f"{root}/candidates.jsonl", "gains": f"{root}/gains.jsonl", "target": "query",
            },
            "trainer": {
                "output_dir": str(self.run), "max_steps": 3, "per_device_train_batch_size": 2, "learning_rate": 0.01,
                "eval_strategy": "steps", "eval_steps": 1, "logging_steps": 1, "save_steps": 1, "report_to": "none",
                "use_cpu": True, "disable_tqdm": True,
            },
        }  # fmt: skip
        (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))

    def train(self, *extra: str) -> dict[str, Any]:
        """Run the stage; returns its report."""
        train.main(["--config", f"{self.root}/recipe.yaml", *extra])
        report: dict[str, Any] = json.loads((self.run / "training.json").read_text())
        return report

    @property
    def card(self) -> str:
        return (self.run / "encoder" / "README.md").read_text()


@pytest.fixture
def training(tiny_collection_folder: Path, tiny_encoder_folder: Path) -> Training:
    return Training(tiny_collection_folder.parent, tiny_encoder_folder)


def weights(folder: Path) -> dict[str, Tensor]:
    return SentenceTransformer(str(folder), device="cpu").state_dict()


def test_the_saved_encoder_is_the_average(
    training: Training, tiny_encoder_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reference: start and last checkpoint; another share is taken from the same steps, and results are forgotten."""
    report = training.train("--average_with_start", "0.3", "--eval_on_start", "true")
    start, trained = weights(tiny_encoder_folder), weights(training.run / "checkpoint-3")
    assert max((start[name] - trained[name]).abs().max() for name in start) > 0.01
    (row,) = report["average"]["dev"]
    line, last = capsys.readouterr().out.splitlines()[-2:]
    assert line == (
        f"The encoder has 0.3 of the start's weights and 0.7 of the trained; nDCG@10 on dev is "
        f"{row['ndcg_at_10']:.3f} with 0.3"
    )
    assert f"before and is {row['ndcg_at_10']:.3f} now" in last
    assert "| weights | 0.3 of the start's and 0.7 of the trained |" in training.card
    assert "average_with_start: 0.3" in training.card
    evaluate.main(["--config", f"{training.root}/recipe.yaml"])
    for share, kept in (("0.3", True), ("0.6", False)):
        assert training.train("--average_with_start", share)["average"]["share"] == float(share)
        for name, weight in weights(training.run / "encoder").items():
            expected = float(share) * start[name] + (1 - float(share)) * trained[name]
            torch.testing.assert_close(weight, expected, rtol=0, atol=1e-6)
        assert (training.run / "results.json").exists() == kept
        assert ("all 3 steps were done before" in capsys.readouterr().out) == kept
    assert len(list(training.run.glob("checkpoint-*"))) == 3


def test_the_best_checkpoint_is_averaged(training: Training, tiny_encoder_folder: Path) -> None:
    """Reference: the log's best step, its checkpoint, and the same metric by each of its names."""
    flags = ("--early_stopping_patience", "1", "--average_with_start", "auto", "--dev_documents", "6")
    report = training.train(*flags, "--metric_for_best_model", "mrr_at_10")
    figures = {e["step"]: e["eval_dev_mrr_at_10"] for e in report["log"] if "eval_dev_mrr_at_10" in e}
    best = max(figures, key=lambda step: (figures[step], -step))
    assert report["best_step"] == best
    share = report["average"]["share"]
    assert [row["share"] for row in report["average"]["dev"]] == [0.0, 0.1, 0.3, 0.5, 0.7, 1.0]
    start, trained = weights(tiny_encoder_folder), weights(training.run / f"checkpoint-{best}")
    for name, weight in weights(training.run / "encoder").items():
        torch.testing.assert_close(weight, share * start[name] + (1 - share) * trained[name], rtol=0, atol=1e-6)
    assert "chosen on the queries of dev |" in training.card
    assert f"the best is saved, that of step {best} |" in training.card
    recipe = training.run / "encoder" / "recipe.yaml"
    _, data, args = parse_recipe(RECIPE_BLOCKS, ["--config", str(recipe), "--output_dir", "x"])
    assert (data.dev_documents, args.early_stopping_patience, args.eval_steps) == (6, 1, 1)
    assert args.metric_for_best_model in ("mrr_at_10", "eval_dev_mrr_at_10")


def test_a_damaged_best_checkpoint_is_not_replaced_by_the_last(training: Training) -> None:
    """Reference: step 1, the first of equal ones, with a bit that a disk has changed; no step is made before that is
    found. The last weights can be saved, and without the damaged checkpoint training goes on."""
    flags = ("--load_best_model_at_end", "true", "--learning_rate", "0")
    assert training.train(*flags)["best_step"] == 1
    file = training.run / "checkpoint-1" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    shutil.rmtree(training.run / "checkpoint-3")
    with pytest.raises(NLTError, match=r"checkpoint-1, the best .* not whole \(model.safetensors is not as it was"):
        training.train(*flags)
    assert not (training.run / "checkpoint-3").exists()
    assert training.train("--learning_rate", "0")["best_step"] is None
    with pytest.raises(NLTError, match=r"checkpoint-1, the best .* not whole .*set load_best_model_at_end: false"):
        training.train(*flags)
    for checkpoint in training.run.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    assert training.train(*flags)["best_step"] == 1


def test_a_training_with_other_settings_replaces_no_encoder(training: Training) -> None:
    """Reference: all files before. What is saved of the same training may change, as where there are checkpoints."""
    training.train("--save_strategy", "no")
    before = {path: path.read_bytes() for path in training.run.rglob("*") if path.is_file()}
    with pytest.raises(NLTError, match=r"holds a run with other settings \(seed: 42 there, 7 now\); choose another"):
        training.train("--save_strategy", "no", "--seed", "7")
    assert {path: path.read_bytes() for path in training.run.rglob("*") if path.is_file()} == before
    training.train("--save_strategy", "no", "--average_with_start", "1")
    assert "| weights | 1 of the start's and 0 of the trained |" in training.card


def test_an_adapter_comes_back_from_the_best_checkpoint(training: Training, tiny_encoder_folder: Path) -> None:
    """Reference: the start's weights where none are adapted, and half of the adapter of the best checkpoint."""
    base = str(training.root / "bfloat16")
    SentenceTransformer(str(tiny_encoder_folder), device="cpu").bfloat16().save_pretrained(base)
    lora = ("--encoder_dtype", "bfloat16", "--merge_lora", "false", "--lora", '{"r": 2, "target_modules": ["query"]}')
    with pytest.raises(NLTError, match=r"weights are torch.float32, and .* rounded to torch.bfloat16; set merge_lora"):
        training.train(*lora)
    report = training.train(
        "--encoder", base, *lora, "--load_best_model_at_end", "true", "--average_with_start", "0.5"
    )
    from safetensors.torch import load_file

    saved, best = (
        load_file(folder / "adapter_model.safetensors")
        for folder in (training.run / "encoder", training.run / f"checkpoint-{report['best_step']}")
    )
    for name, weight in best.items():
        torch.testing.assert_close(saved[name], weight * (0.5 if "lora_B" in name else 1), rtol=0, atol=0)
    assert any(not torch.equal(weight, weight.bfloat16().float()) for weight in saved.values())


def test_training_goes_on_from_an_adapter_that_was_merged(training: Training) -> None:
    """Reference: the embeddings of the adapter's folder; a second training with learning rate 0 leaves them alone."""
    lora, config = ("--lora", '{"r": 2, "target_modules": ["query"]}'), ("--config", f"{training.root}/recipe.yaml")
    training.train(*lora, "--merge_lora", "false")
    following = ("--output_dir", f"{training.root}/next", "--learning_rate", "0", "--encoder")
    for flags in ((), lora):
        with pytest.raises(NLTError, match=r"run/encoder' is an adapter on another.*run `nlt export --form merged`"):
            training.train(*flags, *following, f"{training.run}/encoder")
    assert not (training.root / "next").exists()
    export.main([*config, "--form", "merged"])
    training.train(*lora, *following, f"{training.run}/merged")
    expected, found = (
        SentenceTransformer(str(folder), device="cpu").encode(["green tea", "an owl"], convert_to_tensor=True)
        for folder in (training.run / "encoder", training.root / "next" / "encoder")
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--load_best_model_at_end", "true", "--metric_for_best_model", "ndcg@10"],
            r"metric_for_best_model 'ndcg@10' is unknown; choose one of ndcg_at_10, mrr_at_10, recall_at_100",
        ),
        (
            ["--average_with_start", "auto", "--dev_split", "null", "--eval_strategy", "no"],
            r"average_with_start: auto chooses the share on dev queries; set dev_split",
        ),
        (["--dev_documents", "1"], r"dev_documents is 1, and 2 documents are judged"),
        (
            ["--average_with_start", "0.5", "--lora", '{"r": 2, "target_modules": ["query"], "use_dora": true}'],
            r"average_with_start: DoRA's weights",
        ),
    ],
)
def test_what_cannot_be_saved_is_refused_before_the_first_step(
    training: Training, flags: list[str], message: str
) -> None:
    """Reference: the value and the remedy in each message; nothing is written."""
    with pytest.raises(NLTError, match=message):
        training.train(*flags)
    assert not list(training.run.glob("checkpoint-*"))


def test_the_best_checkpoint_needs_no_metric(training: Training) -> None:
    """Reference: the step with the highest nDCG@10 of the log."""
    report = training.train("--load_best_model_at_end", "true")
    figures = {e["step"]: e["eval_dev_ndcg_at_10"] for e in report["log"] if "eval_dev_ndcg_at_10" in e}
    assert report["best_step"] == max(figures, key=lambda step: (figures[step], -step))
    assert report["average"] is None


def test_an_encoder_that_loads_otherwise_than_it_was_trained_is_no_success(
    training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: a prompt that saving loses; the message says what differs, and encoder and report are there."""
    save = SentenceTransformer.save_pretrained

    def save_without_prompt(encoder: SentenceTransformer, path: str, **options: Any) -> None:
        save(encoder, path, **options)
        config = Path(path) / "config_sentence_transformers.json"
        config.write_text(config.read_text().replace("query: ", ""))

    flags = ("--save_strategy", "no", "--encoder_prompts", '{"query": "query: "}')
    with monkeypatch.context() as patch:
        patch.setattr(SentenceTransformer, "save_pretrained", save_without_prompt)
        with pytest.raises(NLTError, match=r"is not the encoder that was trained.*already the tokens of a query do"):
            training.train(*flags)
    assert {"encoder", "training.json"} <= {path.name for path in training.run.iterdir()}
    training.train(*flags)


def test_a_bfloat16_run_is_probed_in_float32(training: Training) -> None:
    """Reference: the embeddings of the saved encoder, with which the export compares those of the trainer."""
    training.train("--bf16", "true", "--in_batch_candidates", "true")
    export.main(["--config", f"{training.root}/recipe.yaml", "--form", "merged"])
