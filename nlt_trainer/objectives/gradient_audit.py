"""How well DREAM's gradient ranks candidates before anything is trained: DREAM audited as a teacher.

The gradient of DREAM's loss pushes the scores of some candidates up and those of others down. If it pushes the
relevant one up more than the others, training finds it; if the push is mostly noise, training finds noise. A look at
some queries says so in seconds, where a training takes minutes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sentence_transformers.util import batch_to_device
from tqdm.auto import tqdm

from nlt_trainer.data.collator import NLTCollator
from nlt_trainer.encoder.similarity import embed, gain_of
from nlt_trainer.injection.detection import reciprocal_rank, signal_to_noise
from nlt_trainer.injection.document_prompts import DocumentPrompts
from nlt_trainer.objectives.dream import DREAMLoss


@dataclass(frozen=True)
class GradientAudit:
    """What the gradient says of the candidates of some queries.

    Args:
        reciprocal_rank: mean over queries of 1 / rank of the best relevant candidate, ordered by the push on scores.
        signal_to_noise: mean over queries of the push on relevant candidates less that on the others, over its
            standard deviation. Batches of n queries average the noise down by the root of n.
    """

    reciprocal_rank: float
    signal_to_noise: float


def audit_gradient(
    loss: DREAMLoss, collator: NLTCollator, rows: Sequence[Mapping[str, Any]], *, batch_size: int = 4
) -> dict[str, GradientAudit]:
    """Audit -dL/ds, the push of DREAM's loss on the encoder's scores, on queries whose relevant candidates are known.

    Args:
        loss: the objective, with the encoder before training.
        collator: that of the objective.
        rows: `query`, `documents` (K texts), `answer` where the target needs it, and under `gain` the relevance of
            each document, 1 or 0; every query needs both.
        batch_size: queries that are collated at once.

    Returns:
        `equal`: with equal scores, as an encoder has them that knows nothing; `start`: with those of the encoder.
    """
    pushes: dict[str, list[np.ndarray]] = {"equal": [], "start": []}
    relevant: list[np.ndarray] = []
    for at in tqdm(range(0, len(rows), batch_size), desc="auditing the gradient", disable=len(rows) < 16):
        batch = collator([dict(row) for row in rows[at : at + batch_size]])
        features = [
            batch_to_device(
                {k.removeprefix(part): v for k, v in batch.items() if k.startswith(part)}, loss.model.device
            )
            for part in ("query_", "document_")
        ]
        with torch.no_grad():
            start = loss.own_scores(*embed(loss.model, features))  # (B, K)
        prompts = DocumentPrompts.from_dict(batch)
        read = loss.reader.read_documents(prompts.to(loss.reader.lm.device))
        for name, scores in (("equal", torch.zeros_like(start)), ("start", start)):
            leaf = scores.detach().requires_grad_()
            loss.compute_loss_from_scores(leaf, prompts, read=read).backward()
            assert leaf.grad is not None
            pushes[name].append(-len(leaf) * leaf.grad.cpu().numpy())
        relevant.append(gain_of(batch).numpy() > 0)
    known = np.concatenate(relevant)
    return {name: _audit(np.concatenate(found), known) for name, found in pushes.items()}


def _audit(push: np.ndarray, relevant: np.ndarray) -> GradientAudit:
    """The audit of pushes `(B, K)` on documents of which some are relevant, `(B, K)` bool."""
    ranks = [float(reciprocal_rank(row, known)) for row, known in zip(push, relevant, strict=True)]
    return GradientAudit(float(np.mean(ranks)), float(signal_to_noise([*push], [*relevant])))
