"""The model card of a trained encoder: what it is, how to use it, how it was trained and what it scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from huggingface_hub import EvalResult, ModelCard
from sentence_transformers import SentenceTransformer

from nlt_trainer.arguments import ModelArguments, parse_objective
from nlt_trainer.errors import NLTError
from nlt_trainer.files import atomic_write, read_json
from nlt_trainer.models.locations import resolve_model
from nlt_trainer.results import Result, results_table

MARK, END = "<!-- nlt_trainer -->", "<!-- nlt_trainer ends -->"

TEMPLATE = Path(__file__).parent / "card_template.md"

SECTION = Template("""
## Use

```bash
pip install $packages
```

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("$path")  # this folder, or the model's id on the Hub
queries = model.encode_query(["how do I parse a date?"])
documents = model.encode_document(["Read a date from a string.", "Close a file."])
print(model.similarity(queries, documents))  # one row a query, one column a document
```
$base
## Training

nlt_trainer trained this encoder with the objective `$objective`. $labels

| | |
|---|---|
$facts

### Results

$results

### Settings

<details><summary>Everything that the recipe sets, whether this objective reads it or not</summary>

$settings

</details>

### Limits

It was fitted to the documents and queries of one collection; elsewhere it can be worse than its start, so evaluate it
on your own. The licences of the start, of the LLM and of the training documents apply to it.
""")


def prepare_card(encoder: SentenceTransformer, model: ModelArguments, *, name: str) -> None:
    """Let an encoder that is to be trained be saved with a card of this project.

    Args:
        encoder: as it was loaded; the card that it came with is left behind.
        model: names what it was loaded from.
        name: title of the card.
    """
    data = encoder.model_card_data
    start = resolve_model(model.encoder)
    data.template_path = TEMPLATE
    data.model_name = name
    data.local_files_only = True  # else the Hub is asked for models that are called like the start's folder
    data.base_model = None if Path(start).is_dir() else start
    data.generate_widget_examples = False
    data.widget = [{}]  # where it is empty, the trainer fills it with the user's texts


def write_card(run: Path, results: Sequence[Result] = ()) -> None:
    """Put use, settings, cost and results of a run into `<run>/encoder/README.md`; a second call replaces the first's.

    Args:
        run: output folder of a finished training run.
        results: all rows, none before the evaluation; those of the run's objective also go into the card's metadata.

    Raises:
        NLTError: the encoder has no card of Sentence-Transformers to add to.
    """
    path = run / "encoder" / "README.md"
    if not path.is_file():
        raise NLTError(f"{path} is missing; train the encoder again")
    report, settings = (read_json(run / name, stage="nlt train") for name in ("training.json", "settings.json"))
    card = ModelCard.load(path)
    before, _, after = card.text.partition(MARK)
    section = _section(report, settings, results, encoder=path.parent)
    card.text = f"{before.rstrip()}\n\n{MARK}{section}{END}{after.partition(END)[2]}"
    card.data.eval_results = [
        EvalResult(
            task_type="retrieval",
            dataset_type=result.collection,
            dataset_name=f"{result.collection} {result.split}",
            metric_type=metric,
            metric_value=round(float(getattr(result, metric)), 4),
        )
        for result in results
        if result.name == report["objective"]
        for metric in ("ndcg_at_10", "mrr_at_10", "recall_at_100")
    ]
    card.data.model_name = f"{run.name} encoder"
    with atomic_write(path) as handle:
        handle.write(str(card))


def _section(report: dict[str, Any], settings: dict[str, Any], results: Sequence[Result], *, encoder: Path) -> str:
    model, data = settings["model"], settings["data"]
    lines = [
        f"- {key}: `{value!r}`"
        for block in (model, data, settings["trainer"])
        for key, value in block.items()
        if value is not None
    ]
    base = _adapter_base(encoder)
    needs = "" if base is None else f"\nThe folder holds an adapter alone; loading it needs its base too: `{base}`.\n"
    measured = 'Scored by mteb on the whole corpus of each collection. "start" is the encoder before training.'
    return SECTION.substitute(
        packages="sentence-transformers" if base is None else "sentence-transformers peft",
        path=encoder.as_posix(),
        base=needs,
        objective=report["objective"],
        labels=_labels(report["objective"], data, llm_trained=model.get("llm_lora") is not None),
        facts="\n".join(f"| {name} | {value} |" for name, value in _facts(report, model, data).items()),
        results=f"{results_table(results)}\n\n{measured}" if results else "None yet: `nlt evaluate` puts them here.",
        settings="\n".join(lines),
    )


def _facts(report: dict[str, Any], model: dict[str, Any], data: dict[str, Any]) -> dict[str, str]:
    """What the card's table says of a run; nothing of an LLM where none had a part in it."""
    facts = {"start": _named(model, "encoder")}
    if report.get("target") is not None:
        facts["LLM"] = _named(model, "llm") + (f" with adapter `{model['adapter']}`" if model["adapter"] else "")
        facts["target"] = report["target"]
    if report.get("reads_gains"):
        facts["gains scored with"] = _scorer(report["scorer"])
    return facts | {
        "training queries": f"{report['queries']}, {data['num_candidates']} candidates each",
        "optimizer steps": str(report["steps"]),
        "LLM tokens": f"{report['lm_tokens']:,}",
        "seconds, LLM included": f"{report['train_seconds']:,.0f}",
    }


def _named(model: dict[str, Any], key: str) -> str:
    revision = model[f"{key}_revision"]
    return f"`{model[key]}`" + (f" at revision `{revision}`" if revision else "")


def _scorer(scorer: Mapping[str, Any] | None) -> str:
    """The prompt and the LLM of the audit beside the gains."""
    if scorer is None:
        return "not known: no audit stands beside the gains"
    flat = {**scorer.get("model", {}), **{k: v for k, v in scorer.items() if k not in ("model", "llm", "template")}}
    flat |= {key: value for key, value in scorer.get("template", {}).items() if key != "version"}
    return ", ".join(f"{key} `{value!r}`" for key, value in flat.items() if value is not None)


def _adapter_base(encoder: Path) -> str | None:
    """The base that an encoder's adapter names; `None` where the folder stands alone."""
    config = encoder / "adapter_config.json"
    return read_json(config)["base_model_name_or_path"] if config.is_file() else None


def _labels(objective: str, data: dict[str, Any], *, llm_trained: bool = False) -> str:
    """What relevance judgements, if any, had a part in the run."""
    names = parse_objective(objective)
    sentences = []
    if "info_nce" in names and data["labels"]:
        sentences.append(f"Its positives are the relevance judgements of `qrels/{data['train_split']}.tsv`.")
    if "dream" in names and data["head_qrels"]:
        sentences.append(f"Relevance judgements of `qrels/{data['head_qrels']}.tsv` chose the LLM's heads, no more.")
    if not sentences:
        llm = "an LLM with an adapter that was trained too" if llm_trained else "a frozen LLM"
        sentences.append(f"It learnt from {llm} and from no relevance judgement.")
    if data["dev_split"]:
        sentences.append(f"Judgements of `qrels/{data['dev_split']}.tsv` measured its progress.")
    return " ".join(sentences)
