"""Render the text of a model card from the recipe and the record of a run; nothing else is read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from nlt_trainer.arguments.data import DataArguments
from nlt_trainer.arguments.model import ModelArguments
from nlt_trainer.arguments.trainer import parse_objective
from nlt_trainer.files import RECORD_FILE
from nlt_trainer.run.results import Result, as_results, results_table, table_row, verdicts

TEMPLATE = Path(__file__).parent / "card_template.md"
TAGS = ("sentence-transformers", "sentence-similarity", "feature-extraction", "dense", "nlt_trainer")
METRICS = {"ndcg_at_10": "nDCG@10", "mrr_at_10": "MRR@10", "recall_at_100": "Recall@100"}

ATLAS = "Izacard et al., *Atlas: Few-shot Learning with Retrieval Augmented Language Models*, arXiv:2208.03299"
PAPERS = {
    "likelihood_gain": ATLAS,
    "dream": "Tang and Yang, *DREAM: Dense Retrieval Embeddings via Autoregressive Modeling*, arXiv:2606.24667",
    "emdr2": "Sachan et al., *End-to-End Training of Multi-Document Reader and Retriever for Open-Domain Question "
    "Answering*, arXiv:2106.05346",
    "loop": ATLAS,
    "adist": ATLAS,
    "revela": "*Revela: Dense Retriever Learning via Language Modeling*, arXiv:2506.16552",
    "info_nce": "van den Oord et al., *Representation Learning with Contrastive Predictive Coding*, arXiv:1807.03748",
}
"""The paper that each objective comes from."""
UNKNOWN_LICENCE = "not known: no card on the machine of training states one"
LIBRARIES = "Reimers and Gurevych, *Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks*, arXiv:1908.10084"


def render_card(recipe: Mapping[str, Any], record: Mapping[str, Any], *, load_as: str) -> str:
    """The model card: metadata, use, training, results, limits, licences.

    Args:
        recipe: block -> key -> value of the run's settings that differ from the default.
        record: what `make_record` returns.
        load_as: folder or Hub id in the code that loads the encoder.
    """
    training, encoder = record["training"], record["encoder"]
    model, data = ModelArguments(**recipe["model"]), DataArguments(**recipe["data"])
    results = as_results(record["results"], RECORD_FILE)
    card = ModelCard.from_template(
        _metadata(record, results),
        template_path=str(TEMPLATE),
        name=record["name"],
        encoder=encoder,
        load_as=load_as,
        adapter_base=record["adapter_base"],
        training=training,
        labels=labels_sentence(
            training["objective"], data, llm_trained=model.llm_lora is not None, watched=is_watched(training)
        ),
        prompts=[table_row((key, code(text) if text else "none")) for key, text in encoder["prompts"].items()],
        facts=[table_row(fact) for fact in _facts(training, model, data).items()],
        log=[(entry["step"], f"{entry['ndcg_at_10']:.3f}") for entry in training["log"]],
        recipe=dump_recipe(recipe).rstrip(),
        results=results_table(results) if results else "",
        verdict=record.get("verdict"),
        decided=any(row.kept is not None for row in results),
        kept=record.get("kept"),
        comparison=verdicts(results, training["objective"]),
        licences=[
            table_row((part["part"], code(part["name"]), part["licence"] or UNKNOWN_LICENCE))
            for part in record["licences"]
        ],
        papers=[*dict.fromkeys(PAPERS[name] for name in parse_objective(training["objective"])), LIBRARIES],
    )
    return str(card)


def code(text: str) -> str:
    """A text as code in Markdown, as Python writes it where it has line breaks or the like."""
    shown = text if text.isprintable() else repr(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    return f"{fence} {shown} {fence}" if len(fence) > 1 else f"{fence}{shown}{fence}"


def dump_recipe(recipe: Mapping[str, Any]) -> str:
    """A recipe as YAML, with blocks and keys in their own order."""
    return yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True)


def _metadata(record: Mapping[str, Any], results: list[Result]) -> ModelCardData:
    """The card's metadata. Its results have the form of mteb's `TaskResult.get_hf_eval_results`, for three metrics."""
    objective = record["training"]["objective"]
    return ModelCardData(
        base_model=record["base_model"],
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=[*TAGS],
        metrics=[*METRICS] if results else None,
        model_name=record["name"],
        eval_results=[
            EvalResult(
                task_type="text-retrieval",
                task_name="Retrieval",
                dataset_type=result.collection,
                dataset_name=f"{result.collection}-{result.split} (default)",
                dataset_config="default",
                dataset_split=result.split,
                metric_type=metric,
                metric_name=metric,
                metric_value=round(float(getattr(result, metric)), 5),
                source_name="MTEB",
                source_url="https://github.com/embeddings-benchmark/mteb/",
            )
            for result in results
            if result.name == objective
            for metric in METRICS
        ],
    )


def _facts(training: Mapping[str, Any], model: ModelArguments, data: DataArguments) -> dict[str, str]:
    """The facts about a run in the card's table. Those about an LLM are left out where none took part."""
    facts = {"start": _named(model.encoder, model.encoder_revision)}
    if training.get("target") is not None:
        adapter = f" with adapter `{model.adapter}`" if model.adapter else ""
        facts["LLM"] = _named(model.llm, model.llm_revision) + adapter
        facts["target"] = training["target"]
    if "dream" in parse_objective(training["objective"]):
        facts["heads"] = f"{model.num_heads} of the LLM's, found by `{data.head_method}`"
    if training.get("reads_gains"):
        facts["gains scored with"] = _scorer(training["scorer"])
    if average := training.get("average"):
        facts["weights"] = f"{average['share']:g} of the start's and {1 - average['share']:g} of the trained"
        if len(average["dev"]) > 1:
            facts["weights"] += f", chosen on the queries of {data.dev_split}"
    best = training.get("best_step")
    return facts | {
        "collection": f"`{data.collection}`",
        "training queries": f"{training['queries']}, {data.num_candidates} candidates each",
        "optimizer steps": f"{training['steps']}" + (f"; the best is saved, that of step {best}" if best else ""),
        "LLM tokens": f"{training['lm_tokens']:,}",
        "seconds, LLM included": f"{training['train_seconds']:,.0f}",
    }


def _named(name: str, revision: str | None) -> str:
    return f"`{name}`" + (f" at revision `{revision}`" if revision else "")


def _scorer(scorer: Mapping[str, Any] | None) -> str:
    """The prompt and the LLM that the audit beside the gains names."""
    if scorer is None:
        return "not known: no audit stands beside the gains"
    flat = {**scorer.get("model", {}), **{k: v for k, v in scorer.items() if k not in ("model", "llm", "template")}}
    flat |= {key: value for key, value in scorer.get("template", {}).items() if key != "version"}
    return ", ".join(f"{key} {code(repr(value))}" for key, value in flat.items() if value is not None)


def is_watched(training: Mapping[str, Any]) -> bool:
    """Whether something was evaluated on dev queries, while training ran or to choose the start's share at its end."""
    return bool(training["log"] or (training.get("average") or {"dev": []})["dev"])


def labels_sentence(objective: str, data: DataArguments, *, llm_trained: bool = False, watched: bool = False) -> str:
    """Say which relevance judgements, if any, took part in the run.

    Args:
        objective: the recipe's.
        data: block `data:`.
        llm_trained: whether an adapter of the LLM was trained, too.
        watched: whether the encoder was evaluated on `dev_split`.
    """
    names = parse_objective(objective)
    sentences = []
    if "info_nce" in names and data.labels:
        sentences.append(f"Its positives are the relevance judgements of `qrels/{data.train_split}.tsv`.")
    if "dream" in names and data.head_qrels:
        sentences.append(f"Relevance judgements of `qrels/{data.head_qrels}.tsv` chose the LLM's heads, no more.")
    if not sentences:
        llm = "an LLM with an adapter that was trained too" if llm_trained else "a frozen LLM"
        sentences.append(f"It learnt from {llm} and from no relevance judgement.")
    if data.dev_split and watched:
        sentences.append(f"Judgements of `qrels/{data.dev_split}.tsv` measured its progress.")
    return " ".join(sentences)
