"""The trainer: resumed runs against uninterrupted ones, checkpoints, and what a step changes."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import T5Config, T5EncoderModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks

from nlt_trainer.arguments.data import DataArguments
from nlt_trainer.arguments.model import ModelArguments
from nlt_trainer.data.collator import ChunkBuilder, NLTCollator, PromptBuilder
from nlt_trainer.encoder.loading import load_encoder
from nlt_trainer.encoder.lora import add_llm_lora
from nlt_trainer.errors import NLTError
from nlt_trainer.injection.heads import HeadSet
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.lm.prompt_tokens import PromptTokens
from nlt_trainer.objectives.dream import DREAMLoss
from nlt_trainer.objectives.grad_cache import GradCacheLoss
from nlt_trainer.objectives.info_nce import InfoNCELoss
from nlt_trainer.objectives.likelihood_gain import LikelihoodGainLoss
from nlt_trainer.objectives.mixture import MixtureLoss
from nlt_trainer.objectives.objective import Objective
from nlt_trainer.objectives.revela import RevelaLoss
from nlt_trainer.prompts import PromptTemplate
from nlt_trainer.run.checkpoints import last_checkpoint
from nlt_trainer.run.resume import CostCallback, check_settings, logged_cost, run_settings
from nlt_trainer.text_files import write_json
from nlt_trainer.trainer import NLTTrainer, disable_dropout
from nlt_trainer.training_arguments import NLTTrainingArguments

TEXTS = ["green tea", "an owl hunts", "the moon", "bread rises", "silk", "a furnace of glass", "honey", "north"]
ROWS = [
    {
        "query": f"query {b} {TEXTS[b]}",
        "documents": [TEXTS[(b + k) % 8] for k in range(3)],
        "gain": [0.5, 0.1 * b, -0.2],
    }
    for b in range(8)
]


class Interrupt(TrainerCallback):
    """Stops before the step after one, as a kill does, the checkpoint of that one being whole."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def make_trainer(
    encoder: SentenceTransformer,
    objective: str,
    folder: Path,
    *,
    lm: FrozenLM,
    interrupt: int | None = None,
    **settings: Any,
) -> NLTTrainer:
    """A trainer of 6 steps of 2 queries, with a checkpoint every 2 steps."""
    args = NLTTrainingArguments(
        output_dir=str(folder), max_steps=6, per_device_train_batch_size=2, learning_rate=1e-2, warmup_steps=2,
        save_steps=2, logging_steps=1, report_to=[], use_cpu=True, disable_tqdm=True, seed=5, **settings,
    )  # fmt: skip
    tokens = PromptTokens(lm.tokenizer, PromptTemplate(), max_document_tokens=16)
    prompts = chunks = None
    if objective == "dream":
        heads = HeadSet(((1, 2), (0, 3)), ((1.0,) * 4,) * 2, lm.name, lm.fingerprint, {})
        loss: Objective = DREAMLoss(encoder, lm, heads=heads, temperature=0.3)
        prompts = PromptBuilder(tokens, "query", 256)
    elif objective == "revela_trained":
        lora = {"r": 2, "target_modules": "all-linear", "lora_dropout": 0.1}
        loss = RevelaLoss(encoder, lm, temperature=0.3, trained=add_llm_lora(lm, lora, seed=5))
        chunks = ChunkBuilder(tokens, "query", 256)
    elif objective == "info_nce":
        loss = InfoNCELoss(encoder)
    else:
        loss = LikelihoodGainLoss(encoder)
    return NLTTrainer(
        encoder,
        args,
        train_dataset=Dataset.from_list(ROWS),
        loss=loss,
        data_collator=NLTCollator(encoder, prompts=prompts, chunks=chunks, seed=args.seed),  # type: ignore[arg-type]  # any callable
        callbacks=[CostCallback(loss), *([Interrupt(interrupt)] if interrupt else [])],
    )


def batches(trainer: NLTTrainer) -> list[list[int]]:
    """Row indices of each batch of an epoch."""
    sampler: Any = trainer.get_train_dataloader().batch_sampler
    return [list(batch) for batch in sampler]


def test_batches_are_grouped_by_length(tiny_encoder: SentenceTransformer, tiny_lm: FrozenLM, tmp_path: Path) -> None:
    """Reference: random batches of 64 rows, whose lengths lie more than twice as far apart; every row comes once, and
    the seed decides the order."""
    trainer = make_trainer(tiny_encoder, "likelihood_gain", tmp_path, lm=tiny_lm)
    rows: list[dict[str, Any]] = [{**ROWS[b % 8], "query": "owl " * (b + 1)} for b in range(64)]
    lengths = [len(row["query"]) + sum(map(len, row["documents"])) for row in rows]
    trainer.train_dataset = Dataset.from_list(rows)

    def distance(found: list[list[int]]) -> int:
        return sum(abs(lengths[a] - lengths[b]) for a, b in found)

    at_random = batches(trainer)
    trainer.args.train_sampling_strategy = "group_by_length"
    grouped = batches(trainer)
    assert sorted(row for batch in grouped for row in batch) == list(range(64))
    assert 2 * distance(grouped) < distance(at_random)
    assert batches(trainer) == grouped
    trainer.args.batch_sampler = "no_duplicates"
    with pytest.raises(NLTError, match=r"batch_sampler is no_duplicates and .* leave one of them out"):
        batches(trainer)
    trainer.args.train_sampling_strategy = "sequential"
    with pytest.raises(NLTError, match="train_sampling_strategy 'sequential' is not known here; choose random or"):
        batches(trainer)


@pytest.mark.parametrize("disabled", [False, True])
def test_dropout_can_be_disabled(
    tiny_encoder: SentenceTransformer, tiny_lm: FrozenLM, tmp_path: Path, disabled: bool
) -> None:
    """Reference: an encoder in training mode embeds a text twice alike, and as in evaluation mode, only without
    dropout."""
    for module in tiny_encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    trainer = make_trainer(tiny_encoder, "likelihood_gain", tmp_path, lm=tiny_lm, disable_dropout=disabled)
    trainer.train()
    features = tiny_encoder.preprocess(TEXTS)
    tiny_encoder.train()
    first, second = (trainer.model(dict(features))["sentence_embedding"] for _ in range(2))
    plain = tiny_encoder.eval()(dict(features))["sentence_embedding"]
    assert torch.equal(first, second) == torch.equal(first, plain) == disabled


def test_dropout_that_is_a_number_is_disabled() -> None:
    """Reference: T5's attention, which hands a number to a function, in training mode and in evaluation mode."""
    config = T5Config(vocab_size=16, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2, dropout_rate=0.5)
    encoder, tokens = T5EncoderModel(config).eval(), torch.arange(8)[None]
    plain = encoder(tokens).last_hidden_state
    disable_dropout(encoder.train())
    assert torch.equal(encoder(tokens).last_hidden_state, plain)


@pytest.mark.parametrize(("kind", "number"), [("constant", 1), ("constant_with_warmup", 0)])
def test_a_warm_up_that_does_nothing_is_said(
    kind: str,
    number: int,
    tiny_encoder: SentenceTransformer,
    tiny_lm: FrozenLM,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Reference: the learning rate of the first step, which is the whole one exactly where a line says so."""
    trainer = make_trainer(tiny_encoder, "likelihood_gain", tmp_path, lm=tiny_lm, lr_scheduler_type=kind)
    trainer.train()
    assert trainer.state.log_history[0]["learning_rate"] == (1e-2 if number else 0.0)
    said = "warmup_steps 2 does nothing, because lr_scheduler_type constant has no warm-up; set constant_with_warmup"
    assert [message.startswith(said) for message in caplog.messages if "warmup" in message] == [True] * number


def test_workers_prepare_the_same_batches(tiny_encoder_folder: Path, tiny_lm: FrozenLM, tmp_path: Path) -> None:
    """Reference: the losses of a run whose batches are made in the main process, LLM prompts included."""
    found = []
    for workers, kept in ((0, True), (2, True), (2, False)):
        encoder = load_encoder(str(tiny_encoder_folder), device="cpu")
        trainer = make_trainer(
            encoder, "dream", tmp_path / f"{workers}{kept}", lm=tiny_lm,
            dataloader_num_workers=workers, dataloader_persistent_workers=kept,
        )  # fmt: skip
        assert trainer.args.dataloader_persistent_workers == (kept and workers > 0)
        trainer.train()
        found.append(losses(trainer))
    assert found[0] == found[1] == found[2]
    assert len(set(found[0])) > 1


def losses(trainer: NLTTrainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("objective", ["likelihood_gain", "dream", "revela_trained"])
def test_a_resumed_run_is_the_uninterrupted_one(
    tiny_encoder_folder: Path, tiny_llm_folder: Path, tmp_path: Path, objective: str
) -> None:
    """Reference: weights and losses of a run of 6 steps that was not stopped after 4."""

    def encoder() -> SentenceTransformer:
        return load_encoder(str(tiny_encoder_folder), device="cpu")

    def lm() -> FrozenLM:
        return FrozenLM.from_pretrained(str(tiny_llm_folder), device="cpu")

    whole = make_trainer(encoder(), objective, tmp_path / "whole", lm=lm())
    whole.train()
    stopped = make_trainer(encoder(), objective, tmp_path / "run", lm=lm(), interrupt=4)
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    torch.rand(5)
    resumed = make_trainer(encoder(), objective, tmp_path / "run", lm=lm())
    resumed.train(resume_from_checkpoint=last_checkpoint(tmp_path / "run"))
    assert len(losses(whole)) == 6
    assert losses(resumed) == pytest.approx(losses(whole), abs=1e-6)
    tokens = [logged_cost(trainer.state, "lm_tokens") for trainer in (resumed, whole)]
    assert tokens[0] == tokens[1]
    assert (tokens[0] > 0) == (objective != "likelihood_gain")
    start = encoder().state_dict()
    for name, parameter in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], parameter, rtol=1e-6, atol=1e-7)
    assert any((whole.model.state_dict()[name] - start[name]).abs().max() > 1e-3 for name in start)
    for name, parameter in whole.objective_parameters().items():
        torch.testing.assert_close(resumed.objective_parameters()[name], parameter, rtol=1e-6, atol=1e-7)
        assert "lora_B" not in name or parameter.abs().max() > 1e-3


def test_what_an_objective_trains_stands_beside_the_encoder(
    tiny_encoder: SentenceTransformer, tiny_lm: FrozenLM, tmp_path: Path
) -> None:
    """Reference: the tensors of a checkpoint's files; an encoder that is saved has none of the adapter's."""
    trainer = make_trainer(tiny_encoder, "revela_trained", tmp_path / "run", lm=tiny_lm)
    trainer.train()
    checkpoint = tmp_path / "run" / "checkpoint-6"
    parameters = trainer.objective_parameters()
    assert len(parameters) == 2 * 7 * tiny_lm.num_layers
    saved = load_file(checkpoint / "objective.safetensors")
    for name, parameter in parameters.items():
        torch.testing.assert_close(saved[name], parameter.detach(), rtol=0, atol=0)
    assert set(saved) == set(parameters)
    trainer.save_model(str(tmp_path / "saved"))
    assert not list((tmp_path / "saved").rglob("objective.safetensors"))
    size = sum(file.stat().st_size for file in (tmp_path / "saved").rglob("*.safetensors"))
    assert size < 4.2 * sum(p.numel() for p in tiny_encoder.parameters())
    (checkpoint / "objective.safetensors").unlink()
    with pytest.raises(NLTError, match=r"objective.safetensors not found: in that run the encoder was trained alone"):
        trainer.train(resume_from_checkpoint=str(checkpoint))


def test_a_dream_run_changes_and_saves_the_encoder_alone(
    tiny_encoder: SentenceTransformer, tiny_lm: FrozenLM, tmp_path: Path
) -> None:
    """Reference: a copy of the LLM's weights, and the encoder's number of parameters times 4 bytes."""
    frozen = {name: p.clone() for name, p in tiny_lm.model.named_parameters()}
    trainer = make_trainer(tiny_encoder, "dream", tmp_path, lm=tiny_lm)
    trainer.train()
    for name, parameter in tiny_lm.model.named_parameters():
        assert parameter.grad is None
        assert not parameter.requires_grad
        torch.testing.assert_close(parameter, frozen[name], rtol=0, atol=0)
    weights = list((tmp_path / "checkpoint-6").rglob("*.safetensors"))
    assert sum(file.stat().st_size for file in weights) < 4.2 * sum(p.numel() for p in tiny_encoder.parameters())
    saved = SentenceTransformer(str(tmp_path / "checkpoint-6"), device="cpu")
    torch.testing.assert_close(
        saved.encode(TEXTS, convert_to_tensor=True), tiny_encoder.encode(TEXTS, convert_to_tensor=True)
    )


def test_a_card_has_no_text_of_the_training_data(tiny_encoder: SentenceTransformer, tmp_path: Path) -> None:
    """Reference: the texts of queries and documents; the card of a saved encoder is published with it."""
    loss = LikelihoodGainLoss(tiny_encoder)
    NLTTrainer(
        tiny_encoder,
        NLTTrainingArguments(output_dir=str(tmp_path), use_cpu=True),
        train_dataset=Dataset.from_list(ROWS),
        eval_dataset=Dataset.from_list(ROWS[:2]),
        loss=loss,
        data_collator=loss.collator(),  # type: ignore[arg-type]  # any callable
    )
    tiny_encoder.save_pretrained(str(tmp_path / "saved"))
    card = (tmp_path / "saved" / "README.md").read_text(encoding="utf-8")
    assert "LikelihoodGainLoss" in card
    assert not any(text in card for text in TEXTS)


def test_each_objective_reports_its_name(tiny_encoder: SentenceTransformer, tiny_lm: FrozenLM, tmp_path: Path) -> None:
    """Reference: the name of the only term, which equals the loss."""
    trainer = make_trainer(tiny_encoder, "info_nce", tmp_path, lm=tiny_lm)
    trainer.train()
    assert len(losses(trainer)) == 6
    features, labels = trainer.collect_features(trainer.data_collator(ROWS[:2]))
    assert isinstance(trainer.loss, InfoNCELoss)
    assert list(trainer.loss(features, labels)) == ["info_nce"]


def test_the_log_names_the_weighted_terms_of_a_mixture(tiny_encoder: SentenceTransformer, tmp_path: Path) -> None:
    """Reference: each term alone on the first batch, times its weight; in every entry the terms add up to the loss."""
    terms = [LikelihoodGainLoss(tiny_encoder), InfoNCELoss(tiny_encoder)]
    loss = GradCacheLoss(MixtureLoss(terms, weights=[2.0, 0.5]), micro_batch_size=3)
    args = NLTTrainingArguments(
        output_dir=str(tmp_path), max_steps=3, per_device_train_batch_size=4, learning_rate=1e-2, logging_steps=1,
        eval_strategy="steps", eval_steps=1, save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    collator = NLTCollator(tiny_encoder)
    trainer = NLTTrainer(
        tiny_encoder,
        args,
        train_dataset=Dataset.from_list(ROWS),
        eval_dataset=Dataset.from_list(ROWS[:4]),
        loss=loss,
        data_collator=collator,  # type: ignore[arg-type]  # any callable
    )
    features, labels = trainer.collect_features(collator(ROWS[:4]))
    before = {n: w * v for t, w in zip(terms, [2.0, 0.5], strict=True) for n, v in t(features, labels).items()}
    evaluated = trainer.evaluate()
    assert evaluated["eval_loss"] == pytest.approx(sum(value.item() for value in before.values()), abs=1e-4)
    assert trainer.state.log_history[-1]["eval_info_nce"] == pytest.approx(before["info_nce"].item(), abs=1e-4)
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(entries) == 3
    for entry in entries:
        assert entry["loss"] == pytest.approx(entry["likelihood_gain"] + entry["info_nce"], abs=2e-4)
        assert min(entry["likelihood_gain"], entry["info_nce"]) > 0.01


def test_features_are_queries_then_documents(
    tiny_encoder: SentenceTransformer, tiny_lm: FrozenLM, tmp_path: Path
) -> None:
    """Reference: embeddings of the texts; everything else of the batch arrives by name."""
    trainer = make_trainer(tiny_encoder, "dream", tmp_path, lm=tiny_lm)
    batch = trainer.data_collator(ROWS[:2])
    features, labels = trainer.collect_features(batch)
    found = tiny_encoder(features[0])["sentence_embedding"].detach()
    expected = tiny_encoder.encode([row["query"] for row in ROWS[:2]], convert_to_tensor=True)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert len(features[1]["input_ids"]) == 6
    assert set(labels) == {name for name in batch if not name.startswith(("query_", "document_"))}
    assert {"gain", "candidate_keys", "prompt_ids", "documents", "suffix_target"} <= set(labels)


def test_batches_of_another_collator_are_refused(
    tiny_encoder: SentenceTransformer, tiny_lm: FrozenLM, tmp_path: Path
) -> None:
    """Reference: the remedy in the message."""
    trainer = make_trainer(tiny_encoder, "likelihood_gain", tmp_path, lm=tiny_lm)
    with pytest.raises(NLTError, match=r"\['anchor_input_ids'\]; pass data_collator=loss.collator"):
        trainer.collect_features({"anchor_input_ids": torch.zeros(1, 3)})


def test_a_run_that_diverges_is_refused(tiny_encoder: SentenceTransformer, tiny_lm: FrozenLM, tmp_path: Path) -> None:
    """Reference: the message; the trainer's own log would show the loss as 0."""
    next(tiny_encoder.parameters()).data.fill_(float("nan"))
    with pytest.raises(NLTError, match="the loss is nan after 0 steps; lower learning_rate"):
        make_trainer(tiny_encoder, "likelihood_gain", tmp_path, lm=tiny_lm).train()


def test_bfloat16_ends_at_the_embeddings(
    tiny_encoder: SentenceTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: what a layer puts out, what the softmax over the whole batch reads, and the loss in float32."""
    seen: dict[str, set[torch.dtype]] = {"layer": set(), "softmax": set()}
    log_softmax = torch.Tensor.log_softmax

    def watched(scores: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen["softmax"] |= {scores.dtype}
        return log_softmax(scores, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "log_softmax", watched)
    layer = next(module for module in tiny_encoder.modules() if isinstance(module, torch.nn.Linear))
    layer.register_forward_hook(lambda module, inputs, output: seen["layer"].add(output.dtype))
    found = {}
    for bf16 in (True, False):
        encoder = copy.deepcopy(tiny_encoder)
        loss = LikelihoodGainLoss(encoder, in_batch_candidates=True)
        args = NLTTrainingArguments(
            output_dir=str(tmp_path), max_steps=3, per_device_train_batch_size=4, logging_steps=1, bf16=bf16,
            save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        collator: Any = loss.collator()
        trainer = NLTTrainer(encoder, args, train_dataset=Dataset.from_list(ROWS), loss=loss, data_collator=collator)
        trainer.train()
        found[bf16] = losses(trainer)
        assert seen["softmax"] == {torch.float32}
        assert seen["layer"] == {torch.bfloat16 if bf16 else torch.float32}
        seen["layer"].clear()
    assert found[True] != found[False]
    assert found[True] == pytest.approx(found[False], rel=0.05)


def make_checkpoint(folder: Path, step: int) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(b"12345")
    write_json(checkpoint / "checkpoint_files.json", {"model.safetensors": 5})
    return checkpoint


def test_a_run_with_other_settings_is_refused(tiny_encoder_folder: Path, tmp_path: Path) -> None:
    """Reference: what decides the trajectory differs; where to report does not matter."""

    def settings(*, data: dict[str, Any] | None = None, **trainer: Any) -> dict[str, Any]:
        args = NLTTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **trainer)
        return run_settings(ModelArguments(encoder=str(tiny_encoder_folder)), DataArguments(**(data or {})), args)

    write_json(tmp_path / "settings.json", settings(learning_rate=1e-3))
    check_settings(tmp_path, settings(learning_rate=1e-4))  # no checkpoint yet, nothing to mix
    make_checkpoint(tmp_path, 2)
    check_settings(tmp_path, settings(learning_rate=1e-3))
    check_settings(tmp_path, settings(learning_rate=1e-3, data={"eval_split": "dev", "batch_tokens": 7}))
    check_settings(tmp_path, settings(learning_rate=1e-3, save_steps=7))
    with pytest.raises(NLTError, match=r"learning_rate: 0.001 there, 0.0001 now.*choose another output_dir"):
        check_settings(tmp_path, settings(learning_rate=1e-4))
    gains = tmp_path / "gains.jsonl"
    gains.write_text("a")
    write_json(tmp_path / "settings.json", settings(learning_rate=1e-3, data={"gains": str(gains)}))
    check_settings(tmp_path, settings(learning_rate=1e-3, data={"gains": str(gains)}))
    gains.write_text("b")
    with pytest.raises(NLTError, match=r"content of gains: '\w+' there, '\w+' now"):
        check_settings(tmp_path, settings(learning_rate=1e-3, data={"gains": str(gains)}))
    moved = gains.rename(tmp_path / "moved.jsonl")
    moved.write_text("a")
    check_settings(tmp_path, settings(learning_rate=1e-3, data={"gains": str(moved)}))
    (tmp_path / "settings.json").unlink()
    with pytest.raises(NLTError, match=r"holds a run, and settings.json, which .* is missing; put it back, choose"):
        check_settings(tmp_path, settings(learning_rate=1e-3, data={"gains": str(moved)}))


def test_a_run_with_another_llm_or_adapter_is_refused(
    tiny_encoder_folder: Path, tiny_llm_folder: Path, tmp_path: Path
) -> None:
    """Reference: the folders' content, rewritten in place; an objective that does not read the LLM does not mind."""
    llm, adapter = tmp_path / "llm", tmp_path / "adapter"
    shutil.copytree(tiny_llm_folder, llm)
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "another/place"}')
    (adapter / "adapter_model.safetensors").write_bytes(b"a")
    model = ModelArguments(encoder=str(tiny_encoder_folder), llm=str(llm), adapter=str(adapter))
    make_checkpoint(tmp_path, 2)
    for name, file in (("llm", llm / "config.json"), ("adapter", adapter / "adapter_model.safetensors")):
        for objective in ("dream", "likelihood_gain"):
            args = NLTTrainingArguments(output_dir=str(tmp_path), use_cpu=True, objective=objective)
            write_json(tmp_path / "settings.json", run_settings(model, DataArguments(), args))
            check_settings(tmp_path, run_settings(model, DataArguments(), args))
            file.write_bytes(file.read_bytes() + b" ")
            if objective == "dream":
                with pytest.raises(NLTError, match=rf"content of {name}: '\w+' there, '\w+' now"):
                    check_settings(tmp_path, run_settings(model, DataArguments(), args))
            else:
                check_settings(tmp_path, run_settings(model, DataArguments(), args))


def test_a_run_with_other_heads_is_refused(tiny_encoder_folder: Path, tiny_llm_folder: Path, tmp_path: Path) -> None:
    """Reference: other heads differ; another time that finding the same ones took does not."""
    args = NLTTrainingArguments(output_dir=str(tmp_path), use_cpu=True, objective="dream")
    encoder, llm = str(tiny_encoder_folder), str(tiny_llm_folder)
    model = ModelArguments(encoder=encoder, llm=llm, heads=str(tmp_path / "heads.json"))

    def settings(*heads: tuple[int, int], seconds: float) -> dict[str, Any]:
        scores = ((0.5, 0.25), (0.125, seconds))
        HeadSet(heads, scores, "llm", {"weights": "0"}, {"seconds": seconds}).save(model.heads)
        return run_settings(model, DataArguments(), args)

    make_checkpoint(tmp_path, 2)
    write_json(tmp_path / "settings.json", settings((0, 0), (0, 1), seconds=3.0))
    check_settings(tmp_path, settings((0, 0), (0, 1), seconds=4.0))
    with pytest.raises(NLTError, match=r"heads: \[\[0, 0\], \[0, 1\]\] there, \[\[0, 0\], \[1, 0\]\] now"):
        check_settings(tmp_path, settings((0, 0), (1, 0), seconds=3.0))


def test_a_run_with_other_labels_is_refused(tiny_encoder_folder: Path, tmp_path: Path) -> None:
    """Reference: the file that changed, in the message; judgements that the objective does not read may change."""
    qrels, model = tmp_path / "qrels" / "train.tsv", ModelArguments(encoder=str(tiny_encoder_folder))
    qrels.parent.mkdir()
    make_checkpoint(tmp_path, 2)
    for labels in (True, False):
        data = DataArguments(collection=str(tmp_path), train_split="train", labels=labels)
        args = NLTTrainingArguments(output_dir=str(tmp_path), use_cpu=True, objective="info_nce")
        qrels.write_text("a")
        write_json(tmp_path / "settings.json", run_settings(model, data, args))
        qrels.write_text("b")
        changed = run_settings(model, data, args)
        if labels:
            with pytest.raises(NLTError, match=r"content of qrels: '\w+' there, '\w+' now"):
                check_settings(tmp_path, changed)
        else:
            check_settings(tmp_path, changed)


def test_a_resume_keeps_the_cost_since_the_last_log(
    tiny_encoder_folder: Path, tiny_llm_folder: Path, tmp_path: Path
) -> None:
    """Reference: the tokens of a run that was not stopped; nothing is logged before the kill."""

    def trainer(name: str, interrupt: int | None = None) -> NLTTrainer:
        encoder = load_encoder(str(tiny_encoder_folder), device="cpu")
        lm = FrozenLM.from_pretrained(str(tiny_llm_folder), device="cpu")
        made = make_trainer(encoder, "dream", tmp_path / name, lm=lm, interrupt=interrupt)
        made.args.logging_steps = 5
        return made

    whole = trainer("whole")
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        trainer("run", interrupt=4).train()
    resumed = trainer("run")
    resumed.train(resume_from_checkpoint=last_checkpoint(tmp_path / "run"))
    tokens = [logged_cost(made.state, "lm_tokens") for made in (resumed, whole)]
    assert tokens[0] == tokens[1] > 0


def test_an_entry_without_training_is_logged_as_it_is(
    tiny_encoder: SentenceTransformer, tiny_lm: FrozenLM, tmp_path: Path
) -> None:
    """As an evaluation of a trainer that has not trained logs it."""
    trainer = make_trainer(tiny_encoder, "likelihood_gain", tmp_path, lm=tiny_lm)
    trainer.log({"eval_dev_ndcg_at_10": 0.5})
    assert trainer.state.log_history[-1]["eval_dev_ndcg_at_10"] == 0.5


def test_a_resume_logs_the_losses_of_the_whole_run(
    tiny_encoder_folder: Path, tiny_lm: FrozenLM, tmp_path: Path
) -> None:
    """Reference: every entry of the log of a run that was not stopped, to the last digit."""

    def trainer(name: str, interrupt: int | None = None) -> NLTTrainer:
        encoder = load_encoder(str(tiny_encoder_folder), device="cpu")
        made = make_trainer(encoder, "likelihood_gain", tmp_path / name, lm=tiny_lm, interrupt=interrupt)
        made.args.logging_steps = 5
        return made

    def logged(made: NLTTrainer) -> list[dict[str, float]]:
        names = "loss", "train_loss", "likelihood_gain"
        return [{name: entry[name] for name in names if name in entry} for entry in made.state.log_history]

    whole = trainer("whole")
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        trainer("run", interrupt=4).train()
    resumed = trainer("run")
    resumed.train(resume_from_checkpoint=last_checkpoint(tmp_path / "run"))
    assert logged(resumed) == logged(whole)
    assert [sorted(entry) for entry in logged(whole)] == [["likelihood_gain", "loss"], ["train_loss"]]


def test_report_to_reaches_a_tracker(tiny_encoder: SentenceTransformer, tiny_lm: FrozenLM, tmp_path: Path) -> None:
    """Reference: the trainer's own log, value by value, in the files that TensorBoard reads."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = make_trainer(tiny_encoder, "likelihood_gain", tmp_path, lm=tiny_lm)
    for callback in get_reporting_integration_callbacks(["tensorboard"]):
        trainer.add_callback(callback)
    trainer.train()
    (file,) = tmp_path.rglob("events.out.tfevents.*")
    events = EventAccumulator(str(file)).Reload()
    for name in ("loss", "likelihood_gain", "learning_rate"):
        logged = [(entry["step"], entry[name]) for entry in trainer.state.log_history if name in entry]
        told = [(event.step, event.value) for event in events.Scalars(f"train/{name}")]
        assert [step for step, _ in told] == [step for step, _ in logged] == [1, 2, 3, 4, 5, 6]
        assert [value for _, value in told] == pytest.approx([value for _, value in logged], rel=1e-6)
