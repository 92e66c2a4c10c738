"""Time and memory against pairs, candidates, document length and corpus size, each four points, with exponents.

```bash
python tests/benchmarks/growth.py
```

Writes `runs/bench/growth.json`, `growth.png` beside it. Every point runs in a process of its own after a warm-up; the
processes fork from one that has imported what they need and done nothing. Memory is what the resident set grows by
over its size when imports, models and texts are there, read from Linux's `/proc`. Against pairs it is that of a heap
in which batches of many shapes have come and gone: other pairs are scored first, which count in memory and not in
time. An exponent is the slope of a line through the four points on logarithmic axes: 1 is linear, 0 is flat.

Texts are random words. The LLM is SmolLM2-135M-Instruct; of its layers `scoring_pairs` takes the first three, so that
enough pairs can be read to fill many batches. `scoring_bookkeeping` takes a random Llama of one layer that knows few
words, so that what scoring keeps for each pair shows beside what the LLM needs. Mining asks 64 queries; dense mining
encodes with the mean of the LLM's token embeddings.
"""

from __future__ import annotations

import argparse
import itertools
import math
import multiprocessing
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from measuring import LLM, machine, show, status_mib
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedConfig, PreTrainedTokenizerFast

from nlt_trainer.data.beir import Collection, Document, Query
from nlt_trainer.data.candidates import mine_candidates
from nlt_trainer.encoder.embedding_cache import EmbeddingCache
from nlt_trainer.encoder.loading import encoder_from_token_embeddings
from nlt_trainer.encoder.search import nearest
from nlt_trainer.files import atomic_write_bytes
from nlt_trainer.injection.document_prompts import build_prompts
from nlt_trainer.injection.heads import HeadSet
from nlt_trainer.lm.cpu import packed_weights
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.lm.prompt_tokens import PromptTokens
from nlt_trainer.lm.scoring import LikelihoodScorer
from nlt_trainer.objectives.dream import DREAMLoss
from nlt_trainer.prompts import PromptTemplate
from nlt_trainer.text_files import write_json

WORDS, KNOWN_WORDS, LAYERS = 20_000, 1000, 3
EARLIER_QUERIES = {"shallow": 48, "miniature": 512}
"""Queries, each with `K` documents, that an LLM scores first: many batches, and more texts than are kept as tokens."""
QUERY_WORDS, DOCUMENT_WORDS, DOCUMENT_TOKENS, K, MINING_QUERIES = 6, 60, 32, 8, 64


def text(words: int, *, seed: str) -> str:
    """Random words, the i-th frequent one with a share of 1 / i, as in natural text."""
    draw = random.Random(seed)
    return " ".join(f"w{int(WORDS ** draw.random())}" for _ in range(words))


@contextmanager
def watched(loaded_mib: float | None = None) -> Iterator[dict[str, float]]:
    """Measure what runs inside: `seconds`, and `memory_mib`, the resident set's peak over `loaded_mib` (its start)."""
    measured: dict[str, float] = {}
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, start = status_mib("VmRSS") if loaded_mib is None else loaded_mib, time.perf_counter()
    yield measured
    seconds = time.perf_counter() - start
    measured |= {"seconds": seconds, "memory_mib": max(status_mib("VmHWM") - before, 1 / 256)}  # at least a page


def score(folder: Path, *, llm: str, queries: int, k: int, document_tokens: int) -> dict[str, float]:
    """Score `queries * k` pairs, each with a document of its own, after those of `EARLIER_QUERIES`."""
    earlier = EARLIER_QUERIES.get(llm, 0)
    with tempfile.TemporaryDirectory() as cache:
        scorer = LikelihoodScorer(
            FrozenLM.from_pretrained(str(folder / llm)), target="query", max_document_tokens=document_tokens,
            cache_folder=cache,
        )  # fmt: skip
        asked = [text(QUERY_WORDS, seed=f"query {b}") for b in range(earlier + queries)]
        read = [[text(document_tokens, seed=f"{b} {i}") for i in range(k)] for b in range(len(asked))]
        scorer.gain(["w1 w2 w3"], [[text(document_tokens, seed=f"warm-up {i}") for i in range(2)]])
        # Weights are packed for few pairs too, so that all sizes are read in the same way.
        with packed_weights(scorer.lm.model):
            loaded = status_mib("VmRSS")
            scorer.gain(asked[:earlier], read[:earlier])
            earlier_tokens = scorer.lm_tokens
            with watched(loaded) as measured:
                scorer.gain(asked[earlier:], read[earlier:])
    return measured | {"lm_tokens": scorer.lm_tokens - earlier_tokens}


def dream_step(folder: Path, *, k: int) -> dict[str, float]:
    """One forward and backward pass of DREAM with 2 queries."""
    lm, encoder = FrozenLM.from_pretrained(str(folder / "llm")), SentenceTransformer(str(folder / "encoder"))
    every = list(itertools.product(range(lm.num_layers), range(lm.num_heads)))
    chosen = every[:: math.ceil(len(every) / 16)]
    heads = HeadSet(tuple(chosen), ((1.0,) * lm.num_heads,) * lm.num_layers, lm.name, lm.fingerprint, {})
    loss = DREAMLoss(encoder, lm, heads=heads, document_mass="kept", hide_documents=False, micro_batch_size=1)
    tokens = PromptTokens(lm.tokenizer, PromptTemplate(), max_document_tokens=DOCUMENT_TOKENS)

    def step(name: str, documents_each: int) -> None:
        queries = [text(QUERY_WORDS, seed=f"{name} {b}") for b in range(2)]
        rows = [[text(DOCUMENT_TOKENS, seed=f"{name} {b} {i}") for i in range(documents_each)] for b in range(2)]
        prompts = build_prompts(tokens, queries, rows, target="query", context_length=lm.context_length)
        features = [encoder.preprocess(queries), encoder.preprocess([document for row in rows for document in row])]
        loss(features, prompts.as_dict())["dream"].backward()

    step("warm-up", 2)
    earlier = loss.lm_tokens
    with watched() as measured:
        step("step", k)
    return measured | {"lm_tokens": loss.lm_tokens - earlier}


def mine(folder: Path, *, documents: int, dense: bool) -> dict[str, float]:
    """Mine candidates of 64 queries; dense: encode the corpus and search it, which is what a refresh adds."""
    corpus = {f"d{i}": Document(f"d{i}", "", text(DOCUMENT_WORDS, seed=f"d{i}")) for i in range(documents)}
    asked = [Query(f"q{i}", text(QUERY_WORDS, seed=f"q{i}")) for i in range(MINING_QUERIES)]
    collection = Collection("random", folder, corpus, {query.id: query for query in asked}, {})
    encoder = SentenceTransformer(str(folder / "encoder")) if dense else None
    if encoder is not None:
        encoder.encode(["w1 w2 w3"])
    with tempfile.TemporaryDirectory() as shards, watched() as measured:
        if encoder is None:
            mine_candidates(collection, asked, num_candidates=K)
        else:
            files = EmbeddingCache(encoder, shards).document_files([document.content for document in corpus.values()])
            queries = encoder.encode_query([query.text for query in asked], convert_to_tensor=True)
            parts = (torch.from_numpy(np.load(file)) for file in files)
            nearest(queries, parts, top_k=K, similarity=encoder.similarity)
    return measured


@dataclass(frozen=True)
class Series:
    """What grows, in which sizes, and how a size is measured."""

    title: str
    axis: str
    sizes: tuple[int, ...]
    measure: Callable[[Path, int], dict[str, float]]


def _score(folder: Path, queries: int, *, llm: str = "llm", k: int = K, length: int = DOCUMENT_TOKENS) -> Any:
    return score(folder, llm=llm, queries=queries, k=k, document_tokens=length)


SERIES = {
    "scoring_pairs": Series(
        "scoring, LLM of three layers", "pairs", (128, 256, 512, 1024),
        lambda at, size: _score(at, size // K, llm="shallow"),
    ),
    "scoring_bookkeeping": Series(
        "scoring, LLM of one layer", "pairs", (2048, 4096, 8192, 16384),
        lambda at, size: _score(at, size // K, llm="miniature"),
    ),
    "scoring_k": Series("scoring, 2 queries", "candidates K", (4, 8, 16, 32), lambda at, size: _score(at, 2, k=size)),
    "scoring_length": Series(
        "scoring, 16 pairs", "tokens of a document", (32, 64, 128, 256),
        lambda at, size: _score(at, 2, length=size),
    ),
    "dream_k": Series("DREAM step", "candidates K", (4, 8, 16, 32), lambda at, size: dream_step(at, k=size)),
    "bm25_corpus": Series(
        "BM25 mining", "documents", (4096, 8192, 16384, 32768), lambda at, size: mine(at, documents=size, dense=False)
    ),
    "dense_corpus": Series(
        "dense mining", "documents", (2048, 4096, 8192, 16384), lambda at, size: mine(at, documents=size, dense=True)
    ),
}  # fmt: skip


def measure(name: str, folder: Path, size: int) -> dict[str, float]:
    """A point of a series."""
    return SERIES[name].measure(folder, size)


def prepare(folder: Path, llm: str) -> None:
    """Write the models that the points load: `llm`, its first layers `shallow`, `encoder` made of it, `miniature`."""
    encoder_from_token_embeddings(llm).save_pretrained(str(folder / "encoder"))
    lm = FrozenLM.from_pretrained(llm)
    lm.model.save_pretrained(folder / "llm")
    lm.tokenizer.save_pretrained(folder / "llm")
    decoder: Any = lm.model.base_model
    decoder.layers = decoder.layers[:LAYERS]
    keep_layers(lm.model.config, len(decoder.layers))
    lm.model.save_pretrained(folder / "shallow")
    lm.tokenizer.save_pretrained(folder / "shallow")
    tokenizer = Tokenizer(WordLevel({f"w{i}": i for i in range(KNOWN_WORDS)}, unk_token="w0"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0", eos_token="w1")
    fast.save_pretrained(folder / "miniature")
    size: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    LlamaForCausalLM(LlamaConfig(vocab_size=KNOWN_WORDS, **size)).save_pretrained(folder / "miniature")


def keep_layers(config: PreTrainedConfig, layers: int) -> None:
    """Let a decoder's configuration have its first layers only, in its lists of a setting a layer too."""
    for key, value in vars(config).items():
        if isinstance(value, list) and len(value) == config.num_hidden_layers:
            setattr(config, key, value[:layers])
    config.num_hidden_layers = layers


def exponent(sizes: Sequence[int], values: Sequence[float]) -> float:
    """Slope of the least-squares line through the points on logarithmic axes."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def summary(name: str, points: list[dict[str, float]]) -> dict[str, Any]:
    """A series' points and exponents."""
    sizes = [int(point["size"]) for point in points]
    fitted = {key: round(exponent(sizes, [p[key] for p in points]), 3) for key in ("seconds", "memory_mib")}
    return {"title": SERIES[name].title, "axis": SERIES[name].axis, "points": points, "exponents": fitted}


def rows(results: dict[str, Any]) -> list[dict[str, str]]:
    """Sizes, seconds, memory and exponents, a row a series."""
    found = []
    for result in results.values():
        row = {"what": result["title"], "against": result["axis"]}
        row["sizes"] = ", ".join(f"{p['size']:,}" for p in result["points"])
        for key, name in (("seconds", "seconds"), ("memory_mib", "memory, MiB")):
            row[name] = ", ".join(f"{p[key]:.3g}" for p in result["points"])
            row[f"exponent of {name.split(',')[0]}"] = f"{result['exponents'][key]:.2f}"
        found.append(row)
    return found


def draw(results: dict[str, Any], path: Path) -> None:
    """Small multiples: a column a series, time above memory, with the fitted lines."""
    figure = Figure(figsize=(2.5 * len(results), 5.4), layout="constrained")
    kinds = (("seconds", "seconds", "#1f5fa8"), ("memory_mib", "working memory, MiB", "#c8501e"))
    grid = figure.subplots(2, len(results), squeeze=False, sharex="col")
    for column, row in enumerate(results.values()):
        sizes = [p["size"] for p in row["points"]]
        for axes, (key, label, colour) in zip(grid[:, column], kinds, strict=True):
            values, slope = [p[key] for p in row["points"]], row["exponents"][key]
            middle = np.exp(np.mean(np.log(values)) - slope * np.mean(np.log(sizes)))
            axes.loglog(sizes, middle * np.array(sizes, float) ** slope, color=colour, alpha=0.4, linestyle="--")
            axes.loglog(sizes, values, "o", color=colour)
            axes.text(0.06, 0.93, f"exponent {slope:.2f}", transform=axes.transAxes, va="top", fontsize=9)
            decades(axes, values)
            axes.set_xticks(sizes, [short(size) for size in sizes])
            axes.minorticks_off()
            axes.grid(alpha=0.25)
            if column == 0:
                axes.set_ylabel(label)
        grid[0, column].set_title(row["title"], fontsize=10)
        grid[1, column].set_xlabel(row["axis"])
    with atomic_write_bytes(path) as handle:
        figure.savefig(handle, format="png", dpi=140)


def decades(axes: Any, values: Sequence[float]) -> None:
    """Show a factor of 30 around the values, the same in every panel, so that slopes can be compared by eye."""
    centre = math.sqrt(min(values) * max(values))
    low, high = centre / 30**0.5, centre * 30**0.5
    axes.set_ylim(min(low, min(values) / 1.3), max(high, 1.3 * max(values)))
    low, high = axes.get_ylim()
    ticks = [d * 10.0**e for e in range(-6, 7) for d in (1, 2, 5) if low <= d * 10.0**e <= high]
    axes.set_yticks(ticks[:: max(1, len(ticks) // 4)], [f"{tick:g}" for tick in ticks[:: max(1, len(ticks) // 4)]])


def short(size: int) -> str:
    """A number for an axis."""
    return f"{size // 1024}k" if size >= 1024 and size % 1024 == 0 else str(size)


def main(argv: list[str] | None = None) -> None:
    """Measure every point in a process of its own; print the table, write JSON and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("runs/bench/growth.json"), help="results; a PNG beside it")
    parser.add_argument("--llm", default=LLM, help="the LLM that scores")
    parser.add_argument("--series", nargs="+", choices=SERIES, default=list(SERIES), help="what to measure")
    parser.add_argument("--sizes", nargs="+", type=int, help="two sizes or more instead of each series' own four")
    options = parser.parse_args(argv)
    results = {}
    forked = multiprocessing.get_context("forkserver")
    forked.set_forkserver_preload([DREAMLoss.__module__, EmbeddingCache.__module__, mine_candidates.__module__])
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(1, mp_context=forked, max_tasks_per_child=1) as processes,
    ):
        prepare(Path(folder), options.llm)
        for name in options.series:
            points = []
            for size in options.sizes or SERIES[name].sizes:
                measured = processes.submit(measure, name, Path(folder), size).result()
                points.append({"size": size} | {key: round(value, 4) for key, value in measured.items()})
                print(f"{name} {size}: {points[-1]}", file=sys.stderr)
            results[name] = summary(name, points)
    show(rows(results))
    write_json(options.json, {"machine": machine(), "series": results})
    draw(results, options.json.with_suffix(".png"))


if __name__ == "__main__":
    main()
