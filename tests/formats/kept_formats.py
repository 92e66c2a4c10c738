"""Make the folder `kept/`: every format that this package writes and reads again, as version 0.1 writes it.

```bash
python tests/formats/kept_formats.py NEW_FOLDER
```

The tests beside it read `kept/` with today's code, and later versions must still read it. Where a format changes, make
a second folder beside `kept/` and let the tests read both. The keys in three stamps of `adapted/` are not as version
0.1 has written them: an option of training has gone since, after which `nlt adapt` trains once more.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
STEP = 3
"""The step whose checkpoint is kept of each run that stopped on its way."""

KEPT = {"settings.json", f"checkpoint-{STEP}", "candidates-2.jsonl", "gains-2.jsonl", "gains-2.audit.json"}
"""What is left of such a run; the candidates are those that a refresh before this step has mined."""

RECIPE = """
model:
  encoder: encoder
  llm: llm
  llm_dtype: float32
  heads: heads.json
  num_heads: 3
data:
  collection: collection
  train_split: train
  eval_split: test
  candidates: candidates.jsonl
  gains: gains.jsonl
  score_cache: scores
  token_likelihoods: true
  miner: fused
  num_candidates: 4
  max_document_tokens: 24
trainer:
  output_dir: stopped
  max_steps: 6
  per_device_train_batch_size: 2
  learning_rate: 0.01
  logging_steps: 1
  save_steps: 3
  report_to: none
  use_cpu: true
  disable_tqdm: true
"""
REFRESHED = ["--output_dir=refreshed", "--refresh=0-9:2", '--lora={"r": 2, "target_modules": "all-linear"}']
"""What the recipe of the second run has beside `RECIPE`."""
ADAPT = [
    "documents", "--encoder=encoder", "--llm=llm", "--llm_dtype=float32", "--output=adapted", "--num_candidates=3",
    "--max_document_tokens=16", "--train_max_length=16", "--use_cpu=true", "--disable_tqdm=true",
    "--encoder_precision=float32", "--per_device_train_batch_size=8",
    "--num_queries=80", "--held_out=20",
]  # fmt: skip
"""Command line of `nlt adapt`."""


def make(folder: Path) -> None:
    """Run the stages in a new folder, and leave two of its runs as if they had stopped at a step."""
    sys.path.insert(0, str(HERE.parent))
    from tiny import DOCUMENTS, save_encoder, save_llm, write_collection

    from nlt_trainer.scripts import adapt, detect_heads, evaluate, mine, score, train
    from nlt_trainer.text_files import write_jsonl

    folder.mkdir()
    os.chdir(folder)
    os.environ["NLT_CACHE"] = "cache"
    save_llm(Path("llm"), hidden_size=8, vocab_size=300)
    save_encoder(Path("encoder"), parts=Path("parts"), hidden_size=8, vocab_size=300)
    shutil.rmtree("parts")
    write_collection(Path("collection"))
    Path("recipe.yaml").write_text(RECIPE, encoding="utf-8")
    texts = [text for _, text in DOCUMENTS.values()]
    chosen = ([texts[(i * k + 5 * k + i) % 12].replace(".", f" {i}.") for k in range(1, 4)] for i in range(60))
    write_jsonl("documents/texts.jsonl", ({"text": " ".join(row)} for row in chosen))
    recipe = ["--config", "recipe.yaml"]
    for stage in (mine, score, detect_heads, train, evaluate):
        stage.main(recipe)
    train.main([*recipe, *REFRESHED])
    adapt.main(ADAPT)
    for run in ("stopped", "refreshed"):
        stop(Path(run))
    for path in (*Path("adapted").glob("checkpoint-*"), Path("adapted", "scores")):  # large, and there are such above
        shutil.rmtree(path)
    Path("adapted", "loss.png").unlink()


def stop(run: Path) -> None:
    """Remove what a run has written after `STEP`, so that it counts as one that was killed there."""
    for path in run.iterdir():
        if path.name not in KEPT:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


if __name__ == "__main__":
    make(Path(sys.argv[1]).resolve())
