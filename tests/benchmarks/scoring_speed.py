"""Likelihoods of targets after documents: ours against lm-eval and a plain loop, and against the machine's peak.

```bash
python tests/benchmarks/scoring_speed.py --collection data/nq_gold --repeats data/squad_small
```

All three read the same truncated texts, target `query`: `Document:\\n<document>\\nQuestion:` and then ` <query>`.

- lm-eval: `HFLM.loglikelihood` of the same model, at the fastest of several batch sizes. `auto` is none of them: on
  a CPU it tries out 64 before every call and stays there, since nothing stops it. It reads each pair by itself, so
  every second one of `repeats` is enough to measure its pairs a second.
- plain loop: `model(**batch).logits`, padded on the right, in the given order, on a part of the pairs.

`distinct` has queries from all over the split; `repeats` queries whose BM25 candidates overlap, chosen one by one such
that each brings the fewest new documents, of which the rarest leave until each comes at least five times. Without the
two flags both sets come from the standard library. Useful FLOPs: each document and each query read once, attention to
what is visible, the vocabulary at target positions. Memory is the peak of a fresh process that scores 32 pairs, ours
128, from which on weights are packed, with weights, imports and the BM25 index. The machine's peak is the mean of two,
before and after our part of a run.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import LLM, collection_at, in_fresh_process, in_turn, matmul_peak, parser, peak_mib, ratio, record, show

from nlt_trainer.data.beir import Collection
from nlt_trainer.data.candidates import QueryCandidates, mine_candidates
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.lm.scoring import PACKING_PAIRS, LikelihoodScorer
from nlt_trainer.prompts import PromptTemplate

# Tokens at the seams are the same whether the segments are tokenised apart, as here, or together, as in lm-eval.
TEMPLATE = PromptTemplate(document_prefix="Document:\n", document_suffix="\n", query_prefix="Question:")
BATCH_SIZES = (1, 4, 8, 16, 32)
PLAIN_BATCH = 16
REPEATS = 5
"""How often each document of `repeats` comes, at least."""
TUNING_PAIRS, MEMORY_PAIRS = 32, 32

Texts = list[tuple[str, str]]
"""Truncated documents and queries, query-major."""

Score = Callable[[Texts], np.ndarray]
"""Log-likelihoods of the queries after their documents, nats, `(N,)`."""

Choose = Callable[..., list[QueryCandidates]]
"""`distinct` or `repeated`."""


def distinct(collection: Collection, *, queries: int, candidates: int) -> list[QueryCandidates]:
    """Candidates of queries that are spread evenly over the collection's."""
    every = list(collection.queries.values())
    chosen = [every[i * len(every) // queries] for i in range(queries)]
    return mine_candidates(collection, chosen, num_candidates=candidates)


def repeated(collection: Collection, *, queries: int, candidates: int, starts: int = 32) -> list[QueryCandidates]:
    """Candidates of queries that share them: from the best of several first queries on, always the nearest one.

    As long as a document comes too rarely, the rarest one leaves and candidates are mined anew among the others.
    """
    mined = mine_candidates(collection, list(collection.queries.values()), num_candidates=candidates)
    documents = [set(c.document_ids) for c in mined]
    groups = []
    for start in range(0, len(mined), max(1, len(mined) // starts)):
        chosen, union = [start], set(documents[start])
        while len(chosen) < queries:
            rest = [i for i in range(len(mined)) if i not in chosen]
            chosen.append(min(rest, key=lambda i: len(documents[i] - union)))
            union |= documents[chosen[-1]]
        groups.append((len(union), chosen))
    found = [mined[i] for i in min(groups)[1]]
    asked = [collection.queries[c.query_id] for c in found]
    counts = Counter(d for c in found for d in c.document_ids)
    while min(counts.values()) < min(REPEATS, queries):
        rarest = min(reversed(counts), key=counts.__getitem__)  # of equal ones that which came last
        corpus = {d: collection.corpus[d] for d in collection.corpus if d in counts and d != rarest}
        found = mine_candidates(dataclasses.replace(collection, corpus=corpus), asked, num_candidates=candidates)
        counts = Counter(d for c in found for d in c.document_ids)
    return found


def texts_of(collection: Collection, chosen: Sequence[QueryCandidates], scorer: LikelihoodScorer) -> Texts:
    """Pairs whose documents are cut as the scorer cuts them."""

    def cut(document: str) -> str:
        return str(scorer.lm.tokenizer.decode(list(scorer.tokens.document(document.strip())[0]))).strip()

    return [(cut(collection.corpus[d].content), c.query.strip()) for c in chosen for d in c.document_ids]


def ours(scorer: LikelihoodScorer) -> Score:
    return lambda texts: scorer.log_likelihood([(d, q, None) for d, q in texts]).log_likelihood


def lm_eval(lm: FrozenLM, *, batch_size: int) -> Score:
    """lm-eval's own scoring of the same model."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    harness = HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=batch_size)

    def score(texts: Texts) -> np.ndarray:
        requests = [
            Instance(request_type="loglikelihood", doc={}, arguments=(_context(d), f" {q}"), idx=i)
            for i, (d, q) in enumerate(texts)
        ]
        return np.array([value for value, _ in harness.loglikelihood(requests, disable_tqdm=True)])

    return score


def _context(document: str) -> str:
    return f"{TEMPLATE.document_prefix}{document}{TEMPLATE.document_suffix}{TEMPLATE.query_prefix}"


def plain_loop(lm: FrozenLM, scorer: LikelihoodScorer) -> Score:
    """The loop that one writes first, on the scorer's own token ids."""

    @torch.no_grad()
    def score(texts: Texts) -> np.ndarray:
        found = []
        for begin in range(0, len(texts), PLAIN_BATCH):
            rows = [ids_of(scorer, d, q) for d, q in texts[begin : begin + PLAIN_BATCH]]
            length = max(len(ids) for ids, _ in rows)
            ids = torch.tensor([[*ids, *[0] * (length - len(ids))] for ids, _ in rows])
            mask = torch.tensor([[1] * len(ids) + [0] * (length - len(ids)) for ids, _ in rows])
            target = torch.tensor([[False] * begin + [True] * (len(ids) - begin) + [False] * (length - len(ids))
                                   for ids, begin in rows])  # fmt: skip
            logits = lm.model(input_ids=ids, attention_mask=mask).logits[:, :-1].flatten(0, 1)  # (B * (L - 1), V)
            loss = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten(), reduction="none")
            found.append(-(loss.view(len(ids), -1) * target[:, 1:]).sum(1))
        return torch.cat(found).double().numpy()

    return score


def ids_of(scorer: LikelihoodScorer, document: str, query: str) -> tuple[list[int], int]:
    """A pair's token ids and where its target begins."""
    before, after = scorer.tokens.document_frame
    suffix = scorer.tokens.suffix(query, None, "query")
    ids = [*scorer.tokens.start, *before, *scorer.tokens.document(document)[0], *after, *suffix.ids]
    return ids, len(ids) - suffix.target_tokens


@dataclass(frozen=True)
class Work:
    """What scoring some pairs takes.

    Args:
        pairs: how many.
        documents: different ones.
        tokens: of all pairs, each with its own document.
        useful_tokens: each document once, each query once a document, but for its last token, which is only predicted.
        useful_flops: of these.
        target_tokens: of all pairs.
    """

    pairs: int
    documents: int
    tokens: int
    useful_tokens: int
    useful_flops: float
    target_tokens: int


def work_of(scorer: LikelihoodScorer, texts: Texts) -> Work:
    """Tokens and FLOPs by the model's shapes."""
    config = scorer.lm.model.config.get_text_config()
    table: Any = scorer.lm.model.get_input_embeddings()
    vocabulary = table.weight.numel()
    parameters = sum(p.numel() for p in scorer.lm.model.base_model.parameters()) - vocabulary
    width = config.num_attention_heads * (config.hidden_size // config.num_attention_heads)
    prefixes, suffixes, keys, targets, tokens = {}, 0, 0, 0, 0
    for document, query in texts:
        ids, _ = ids_of(scorer, document, query)
        suffix = scorer.tokens.suffix(query, None, "query")
        own = len(suffix.read)
        prefixes[document] = len(ids) - len(suffix.ids)
        suffixes += own
        keys += own * prefixes[document] + own * (own + 1) // 2
        targets += suffix.target_tokens
        tokens += len(ids)
    keys += sum(length * (length + 1) // 2 for length in prefixes.values())
    useful = sum(prefixes.values()) + suffixes
    flops = 2 * parameters * useful + 4 * width * config.num_hidden_layers * keys + 2 * vocabulary * targets
    return Work(len(texts), len(prefixes), tokens, useful, float(flops), targets)


def best_batch_size(lm: FrozenLM, texts: Texts) -> tuple[int, dict[int, float]]:
    """lm-eval's fastest batch size on some pairs, and the seconds of all."""

    def case(size: int) -> Callable[[], np.ndarray]:
        score = lm_eval(lm, batch_size=size)
        return lambda: score(texts)

    case(1)()
    seconds, _ = in_turn({str(size): case(size) for size in BATCH_SIZES}, runs=1)
    by_size = {int(name): values[0] for name, values in seconds.items()}
    return min(by_size, key=by_size.__getitem__), by_size


def agreement(found: np.ndarray, expected: np.ndarray, scorer: LikelihoodScorer, texts: Texts) -> float:
    """Largest difference of two log-likelihoods, nats per target token."""
    counts = np.array([scorer.tokens.suffix(q, None, "query").target_tokens for _, q in texts])
    return float((np.abs(found - expected) / counts).max())


def same_tokens(scorer: LikelihoodScorer, texts: Texts) -> np.ndarray:
    """Which pairs lm-eval, which tokenises a whole pair, reads as the very same tokens: `(N,)` bool."""
    tokenizer = scorer.lm.tokenizer
    return np.array([tokenizer.encode(f"{_context(d)} {q}") == ids_of(scorer, d, q)[0] for d, q in texts])


def compare(
    name: str, scorer: LikelihoodScorer, texts: Texts, baselines: Mapping[str, tuple[Score, slice]], *, runs: int
) -> dict[str, Any]:
    """Seconds, throughput and agreement of all cases on one set of pairs, of which each baseline scores a part."""
    work = work_of(scorer, texts)
    cases: dict[str, tuple[Score, Texts]] = {"ours": (ours(scorer), texts)}
    cases |= {case: (score, texts[part]) for case, (score, part) in baselines.items()}
    for score, read in cases.values():
        score(read[:PLAIN_BATCH])
    calls: dict[str, Callable[[], Any]] = {case: partial(score, read) for case, (score, read) in cases.items()}
    first = {"peak before": matmul_peak, "ours": calls.pop("ours"), "peak after": matmul_peak}
    seconds, values = in_turn(first | calls, runs=runs)
    peaks = [(a + b) / 2 for a, b in zip(values["peak before"], values["peak after"], strict=True)]
    details: dict[str, Any] = {"set": name, "work": vars(work), "seconds": seconds, "peak_flops": peaks}
    for case, (_, part) in baselines.items():
        own, read = values["ours"][0][part], cases[case][1]
        same = same_tokens(scorer, read) if case == "lm-eval" else np.ones(len(read), bool)
        kept = [pair for pair, equal in zip(read, same, strict=True) if equal]
        difference = agreement(own[same], values[case][0][same], scorer, kept) if kept else None
        details[case] = {"same_tokens": float(same.mean()), "difference": difference}
    details["share"] = [work.useful_flops / s / peak for s, peak in zip(seconds["ours"], peaks, strict=True)]
    details["rows"] = [_row(details, case, read, scorer) for case, (_, read) in cases.items()]
    return details


def _row(details: dict[str, Any], case: str, part: Texts, scorer: LikelihoodScorer) -> dict[str, Any]:
    """A line of the table."""
    work, seconds, peaks = work_of(scorer, part), details["seconds"], details["peak_flops"]
    rate = [work.pairs / s for s in seconds[case]]
    ours = [details["work"]["pairs"] / s for s in seconds["ours"]]
    against = ratio(ours, rate)
    shares = [work.useful_flops / s / p for s, p in zip(seconds[case], peaks, strict=True)]
    return {
        "set": details["set"],
        "case": case,
        "pairs": work.pairs,
        "documents": work.documents,
        "pairs a document": work.pairs / work.documents,
        "seconds": statistics.median(seconds[case]),
        "pairs/s": statistics.median(rate),
        "useful tokens/s": statistics.median(work.useful_tokens / s for s in seconds[case]),
        "share of peak": statistics.median(shares),
        "ours is faster by": against["ratio"],
        "lowest": against["lowest"],
        "highest": against["highest"],
    }


def make_scorer(llm: str, max_document_tokens: int) -> LikelihoodScorer:
    lm = FrozenLM.from_pretrained(llm, device="cpu")
    return LikelihoodScorer(lm, target="query", template=TEMPLATE, max_document_tokens=max_document_tokens)


def memory(case: str, options: argparse.Namespace) -> dict[str, int]:
    """Peak memory of this process after one case has scored the first pairs of the set without repeats."""
    scorer = make_scorer(options.llm, options.max_document_tokens)
    texts = texts_at(options.collection, distinct, scorer, options)[1]
    texts = texts[: PACKING_PAIRS if case == "ours" else MEMORY_PAIRS]
    loaded = peak_mib()
    if case == "ours":
        ours(scorer)(texts)
    elif case == "plain loop":
        plain_loop(scorer.lm, scorer)(texts)
    else:
        lm_eval(scorer.lm, batch_size=int(case))(texts)
    return {"loaded_mib": round(loaded), "peak_mib": round(peak_mib())}


def texts_at(
    folder: Path | None, choose: Choose, scorer: LikelihoodScorer, options: argparse.Namespace
) -> tuple[str, Texts]:
    """A set's name and its pairs."""
    collection = collection_at(folder)
    chosen = choose(collection, queries=options.queries, candidates=options.candidates)
    return collection.name, texts_of(collection, chosen, scorer)


def peaks(options: argparse.Namespace, batch_size: int | None) -> dict[str, dict[str, int]]:
    """Peak memory of each case in a process of its own."""
    given = [f"--{name}={getattr(options, name)}" for name in ("llm", "queries", "candidates", "max_document_tokens")]
    if options.collection:
        given.append(f"--collection={options.collection}")
    cases = {"ours": "ours", "plain loop": "plain loop"}
    if batch_size is not None:
        cases[f"lm-eval, batch size {batch_size}"] = str(batch_size)
    return {name: in_fresh_process(__file__, *given, f"--memory={case}") for name, case in cases.items()}


def main(argv: list[str] | None = None) -> None:
    """Compare on both sets; print tables and write JSON."""
    flags = parser(__doc__)
    flags.add_argument("--llm", default=LLM)
    flags.add_argument("--collection", type=Path, help="BEIR folder whose documents hardly repeat")
    flags.add_argument("--repeats", type=Path, help="BEIR folder with many queries on few documents")
    flags.add_argument("--queries", type=int, default=24)
    flags.add_argument("--candidates", type=int, default=16)
    flags.add_argument("--max_document_tokens", type=int, default=96)
    flags.add_argument("--memory", help=argparse.SUPPRESS)
    options = flags.parse_args(argv)
    if options.memory:
        print(json.dumps(memory(options.memory, options)))
        return
    scorer = make_scorer(options.llm, options.max_document_tokens)
    sets: dict[str, tuple[str, Texts]] = {
        "distinct": texts_at(options.collection, distinct, scorer, options),
        "repeats": texts_at(options.repeats, repeated, scorer, options),
    }
    batch_size: int | None = None
    tried: dict[int, float] = {}
    baselines: dict[str, dict[str, tuple[Score, slice]]] = {name: {} for name in sets}
    if importlib.util.find_spec("lm_eval") is not None:
        texts = sets["distinct"][1]
        batch_size, tried = best_batch_size(scorer.lm, texts[:: max(1, len(texts) // TUNING_PAIRS)])
        harness = lm_eval(scorer.lm, batch_size=batch_size)
        baselines["distinct"]["lm-eval"] = (harness, slice(None))
        baselines["repeats"]["lm-eval"] = (harness, slice(None, None, 2))
    baselines["distinct"]["plain loop"] = (plain_loop(scorer.lm, scorer), slice(3 * options.candidates))
    found: dict[str, dict[str, Any]] = {}
    for name, (collection, texts) in sets.items():
        found[name] = compare(f"{name}: {collection}", scorer, texts, baselines[name], runs=options.runs)
    show([row for details in found.values() for row in details["rows"]])
    by_case = peaks(options, batch_size)
    show([{"case": case, **row} for case, row in by_case.items()])
    figures = {"scoring_peak_share": round(statistics.median(found["distinct"]["share"]), 3)}
    for key, name in (("scoring_vs_lm_eval", "distinct"), ("scoring_repeats_vs_lm_eval", "repeats")):
        faster = {row["case"]: row["ours is faster by"] for row in found[name]["rows"]}
        if "lm-eval" in faster:
            figures[key] = faster["lm-eval"]
    print(json.dumps(figures))
    tuned = {"batch_size": batch_size, "seconds_by_batch_size": tried}
    record(options.json, "scoring", figures, {**found, "lm_eval": tuned, "memory": by_case})


if __name__ == "__main__":
    main()
