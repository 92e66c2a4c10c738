"""Memory of a training of many steps: the resident set against the step, and the slope of a line through it.

```bash
python tests/benchmarks/step_load.py --steps 10000
```

A random BERT of two layers is trained with likelihood gain or, with `--objective dream`, with DREAM on a random Llama
of two layers. As in a recipe, the log gets an entry every 100 steps, and a checkpoint is written every 1,000 steps, of
which one is kept. The line goes through the steps after the first fifth. The table also has the resident set after
each tenth of the steps.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from datasets import Dataset
from measuring import parser, record, show, slope, status_mib
from sentence_transformers import SentenceTransformer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from nlt_trainer import (
    DREAMLoss,
    FrozenLM,
    LikelihoodGainLoss,
    NLTTrainer,
    NLTTrainingArguments,
    detect_heads_by_gradient,
    relevant_by_gain,
)

sys.path.insert(0, str(Path(__file__).parents[1]))  # tiny is imported where it is used

EVERY = 20
"""Steps from one reading of the resident set to the next."""


class Watch(TrainerCallback):
    """Reads the resident set while training goes on.

    Args:
        readings: gets `(step, MiB)`.
    """

    def __init__(self, readings: list[tuple[int, float]]) -> None:
        self.readings = readings

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step % EVERY == 0:
            self.readings.append((state.global_step, status_mib("VmRSS")))


def rows() -> Dataset:
    """The queries of the tiny collection with four documents each, 250 times over; the gains are made up."""
    from tiny import DOCUMENTS, QUERIES

    texts = [text for _, text in DOCUMENTS.values()]
    found = [
        {
            "query": query,
            "documents": [texts[(3 * b + k) % len(texts)] for k in range(4)],
            "gain": [0.1 * ((b + k) % 4) for k in range(4)],
        }
        for b, (query, *_) in enumerate(QUERIES.values())
    ]
    return Dataset.from_list(found * 250)


def train(folder: Path, *, objective: str, steps: int) -> list[tuple[int, float]]:
    """Train so many steps in a folder; returns step and resident set."""
    from tiny import QUERIES, save_encoder, save_llm

    save_encoder(folder / "start", parts=folder / "parts")
    encoder, dataset = SentenceTransformer(str(folder / "start"), device="cpu"), rows()
    loss: Any = LikelihoodGainLoss(encoder)
    collator = loss.collator()
    if objective == "dream":
        save_llm(folder / "llm")
        lm = FrozenLM.from_pretrained(str(folder / "llm"), device="cpu")
        first = dataset[: len(QUERIES)]
        relevant = relevant_by_gain(first["gain"])
        heads = detect_heads_by_gradient(
            lm, first["query"], documents=first["documents"], relevant=relevant, target="query", num_heads=3
        )
        loss = DREAMLoss(encoder, lm, heads=heads)
        collator = loss.collator(dataset)
    args = NLTTrainingArguments(
        output_dir=str(folder / "run"), max_steps=steps, per_device_train_batch_size=2, logging_steps=100,
        save_steps=1000, save_total_limit=1, report_to=[], use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    readings: list[tuple[int, float]] = []
    trainer = NLTTrainer(
        encoder, args, train_dataset=dataset, loss=loss, data_collator=collator, callbacks=[Watch(readings)]
    )
    trainer.train()
    return readings


def main(argv: list[str] | None = None) -> None:
    """Train, fit the line, print a table and write JSON."""
    flags = parser(__doc__)
    flags.add_argument("--steps", type=int, default=10_000)
    flags.add_argument("--objective", choices=("likelihood_gain", "dream"), default="likelihood_gain")
    options = flags.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        readings = train(Path(folder), objective=options.objective, steps=options.steps)
    warm = [(step, mib) for step, mib in readings if step > options.steps // 5]
    growth = slope(*zip(*warm, strict=True))
    tenths = [next(mib for step, mib in readings if step >= options.steps * i // 10) for i in range(1, 11)]
    row = {"objective": options.objective, "steps": options.steps, "bytes a step": growth}
    show([row | {"MiB after each tenth": ", ".join(f"{mib:.1f}" for mib in tenths)}])
    name = f"step_load_{options.objective}"
    record(options.json, name, {f"{name}_bytes_a_step": round(growth, 1)}, {"readings": readings})


if __name__ == "__main__":
    main()
