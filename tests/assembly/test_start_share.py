"""The share of the start: what is chosen on dev queries, and what is said of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer

from nlt_trainer.assembly.start_share import SHARES, average_with_start, best_share, share_line
from nlt_trainer.encoder.averaging import average_weights, start_weights, weights_of
from nlt_trainer.evaluation.evaluator import RetrievalEvaluator


@pytest.mark.parametrize(
    ("values", "share"),
    [
        ([0.50, 0.51, 0.49, 0.48, 0.40, 0.30], 0.1),
        ([0.500, 0.510, 0.5081, 0.48, 0.40, 0.30], 0.3),
        ([0.500, 0.510, 0.5080, 0.48, 0.40, 0.30], 0.1),
        ([0.51, 0.50, 0.49, 0.48, 0.40, 0.30], 0.0),
        ([0.4, 0.4, 0.4, 0.4, 0.4, 0.4], 1.0),
    ],
)
def test_close_figures_go_to_the_larger_share(values: list[float], share: float) -> None:
    """Reference: shares by hand; a difference of 0.002 is none any more."""
    rows = [{"share": s, "ndcg_at_10": value} for s, value in zip(SHARES, values, strict=True)]
    assert best_share(rows) == share


def test_every_share_is_evaluated_and_the_chosen_one_stays(
    tiny_encoder: SentenceTransformer, tiny_collection_folder: Path
) -> None:
    """Reference: the evaluator's figures of the averages, each made anew from the two sets of weights."""
    evaluator = RetrievalEvaluator(tiny_collection_folder, split="train")
    start = start_weights(tiny_encoder)
    for parameter in tiny_encoder.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    trained = weights_of(tiny_encoder)
    found = average_with_start(tiny_encoder, start, "auto", evaluator=evaluator)
    expected = []
    for share in SHARES:
        average_weights(tiny_encoder, trained, 1.0)
        average_weights(tiny_encoder, start, share)
        expected.append({"share": share, "ndcg_at_10": round(evaluator(tiny_encoder)["train_ndcg_at_10"], 4)})
    assert found == {"share": best_share(expected), "dev": expected}
    assert len({row["ndcg_at_10"] for row in expected}) > 2
    average_weights(tiny_encoder, trained, 1.0)
    given = average_with_start(tiny_encoder, start, 0.3, evaluator=evaluator)
    assert given == {"share": 0.3, "dev": [expected[2]]}
    for name, weight in weights_of(tiny_encoder).items():
        torch.testing.assert_close(weight, 0.3 * start[name] + 0.7 * trained[name], rtol=0, atol=1e-6)
    assert average_with_start(tiny_encoder, start, 0.5, evaluator=None) == {"share": 0.5, "dev": []}


def test_the_share_is_said_in_a_line() -> None:
    """Reference: the lines by hand."""
    rows = [{"share": 0.0, "ndcg_at_10": 0.5}, {"share": 0.3, "ndcg_at_10": 0.5125}]
    assert share_line({"share": 0.3, "dev": rows}, "dev") == (
        "The encoder has 0.3 of the start's weights and 0.7 of the trained; nDCG@10 on dev is 0.500 with 0, "
        "0.512 with 0.3"
    )
    assert share_line({"share": 1.0, "dev": []}, None) == (
        "The encoder has 1 of the start's weights and 0 of the trained"
    )
