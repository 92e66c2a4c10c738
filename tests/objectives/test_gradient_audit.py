"""DREAM's gradient as a teacher: the ranks and the signal of pushes, against finite differences of the loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from nlt_trainer.injection.document_prompts import DocumentPrompts
from nlt_trainer.injection.heads import HeadSet
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.objectives.dream import DREAMLoss
from nlt_trainer.objectives.gradient_audit import audit_gradient

ROWS: list[dict[str, Any]] = [
    {
        "query": "how is tea made",
        "documents": ["Green tea is made from leaves.", "An owl hunts.", "Bread."],
        "gain": [1.0, 0.0, 0.0],
    },
    {
        "query": "which bird hunts at night",
        "documents": ["Silk is spun by a moth.", "An owl hunts at night.", "The owl is a bird."],
        "gain": [0.0, 1.0, 1.0],
    },
    {
        "query": "what makes the tides",
        "documents": ["The moon pulls the sea.", "Yeast makes bread rise.", "Glass is melted sand."],
        "gain": [1.0, 0.0, 0.0],
    },
]


@pytest.mark.parametrize("layout", ["sequential", "independent"])
def test_pushes_are_differences_of_the_loss(tiny_encoder: SentenceTransformer, tiny_lm: FrozenLM, layout: Any) -> None:
    """Against differences of each query's loss when one score is raised and lowered a little."""
    scores = ((0.5,) * tiny_lm.num_heads,) * tiny_lm.num_layers
    heads = HeadSet(((1, 2), (0, 3), (1, 0)), scores, tiny_lm.name, tiny_lm.fingerprint, {})
    loss = DREAMLoss(tiny_encoder, tiny_lm, heads=heads, temperature=0.3)
    collator = loss.collator(ROWS, layout=layout)
    found = audit_gradient(loss, collator, ROWS, batch_size=2)

    starts, ranks, signals = ("equal", "start"), {}, {}
    for name in starts:
        rank, signal = [], []
        for row in ROWS:
            batch = collator([dict(row)])
            known = batch["gain"][0].numpy() > 0
            prompts = DocumentPrompts.from_dict(batch)
            at = torch.zeros(1, 3)
            if name == "start":
                texts = {text: embedding(tiny_encoder, text) for text in (row["query"], *row["documents"])}
                order = [next(i for i in range(3) if row["documents"][i] == text) for text in shuffled(collator, row)]
                at = torch.tensor([[float(texts[row["query"]] @ texts[row["documents"][i]]) / 0.3 for i in order]])
            push = []
            for k in range(3):
                step = 0.05 * torch.eye(3)[k]
                above, below = (loss.compute_loss_from_scores(at + s, prompts).item() for s in (step, -step))
                push.append((below - above) / 0.1)
            best = max(p for p, is_known in zip(push, known, strict=True) if is_known)
            rank.append(1 / (1 + sum(p >= best for p, is_known in zip(push, known, strict=True) if not is_known)))
            signal.append(np.mean(np.array(push)[known]) - np.mean(np.array(push)[~known]))
        ranks[name], signals[name] = np.mean(rank), np.mean(signal) / np.std(signal)
    for name in starts:
        assert found[name].reciprocal_rank == pytest.approx(ranks[name])
        assert found[name].signal_to_noise == pytest.approx(signals[name], rel=0.02)


def embedding(encoder: SentenceTransformer, text: str) -> np.ndarray:
    return np.asarray(encoder.encode(text, normalize_embeddings=True))


def shuffled(collator: Any, row: dict[str, Any]) -> list[str]:
    return list(collator._shuffled(row)["documents"])
