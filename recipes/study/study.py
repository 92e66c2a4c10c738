"""Train encoders by a grid of objectives, starts, collections and seeds, and measure each on many collections.

```bash
python recipes/study/study.py recipes/study/study.yaml --data data --folder runs/study
```

The grid's YAML has these parts. Settings are keys of a recipe.

- `base`: settings of all trainings.
- `encoders`: settings of each encoder that training starts from.
- `train_data`: settings of each collection that is trained on, a BEIR folder in `--data` unless `collection` says
  otherwise. `own_split` has the judged queries on which what was trained on it is measured.
- `objectives`: settings of each objective. `start` is the encoder before training and `BM25` is no encoder. With
  `gains: bm25` BM25's scores stand in for the LLM's gains. With `wrong_labels: 0.2` judgements do: 1 for one relevant
  candidate of each query that has one, but for a fifth of these queries another candidate, drawn by seed, has it.
  With `tuned_like` an objective takes what was chosen for another one, and with `after` it goes on with the encoder
  that another one has trained. With `judged_pairs: 100` the LLM gets an adapter, which is fitted to so many training
  queries that are judged and not trained on, each after a relevant candidate.
- `tuning`: the collection, split and seed on which the settings in `tried` are chosen for each encoder and objective,
  one setting after the other. A value must be better than the middle one by more than `margin` to be chosen.
  Encoders that `tried` does not name are not tuned.
- `runs`: what is trained and measured, as lists of `encoders`, `train_data`, `objectives`, `seeds` and `measured_on`,
  of which all combinations are run. `measured_on` has further queries, each as COLLECTION:SPLIT.

Candidates, gains and heads are made once for all trainings that differ in nothing that decides them. A training is
that of `nlt train`, and its encoder is removed when it has been measured. Each one leaves a file in the folder, so a
second call goes on where the first was stopped. Several calls may share the folder if each has `--train_data` and
`--output` of its own. `--finished` trains nothing, and collects what is there. With `--known`, parquet files of
earlier results stand in for the trainings that they came from, if the grid, `--data` and `--folder` are as they were.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from sentence_transformers import SentenceTransformer

from nlt_trainer.arguments.data import DataArguments
from nlt_trainer.arguments.model import ModelArguments
from nlt_trainer.arguments.stages import RECIPE_BLOCKS
from nlt_trainer.assembly.head_detection import detect_heads
from nlt_trainer.assembly.mining import mine
from nlt_trainer.assembly.parts import load_candidates, load_training_collection, load_untrained
from nlt_trainer.assembly.scorer_adaptation import adapt_scorer
from nlt_trainer.assembly.scoring import score
from nlt_trainer.assembly.training import train
from nlt_trainer.data.beir import Collection, load_collection
from nlt_trainer.data.bm25 import bm25_rankings
from nlt_trainer.data.candidates import read_candidates, write_candidates
from nlt_trainer.data.gains import write_gains
from nlt_trainer.data.training import relevance
from nlt_trainer.encoder.embedding_cache import EmbeddingCache
from nlt_trainer.encoder.loading import load_encoder
from nlt_trainer.evaluation.evaluator import search
from nlt_trainer.evaluation.retrieval_metric import query_values
from nlt_trainer.files import atomic_write_bytes
from nlt_trainer.program import Terminated
from nlt_trainer.recipe.parsing import parse_recipe
from nlt_trainer.run.folder import Run
from nlt_trainer.run.resume import decisive
from nlt_trainer.terminal import say
from nlt_trainer.text_files import read_json, write_json
from nlt_trainer.training_arguments import NLTTrainingArguments

Settings = dict[str, Any]
Blocks = tuple[ModelArguments, DataArguments, NLTTrainingArguments]

UNTRAINED = ("BM25", "start")
METRIC = "ndcg_at_10"
WRONG, TUNED_LIKE, AFTER, PAIRS = "wrong_labels", "tuned_like", "after", "judged_pairs"
"""Keys of an objective that are no keys of a recipe."""
ADAPTATION: Settings = {
    "adapt_pairs": True,
    "adapt_documents": 1,
    "adapter_lora": {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
    "learning_rate": 2.0e-4,
    "per_device_train_batch_size": 4,
    "save_strategy": "no",
    "disable_tqdm": True,
    "report_to": "none",
}
"""How an adapter is fitted to judged pairs, as in recipes/adapt_scorer, but for the documents that are read alone."""
PREPARING_SEED = 0
"""Of the queries that are drawn; training has seeds of its own, so that all seeds have the same queries."""


@dataclass(frozen=True)
class Cell:
    """One training and what its encoder is measured on.

    Args:
        objective: its name in the grid.
        encoder: the start's name in the grid; `None` for BM25.
        train_data: the collection's name in the grid; `None` where nothing is trained.
        seed: of training; `None` where nothing is trained.
        settings: keys of the recipe.
        measured_on: as COLLECTION:SPLIT.
    """

    objective: str
    encoder: str | None
    train_data: str | None
    seed: int | None
    settings: Settings
    measured_on: tuple[str, ...]

    @property
    def key(self) -> str:
        """A hash of everything that decides the trained encoder."""
        settings = {} if self.objective == "BM25" else self.settings
        return digest(self.objective, self.encoder, self.train_data, self.seed, settings)


class Unfinished(Exception):
    """A cell has not been trained, or not been measured on all that the grid names."""


class Study:
    """A grid and the folder of its results.

    Args:
        grid: the parsed YAML.
        data: folder of the collections.
        folder: folder of the results.
        only: what a part of the grid is limited to, by the part; `None` limits nothing.
        trains: whether what is missing is trained and measured; `Unfinished` is raised otherwise.

    Attributes:
        results: the rows that have been asked for, those of tuning too, by cell, collection and split.
    """

    def __init__(
        self,
        grid: Mapping[str, Any],
        *,
        data: Path,
        folder: Path,
        only: Mapping[str, list[Any] | None] | None = None,
        trains: bool = True,
    ) -> None:
        self.grid, self.data, self.folder, self.trains = grid, data, folder, trains
        self.only = only or {}
        self.results: dict[tuple[str, ...], dict[str, Any]] = {}

    def settings(self, objective: str, encoder: str, train_data: str | None) -> Settings:
        """Keys of a recipe before tuning; those of the objective replace those of the collection, and so on back."""
        given: Settings = {}
        if train_data:
            given = {"collection": str(self.data / train_data), **self.grid["train_data"][train_data]}
            del given["own_split"]
        own = {**self.grid["objectives"].get(objective, {})}
        own.pop(TUNED_LIKE, None)
        return {**self.grid["base"], **self.grid["encoders"][encoder], **given, **own}

    def combinations(self, run: Mapping[str, Any]) -> Iterable[tuple[str, str, str]]:
        """Encoder, collection and objective of everything in a run that the study is not limited against."""
        return itertools.product(*(self.chosen(run, part) for part in PARTS))

    def chosen(self, run: Mapping[str, Any], part: str) -> list[Any]:
        """What a run names in one part, without what the study is limited against."""
        return [value for value in run[part] if value in (self.only.get(part) or run[part])]

    def cells(self) -> Iterator[Cell]:
        """The cells of all runs; those that need tuning come after their tuning has been run."""
        for run in self.grid["runs"]:
            for encoder, train_data, objective in self.combinations(run):
                own = f"{train_data}:{self.grid['train_data'][train_data]['own_split']}"
                measured_on = (own, *run["measured_on"])
                if objective in UNTRAINED:
                    settings = self.settings(objective, encoder, None)
                    name = encoder if objective == "start" else None
                    yield Cell(objective, name, None, None, settings, measured_on)
                    continue
                with suppress(Unfinished):
                    settings = self.tuned_settings(objective, encoder, train_data)
                    for seed in self.chosen(run, "seeds"):
                        yield Cell(objective, encoder, train_data, seed, settings, measured_on)

    def tuned_settings(self, objective: str, encoder: str, train_data: str) -> Settings:
        """Keys of a recipe with what tuning has chosen; under `after` those of the objective that comes before."""
        settings = self.settings(objective, encoder, train_data) | self.tuned(objective, encoder)
        if AFTER in settings:
            settings[AFTER] = self.tuned_settings(settings[AFTER], encoder, train_data)
        return settings

    def tuned(self, objective: str, encoder: str) -> Settings:
        """The settings among those tried with which an objective is best on the queries for tuning.

        They are chosen one after the other; the others have the middle one of their values, of two the second, or
        what was chosen. The middle one stays unless another is better by more than the margin.
        """
        tuning = self.grid.get("tuning")
        if not tuning or encoder not in tuning["tried"]:
            return {}
        tried: dict[str, list[Any]] = tuning["tried"][encoder]
        objective = self.grid["objectives"][objective].get(TUNED_LIKE, objective)
        data, where = tuning["train_data"], (f"{tuning['train_data']}:{tuning['split']}",)
        chosen = {key: values[len(values) // 2] for key, values in tried.items()}

        def found(key: str, value: Any) -> float:
            settings = self.settings(objective, encoder, data) | chosen | {key: value}
            return self.rows(Cell(objective, encoder, data, tuning["seed"], settings, where))[0][METRIC]

        for key, values in tried.items():
            best = max(values, key=lambda value: found(key, value))
            if found(key, best) > found(key, chosen[key]) + tuning.get("margin", 0.0):
                chosen[key] = best
        return chosen

    def rows(self, cell: Cell) -> list[dict[str, Any]]:
        """The results of a cell, which is trained and measured only where they are not there yet."""
        file = self.folder / "cells" / f"{cell.key}.json"
        rows = read_json(file, kind=list) if file.is_file() else []
        known = {f"{row['eval_data']}:{row['split']}" for row in rows}
        if missing := [name for name in cell.measured_on if name not in known]:
            if not self.trains:
                raise Unfinished(cell)
            rows += self.measured(cell, missing)
            write_json(file, rows)
        rows = [row for row in rows if f"{row['eval_data']}:{row['split']}" in cell.measured_on]
        self.results |= {(cell.key, row["eval_data"], row["split"]): row for row in rows}
        return rows

    def keep(self, results: Path) -> None:
        """Take over the rows of a parquet file for cells that are not there yet."""
        for key, rows in pd.read_parquet(results).groupby("key", sort=False):
            file = self.folder / "cells" / f"{key}.json"
            if not file.is_file():
                write_json(file, json.loads(rows.to_json(orient="records")))

    def measured(self, cell: Cell, names: Iterable[str]) -> list[dict[str, Any]]:
        """Train a cell's encoder and measure it; a row for each of the names."""
        say(f"\n{cell.encoder}, {cell.train_data}, {cell.objective}, seed {cell.seed}")
        shared = {"key": cell.key, "objective": cell.objective, "encoder": cell.encoder, "train_data": cell.train_data}
        settings = {"learning_rate": None, "temperature": None, **cell.settings}
        shared |= {"seed": cell.seed, **{k: settings[k] for k in ("learning_rate", "temperature")}}
        cost: dict[str, Any] = {"queries": 0, "lm_tokens": 0, "train_seconds": 0.0}
        if cell.objective in UNTRAINED:
            model, _, args = blocks(cell.settings)
            encoder = load_untrained(model) if cell.objective == "start" else None
            values = {name: self.values(encoder, name, bf16=args.bf16_full_eval) for name in names}
        else:
            runs = self.train(cell.settings, Run(self.folder / "runs" / cell.key), seed=cell.seed or 0)
            cost = {name: runs[-1].report[name] for name in cost}  # those before it have read the same gains
            cost["train_seconds"] += sum(run.report["train_seconds"] for run in runs[:-1])
            _, _, args = blocks(cell.settings)
            encoder = load_encoder(str(runs[-1].encoder))
            values = {name: self.values(encoder, name, bf16=args.bf16_full_eval) for name in names}
            for run in runs:
                shutil.rmtree(run.folder)
        rows = []
        for name, found in values.items():
            eval_data, _, split = name.rpartition(":")
            mean = float(np.mean(found))
            say(f"  {name} {mean:.4f}")
            row = {"eval_data": eval_data, "split": split, METRIC: mean, **cost}
            rows.append({**shared, **row, "query_values": [round(value, 4) for value in found]})
        return rows

    def train(self, settings: Settings, run: Run, *, seed: int) -> list[Run]:
        """Train the encoder of a run, after that of the objective that comes before it; returns all these runs."""
        given = {"output_dir": str(run.folder), "save_strategy": "no", "disable_tqdm": True, "report_to": "none"}
        first: list[Run] = []
        if before := settings.get(AFTER):
            first = self.train(before, Run(f"{run.folder}-before"), seed=seed)
            given["encoder"] = str(first[-1].encoder)
        train(*blocks(self.prepare(settings, seed=seed) | given | {"seed": seed}))
        return [*first, run]

    def values(self, encoder: SentenceTransformer | None, name: str, *, bf16: bool) -> list[float]:
        """nDCG@10 of each judged query, in the order of the judgements; without an encoder, that of BM25."""
        eval_data, _, split = name.rpartition(":")
        collection = read(self.collection_of(eval_data), split)
        queries = collection.split_queries(split)
        if encoder is None:
            rankings = bm25_rankings(collection, queries, top_k=100)
        else:
            with tempfile.TemporaryDirectory() as folder:
                embedded = EmbeddingCache(encoder, folder, bf16=bf16, progress=None)
                rankings = search(embedded, collection, queries)
        return query_values(rankings, collection.split_qrels(split))[METRIC]

    def collection_of(self, name: str) -> Path:
        """The folder of a collection."""
        given = self.grid["train_data"].get(name, {}).get("collection")
        return Path(given) if given else self.data / name

    def prepare(self, settings: Settings, *, seed: int) -> Settings:
        """Make what a training reads and is not there yet; returns the settings with the names of these files.

        Args:
            settings: keys of the recipe.
            seed: of the heads, where they are drawn at random.
        """
        folder = self.folder / "prepared"
        model, data, args = blocks(settings)
        start = None if data.miner == "bm25" else decisive(model, "start")
        mining = digest(
            data.collection, data.train_split, data.max_queries, data.num_candidates, data.miner, start
        )  # fmt: skip
        candidates = str(folder / f"candidates-{mining}.jsonl")
        if number := settings.get(PAIRS):
            settings = settings | {"adapter": str(self.adapter(settings, number=number, others=candidates))}
            model, data, args = blocks(settings)
        read_by_llm = {**decisive(model, "llm"), **decisive(data, "llm"), "document_layout": None, "llm_lora": None}
        scoring = digest(mining, read_by_llm, data.token_likelihoods)
        files: Settings = {
            "candidates": candidates,
            "gains": str(folder / f"gains-{scoring}.jsonl"),
            "score_cache": str(folder / f"scores-{mining}"),
        }
        common = {**settings, **files, "seed": PREPARING_SEED}
        todo: list[tuple[Any, str, Settings]] = [(mine, files["candidates"], common)]
        if settings.get("gains") == "bm25":
            files["gains"] = str(folder / f"bm25-{mining}.jsonl")
            todo.append((write_bm25_as_gains, files["gains"], {**common, **files}))
        elif (wrong := settings.get(WRONG)) is not None:
            mined = files["candidates"]
            files["candidates"] = str(folder / f"labelled-{mining}.jsonl")
            files["gains"] = str(folder / f"labels-{mining}-{wrong}-{seed}.jsonl")
            write = partial(write_labels_as_gains, mined=mined, wrong=wrong)
            todo.append((write, files["gains"], {**settings, **files, "seed": seed}))
        elif args.reads_gains(data) or "dream" in args.objectives:
            todo.append((score, files["gains"], common))
        if "dream" in args.objectives:
            layout = data.head_layout or data.document_layout
            detection = digest(scoring, layout, data.head_queries, data.head_method)
            drawn = f"-{seed}" if model.head_selection == "random" else ""
            scores = str(folder / f"heads-{detection}.json")
            files["heads"] = str(folder / f"heads-{detection}-{model.num_heads}-{model.head_selection}{drawn}.json")
            found = {"heads": scores, "num_heads": 16, "head_selection": "best", "objective": "likelihood_gain"}
            todo.append((detect_heads, scores, common | found))
            todo.append((detect_heads, files["heads"], {**common, **files, "head_scores": scores, "seed": seed}))
        for stage, output, given in todo:
            if not Path(output).exists():
                stage(*blocks(given))
        return {**settings, **files}

    def adapter(self, settings: Settings, *, number: int, others: str) -> Path:
        """The adapter of the LLM that is fitted to judged pairs; made if it is not there yet.

        Args:
            settings: keys of the recipe.
            number: of pairs.
            others: file of the candidates that are trained on, whose queries are not among the pairs.
        """
        folder = self.folder / "prepared" / f"adapter-{digest(settings, number)}"
        candidates, mined = f"{folder}/candidates.jsonl", f"{folder}/mined.jsonl"
        given = {"candidates": candidates, "gains": f"{folder}/labels.jsonl", "output_dir": str(folder)}
        given |= {"seed": PREPARING_SEED, "max_queries": None, "objective": "info_nce"}
        if not (adapter := Run(folder).adapter).is_dir():
            if not Path(others).exists():
                mine(*blocks({**settings, "candidates": others, "seed": PREPARING_SEED}))
            mine(*blocks({**settings, **given, "candidates": mined}))
            write_labels_as_gains(*blocks({**settings, **given}), mined=mined, others=others, number=number)
            adapt_scorer(*blocks({**settings, **given, **ADAPTATION}))
        return adapter


def write_bm25_as_gains(model: ModelArguments, data: DataArguments, args: NLTTrainingArguments) -> None:
    """Write BM25's scores of the candidates in the form of gains."""
    collection = load_training_collection(data)
    candidates = load_candidates(data, collection)
    write_gains(data.gains, candidates, np.array([c.bm25 for c in candidates]), corpus=collection.corpus)


def write_labels_as_gains(
    model: ModelArguments,
    data: DataArguments,
    args: NLTTrainingArguments,
    *,
    mined: str,
    wrong: float = 0.0,
    others: str | None = None,
    number: int | None = None,
) -> None:
    """Write judgements in the form of gains, and the candidates of the queries that have a relevant one.

    Args:
        model: not read.
        data: names both files that are written.
        args: has the seed by which queries and wrong labels are drawn.
        mined: file of all candidates.
        wrong: share of the queries whose positive is a candidate that nobody judged relevant.
        others: file of candidates whose queries are left out.
        number: of queries; `None` takes all.
    """
    collection = load_training_collection(data)
    candidates = load_candidates(replace(data, candidates=mined), collection)
    left_out = {c.query_id for c in read_candidates(others, collection)} if others else set()
    known = relevance(candidates, collection.split_qrels(str(data.train_split)))
    usable = np.flatnonzero((known.max(1) > 0) & (known.min(1) == 0))
    draw = np.random.default_rng(args.seed)
    if others:
        usable = np.sort(draw.permutation([b for b in usable if candidates[b].query_id not in left_out])[:number])
    swapped = {*draw.permutation(usable)[: round(wrong * len(usable))]}
    positives = [draw.choice(np.flatnonzero(known[b] == (b not in swapped))) for b in usable]
    chosen = [candidates[b] for b in usable]
    write_candidates(data.candidates, chosen, corpus=collection.corpus)
    write_gains(data.gains, chosen, np.eye(data.num_candidates)[positives], corpus=collection.corpus)


PARTS = ("encoders", "train_data", "objectives")


@cache
def read(folder: Path, split: str) -> Collection:
    """A collection with the judgements of a split."""
    return load_collection(folder, splits=[split])


def blocks(settings: Settings) -> Blocks:
    """The blocks of a recipe with these keys."""
    return parse_recipe(RECIPE_BLOCKS, words(settings))


def words(settings: Settings) -> list[str]:
    """Keys of a recipe as a command line, without the grid's own."""
    keys = {key: value for key, value in settings.items() if key not in (WRONG, AFTER, PAIRS)}
    return [
        word
        for key, value in keys.items()
        for word in (f"--{key}", value if isinstance(value, str) else json.dumps(value))
    ]


def digest(*parts: Any) -> str:
    """A hash of values, 12 hex digits."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def command_line(description: str | None) -> argparse.ArgumentParser:
    """A parser of the grid, the folders and the names to which the grid is limited."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder of the collections")
    parser.add_argument("--folder", type=Path, required=True, help="folder of the results")
    for flag in ("--encoders", "--train_data", "--objectives"):
        parser.add_argument(flag, nargs="+", help="run these alone")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the cells that are missing; the table of all results grows with each."""
    parser = command_line(__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, help="train with these alone, but for tuning")
    parser.add_argument("--output", type=Path, help="parquet file of all results; unset: <folder>/results.parquet")
    parser.add_argument("--known", type=Path, nargs="+", default=[], help="parquet files of earlier results")
    parser.add_argument("--finished", action="store_true", help="train nothing, and collect what is there")
    options = parser.parse_args(argv)
    grid = yaml.safe_load(options.grid.read_text())
    study = Study(grid, data=options.data, folder=options.folder, only=vars(options), trains=not options.finished)
    for results in options.known:
        study.keep(results)
    output = options.output or options.folder / "results.parquet"
    for cell in study.cells():
        with suppress(Unfinished):
            study.rows(cell)
            with atomic_write_bytes(output) as handle:
                pd.DataFrame([*study.results.values()]).to_parquet(handle, index=False, compression="zstd")
    say(f"{output}: {len(study.results)} rows")


if __name__ == "__main__":
    try:
        main()
    except Terminated:
        sys.exit("stopped; the same command goes on")
