"""The model card of a trained encoder: Sentence-Transformers' own, with how it was trained and what it scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from nlt_trainer.arguments import parse_objective
from nlt_trainer.errors import NLTError
from nlt_trainer.files import atomic_write, read_json
from nlt_trainer.results import Result, results_table

MARK = "<!-- nlt_trainer -->"

SECTION = Template("""
$mark
## Trained by nlt_trainer

This encoder was trained with the objective `$objective`. $labels

| | |
|---|---|
| start | `$encoder` |
| frozen LLM | `$llm` |
| training queries | $queries, $num_candidates candidates each |
| target | $target |
| optimizer steps | $steps |
| LLM tokens | $lm_tokens |
| seconds, LLM included | $train_seconds |

Load it:

```python
from sentence_transformers import SentenceTransformer

encoder = SentenceTransformer("path or id of this model")
queries = encoder.encode_query(["how do I parse a date?"])
documents = encoder.encode_document(["def parse_date(text): ..."])
print(encoder.similarity(queries, documents))
```

### Results

$table

Scored by mteb on the whole corpus of each collection. "start" is the encoder before training.

### Settings

$settings

### Limits

It was fitted to the documents and queries of one collection; elsewhere it can be worse than its start, so evaluate it
on your own. The licences of the start, of the LLM and of the training documents apply to it.
""")


def write_card(run: Path, results: Sequence[Result]) -> None:
    """Put settings, cost and results of a run into `<run>/encoder/README.md`; a second call replaces the first's.

    Args:
        run: output folder of a finished training run.
        results: all rows; those of the run's objective also go into the card's metadata.

    Raises:
        NLTError: the encoder has no card of Sentence-Transformers to add to.
    """
    path = run / "encoder" / "README.md"
    if not path.is_file():
        raise NLTError(f"{path} is missing; train the encoder again")
    report, settings = (read_json(run / name, stage="nlt train") for name in ("training.json", "settings.json"))
    card = ModelCard.load(path)
    card.text = card.text.partition(MARK)[0].rstrip() + "\n" + _section(report, settings, results)
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


def _section(report: dict[str, Any], settings: dict[str, Any], results: Sequence[Result]) -> str:
    model, data = settings["model"], settings["data"]
    blocks = [model, data, settings["trainer"]]
    lines = [f"- {key}: `{value!r}`" for block in blocks for key, value in block.items() if value is not None]
    return SECTION.substitute(
        mark=MARK,
        objective=report["objective"],
        labels=_labels(report["objective"], data, llm_trained=model.get("llm_lora") is not None),
        encoder=model["encoder"],
        llm=model["llm"],
        queries=report["queries"],
        num_candidates=data["num_candidates"],
        target=data["target"] or "joint with answers, else query",
        steps=report["steps"],
        lm_tokens=f"{report['lm_tokens']:,}",
        train_seconds=f"{report['train_seconds']:,.0f}",
        table=results_table(results),
        settings="\n".join(lines),
    )


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
