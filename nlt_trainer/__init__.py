"""Train dense retrieval encoders from the next-token likelihood of a frozen LLM, without labels."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers; a test compares this list with the table below
    from nlt_trainer.data.beir import Collection as Collection
    from nlt_trainer.data.beir import load_collection as load_collection
    from nlt_trainer.data.beir import training_queries as training_queries
    from nlt_trainer.data.candidates import mine_candidates as mine_candidates
    from nlt_trainer.data.collator import NLTCollator as NLTCollator
    from nlt_trainer.data.training import training_dataset as training_dataset
    from nlt_trainer.encoder.loading import load_encoder as load_encoder
    from nlt_trainer.encoder.lora import add_llm_lora as add_llm_lora
    from nlt_trainer.errors import NLTError as NLTError
    from nlt_trainer.evaluation.evaluator import RetrievalEvaluator as RetrievalEvaluator
    from nlt_trainer.evaluation.evaluator import evaluate_encoder as evaluate_encoder
    from nlt_trainer.evaluation.folder_task import BEIRFolderRetrieval as BEIRFolderRetrieval
    from nlt_trainer.injection.detection import detect_heads_by_gradient as detect_heads_by_gradient
    from nlt_trainer.injection.detection import detect_query_focused_heads as detect_query_focused_heads
    from nlt_trainer.injection.detection import relevant_by_gain as relevant_by_gain
    from nlt_trainer.injection.heads import HeadSet as HeadSet
    from nlt_trainer.lm.frozen_lm import FrozenLM as FrozenLM
    from nlt_trainer.lm.score_cache import ScoreCache as ScoreCache
    from nlt_trainer.lm.scoring import LikelihoodScorer as LikelihoodScorer
    from nlt_trainer.objectives.adist import ADistLoss as ADistLoss
    from nlt_trainer.objectives.dream import DREAMLoss as DREAMLoss
    from nlt_trainer.objectives.emdr2 import EMDR2Loss as EMDR2Loss
    from nlt_trainer.objectives.grad_cache import GradCacheLoss as GradCacheLoss
    from nlt_trainer.objectives.info_nce import InfoNCELoss as InfoNCELoss
    from nlt_trainer.objectives.likelihood_gain import LikelihoodGainLoss as LikelihoodGainLoss
    from nlt_trainer.objectives.loop import LOOPLoss as LOOPLoss
    from nlt_trainer.objectives.mixture import MixtureLoss as MixtureLoss
    from nlt_trainer.objectives.objective import Objective as Objective
    from nlt_trainer.objectives.remote import RemoteObjective as RemoteObjective
    from nlt_trainer.objectives.revela import RevelaLoss as RevelaLoss
    from nlt_trainer.prompts import PromptTemplate as PromptTemplate
    from nlt_trainer.trainer import NLTTrainer as NLTTrainer
    from nlt_trainer.training_arguments import NLTTrainingArguments as NLTTrainingArguments

# A name is imported when it is first used (PEP 562): torch and transformers take seconds, and `nlt --help` needs
# neither.
_MODULES = {
    "ADistLoss": "nlt_trainer.objectives.adist",
    "BEIRFolderRetrieval": "nlt_trainer.evaluation.folder_task",
    "Collection": "nlt_trainer.data.beir",
    "DREAMLoss": "nlt_trainer.objectives.dream",
    "EMDR2Loss": "nlt_trainer.objectives.emdr2",
    "FrozenLM": "nlt_trainer.lm.frozen_lm",
    "GradCacheLoss": "nlt_trainer.objectives.grad_cache",
    "HeadSet": "nlt_trainer.injection.heads",
    "InfoNCELoss": "nlt_trainer.objectives.info_nce",
    "LOOPLoss": "nlt_trainer.objectives.loop",
    "LikelihoodGainLoss": "nlt_trainer.objectives.likelihood_gain",
    "LikelihoodScorer": "nlt_trainer.lm.scoring",
    "MixtureLoss": "nlt_trainer.objectives.mixture",
    "NLTCollator": "nlt_trainer.data.collator",
    "NLTError": "nlt_trainer.errors",
    "NLTTrainer": "nlt_trainer.trainer",
    "NLTTrainingArguments": "nlt_trainer.training_arguments",
    "Objective": "nlt_trainer.objectives.objective",
    "PromptTemplate": "nlt_trainer.prompts",
    "RemoteObjective": "nlt_trainer.objectives.remote",
    "RetrievalEvaluator": "nlt_trainer.evaluation.evaluator",
    "RevelaLoss": "nlt_trainer.objectives.revela",
    "ScoreCache": "nlt_trainer.lm.score_cache",
    "add_llm_lora": "nlt_trainer.encoder.lora",
    "detect_heads_by_gradient": "nlt_trainer.injection.detection",
    "detect_query_focused_heads": "nlt_trainer.injection.detection",
    "evaluate_encoder": "nlt_trainer.evaluation.evaluator",
    "load_collection": "nlt_trainer.data.beir",
    "load_encoder": "nlt_trainer.encoder.loading",
    "mine_candidates": "nlt_trainer.data.candidates",
    "relevant_by_gain": "nlt_trainer.injection.detection",
    "training_dataset": "nlt_trainer.data.training",
    "training_queries": "nlt_trainer.data.beir",
}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
