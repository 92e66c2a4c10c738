"""Dense retrieval encoders trained from the next-token likelihood of a frozen LLM, without labels."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nlt_trainer.data.collator import NLTCollator
    from nlt_trainer.encoder.loading import load_encoder
    from nlt_trainer.evaluation.evaluator import evaluate_encoder
    from nlt_trainer.evaluation.folder_task import BEIRFolderRetrieval
    from nlt_trainer.injection.heads import HeadSet, detect_query_focused_heads
    from nlt_trainer.lm.frozen_lm import FrozenLM
    from nlt_trainer.lm.score_cache import ScoreCache
    from nlt_trainer.lm.scoring import LikelihoodScorer
    from nlt_trainer.objectives.adist import ADistLoss
    from nlt_trainer.objectives.dream import DREAMLoss
    from nlt_trainer.objectives.emdr2 import EMDR2Loss
    from nlt_trainer.objectives.grad_cache import GradCacheLoss
    from nlt_trainer.objectives.info_nce import InfoNCELoss
    from nlt_trainer.objectives.likelihood_gain import LikelihoodGainLoss
    from nlt_trainer.objectives.loop import LOOPLoss
    from nlt_trainer.objectives.mixture import MixtureLoss
    from nlt_trainer.objectives.revela import RevelaLoss
    from nlt_trainer.trainer import NLTTrainer
    from nlt_trainer.training_arguments import NLTTrainingArguments

# Imported when first used (PEP 562): torch and transformers take seconds, and `nlt --help` needs neither.
_MODULES = {
    "ADistLoss": "nlt_trainer.objectives.adist",
    "BEIRFolderRetrieval": "nlt_trainer.evaluation.folder_task",
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
    "NLTTrainer": "nlt_trainer.trainer",
    "NLTTrainingArguments": "nlt_trainer.training_arguments",
    "RevelaLoss": "nlt_trainer.objectives.revela",
    "ScoreCache": "nlt_trainer.lm.score_cache",
    "detect_query_focused_heads": "nlt_trainer.injection.heads",
    "evaluate_encoder": "nlt_trainer.evaluation.evaluator",
    "load_encoder": "nlt_trainer.encoder.loading",
}

__all__ = [
    "ADistLoss",
    "BEIRFolderRetrieval",
    "DREAMLoss",
    "EMDR2Loss",
    "FrozenLM",
    "GradCacheLoss",
    "HeadSet",
    "InfoNCELoss",
    "LOOPLoss",
    "LikelihoodGainLoss",
    "LikelihoodScorer",
    "MixtureLoss",
    "NLTCollator",
    "NLTTrainer",
    "NLTTrainingArguments",
    "RevelaLoss",
    "ScoreCache",
    "detect_query_focused_heads",
    "evaluate_encoder",
    "load_encoder",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
