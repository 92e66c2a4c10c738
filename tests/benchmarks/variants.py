"""Train and evaluate many variants of recipes on one collection, and compare them in a table.

```bash
python tests/benchmarks/variants.py tests/benchmarks/dream_variants.yaml --collection data/nq_gold \\
  --folder runs/variants/nq_gold --seeds 42 1
```

The YAML maps each variant's name to its recipe and to what it changes there. All variants have the same start and the
same queries, and share one LLM in memory with the keys and values of documents that it has read, so that a variant
costs little more than what is its own; hence no cost is reported. Candidates, gains and heads are made once for each
number of candidates, target and selection of heads; what else they depend on is the same for all variants of a folder.
Random heads are drawn anew for each seed. Every finished run is a line of `<folder>/<file's name>.jsonl`; a second
call goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from sentence_transformers import SentenceTransformer
from transformers import set_seed

from nlt_trainer.arguments.data import DataArguments
from nlt_trainer.arguments.model import ModelArguments
from nlt_trainer.arguments.stages import RECIPE_BLOCKS
from nlt_trainer.assembly.gains import make_dataset
from nlt_trainer.assembly.losses import Parts
from nlt_trainer.assembly.parts import load_llm, load_start, load_training_collection
from nlt_trainer.assembly.training import make_trainer
from nlt_trainer.choices import LLMDtype
from nlt_trainer.data.beir import Collection, load_collection
from nlt_trainer.data.candidates import read_candidates
from nlt_trainer.encoder.loading import load_encoder
from nlt_trainer.evaluation.evaluator import evaluate_bm25, evaluate_encoder
from nlt_trainer.injection.document_reader import DocumentReader
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.objectives.dream import DREAMLoss
from nlt_trainer.objectives.prompt_teacher import PromptTeacher
from nlt_trainer.recipe.parsing import parse_recipe
from nlt_trainer.scripts import detect_heads, make_encoder, mine, score
from nlt_trainer.training_arguments import NLTTrainingArguments

Arguments = tuple[ModelArguments, DataArguments, NLTTrainingArguments]


def flags_of(settings: dict[str, Any]) -> list[str]:
    """Settings as a command line."""
    return [
        part
        for key, value in settings.items()
        for part in (f"--{key}", value if isinstance(value, str) else json.dumps(value))
    ]


def prepare(settings: dict[str, Any], folder: Path, *, first_seed: int, seed: int) -> list[str]:
    """Make what a variant reads and is not there yet, with the first seed; returns its command line."""
    settings = {"train_split": "train", **settings}
    recipe = ["--config", str(settings.pop("recipe"))]
    model, data, args = parse_recipe(RECIPE_BLOCKS, [*recipe, *flags_of(settings)])
    name = f"{data.num_candidates}-{data.target}{'-tokens' if data.token_likelihoods else ''}"
    heads = folder / "heads.json"
    common = settings | {
        "encoder": str(folder / "start"),
        "candidates": str(folder / f"candidates-{data.num_candidates}.jsonl"),
        "gains": str(folder / f"gains-{name}.jsonl"),
        "score_cache": str(folder / "scores"),
    }
    stages = [(make_encoder, common["encoder"], common), (mine, common["candidates"], common)]
    if args.reads_gains(data):
        stages.append((score, common["gains"], common))
    if "dream" in args.objectives:
        seen = common | {  # heads are found once, on the plain prompt
            "candidates": str(folder / "candidates-8.jsonl"),
            "gains": str(folder / "gains-8-joint.jsonl"),
            "num_candidates": 8,
            "target": "joint",
            "document_layout": data.head_layout or "sequential",
            "num_heads": 16,
            "head_selection": "best",
            "heads": str(heads),
        }
        drawn = f"-{seed}" if model.head_selection == "random" else ""
        own = str(folder / f"heads-{model.num_heads}-{model.head_selection}{drawn}.json")
        common |= {"heads": own}
        selected = common | {"head_scores": str(heads), "seed": seed}
        stages += [(mine, seen["candidates"], seen), (score, seen["gains"], seen)]
        stages += [(detect_heads, str(heads), seen), (detect_heads, own, selected)]
    for stage, output, given in stages:
        if not Path(output).exists():
            stage.main([*recipe, *flags_of({"seed": first_seed, **given})])
    return [*recipe, *flags_of(common)]


def train(arguments: Arguments, lm: FrozenLM, reader: DocumentReader) -> Any:
    """The trained encoder of a variant."""
    model, data, args = arguments
    collection = load_training_collection(data)
    candidates = read_candidates(data.candidates, collection)
    set_seed(args.seed)
    encoder = load_start(model)
    shared = lm if model.llm_lora is None else load_llm(model)  # an adapter stays in the LLM
    dataset = make_dataset(model, data, args, collection=collection, candidates=candidates)
    trainer, _ = make_trainer(Parts(encoder, model, data, args, candidates, shared), dataset)
    for module in trainer.loss.modules():  # type: ignore[attr-defined]  # one loss, not a dict
        if isinstance(module, DREAMLoss | PromptTeacher):
            module.reader = reader
    trainer.train()
    return encoder


def measured(encoder: SentenceTransformer | None, judged: dict[str, Collection]) -> dict[str, float]:
    """nDCG@10 of an encoder, or of BM25, on each split."""
    if encoder is None:
        return {split: evaluate_bm25(part, split=split)["ndcg_at_10"] for split, part in judged.items()}
    return {split: evaluate_encoder(encoder, part, split=split)["ndcg_at_10"] for split, part in judged.items()}


def run(
    variants: dict[str, dict[str, Any]], judged: dict[str, Collection], options: argparse.Namespace, *, log: Path
) -> list[dict[str, Any]]:
    """Rows of all variants and seeds; those that stand in the log are not repeated."""
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    done = {(row["variant"], row["seed"]) for row in rows}
    folder, seeds = options.folder, options.seeds

    @cache
    def reading(llm: str, dtype: LLMDtype, adapter: str | None) -> tuple[FrozenLM, DocumentReader]:
        lm = FrozenLM.from_pretrained(llm, dtype=dtype, adapter=adapter)
        return lm, DocumentReader(lm, cache_bytes=int(options.cache_gib * 2**30))

    def note(variant: str, seed: int | None, encoder: SentenceTransformer | None) -> None:
        rows.append({"variant": variant, "seed": seed, **measured(encoder, judged)})
        with log.open("a") as handle:
            handle.write(json.dumps(rows[-1]) + "\n")
        print(rows[-1], flush=True)

    for name, settings in variants.items():
        for seed in seeds:
            if (name, seed) in done:
                continue
            flags = prepare(settings | {"collection": options.collection}, folder, first_seed=seeds[0], seed=seed)
            quiet = {"output_dir": str(folder / "run"), "save_strategy": "no", "disable_tqdm": True, "seed": seed}
            arguments = parse_recipe(RECIPE_BLOCKS, [*flags, *flags_of(quiet)])
            model = arguments[0]
            if not rows:
                note("bm25", None, None)
                note("start", None, load_encoder(model.encoder))
            note(name, seed, train(arguments, *reading(model.llm, model.llm_dtype, model.adapter)))
    return rows


def table(rows: list[dict[str, Any]], splits: Sequence[str]) -> str:
    """Mean nDCG@10 of each variant, its distance to the start, and each seed's, split by split."""
    by_variant: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_variant.setdefault(row["variant"], []).append(row)
    head = "".join(f" {split} nDCG@10 | against the start | seeds |" for split in splits)
    lines = [f"| variant |{head}", "|---" * (1 + 3 * len(splits)) + "|"]
    for name, own in by_variant.items():
        cells = [name]
        for split in splits:
            values = [row[split] for row in own]
            mean, each = statistics.mean(values), ", ".join(f"{value:.3f}" for value in values)
            cells += [f"{mean:.3f}", f"{mean - by_variant['start'][0][split]:+.3f}", each if len(own) > 1 else ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", type=Path)
    parser.add_argument("--collection", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 1])
    parser.add_argument("--cache_gib", type=float, default=12.0, help="memory for documents' keys and values")
    parser.add_argument("--splits", nargs="+", default=["dev"], help="judged queries to evaluate on")
    options = parser.parse_args(argv)
    options.folder.mkdir(parents=True, exist_ok=True)
    judged = {split: load_collection(options.collection, splits=[split]) for split in options.splits}
    variants = yaml.safe_load(options.variants.read_text())
    rows = run(variants, judged, options, log=options.folder / f"{options.variants.stem}.jsonl")
    print(table(rows, options.splits))


if __name__ == "__main__":
    main()
