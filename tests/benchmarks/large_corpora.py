"""Candidates from large corpora: seconds, memory and files of reading, of BM25, and of exact and approximate search.

```bash
python tests/benchmarks/large_corpora.py --documents 100000
```

Documents are random words, about 50 each, the i-th frequent of 200,000 words with a share of 1 / i, and a query is
six words of a document. Embeddings are random, of 384 dimensions and unit length: clusters, two times the root of the
number of documents. The centres have a normal distribution, whose i-th of rotated dimensions has a standard deviation
of 1 / sqrt(i), and around its centre a cluster has the same one with 0.6 of it. Each row is measured in a process of
its own. Memory is the peak of the resident set over its size after the imports, with all pages of mapped files that
were touched; files are what the step has written. The baselines are the dict of all documents with bm25s, and exact
search.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bm25s
import numpy as np
import torch
from bm25s.tokenization import Tokenized
from measuring import MIB, in_fresh_process, parser, record, show, status_mib
from sentence_transformers.util import cos_sim, pairwise_cos_sim

from nlt_trainer.data import beir
from nlt_trainer.data.beir import load_collection, load_corpus
from nlt_trainer.data.bm25 import BM25Index, tokenize
from nlt_trainer.data.candidates import mine_candidates
from nlt_trainer.encoder.approximate_search import approximate
from nlt_trainer.encoder.embedding_cache import PART
from nlt_trainer.encoder.search import nearest
from nlt_trainer.files import cache_folder

WORDS, DOCUMENT_WORDS, QUERY_WORDS, K, NEAREST = 200_000, 50, 6, 8, 100
WIDTH, SPREAD = 384, 0.6


def write_texts(folder: Path, documents: int, queries: int) -> None:
    """Write the collection, a line after the other."""
    draw = np.random.default_rng(0)
    lengths = draw.integers(DOCUMENT_WORDS // 2, 3 * DOCUMENT_WORDS // 2, size=documents)
    asked = set(random.Random(0).sample(range(documents), queries))
    with (folder / "corpus.jsonl").open("w") as corpus, (folder / "queries.jsonl").open("w") as questions:
        for i, length in enumerate(lengths.tolist()):
            words = [f"w{number}" for number in (WORDS ** draw.random(length)).astype(int).tolist()]
            corpus.write(json.dumps({"_id": f"d{i}", "title": "", "text": " ".join(words)}) + "\n")
            if i in asked:
                questions.write(json.dumps({"_id": f"q{i}", "text": " ".join(words[-QUERY_WORDS:])}) + "\n")


def embeddings(number: int, *, clusters: int, seed: int) -> Iterator[np.ndarray]:
    """Random embeddings in parts of `PART`, as the head of this file describes them."""
    shape, draw = np.random.default_rng(0), np.random.default_rng(seed)
    deviation = (np.arange(1, WIDTH + 1) ** -0.5).astype(np.float32)
    turn = np.linalg.qr(shape.normal(size=(WIDTH, WIDTH)))[0].astype(np.float32)
    centres = shape.standard_normal((clusters, WIDTH), dtype=np.float32) * deviation
    for begin in range(0, number, PART):
        size = min(PART, number - begin)
        noise = draw.standard_normal((size, WIDTH), dtype=np.float32) * deviation
        part = (centres[draw.integers(clusters, size=size)] + SPREAD * noise) @ turn
        yield part / np.linalg.norm(part, axis=1, keepdims=True)


def write_embeddings(folder: Path, documents: int, queries: int) -> None:
    """Write embeddings of documents in files as an `EmbeddingCache` names them, and those of queries."""
    clusters = round(2 * documents**0.5)
    (folder / "0a").mkdir()
    for i, part in enumerate(embeddings(documents, clusters=clusters, seed=1)):
        np.save(folder / "0a" / f"{i:032x}.npy", part)
    np.save(folder / "queries.npy", np.concatenate(list(embeddings(queries, clusters=clusters, seed=2))))


def read(folder: Path) -> Any:
    """Read a corpus that the cache lacks."""
    return len(load_corpus(folder))


def read_again(folder: Path) -> Any:
    """Read a corpus that is in the cache."""
    return len(load_corpus(folder))


def in_memory(folder: Path) -> Any:
    """The baseline: a dict of all documents and bm25s' own index of all tokens."""
    beir.STORED_FROM = 1 << 60
    corpus, vocabulary = load_corpus(folder), {"": 0}
    ids = [[vocabulary.setdefault(t, len(vocabulary)) for t in tokenize(d.content)] for d in corpus.values()]
    bm25s.BM25().index(Tokenized(ids=ids, vocab=vocabulary), show_progress=False)


def bm25_build(folder: Path) -> Any:
    """Build and keep BM25's index of a corpus that is in the cache."""
    BM25Index(load_corpus(folder))


def bm25_mine(folder: Path) -> Any:
    """Mine candidates of all queries with the index that is in the cache."""
    collection = load_collection(folder)
    mine_candidates(collection, list(collection.queries.values()), num_candidates=K)


def dense(folder: Path) -> tuple[list[Path], torch.Tensor]:
    """The files of the documents' embeddings, and the queries' embeddings."""
    return sorted((folder / "0a").glob("*.npy")), torch.from_numpy(np.load(folder / "queries.npy"))


def exactly(folder: Path) -> Any:
    """The nearest documents of all queries by exact search."""
    files, queries = dense(folder)
    parts = (torch.from_numpy(np.load(file)) for file in files)
    return nearest(queries, parts, top_k=NEAREST, similarity=cos_sim)[1].tolist()


def approximately(folder: Path) -> Any:
    """The same by an index, which is built if it is missing."""
    files, queries = dense(folder)
    encoder = SimpleNamespace(similarity_pairwise=pairwise_cos_sim)
    cache: Any = SimpleNamespace(progress=None, encoder=encoder, similarity=cos_sim)
    return approximate(queries, files, cache=cache, top_k=NEAREST)


STEPS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "in_memory": ("baseline: read into a dict, index by bm25s", in_memory),
    "read": ("read, the first time", read),
    "read_again": ("read, from the cache", read_again),
    "bm25_build": ("index by BM25", bm25_build),
    "bm25_mine": (f"mine {K} candidates by BM25", bm25_mine),
    "exact": (f"nearest {NEAREST}, exact", exactly),
    "ivf_pq_build": (f"nearest {NEAREST}, ivf_pq, with its building", approximately),
    "ivf_pq": (f"nearest {NEAREST}, ivf_pq, from its file", approximately),
}
"""Name of a step -> its row's title and what is measured. A step needs those before it."""


def measure(step: str, folder: Path) -> dict[str, Any]:
    """Seconds and memory of a step in this process; what it returns goes into a file."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, begin, cpu = status_mib("VmRSS"), time.perf_counter(), time.process_time()
    value = STEPS[step][1](folder)
    found = {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - cpu}
    found |= {"memory_mib": status_mib("VmHWM") - before}
    (folder / f"{step}.json").write_text(json.dumps(value))
    return found


def stored_mib(folder: Path) -> float:
    """What lies in the cache and in indexes of embeddings."""
    files = [*cache_folder().rglob("*"), *folder.glob("0a/*.faiss")]
    return sum(file.stat().st_size for file in files if file.is_file()) / MIB


def recall(folder: Path, step: str) -> float | None:
    """Share of the exact nearest that a step has found; `None` if it finds none, or the exact ones are missing."""
    found, exact = folder / f"{step}.json", folder / "exact.json"
    if not step.startswith("ivf_pq") or not exact.is_file():
        return None
    pairs = zip(json.loads(found.read_text()), json.loads(exact.read_text()), strict=True)
    return float(np.mean([len(set(own) & set(best)) / len(best) for own, best in pairs]))


def main(argv: list[str] | None = None) -> None:
    """Measure the steps at one size, each in a process of its own; print the table and record it."""
    flags = parser(__doc__)
    flags.add_argument("--documents", type=int, default=100_000)
    flags.add_argument("--queries", type=int, default=200)
    flags.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    flags.add_argument("--folder", type=Path, help="where texts and embeddings are kept; unset: a temporary folder")
    flags.add_argument("--step", choices=STEPS, help="measure this step in this process, and print JSON")
    options = flags.parse_args(argv)
    beir.STORED_FROM = 0
    if options.step:
        print(json.dumps(measure(options.step, options.folder)))
        return
    with nullcontext(options.folder) if options.folder else tempfile.TemporaryDirectory() as name:
        folder, rows = Path(name), []
        os.environ["NLT_CACHE"] = str(folder / "cache")
        folder.mkdir(parents=True, exist_ok=True)
        for written, write in (("corpus.jsonl", write_texts), ("queries.npy", write_embeddings)):
            if not (folder / written).is_file():
                write(folder, options.documents, options.queries)
        for step in options.steps:
            before = stored_mib(folder)
            found = in_fresh_process(__file__, "--step", step, "--folder", str(folder))
            row = {"documents": options.documents, "queries": options.queries, "step": STEPS[step][0]}
            row |= {
                "seconds": found["seconds"],
                "of the CPU": found["cpu_seconds"],
                "memory, MiB": found["memory_mib"],
            }
            row |= {"files, MiB": stored_mib(folder) - before}
            rows.append(row | {f"recall@{NEAREST}": recall(folder, step)})
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    show(rows)
    record(options.json, f"large_corpora_{options.documents}", {}, rows)


if __name__ == "__main__":
    main()
