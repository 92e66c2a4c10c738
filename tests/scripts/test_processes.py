"""Two processes against one with the same global batch: losses, weights, scores. This file is also what they run."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file

from nlt_trainer.choices import DocumentLayout
from nlt_trainer.data.collator import ChunkBuilder, NLTCollator, PromptBuilder
from nlt_trainer.encoder import parts as encoder_parts
from nlt_trainer.encoder.loading import load_encoder
from nlt_trainer.encoder.lora import add_llm_lora
from nlt_trainer.injection.heads import HeadSet
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.lm.prompt_tokens import PromptTokens
from nlt_trainer.objectives.adist import ADistLoss
from nlt_trainer.objectives.dream import DREAMLoss
from nlt_trainer.objectives.emdr2 import EMDR2Loss
from nlt_trainer.objectives.grad_cache import GradCacheLoss
from nlt_trainer.objectives.info_nce import InfoNCELoss
from nlt_trainer.objectives.likelihood_gain import LikelihoodGainLoss
from nlt_trainer.objectives.loop import LOOPLoss
from nlt_trainer.objectives.mixture import MixtureLoss
from nlt_trainer.objectives.objective import Objective
from nlt_trainer.objectives.revela import RevelaLoss
from nlt_trainer.prompts import PromptTemplate
from nlt_trainer.run.folder import Run
from nlt_trainer.run.resume import CostCallback
from nlt_trainer.scripts import mine, score
from nlt_trainer.scripts import train as train_stage
from nlt_trainer.trainer import NLTTrainer
from nlt_trainer.training_arguments import NLTTrainingArguments

OBJECTIVES = (
    *("likelihood_gain", "dream", "info_nce", "mixture", "cached_info_nce", "cached_likelihood_gain"),
    *("emdr2", "loop", "adist", "revela", "revela_trained", "dream_in_batch", "likelihood_gain_in_batch"),
)
ACCUMULATED = ("cached_likelihood_gain", "revela_trained")  # two batches a step, under no_sync between them
LOGGED_LATE = "adist"  # at its second step only, so that the third is in train_loss alone
READS_LLM = ("dream", "mixture", "loop", "adist", "revela", "revela_trained", "dream_in_batch")
GLOBAL_BATCH, STEPS = 4, 3
TEXTS = ["green tea", "an owl hunts", "the moon pulls", "bread rises", "silk", "a furnace of glass", "honey", "north"]
ROWS = [
    {
        "query": f"query {b} {TEXTS[b % 8]}",
        "documents": [TEXTS[(b + k) % 8] for k in range(3)],
        "gain": [0.1 * b, 0.3, 0],
        "log_likelihood": [0.2 * b - 9, -7, -8],
        "target_tokens": 2 + b % 3,
    }
    for b in range(12)
]


def train(objective: str, encoder_folder: str, *, llm_folder: str, output: Path, num_processes: int) -> None:
    """Train 3 steps; the main process writes `<objective>.json` (losses) and `<objective>.safetensors` (weights)."""
    encoder, lm = load_encoder(encoder_folder, device="cpu"), FrozenLM.from_pretrained(llm_folder, device="cpu")
    parts = 2 if objective in ACCUMULATED else 1
    args = NLTTrainingArguments(
        output_dir=str(output / objective), max_steps=STEPS, gradient_accumulation_steps=parts,
        per_device_train_batch_size=GLOBAL_BATCH // num_processes // parts,
        learning_rate=0.1, optim="sgd", logging_steps=1 + (objective == LOGGED_LATE),
        save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True, dataloader_drop_last=True,
    )  # fmt: skip
    heads = HeadSet(((1, 2), (0, 3)), ((1.0,) * 4,) * 2, lm.name, lm.fingerprint, {})
    trained = None
    if objective == "revela_trained":
        trained = add_llm_lora(lm, {"r": 2, "target_modules": "all-linear"}, seed=args.seed)
    gain = LikelihoodGainLoss(encoder)
    dream = DREAMLoss(encoder, lm, heads=heads, temperature=0.3, micro_batch_size=1)
    info_nce = InfoNCELoss(encoder, false_negative_margin=0.25)
    revela = RevelaLoss(encoder, lm, temperature=0.3, micro_batch_size=1, trained=trained)
    loss: dict[str, Objective] = {
        "likelihood_gain": gain,
        "likelihood_gain_in_batch": LikelihoodGainLoss(encoder, in_batch_candidates=True),
        "dream": dream,
        "dream_in_batch": DREAMLoss(
            encoder, lm, heads=heads, temperature=0.3, micro_batch_size=1, in_batch_candidates=True
        ),
        "info_nce": info_nce,
        "mixture": GradCacheLoss(MixtureLoss([gain, dream], weights=[0.5, 2.0]), micro_batch_size=5),
        "cached_info_nce": GradCacheLoss(info_nce, micro_batch_size=2),
        "cached_likelihood_gain": GradCacheLoss(gain, micro_batch_size=2),
        "emdr2": EMDR2Loss(encoder),
        "loop": LOOPLoss(encoder, lm, teacher_temperature=0.1, micro_batch_size=1),
        "adist": ADistLoss(encoder, lm, micro_batch_size=1),
        "revela": revela,
        "revela_trained": GradCacheLoss(MixtureLoss([gain, revela], weights=[0.5, 2.0]), micro_batch_size=2),
    }
    tokens = PromptTokens(lm.tokenizer, PromptTemplate(), max_document_tokens=16)
    layout: DocumentLayout = "independent" if objective == "dream_in_batch" else "sequential"
    prompts = PromptBuilder(tokens, "query", lm.context_length, layout=layout)
    chunks = ChunkBuilder(tokens, "query", lm.context_length)
    trainer = NLTTrainer(
        encoder,
        args,
        train_dataset=Dataset.from_list(ROWS),
        loss=loss[objective],
        data_collator=NLTCollator(encoder, prompts=prompts, chunks=chunks),  # type: ignore[arg-type]  # any callable
        callbacks=[CostCallback(loss[objective])],
    )
    trainer.train()
    assert trainer.args.world_size == num_processes
    if trainer.is_world_process_zero():
        values = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        tokens_read = [entry["lm_tokens"] for entry in trainer.state.log_history if "loss" in entry]
        report = {
            "losses": values,
            "lm_tokens": tokens_read,
            "train_loss": trainer.state.log_history[-1]["train_loss"],
        }
        (output / f"{objective}.json").write_text(json.dumps(report))
        weights = {name: value.clone().contiguous() for name, value in encoder.state_dict().items()}
        weights |= {name: value.detach().clone() for name, value in trainer.objective_parameters().items()}
        save_file(weights, output / f"{objective}.safetensors")


def refreshed(recipe: str, folder: Path, *, num_processes: int) -> None:
    """Train by the recipe, with new candidates after the first step of three."""
    given = {
        "gains": folder / "gains.jsonl", "score_cache": folder / "scores", "output_dir": folder / "refreshed",
        "miner": "encoder", "refresh": "1-3:5", "max_steps": STEPS, "learning_rate": 0.1, "optim": "sgd",
        "per_device_train_batch_size": GLOBAL_BATCH // num_processes, "dataloader_drop_last": True,
        "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
    }  # fmt: skip
    train_stage.main(
        ["--config", recipe, *(text for key, value in given.items() for text in (f"--{key}", str(value)))]
    )


def work(encoder_folder: str, llm_folder: str, recipe: str, *, output: str, num_processes: int) -> None:
    """Everything that is compared: scores, a run with a refresh, then each objective."""
    folder = Path(output)
    folder.mkdir(exist_ok=True)
    score.main(["--config", recipe, "--gains", str(folder / "gains.jsonl"), "--score_cache", str(folder / "scores")])
    refreshed(recipe, folder, num_processes=num_processes)
    for objective in OBJECTIVES:
        train(objective, encoder_folder, llm_folder=llm_folder, output=folder, num_processes=num_processes)


@pytest.fixture(scope="module")
def runs(
    tiny_llm_folder: Path, tiny_encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Output folders of one process (this one) and of two."""
    root = tmp_path_factory.mktemp("processes")
    collection = root / "collection"
    collection.mkdir()
    documents = [{"_id": f"d{i}", "text": f"{text} and {TEXTS[i - 1]}"} for i, text in enumerate(TEXTS)]
    (collection / "corpus.jsonl").write_text("\n".join(map(json.dumps, documents)))
    queries = [
        {"_id": f"q{i}", "text": f"what of {text}", "answer": f"answer {i}"} for i, text in enumerate(TEXTS[:5])
    ]
    (collection / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    recipe = root / "recipe.yaml"
    recipe.write_text(
        f"model:\n  encoder: {tiny_encoder_folder}\n  llm: {tiny_llm_folder}\n  llm_dtype: float32\n"
        f"data:\n  collection: {collection}\n  candidates: {root}/candidates.jsonl\n  num_candidates: 3\n"
        "  batch_tokens: 100\n"
        f"trainer:\n  output_dir: {root}/run\n  use_cpu: true\n"
    )
    mine.main(["--config", str(recipe)])
    given = (str(tiny_encoder_folder), str(tiny_llm_folder), str(recipe))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # `accelerate launch --cpu` starts several processes through MPI only; torchrun sets the same environment
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    launched = subprocess.Popen(
        [*command, __file__, *given, str(root / "two"), "2"], env=environment, stderr=subprocess.PIPE, text=True
    )
    work(*given, output=str(root / "one"), num_processes=1)
    _, errors = launched.communicate(timeout=1200)
    assert launched.returncode == 0, errors[-3000:]
    return root / "one", root / "two"


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_two_processes_train_as_one(runs: tuple[Path, Path], tiny_encoder_folder: Path, objective: str) -> None:
    """Reference: one process with the same global batch of 4 queries; info_nce has negatives of both processes,
    dream_in_batch documents of both, and revela_trained an adapter of the LLM that is no part of the wrapped encoder.
    The LLM reads the same tokens where no document is shared."""
    one, two = (json.loads((folder / f"{objective}.json").read_text()) for folder in runs)
    assert len(one["losses"]) == (1 if objective == LOGGED_LATE else STEPS)
    assert two["train_loss"] == pytest.approx(one["train_loss"], rel=1e-4)
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
    if objective == "dream_in_batch":  # one process reads a document of two queries once, two processes twice
        assert all(a < b for a, b in zip(one["lm_tokens"], two["lm_tokens"], strict=True))
    else:
        assert two["lm_tokens"] == one["lm_tokens"]
    assert (one["lm_tokens"][0] > 0) == (objective in READS_LLM)
    expected, found = (load_file(folder / f"{objective}.safetensors") for folder in runs)
    start = load_encoder(str(tiny_encoder_folder), device="cpu").state_dict()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-4, atol=1e-5)
    assert max(float((expected[name] - start[name]).abs().max()) for name in start) > 1e-3
    adapter = {name: weight for name, weight in expected.items() if name not in start}
    assert bool(adapter) == (objective == "revela_trained")
    assert all(weight.abs().max() > 1e-3 for weight in adapter.values())


@pytest.mark.parametrize("objective", ["info_nce", "likelihood_gain"])
def test_gradient_caching_trains_as_without(runs: tuple[Path, Path], objective: str) -> None:
    """Reference: two processes without it; with negatives of both, and with two batches accumulated to one."""
    plain, cached = (load_file(runs[1] / f"{prefix}{objective}.safetensors") for prefix in ("", "cached_"))
    for name, weight in plain.items():
        torch.testing.assert_close(cached[name], weight, rtol=0, atol=1e-6)
    logs = [json.loads((runs[1] / f"{prefix}{objective}.json").read_text()) for prefix in ("", "cached_")]
    losses = [log["losses"] for log in logs]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)


def test_two_processes_score_as_one(runs: tuple[Path, Path]) -> None:
    """Reference: gains and audit of one process; each process scores a part, the first one writes."""
    one, two = ([json.loads(line) for line in (folder / "gains.jsonl").open()] for folder in runs)
    assert len(one) == 5
    for a, b in zip(one, two, strict=True):
        assert (a["query_id"], a["document_ids"]) == (b["query_id"], b["document_ids"])
        assert b["gain"] == pytest.approx(a["gain"], abs=1e-4)
    audits = [json.loads((folder / "gains.audit.json").read_text()) for folder in runs]
    assert audits[0]["lm_tokens"] == audits[1]["lm_tokens"] > 0


def test_two_processes_refresh_as_one(runs: tuple[Path, Path]) -> None:
    """Reference: candidates, gains, LLM tokens and weights of one process; some of the candidates are new."""
    one, two = (Run(folder / "refreshed") for folder in runs)
    first = (runs[0].parent / "candidates.jsonl").read_text()
    assert one.refreshed_candidates(1).read_text() == two.refreshed_candidates(1).read_text() != first
    gains = [[json.loads(line) for line in run.refreshed_gains(1).open()] for run in (one, two)]
    for a, b in zip(*gains, strict=True):
        assert b["gain"] == pytest.approx(a["gain"], abs=1e-4)
    assert one.report["lm_tokens"] == two.report["lm_tokens"]
    expected, found = (load_file(next(run.encoder.rglob("model.safetensors"))) for run in (one, two))
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-4, atol=1e-5)


if __name__ == "__main__":
    encoder_parts.PART_TOKENS = 40  # so that both processes embed in parts
    work(*sys.argv[1:4], output=sys.argv[4], num_processes=int(sys.argv[5]))
