"""Dense retrieval encoders trained from the next-token likelihood of a frozen LLM, without labels."""

from nlt_trainer.arguments import NLTTrainingArguments
from nlt_trainer.data.collator import NLTCollator
from nlt_trainer.evaluation import BEIRFolderRetrieval, evaluate_encoder
from nlt_trainer.models.encoder import load_encoder
from nlt_trainer.models.frozen_lm import FrozenLM
from nlt_trainer.models.heads import HeadSet, detect_query_focused_heads
from nlt_trainer.models.score_cache import ScoreCache
from nlt_trainer.models.scoring import LikelihoodScorer
from nlt_trainer.objectives.dream import DREAMLoss
from nlt_trainer.objectives.info_nce import InfoNCELoss
from nlt_trainer.objectives.likelihood_gain import LikelihoodGainLoss
from nlt_trainer.trainer import NLTTrainer

__all__ = [
    "BEIRFolderRetrieval",
    "DREAMLoss",
    "FrozenLM",
    "HeadSet",
    "InfoNCELoss",
    "LikelihoodGainLoss",
    "LikelihoodScorer",
    "NLTCollator",
    "NLTTrainer",
    "NLTTrainingArguments",
    "ScoreCache",
    "detect_query_focused_heads",
    "evaluate_encoder",
    "load_encoder",
]
