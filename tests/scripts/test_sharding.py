"""An encoder that FSDP2 divides between two processes against one process. This file is also what they run.

Accelerate divides models on accelerators alone. On a CPU the trainer here sets what accelerate sets there.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from datasets import Dataset
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize
from test_processes import GLOBAL_BATCH, ROWS, STEPS, TEXTS
from tiny import write_collection
from torch.distributed.tensor import DTensor

from nlt_trainer.arguments.model import ModelArguments
from nlt_trainer.assembly.training import whole_encoder
from nlt_trainer.encoder.loading import load_encoder
from nlt_trainer.encoder.lora import add_llm_lora
from nlt_trainer.errors import NLTError
from nlt_trainer.evaluation.evaluator import RetrievalEvaluator
from nlt_trainer.injection.heads import HeadSet
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.objectives.dream import DREAMLoss
from nlt_trainer.objectives.grad_cache import GradCacheLoss
from nlt_trainer.objectives.info_nce import InfoNCELoss
from nlt_trainer.objectives.objective import Objective
from nlt_trainer.objectives.revela import RevelaLoss
from nlt_trainer.run.termination import CheckpointOnTermination
from nlt_trainer.trainer import NLTTrainer
from nlt_trainer.training_arguments import NLTTrainingArguments

OBJECTIVES = ("dream", "info_nce", "cached_info_nce")


class ShardingTrainer(NLTTrainer):
    """A trainer whose encoder FSDP2 divides, layer by layer."""

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        AcceleratorState._shared_state["distributed_type"] = DistributedType.FSDP
        self.accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["BertLayer"],
            cpu_ram_efficient_loading=False,
        )
        self.is_fsdp_enabled = True


def make_trainer(
    objective: str, encoder: SentenceTransformer, lm: FrozenLM, *, output: Path, parts: int, **options: Any
) -> NLTTrainer:
    """A trainer of three steps, which divides the encoder where there are several processes."""
    heads = HeadSet(((1, 2), (0, 3)), ((1.0,) * 4,) * 2, lm.name, lm.fingerprint, {})
    losses: dict[str, Any] = {
        "dream": lambda: DREAMLoss(encoder, lm, heads=heads, temperature=0.3, micro_batch_size=1),
        "info_nce": lambda: InfoNCELoss(encoder),
        "cached_info_nce": lambda: GradCacheLoss(InfoNCELoss(encoder), micro_batch_size=1),
        "revela": lambda: RevelaLoss(
            encoder, lm, temperature=0.3, micro_batch_size=1, trained=add_llm_lora(lm, {"r": 2}, seed=1)
        ),
    }
    loss: Objective = losses[objective]()
    args = NLTTrainingArguments(
        output_dir=str(output / objective), max_steps=STEPS, per_device_train_batch_size=GLOBAL_BATCH // parts,
        learning_rate=0.1, optim="sgd", logging_steps=1, report_to=[], use_cpu=True, disable_tqdm=True,
        dataloader_drop_last=True, eval_strategy="steps", eval_steps=2, **{"save_strategy": "no", **options},
    )  # fmt: skip
    return (ShardingTrainer if parts > 1 else NLTTrainer)(
        encoder, args, train_dataset=Dataset.from_list(ROWS), loss=loss,
        data_collator=loss.collator(ROWS),  # type: ignore[arg-type]  # any callable
        evaluator=RetrievalEvaluator(str(output / "collection"), split="train"), callbacks=[CheckpointOnTermination()],
    )  # fmt: skip


def train(encoder_folder: str, llm_folder: str, output: Path, *, parts: int) -> None:
    """Train with each objective; the main process writes losses and the encoder as a stage saves it."""
    for objective in OBJECTIVES:
        encoder, lm = load_encoder(encoder_folder, device="cpu"), FrozenLM.from_pretrained(llm_folder, device="cpu")
        trainer = make_trainer(objective, encoder, lm, output=output, parts=parts)
        trainer.train()
        weights = list(trainer.model.state_dict().values())
        parts_of = [weight.to_local() for weight in weights if isinstance(weight, DTensor)]
        assert len(parts_of) == (len(weights) if parts > 1 else 0)
        assert not any(isinstance(parameter, DTensor) for parameter in lm.model.parameters())
        assert trainer.args.world_size == parts
        assert [type(module) for module in trainer.model.modules()].count(Normalize) == 1, "saved by its class's name"
        if parts > 1:
            assert sum(part.numel() for part in parts_of) < 0.6 * sum(weight.numel() for weight in weights)
            encoder = whole_encoder(trainer, ModelArguments(encoder=encoder_folder))
        if trainer.is_world_process_zero():
            log = trainer.state.log_history
            found = [entry[key] for entry in log for key in ("loss", "eval_train_ndcg_at_10") if key in entry]
            (output / f"{objective}.json").write_text(json.dumps(found))
            save_file(
                {name: v.contiguous() for name, v in encoder.state_dict().items()}, output / f"{objective}.safetensors"
            )
            encoder.save_pretrained(str(output / objective))
    if parts > 1:
        check_refusals(encoder_folder, lm, output)


def check_refusals(encoder_folder: str, lm: FrozenLM, output: Path) -> None:
    for objective, options, message in (
        ("info_nce", {"save_strategy": "steps"}, "each process holds a part of the encoder, and checkpoints need the"),
        (
            "info_nce",
            {"refresh": "0-3:1"},
            "refresh: each process embeds documents by itself, and with FSDP it holds a",
        ),
        ("revela", {}, "FSDP does not know the LLM's adapter that is trained; leave llm_lora or FSDP out"),
    ):
        encoder = load_encoder(encoder_folder, device="cpu")
        trainer = make_trainer(objective, encoder, lm, output=output, parts=2, **options)
        with pytest.raises(NLTError, match=message):
            trainer.train()


@pytest.fixture(scope="module")
def encoder_folder(tiny_encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny encoder with embeddings of unit length, as most encoders have them."""
    folder = tmp_path_factory.mktemp("encoder")
    encoder = load_encoder(str(tiny_encoder_folder), device="cpu")
    SentenceTransformer(modules=[*encoder, Normalize()], device="cpu").save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def runs(tiny_llm_folder: Path, encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Output folders of one process (this one) and of two."""
    folders = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    for folder in folders:
        write_collection(folder / "collection")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    here = Path(__file__).parent
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (here.parents[1], here.parent, here)))
    launched = subprocess.Popen(
        [*command, __file__, str(encoder_folder), str(tiny_llm_folder), str(folders[1])],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    train(str(encoder_folder), str(tiny_llm_folder), folders[0], parts=1)
    said, _ = launched.communicate(timeout=1200)
    assert launched.returncode == 0, said[-3000:]
    return folders


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_divided_encoder_trains_as_a_whole_one(
    runs: tuple[Path, Path], encoder_folder: Path, objective: str
) -> None:
    """Reference: losses, nDCG@10 and weights of one process with the same global batch; what is saved loads as any
    encoder."""
    one, two = (json.loads((folder / f"{objective}.json").read_text()) for folder in runs)
    assert len(one) == STEPS + 2  # the evaluator works after the second step and after the last
    assert two == pytest.approx(one, rel=1e-4)
    expected, found = (load_file(folder / f"{objective}.safetensors") for folder in runs)
    start = load_encoder(str(encoder_folder), device="cpu").state_dict()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-4, atol=1e-5)
    assert max(float((expected[name] - start[name]).abs().max()) for name in start) > 1e-3
    saved = [SentenceTransformer(str(folder / objective), device="cpu").encode(TEXTS) for folder in runs]
    np.testing.assert_allclose(saved[1], saved[0], atol=1e-5)
    assert not {path.name for path in (runs[1] / objective).rglob("*")} & {"optimizer.pt", "trainer_state.json"}


if __name__ == "__main__":
    train(sys.argv[1], sys.argv[2], Path(sys.argv[3]), parts=2)
