"""From a recipe to its objective: `BUILDERS` has one small function for each name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from sentence_transformers import SentenceTransformer

from nlt_trainer.arguments import DataArguments, ModelArguments, NLTTrainingArguments
from nlt_trainer.data.candidates import QueryCandidates
from nlt_trainer.data.collator import PromptBuilder
from nlt_trainer.models.frozen_lm import FrozenLM
from nlt_trainer.models.heads import HeadSet
from nlt_trainer.models.objective import Objective
from nlt_trainer.objectives.dream import DREAMLoss
from nlt_trainer.objectives.emdr2 import EMDR2Loss
from nlt_trainer.objectives.grad_cache import GradCacheLoss
from nlt_trainer.objectives.info_nce import InfoNCELoss
from nlt_trainer.objectives.likelihood_gain import LikelihoodGainLoss
from nlt_trainer.objectives.mixture import MixtureLoss
from nlt_trainer.scripts.common import load_llm, prompt_tokens, target_of


@dataclass(frozen=True)
class Parts:
    """What a builder puts an objective together from; the LLM is loaded once, when the first objective asks for it."""

    encoder: SentenceTransformer
    model: ModelArguments
    data: DataArguments
    args: NLTTrainingArguments
    candidates: list[QueryCandidates]

    @cached_property
    def lm(self) -> FrozenLM:
        return load_llm(self.model)

    def prompts(self) -> PromptBuilder:
        """What builds the prompts of K documents that the LLM reads at every step."""
        return PromptBuilder(
            prompt_tokens(self.lm, self.data),
            target_of(self.data, self.candidates),
            self.lm.context_length,
            layout=self.data.document_layout,  # type: ignore[arg-type]  # checked by DataArguments
            foreign=[(c.query, c.answer) for c in self.candidates],
            contrast_targets=self.args.contrast_targets,
            seed=self.args.seed,
        )


def likelihood_gain(parts: Parts, temperature: float) -> LikelihoodGainLoss:
    args = parts.args
    return LikelihoodGainLoss(
        parts.encoder,
        temperature=temperature,
        teacher_temperature=args.teacher_temperature,
        divergence=args.divergence,  # type: ignore[arg-type]  # checked by the loss
        gain_score=args.gain_score,  # type: ignore[arg-type]
        null_candidate=args.null_candidate,
        null_similarity=args.null_similarity,
        query_weight=args.query_weight,  # type: ignore[arg-type]
    )


def dream(parts: Parts, temperature: float) -> DREAMLoss:
    return DREAMLoss(
        parts.encoder,
        parts.lm,
        heads=HeadSet.load(parts.model.heads),
        temperature=temperature,
        share_floor=parts.args.share_floor,
        micro_batch_size=parts.args.lm_micro_batch_size,
        document_cache_bytes=int(parts.args.document_cache_gib * 2**30),
    )


def emdr2(parts: Parts, temperature: float) -> EMDR2Loss:
    return EMDR2Loss(parts.encoder, temperature=temperature, level=parts.args.emdr2_level)  # type: ignore[arg-type]


def info_nce(parts: Parts, temperature: float) -> InfoNCELoss:
    return InfoNCELoss(
        parts.encoder,
        temperature=temperature,
        in_batch_negatives=parts.args.in_batch_negatives,
        false_negative_margin=parts.args.false_negative_margin,
    )


BUILDERS: dict[str, Callable[[Parts, float], Objective]] = {
    "likelihood_gain": likelihood_gain,
    "dream": dream,
    "emdr2": emdr2,
    "info_nce": info_nce,
}


def make_loss(parts: Parts) -> tuple[Objective, PromptBuilder | None]:
    """The recipe's objective and, where it reads the LLM at every step, what builds the prompts."""
    args = parts.args
    temperatures = args.temperatures or {}
    terms = [BUILDERS[name](parts, temperatures.get(name, args.temperature)) for name in args.objectives]
    weights = list(args.objectives.values())
    loss: Objective = terms[0] if weights == [1.0] else MixtureLoss(terms, weights=weights)
    if args.encoder_micro_batch_size is not None:
        loss = GradCacheLoss(loss, micro_batch_size=args.encoder_micro_batch_size)
    return loss, parts.prompts() if args.reads_llm else None
