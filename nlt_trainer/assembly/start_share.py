"""The share of the start's weights in the encoder that a run saves: given, or chosen on dev queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sentence_transformers import SentenceTransformer
from torch import Tensor

from nlt_trainer.encoder.averaging import average_weights, weights_of
from nlt_trainer.evaluation.evaluator import RetrievalEvaluator

SHARES = (0.0, 0.1, 0.3, 0.5, 0.7, 1.0)
"""The shares that `auto` compares."""
TIE = 0.002
"""A smaller difference in nDCG@10 goes to the larger share, which forgets less."""


def average_with_start(
    encoder: SentenceTransformer,
    start: Mapping[str, Tensor],
    share: float | Literal["auto"],
    *,
    evaluator: RetrievalEvaluator | None,
) -> dict[str, Any]:
    """Average a trained encoder with its start, in place.

    Args:
        encoder: as it comes out of the trainer.
        start: its weights before training.
        share: that of the start, or `auto`.
        evaluator: for the dev queries; `auto` needs it. Without it a given share is not evaluated.

    Returns:
        `share`, and `dev`: a row with `share` and `ndcg_at_10` for each share that was evaluated.
    """
    trained = weights_of(encoder)
    rows = []
    for tried in SHARES if share == "auto" else (float(share),):
        average_weights(encoder, trained, 1.0)
        average_weights(encoder, start, tried)
        if evaluator is not None:
            ndcg = evaluator(encoder)[str(evaluator.primary_metric)]
            rows.append({"share": tried, "ndcg_at_10": round(ndcg, 4)})
    chosen = best_share(rows) if share == "auto" else float(share)
    average_weights(encoder, trained, 1.0)
    average_weights(encoder, start, chosen)
    return {"share": chosen, "dev": rows}


def best_share(rows: Sequence[Mapping[str, float]]) -> float:
    """The largest share whose nDCG@10 is less than `TIE` below the highest."""
    highest = max(row["ndcg_at_10"] for row in rows)
    return max(row["share"] for row in rows if highest - row["ndcg_at_10"] < TIE - 1e-9)


def share_line(average: Mapping[str, Any], dev_split: str | None) -> str:
    """Say the share and, where there are dev queries, what each share that was tried scores on them."""
    figures = ", ".join(f"{row['ndcg_at_10']:.3f} with {row['share']:g}" for row in average["dev"])
    line = f"The encoder has {average['share']:g} of the start's weights and {1 - average['share']:g} of the trained"
    return line + (f"; nDCG@10 on {dev_split} is {figures}" if figures else "")
