"""The recipes at the paper's scale: every stage with tiny models and data sets of the same layout, and their costs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from hub_layouts import hotpotqa, mteb_lines, natural_questions, nq_open
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from tiny import build_tokenizer
from transformers import AutoModel, LlamaConfig, LlamaForCausalLM, PretrainedConfig, Qwen2Config, Qwen2ForCausalLM

from nlt_trainer.arguments.stages import RECIPE_BLOCKS
from nlt_trainer.assembly.parts import load_start
from nlt_trainer.data.beir import load_collection
from nlt_trainer.errors import NLTError
from nlt_trainer.recipe.parsing import parse_recipe
from nlt_trainer.scripts import build_collection, detect_heads, evaluate, mine, score, train

RECIPES = Path(__file__).parents[1] / "recipes"
QWEN: dict[str, Any] = {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "vocab_size": 151_936}
LLAMA: dict[str, Any] = {"vocab_size": 128_256, "intermediate_size": 8192, "num_key_value_heads": 8}
FULL_SIZE: dict[str, PretrainedConfig] = {
    "qwen2.5-0.5b": Qwen2Config(**QWEN, num_attention_heads=14, num_key_value_heads=2),
    "llama-3.2-1b": LlamaConfig(**LLAMA, hidden_size=2048, num_hidden_layers=16, num_attention_heads=32, head_dim=64),
    "llama-3.2-3b": LlamaConfig(**LLAMA, hidden_size=3072, num_hidden_layers=28, num_attention_heads=24, head_dim=128),
}
HEAD_DIM = {"qwen2.5-0.5b": 64, "llama-3.2-1b": 64, "llama-3.2-3b": 128}
NAMES = list(FULL_SIZE)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A random bfloat16 model of each recipe's architecture with its tokenizer, as the Hub has them."""
    folders = {}
    tokenizer = build_tokenizer(wrap=False)
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024, "initializer_range": 0.2,
        "tie_word_embeddings": True, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    for name in NAMES:
        folders[name] = tmp_path_factory.mktemp(name)
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(Qwen2Config(**sizes)) if "qwen" in name else LlamaForCausalLM(LlamaConfig(**sizes))
        model.bfloat16().save_pretrained(folders[name])
        if "llama" in name:
            tokenizer.pad_token = None  # Llama's has none
        tokenizer.save_pretrained(folders[name])
    return folders


class Miniature:
    """A recipe folder with tiny models and data in place of the Hub's, everything else as it stands.

    Args:
        root: where data and runs go.
        name: the recipe folder.
        model: what stands in for its models.
    """

    def __init__(self, root: Path, name: str, model: Path) -> None:
        self.root, self.name, self.model = root, name, model

    def run(self, stage: Any, objective: str, *extra: str) -> None:
        stage.main(["--config", str(self.recipe(objective)), *extra])

    def recipe(self, objective: str) -> Path:
        blocks = yaml.safe_load((RECIPES / self.name / f"{objective}.yaml").read_text())
        assert blocks["model"]["encoder"] == blocks["model"]["llm"]
        blocks["model"] |= {"encoder": str(self.model), "llm": str(self.model), "num_heads": 3}
        blocks["data"] |= {"num_candidates": 3, "max_document_tokens": 12}
        blocks["trainer"] |= {
            "use_cpu": True, "max_steps": 4, "per_device_train_batch_size": 2, "save_steps": 2, "logging_steps": 1,
            "disable_tqdm": True, "learning_rate": 1e-2,
        }  # fmt: skip
        path = self.root / f"{objective}.yaml"
        path.write_text(re.sub(r"\b(data|runs)/", rf"{self.root}/\1/", yaml.safe_dump(blocks)))
        return path


@pytest.mark.parametrize("name", NAMES)
def test_every_stage_of_a_recipe(
    name: str, tiny_models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reference: the files that each stage promises, on data sets with the layout of those that the recipe names."""
    mini = Miniature(tmp_path, name, tiny_models[name])
    build_collection.main([
        "--config", str(RECIPES / "collections" / "hotpotqa.yaml"),
        "--folder", str(tmp_path / "data" / "hotpotqa"), "--questions", str(hotpotqa(tmp_path / "hub")),
    ])  # fmt: skip
    source = str(mteb_lines(tmp_path / "beir"))
    for other in ("scifact", "nfcorpus", "fiqa"):
        build_collection.main(["--folder", str(tmp_path / "data" / other), "--beir", source])
    mini.run(mine, "likelihood_gain")
    mini.run(score, "likelihood_gain")
    mini.run(detect_heads, "dream")
    before = SentenceTransformer(str(tiny_models[name]), device="cpu")
    for objective in ("dream", "likelihood_gain"):
        mini.run(train, objective)
        mini.run(evaluate, objective)
        run = tmp_path / "runs" / name / objective
        results = json.loads((run / "results.json").read_text())
        assert {row["collection"] for row in results} == {"hotpotqa", "scifact", "nfcorpus", "fiqa"}
        assert {row["name"] for row in results} == {"bm25", "start", objective}
        encoder = SentenceTransformer(str(run / "encoder"), device="cpu")
        assert encoder.max_seq_length == 512
        embeddings = encoder.encode(["an owl", "why does bread rise in the oven"])
        np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
        assert {p.dtype for p in encoder.parameters()} == {torch.float32}
        assert before[0].state_dict().keys() == encoder[0].state_dict().keys()  # merged: no adapter is left
    assert "| hotpotqa test | likelihood_gain |" in capsys.readouterr().out


def test_a_killed_run_goes_on_bit_by_bit(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    """Reference: the run that was not killed; a bfloat16 base and a float32 adapter come back as they were."""
    mini = Miniature(tmp_path, "qwen2.5-0.5b", tiny_models["qwen2.5-0.5b"])
    build_collection.main([
        "--folder", str(tmp_path / "data" / "hotpotqa"), "--questions", str(natural_questions(tmp_path / "hub")),
        "--question_column", "query", "--passage_column", "answer",
    ])  # fmt: skip
    mini.run(mine, "likelihood_gain")
    mini.run(score, "likelihood_gain", "--target", "query")
    run = tmp_path / "runs" / "qwen2.5-0.5b" / "likelihood_gain"
    mini.run(train, "likelihood_gain", "--target", "query", "--save_total_limit", "2")
    expected = load_file(run / "encoder" / "model.safetensors")
    log = json.loads((run / "training.json").read_text())["log"]
    for path in sorted((run / "checkpoint-4").iterdir()):
        path.unlink() if path.is_file() else None
    mini.run(train, "likelihood_gain", "--target", "query", "--save_total_limit", "2")
    found = load_file(run / "encoder" / "model.safetensors")
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    resumed = json.loads((run / "training.json").read_text())["log"]
    assert [e.get("loss") for e in resumed] == [e.get("loss") for e in log]


def test_bfloat16_weights_are_not_trained(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    """Reference: the remedy in the message."""
    mini = Miniature(tmp_path, "qwen2.5-0.5b", tiny_models["qwen2.5-0.5b"])
    model, _, _ = parse_recipe(RECIPE_BLOCKS, ["--config", str(mini.recipe("dream"))])
    model.lora = None
    with pytest.raises(NLTError, match="encoder_dtype bfloat16 rounds small steps of its weights away; set lora"):
        load_start(model)


@pytest.mark.parametrize(("name", "layout"), [("nq_open", nq_open), ("natural_questions", natural_questions)])
def test_the_other_collections(name: str, layout: Any, tmp_path: Path) -> None:
    """Reference: a folder that `load_collection` reads; what it holds is tested with `build_hub_collection`."""
    arguments = ["--config", str(RECIPES / "collections" / f"{name}.yaml"), "--folder", str(tmp_path / "out")]
    arguments += ["--questions", str(layout(tmp_path / "hub"))]
    if name == "nq_open":
        arguments += ["--beir", str(mteb_lines(tmp_path / "beir"))]
    build_collection.main(arguments)
    assert len(load_collection(tmp_path / "out").queries) == {"nq_open": 6, "natural_questions": 8}[name]


def test_a_collection_without_judgements_reports_on_others(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    """Reference: the collections in the results; without any the message says what to name."""
    mini = Miniature(tmp_path, "qwen2.5-0.5b", tiny_models["qwen2.5-0.5b"])
    recipe = mini.recipe("dream")
    blocks = yaml.safe_load(recipe.read_text())
    blocks["data"] |= {"eval_split": None, "eval_collections": []}
    recipe.write_text(yaml.safe_dump(blocks))
    with pytest.raises(NLTError, match="eval_split is null and eval_collections empty; name a split or a collection"):
        evaluate.main(["--config", str(recipe)])


@pytest.mark.parametrize(("name", "processes"), [("one_gpu", 1), ("eight_gpus", 8)])
def test_accelerate_reads_its_configurations(name: str, processes: int) -> None:
    """Reference: accelerate's own parser, which refuses unknown keys; the recipe alone decides on bfloat16."""
    config = load_config_from_file(str(RECIPES / "accelerate_configs" / f"{name}.yaml"))
    assert isinstance(config, ClusterConfig)
    assert (config.num_processes, config.mixed_precision, config.use_cpu) == (processes, "no", False)


def launched(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set what `accelerate launch` sets for the processes that it starts with a configuration."""
    words = ["--config_file", str(RECIPES / "accelerate_configs" / f"{name}.yaml"), "train.py"]
    args, config, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    assert isinstance(config, ClusterConfig)
    assert (config.num_processes, config.mixed_precision, config.use_cpu) == (8, "no", False)
    args.deepspeed_fields_from_accelerate_config = ",".join(config.deepspeed_config)
    environment = prepare_deepspeed_cmd_env(args)[1] if args.use_deepspeed else prepare_multi_gpu_env(args)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)


def test_accelerate_reads_its_configuration_of_fsdp2(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: accelerate's own plugin, made of what its launcher tells the processes."""
    launched("eight_gpus_fsdp2", monkeypatch)
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward, plugin.cpu_ram_efficient_loading) == (2, True, False)
    assert plugin.transformer_cls_names_to_wrap == ["Qwen2DecoderLayer"]


@pytest.mark.parametrize("stage", [2, 3])
def test_accelerate_reads_its_configurations_of_deepspeed(stage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: accelerate's own plugin; the LLM is not divided when it is loaded."""
    launched(f"eight_gpus_zero{stage}", monkeypatch)
    plugin = DeepSpeedPlugin()
    assert (plugin.zero_stage, plugin.zero3_init_flag) == (stage, False)
    gathered = plugin.deepspeed_config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"]
    assert gathered == (stage == 3)


def costs(name: str) -> dict[str, tuple[float, float]]:
    """Tokens and FLOPs of each stage by the formulas of the README, from the recipe's own numbers."""
    _, data, _ = parse_recipe(RECIPE_BLOCKS, ["--config", str(RECIPES / name / "dream.yaml"), "--use_cpu", "true"])
    config = FULL_SIZE[name]
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    p = sum(w.numel() for n, w in model.named_parameters() if "embed_tokens" not in n)
    n, k, d, s = 90_447, data.num_candidates, data.max_document_tokens + 5, 48
    attention = 2 * config.num_hidden_layers * config.num_attention_heads * HEAD_DIM[name] * k * d
    scored = n * (k * (d + s) + s)
    heads = data.head_queries * (k * d + 2 * s)
    dream = n * (k * d + s)
    encoded = n * (k * d + s)
    return {
        "weights": (p, 0),
        "score": (scored, 2 * p * scored),
        "detect_heads": (heads, (2 * p + attention) * heads),
        "DREAM, LLM": (dream, (2 * p + attention) * n * k * d + 4 * p * n * s),
        "encoder": (encoded, 6 * p * encoded),
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_costs_in_the_readme_follow_from_its_formulas(name: str) -> None:
    """Reference: the formulas with the recipe's numbers and the architecture's parameters, counted."""
    text = (RECIPES / name / "README.md").read_text()
    found = costs(name)
    assert f"P = {found.pop('weights')[0] / 1e6:,.0f} million" in text
    for stage, (tokens, flops) in found.items():
        assert f"| {stage} | {tokens / 1e6:,.1f} million | {flops / 1e15:,.1f} |" in text
