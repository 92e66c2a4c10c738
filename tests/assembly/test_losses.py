"""From a recipe to its objective."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer

from nlt_trainer.arguments.data import DataArguments
from nlt_trainer.arguments.model import ModelArguments
from nlt_trainer.arguments.trainer import LLM_OBJECTIVES, OBJECTIVES
from nlt_trainer.assembly.losses import BUILDERS, READERS, Parts, make_collator, make_loss
from nlt_trainer.data.candidates import QueryCandidates
from nlt_trainer.data.collator import ChunkBuilder, PromptBuilder
from nlt_trainer.injection.heads import HeadSet
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.objectives.adist import ADistLoss
from nlt_trainer.objectives.dream import DREAMLoss
from nlt_trainer.objectives.emdr2 import EMDR2Loss
from nlt_trainer.objectives.grad_cache import GradCacheLoss
from nlt_trainer.objectives.info_nce import InfoNCELoss
from nlt_trainer.objectives.likelihood_gain import LikelihoodGainLoss
from nlt_trainer.objectives.loop import LOOPLoss
from nlt_trainer.objectives.mixture import MixtureLoss
from nlt_trainer.objectives.revela import RevelaLoss
from nlt_trainer.release.card_rendering import PAPERS
from nlt_trainer.training_arguments import NLTTrainingArguments

CANDIDATES = [QueryCandidates("q1", "which animal is the largest of all", None, ("d02", "d01"), (1.0, 0.0))]


@pytest.fixture
def parts(tiny_encoder: SentenceTransformer, tiny_llm_folder: Path, tiny_lm: FrozenLM, tmp_path: Path) -> Any:
    """Parts of a recipe whose trainer block has the given settings."""
    HeadSet(((1, 2), (0, 3)), ((1.0,) * 4,) * 2, tiny_lm.name, tiny_lm.fingerprint, {}).save(tmp_path / "heads.json")
    model = ModelArguments(llm=str(tiny_llm_folder), heads=str(tmp_path / "heads.json"), num_heads=2)

    def build(**settings: Any) -> Parts:
        args = NLTTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **settings)
        return Parts(tiny_encoder, model, DataArguments(), args, CANDIDATES)

    return build


def test_every_name_has_a_builder_and_a_paper() -> None:
    """Reference: the names that a recipe may use."""
    assert tuple(BUILDERS) == tuple(PAPERS) == OBJECTIVES
    assert set(READERS) == LLM_OBJECTIVES


@pytest.mark.parametrize(
    ("settings", "kind", "expected"),
    [
        (
            {"objective": "likelihood_gain", "temperature": 0.1, "teacher_temperature": 0.3,
             "divergence": "margin_mse"},
            LikelihoodGainLoss,
            {"temperature": 0.1, "teacher_temperature": 0.3, "divergence": "margin_mse"},
        ),
        ({"objective": "emdr2", "emdr2_level": "token"}, EMDR2Loss, {"level": "token", "temperature": 0.05}),
        (
            {"objective": "info_nce", "false_negative_margin": 0.1},
            InfoNCELoss,
            {"false_negative_margin": 0.1},
        ),
        (
            {"objective": "dream", "lm_micro_batch_size": 3, "temperature": 0.2,
             "document_mass": "kept", "hide_documents": False, "in_batch_candidates": True},
            DREAMLoss,
            {"micro_batch_size": 3, "temperature": 0.2,
             "document_mass": "kept", "hide_documents": False, "in_batch_candidates": True},
        ),
        (
            {"objective": "loop", "lm_micro_batch_size": 3, "temperature": 0.2, "teacher_temperature": 0.3},
            LOOPLoss,
            {"micro_batch_size": 3, "temperature": 0.2, "teacher_temperature": 0.3},
        ),
        (
            {"objective": "adist", "lm_micro_batch_size": 3, "temperature": 0.2, "teacher_temperature": 0.3},
            ADistLoss,
            {"micro_batch_size": 3, "temperature": 0.2, "teacher_temperature": 0.3},
        ),
        (
            {"objective": "revela", "lm_micro_batch_size": 3, "temperature": 0.2},
            RevelaLoss,
            {"micro_batch_size": 3, "temperature": 0.2},
        ),
    ],
)  # fmt: skip
def test_settings_reach_the_objective(
    parts: Any, settings: dict[str, Any], kind: type, expected: dict[str, object]
) -> None:
    """Reference: the recipe's values as attributes of the objective; prompts and chunks where the LLM reads them."""
    recipe = parts(**settings)
    loss = make_loss(recipe)
    assert type(loss) is kind
    assert {name: vars(loss)[name] for name in expected} == expected
    collator = make_collator(recipe, loss)
    assert (collator.prompts is not None) == (kind in (DREAMLoss, LOOPLoss, ADistLoss))
    assert (collator.chunks is not None) == (kind is RevelaLoss)


@pytest.mark.parametrize("objective", ["likelihood_gain", "dream", "loop + adist", "revela", "dream + 0.5*revela"])
def test_the_llms_texts_are_known_before_the_objective(parts: Any, objective: str) -> None:
    """Reference: the batch of the collator that the objective makes; the recipe's settings reach it."""
    data = DataArguments(max_document_tokens=7, document_layout="independent", query_prefix="Ask:", target="query")
    more = dataclasses.replace(CANDIDATES[0], query_id="q2", query="why does bread rise")
    recipe: Parts = dataclasses.replace(parts(objective=objective, seed=5), data=data, candidates=[*CANDIDATES, more])
    collator = make_collator(recipe, make_loss(recipe))
    prompts, chunks = recipe.builders(recipe.lm.prompt_frame)
    assert [prompts is None, chunks is None] == [collator.prompts is None, collator.chunks is None]
    rows = [{"query": c.query, "documents": ["the blue whale", "a honey bee visits flowers"]} for c in CANDIDATES]
    found = dataclasses.replace(collator, prompts=prompts, chunks=chunks)(rows)
    expected = collator(rows)
    assert set(found) == set(expected)
    for name in (name for name, value in expected.items() if isinstance(value, torch.Tensor)):
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0)
    builders: list[PromptBuilder | ChunkBuilder] = [b for b in (collator.prompts, collator.chunks) if b is not None]
    for builder in builders:
        assert (builder.tokens.max_document_tokens, builder.tokens.template) == (7, data.template)
        assert (builder.target, builder.context_length) == ("query", 256)
    if prompts is not None:
        assert prompts.layout == "independent"
    assert collator.seed == 5


def test_no_setting_of_an_objective_is_out_of_a_recipes_reach() -> None:
    """Reference: the constructors; the settings of both divergence and data sit in the recipe under these names."""
    names = {field.name for field in dataclasses.fields(NLTTrainingArguments)}
    elsewhere = {"self", "model", "lm", "heads", "trained"}
    renamed = {"micro_batch_size": "lm_micro_batch_size", "level": "emdr2_level"}
    for kind in (LikelihoodGainLoss, EMDR2Loss, InfoNCELoss, DREAMLoss, LOOPLoss, ADistLoss, RevelaLoss):
        wanted = set(inspect.signature(kind.__init__).parameters) - elsewhere
        assert {renamed.get(name, name) for name in wanted} <= names


def test_a_sum_is_a_mixture_with_temperatures_of_its_own(parts: Any) -> None:
    """Reference: weights and temperatures of the recipe, one LLM for all; any weight but 1 is kept."""
    settings = {"objective": "likelihood_gain + 0.5*dream", "temperature": 0.03, "temperatures": {"dream": 0.2}}
    loss = make_loss(parts(**settings))
    assert isinstance(loss, MixtureLoss)
    assert [type(term) for term in loss.objectives] == [LikelihoodGainLoss, DREAMLoss]
    assert [term.temperature for term in loss.objectives] == [0.03, 0.2]
    assert loss.weights == [1.0, 0.5]
    single = make_loss(parts(objective="3*emdr2"))
    assert isinstance(single, MixtureLoss)
    assert single.weights == [3.0]


def test_gradient_caching_is_put_around_the_objective(parts: Any) -> None:
    """Reference: the setting, for an objective and for a mixture."""
    loss = make_loss(parts(objective="info_nce", encoder_micro_batch_size=7))
    assert isinstance(loss, GradCacheLoss)
    assert (type(loss.objective), loss.micro_batch_size) == (InfoNCELoss, 7)
    mixture = make_loss(parts(objective="info_nce + emdr2", encoder_micro_batch_size=7))
    assert isinstance(mixture, GradCacheLoss)
    assert isinstance(mixture.objective, MixtureLoss)
