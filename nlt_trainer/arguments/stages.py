"""The blocks of options that each stage takes: those of a recipe, and those of single stages."""

from __future__ import annotations

from nlt_trainer.arguments.adapt import AdaptArguments
from nlt_trainer.arguments.collection import CollectionArguments
from nlt_trainer.arguments.data import DataArguments
from nlt_trainer.arguments.documents import DocumentArguments
from nlt_trainer.arguments.evaluation import EvaluationArguments
from nlt_trainer.arguments.inherited import CHOOSING, DECIDING, OTHER, REFUSED
from nlt_trainer.arguments.model import ModelArguments
from nlt_trainer.arguments.plan import PlanArguments
from nlt_trainer.arguments.queries import QueriesArguments
from nlt_trainer.arguments.release import ExportArguments, PullArguments, PushArguments
from nlt_trainer.arguments.search import AppArguments, SearchArguments
from nlt_trainer.arguments.trainer import TrainerArguments
from nlt_trainer.recipe.keys import Block, Blocks

_TRAINER = Block(
    own=TrainerArguments,
    full="nlt_trainer.training_arguments:NLTTrainingArguments",
    inherited=DECIDING | {*CHOOSING} | OTHER,
    refused=REFUSED,
    documentation="https://sbert.net/docs/package_reference/sentence_transformer/training_args.html",
)
RECIPE_BLOCKS: Blocks = {"model": ModelArguments, "data": DataArguments, "trainer": _TRAINER}
"""Blocks of a recipe, for the stages that take no others."""
EVALUATION_BLOCKS: Blocks = {**RECIPE_BLOCKS, "evaluation": EvaluationArguments}
EXPORT_BLOCKS: Blocks = {**RECIPE_BLOCKS, "export": ExportArguments}
PUSH_BLOCKS: Blocks = {**EXPORT_BLOCKS, "push": PushArguments}
PULL_BLOCKS: Blocks = {"pull": PullArguments}
SEARCH_BLOCKS: Blocks = {"search": SearchArguments}
APP_BLOCKS: Blocks = {"app": AppArguments}
PLAN_BLOCKS: Blocks = {**RECIPE_BLOCKS, "plan": PlanArguments}
CORPUS_BLOCKS: Blocks = {"documents": DocumentArguments}
ADAPT_BLOCKS: Blocks = {"adapt": AdaptArguments, **RECIPE_BLOCKS}
COLLECTION_BLOCKS: Blocks = {"collection": CollectionArguments}
QUERIES_BLOCKS: Blocks = {**RECIPE_BLOCKS, "queries": QueriesArguments}
