"""Write what a finished run keeps beside its encoder (recipe, record and model card), and the card of its gains."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sentence_transformers
import torch
import transformers
from huggingface_hub import DatasetCardData
from sentence_transformers import SentenceTransformer

from nlt_trainer.arguments.data import DataArguments
from nlt_trainer.arguments.stages import RECIPE_BLOCKS
from nlt_trainer.content import ADAPTER_CONFIG, file_hashes
from nlt_trainer.data.known_queries import write_query_keys
from nlt_trainer.errors import DataError, NLTError
from nlt_trainer.file_hashes import saved_hashes
from nlt_trainer.files import RECORD_FILE, TRAINED_QUERIES_FILE, atomic_write
from nlt_trainer.locations import is_hub_id
from nlt_trainer.prompts import PromptTemplate
from nlt_trainer.recipe.yaml_files import read_mapping
from nlt_trainer.release.card_rendering import dump_recipe, render_card
from nlt_trainer.release.hub import SHARDS
from nlt_trainer.release.licences import data_licence, model_licence
from nlt_trainer.run.folder import Run, changed_settings
from nlt_trainer.run.results import Result
from nlt_trainer.run.trained_queries import trained_queries_of
from nlt_trainer.text_files import read_json, write_json

CARD_FILE, RECIPE_FILE = "README.md", "recipe.yaml"
PROMPT_TEXTS = {"encoder_prompts", *(segment.name for segment in dataclasses.fields(PromptTemplate))}
"""Options that hold text of prompts."""
GAINS_CARD = """---
{metadata}
---

# Likelihood gains

For each query how much easier each candidate document makes its target text ({target}) for a frozen LLM: nats per
target token, above reading no document. nlt_trainer trains encoders on them.

- `candidates.jsonl`: query, answer where there is one, and BM25's candidates by their ids in the collection
- `gains.jsonl`: the gain of each candidate, in the same order
- `audit.json`: what the gains look like as a teacher

{queries} queries with {candidates} candidates each, of the collection `{collection}`, whose documents are not here.
Scored with {scorer}. Licence of the queries: {licence}.
"""
SCORES_CARD = """---
{metadata}
---

# Scores of a frozen LLM

How likely a frozen LLM finds target texts, with a document before them and without one: `log_likelihood` in nats,
summed over `target_tokens` tokens, and whether the document was cut (`truncated`). `key` is a hash of document, query
and answer, which are not here. `nlt pull --repo ORG/NAME --score_cache FOLDER` adds the scores to the cache of
nlt_trainer, which then does not compute them again.

A file's metadata says what its scores depend on besides these texts. There are scores of:

{scorers}
"""
CHECKPOINT_TEMPLATE = Path(__file__).parent / "checkpoint_card.md"


def prepare_card(encoder: SentenceTransformer, *, name: str) -> None:
    """Prepare an encoder for training, so that its checkpoints do not have the card it came with.

    Args:
        encoder: as it was loaded.
        name: title of the cards of checkpoints.
    """
    data = encoder.model_card_data
    data.template_path = CHECKPOINT_TEMPLATE
    data.model_name = name
    data.local_files_only = True  # otherwise the Hub is asked for a model with the name of the start's folder
    data.generate_widget_examples = False


def encoder_facts(encoder: SentenceTransformer) -> dict[str, Any]:
    """The facts about an encoder itself that its card states."""
    limit = encoder.get_max_seq_length()
    return {
        "dimensions": encoder.get_embedding_dimension(),
        "similarity": encoder.similarity_fn_name,
        "max_seq_length": limit if limit and limit < 1_000_000 else None,
        "prompts": dict(encoder.prompts),
        "architecture": str(encoder),
        "versions": {
            "Python": platform.python_version(),
            "Sentence Transformers": sentence_transformers.__version__,
            "Transformers": transformers.__version__,
            "PyTorch": str(torch.__version__),
        },
    }


def write_card(run: Run, results: Sequence[Result] = ()) -> None:
    """Write card, recipe and record of a run into its encoder's folder; a second call replaces them.

    Args:
        run: a finished training run.
        results: all rows; none before the evaluation. Those of the run's objective also go into the card's metadata.

    Raises:
        NLTError: the run's folder has no finished encoder.
    """
    if not run.encoder.is_dir():
        raise NLTError(f"{run.folder} has no finished encoder; train it again")
    if "encoder" not in run.report:
        raise NLTError(f"{run.training_file} says nothing of the encoder, it is of an older version; train again")
    recipe = published_recipe(run.settings)
    record = make_record(run.name, run.settings, run.report, results)
    decision = run.decision or {}
    record |= {"verdict": decision.get("sentence"), "kept": decision.get("kept")}
    write_release(run.encoder, recipe, record, trained_on=trained_queries_of(str(run.encoder)))


def published_recipe(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Settings that differ from the default, block -> key -> value. A path on this machine is cut to its last part."""
    changed = changed_settings(settings)
    return {
        block: shareable({key: value for key, value in settings[block].items() if key in changed})
        for block in RECIPE_BLOCKS
    }


def shareable(value: Any) -> Any:
    """Cut absolute paths in a value to their last part, because the rest only says where things lie on one machine.

    What stands under a name of `PROMPT_TEXTS` is text, even if it looks like a path, as `/no_think` does.
    """
    if isinstance(value, dict):
        return {key: item if key in PROMPT_TEXTS else shareable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shareable(item) for item in value]
    if isinstance(value, str) and (value.startswith("~") or Path(value).is_absolute()):
        return Path(value).name
    return value


def make_record(
    name: str, settings: Mapping[str, Any], training: Mapping[str, Any], results: Sequence[Result]
) -> dict[str, Any]:
    """Make the record: everything besides the recipe that a card is rendered from, as values that JSON can hold.

    Args:
        name: of the encoder.
        settings: what `run_settings` returned.
        training: the run's report.
        results: rows of the evaluation.

    Returns:
        `name`, `base_model` (a Hub id, or `None`), `adapter_base` (`None`, until `write_release` sets it), `training`,
        `encoder`, `licences` and `results`.
    """
    model = settings["model"]
    parts = [("start", model["encoder"], model_licence(model["encoder"], revision=model["encoder_revision"]))]
    if training["target"] is not None:
        parts.append(("LLM", model["llm"], model_licence(model["llm"], revision=model["llm_revision"])))
        if model["adapter"]:
            parts.append(("adapter of the LLM", model["adapter"], model_licence(model["adapter"])))
    parts.append(
        ("documents and queries", settings["data"]["collection"], data_licence(settings["data"]["collection"]))
    )
    return {
        "name": f"{name} encoder",
        "base_model": model["encoder"] if is_hub_id(model["encoder"]) else None,
        "adapter_base": None,
        "training": shareable({k: v for k, v in training.items() if k not in ("encoder", "log")})
        | {"log": _dev_results(training["log"], settings["data"]["dev_split"])},
        "encoder": training["encoder"],
        "licences": [{"part": part, "name": shareable(at), "licence": licence} for part, at, licence in parts],
        "results": [shareable(dataclasses.asdict(result)) for result in results],
    }


def _dev_results(log: Sequence[Mapping[str, Any]], split: str | None) -> list[dict[str, Any]]:
    metric = f"eval_{split}_ndcg_at_10"
    return [{"step": e["step"], "ndcg_at_10": round(e[metric], 4)} for e in log if metric in e]


def write_release(
    folder: Path, recipe: Mapping[str, Any], record: Mapping[str, Any], *, trained_on: frozenset[int] | None
) -> None:
    """Write recipe, record and card of an encoder into its folder; the record has hashes of its files.

    They are those of an earlier record, because a file may have been damaged since.

    Args:
        folder: of the encoder.
        recipe: block -> key -> value of the settings that differ from the default.
        record: what `make_record` returns.
        trained_on: keys of the queries that the encoder was trained on; `None` where they are not known.
    """
    files = saved_hashes(folder) or file_hashes(folder)
    record = {key: value for key, value in record.items() if key != "weights"}  # the name of `files` in version 0.1
    record |= {"adapter_base": adapter_base_of(folder), "files": files}
    with atomic_write(folder / RECIPE_FILE) as handle:
        handle.write(dump_recipe(recipe))
    write_json(folder / RECORD_FILE, record, checksum=True)
    if trained_on is not None:
        write_query_keys(folder / TRAINED_QUERIES_FILE, trained_on)
    with atomic_write(folder / CARD_FILE) as handle:
        handle.write(render_card(recipe, record, load_as=folder.as_posix()))


def read_release(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the recipe and the record that `write_release` has put into a folder.

    Raises:
        DataError: one of them is missing or malformed.
    """
    record = read_json(folder / RECORD_FILE, stage="nlt train")
    if "training" not in record or not (folder / RECIPE_FILE).is_file():
        raise DataError(folder, "has no card and no recipe yet; run `nlt train` again, which writes them")
    return read_mapping(folder / RECIPE_FILE), record


def adapter_base_of(folder: Path) -> str | None:
    """The base model that an encoder's adapter names; `None` where the folder holds the whole encoder."""
    config = folder / ADAPTER_CONFIG
    return read_json(config)["base_model_name_or_path"] if config.is_file() else None


def gains_card(data: DataArguments, audit: Mapping[str, Any]) -> str:
    """Render the card of a data set of gains.

    Args:
        data: names the collection.
        audit: what `nlt score` has written beside the gains.
    """
    files = ("gains", "candidates")
    metadata = DatasetCardData(
        task_categories=["text-retrieval"],
        tags=["nlt_trainer"],
        configs=[{"config_name": name, "data_files": f"{name}.jsonl"} for name in files],
    )
    scorer = ", ".join(f"{k} `{v!r}`" for k, v in shareable(audit["scorer"]["model"]).items() if v is not None)
    return GAINS_CARD.format(
        metadata=metadata.to_yaml(),
        scorer=scorer,
        target=audit["target"],
        queries=audit["queries"],
        candidates=audit["candidates"],
        collection=shareable(data.collection),
        licence=data_licence(data.collection) or "not known: no card on the machine of scoring states one",
    )


def scores_card(descriptions: Mapping[str, str]) -> str:
    """Render the card of a data set of scores.

    Args:
        descriptions: name of each cache -> what its scores depend on besides the texts, as JSON.
    """
    metadata = DatasetCardData(
        tags=["nlt_trainer"], configs=[{"config_name": "scores", "data_files": f"{SHARDS}/*.parquet"}]
    )
    scorers = (f"- `{name}`: `{description}`" for name, description in sorted(descriptions.items()))
    return SCORES_CARD.format(metadata=metadata.to_yaml(), scorers="\n".join(scorers))
