"""One trainer for all objectives."""

from __future__ import annotations

from typing import Any

import torch
from sentence_transformers import SentenceTransformerTrainer
from torch import Tensor

from nlt_trainer.arguments import NLTTrainingArguments
from nlt_trainer.errors import NLTError

ENCODER_INPUTS = ("query_", "document_")


class NLTTrainer(SentenceTransformerTrainer):
    """`SentenceTransformerTrainer` for batches of queries with K candidates each.

    The encoder is all that is trained, wrapped and saved: an objective that reads a frozen LLM holds it as a
    plain object. Losses are means over queries of terms that do not depend on the rest of the batch (or, with in-batch
    negatives, on the global batch), so that one process and several give the same loss for the same global batch.

    Args are those of `SentenceTransformerTrainer`; `data_collator` is an `NLTCollator`, `loss` one of
    `nlt_trainer.objectives`.

    Example:
        ```python
        encoder = load_encoder("sentence-transformers/all-MiniLM-L6-v2")
        trainer = NLTTrainer(
            encoder,
            NLTTrainingArguments(output_dir="runs/mine"),
            train_dataset=dataset,  # columns query, documents, gain
            loss=LikelihoodGainLoss(encoder),
            data_collator=NLTCollator(encoder),
        )
        trainer.train()
        ```
    """

    args: NLTTrainingArguments

    def collect_features(  # type: ignore[override]  # labels are named tensors here; only the loss reads them
        self, inputs: dict[str, Any]
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Split a batch of `NLTCollator` into encoder inputs (queries, documents) and everything else by name.

        Raises:
            NLTError: the batch does not come from `NLTCollator`.
        """
        texts = {name: value for name, value in inputs.items() if name.startswith(ENCODER_INPUTS)}
        features, _ = super().collect_features(texts)
        if len(features) != len(ENCODER_INPUTS):
            raise NLTError(f"a batch has the entries {sorted(inputs)}; pass data_collator=NLTCollator(encoder, ...)")
        return features, {name: value for name, value in inputs.items() if name not in texts}

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The objective's loss of a batch.

        Raises:
            NLTError: it is infinite or NaN, which the trainer's log would show as 0.
        """
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = result[0] if isinstance(result, tuple) else result
        if not torch.isfinite(loss):
            raise NLTError(
                f"the loss is {loss.item()} after {self.state.global_step} steps; lower learning_rate "
                f"({self.args.learning_rate}) or raise temperature ({self.args.temperature})"
            )
        return result
