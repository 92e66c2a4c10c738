"""Build the objective and the collator of a recipe; `BUILDERS` has a small function for each objective's name.

An objective that reads the LLM can also be built in a process of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

from sentence_transformers import SentenceTransformer

from nlt_trainer.arguments.data import DataArguments
from nlt_trainer.arguments.model import ModelArguments
from nlt_trainer.arguments.trainer import LLM_OBJECTIVES, PROMPT_OBJECTIVES
from nlt_trainer.assembly.parts import load_llm, target_of
from nlt_trainer.data.candidates import QueryCandidates
from nlt_trainer.data.collator import ChunkBuilder, NLTCollator, PromptBuilder
from nlt_trainer.data.llm_texts import LLMTexts
from nlt_trainer.encoder.lora import add_llm_lora
from nlt_trainer.errors import NLTError
from nlt_trainer.injection.heads import HeadSet
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.lm.prompt_tokens import PromptFrame
from nlt_trainer.objectives.adist import ADistLoss
from nlt_trainer.objectives.dream import DREAMLoss
from nlt_trainer.objectives.emdr2 import EMDR2Loss
from nlt_trainer.objectives.grad_cache import GradCacheLoss
from nlt_trainer.objectives.info_nce import InfoNCELoss
from nlt_trainer.objectives.likelihood_gain import LikelihoodGainLoss
from nlt_trainer.objectives.llm_objective import LLMObjective
from nlt_trainer.objectives.loop import LOOPLoss
from nlt_trainer.objectives.mixture import MixtureLoss
from nlt_trainer.objectives.objective import Objective
from nlt_trainer.objectives.remote import RemoteObjective
from nlt_trainer.objectives.revela import RevelaLoss
from nlt_trainer.training_arguments import NLTTrainingArguments


@dataclass(frozen=True)
class Parts:
    """What a builder needs to make an objective. The LLM is loaded once, when the first objective asks for it."""

    encoder: SentenceTransformer
    model: ModelArguments
    data: DataArguments
    args: NLTTrainingArguments
    candidates: list[QueryCandidates]
    backbone: FrozenLM | None = None
    """The LLM if it is in memory already, for example because the encoder shares its weights."""

    @cached_property
    def lm(self) -> FrozenLM:
        return self.backbone or load_llm(self.model)

    @property
    def rows(self) -> list[dict[str, str | None]]:
        """Queries and answers of all candidates, on which the target depends."""
        return [{"query": c.query, "answer": c.answer} for c in self.candidates]

    def text_settings(self, texts: LLMTexts) -> dict[str, Any]:
        """Those settings of the recipe that have an effect on the texts that the LLM reads."""
        if not texts.settings:
            return {}
        settings = {
            "template": self.data.template,
            "target": target_of(self.data, self.candidates),
            "max_document_tokens": self.data.max_document_tokens,
            "layout": self.data.document_layout,
        }
        return {name: settings[name] for name in texts.settings}

    def builders(self, frame: PromptFrame | None) -> tuple[PromptBuilder | None, ChunkBuilder | None]:
        """Make the builders of the LLM's texts for the recipe's objectives, before any objective exists.

        `frame` is that of the recipe's LLM, whose weights nothing needs here.
        """
        texts = LLMTexts()
        for name in READERS.keys() & self.args.objectives.keys():
            if frame is not None:
                texts |= READERS[name].texts_for(frame)
        return texts.builders(self.rows, **self.text_settings(texts))


def likelihood_gain(parts: Parts, temperature: float) -> LikelihoodGainLoss:
    args = parts.args
    return LikelihoodGainLoss(
        parts.encoder,
        temperature=temperature,
        teacher_temperature=args.number("teacher_temperature"),
        divergence=args.divergence,
        in_batch_candidates=args.in_batch_candidates,
    )


def dream(parts: Parts, temperature: float) -> DREAMLoss:
    heads = HeadSet.load(parts.model.heads)
    if len(heads.heads) != min(parts.model.num_heads, sum(map(len, heads.scores))):
        raise NLTError(
            f"{parts.model.heads} has {len(heads.heads)} heads and num_heads is {parts.model.num_heads}; only "
            "detect_heads chooses them: run it again (head_scores takes another number from the same scores)"
        )
    return DREAMLoss(
        parts.encoder,
        parts.lm,
        heads=heads,
        temperature=temperature,
        document_mass=parts.args.document_mass,
        hide_documents=parts.args.hide_documents,
        in_batch_candidates=parts.args.in_batch_candidates,
        micro_batch_size=parts.args.lm_micro_batch_size,
        document_cache_gib=parts.args.document_cache_gib,
    )


def emdr2(parts: Parts, temperature: float) -> EMDR2Loss:
    return EMDR2Loss(parts.encoder, temperature=temperature, level=parts.args.emdr2_level)


def loop(parts: Parts, temperature: float) -> LOOPLoss:
    return LOOPLoss(
        parts.encoder,
        parts.lm,
        temperature=temperature,
        teacher_temperature=parts.args.number("teacher_temperature"),
        micro_batch_size=parts.args.lm_micro_batch_size,
    )


def adist(parts: Parts, temperature: float) -> ADistLoss:
    return ADistLoss(
        parts.encoder,
        parts.lm,
        temperature=temperature,
        teacher_temperature=parts.args.number("teacher_temperature"),
        micro_batch_size=parts.args.lm_micro_batch_size,
    )


def revela(parts: Parts, temperature: float) -> RevelaLoss:
    lm, lora, trained = parts.lm, parts.model.llm_lora, None
    if lora is not None:
        if not PROMPT_OBJECTIVES.isdisjoint(parts.args.objectives):
            lm = load_llm(parts.model)  # the other objectives keep a frozen one
        trained = add_llm_lora(lm, lora, seed=parts.args.seed)
    size = parts.args.lm_micro_batch_size
    return RevelaLoss(parts.encoder, lm, temperature=temperature, micro_batch_size=size, trained=trained)


def info_nce(parts: Parts, temperature: float) -> InfoNCELoss:
    return InfoNCELoss(
        parts.encoder,
        temperature=temperature,
        false_negative_margin=parts.args.false_negative_margin,
    )


BUILDERS: dict[str, Callable[[Parts, float], Objective]] = {
    "likelihood_gain": likelihood_gain,
    "dream": dream,
    "emdr2": emdr2,
    "loop": loop,
    "adist": adist,
    "revela": revela,
    "info_nce": info_nce,
}


READERS: dict[str, type[LLMObjective]] = {
    "dream": DREAMLoss,
    "loop": LOOPLoss,
    "adist": ADistLoss,
    "revela": RevelaLoss,
}
"""Objectives that read the LLM at every step."""


def make_term(name: str, parts: Parts, temperature: float) -> Objective:
    """Make one objective; if it reads the LLM and the recipe says so, it runs in a separate process with the LLM."""
    if name not in LLM_OBJECTIVES or not parts.model.llm_process:
        return BUILDERS[name](parts, temperature)
    device = parts.model.llm_device or str(parts.args.device)
    own = {key: getattr(parts.args, key) for key in ("seed", *inspect.get_annotations(NLTTrainingArguments))}
    build = partial(
        build_apart,
        name=name,
        temperature=temperature,
        model=replace(parts.model, llm_device=device, llm_process=False),
        data=parts.data,
        own=own,
    )
    return RemoteObjective(parts.encoder, build, temperature=temperature)


def build_apart(
    encoder: Any, *, name: str, temperature: float, model: ModelArguments, data: DataArguments, own: dict[str, Any]
) -> Objective:
    """Build the same objective in the LLM's process, from those of the trainer's arguments that objectives read."""
    args = NLTTrainingArguments(output_dir="", use_cpu=True, report_to="none", **own)
    return BUILDERS[name](Parts(encoder, model, data, args, []), temperature)


def make_loss(parts: Parts) -> Objective:
    """Make the recipe's objective."""
    args = parts.args
    temperatures = args.temperatures or {}
    terms = [make_term(name, parts, temperatures.get(name, args.temperature)) for name in args.objectives]
    weights = list(args.objectives.values())
    loss: Objective = terms[0] if weights == [1.0] else MixtureLoss(terms, weights=weights)
    if args.encoder_micro_batch_size is not None:
        loss = GradCacheLoss(loss, micro_batch_size=args.encoder_micro_batch_size)
    return loss


def make_collator(parts: Parts, loss: Objective) -> NLTCollator:
    """Make the collator that the recipe's objective needs."""
    settings = parts.text_settings(loss.llm_texts)
    return loss.collator(parts.rows, max_length=parts.model.train_max_length, seed=parts.args.seed, **settings)
