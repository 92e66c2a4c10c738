"""Training rows that can be replaced while a data loader runs ahead of the trainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from nlt_trainer.data.collator import NLTCollator

NUMBER = "row_number"
"""Column of the dataset, and entry of a batch, that has the numbers of rows."""


@dataclass
class CurrentRows:
    """A trainer's collator whose batches are the numbers of their rows, until `collated` makes real ones of them.

    A data loader always holds the next batch, and one with workers holds several. If `rows` are replaced after a step,
    those batches must have the new rows too. The trainer therefore collates a batch when its step begins.

    Args:
        collator: makes the real batches.
        rows: what batches are made of now. They may be replaced by as many rows of the same queries.
    """

    collator: NLTCollator
    rows: Dataset
    # read by SentenceTransformerTrainer
    valid_label_columns: list[str] = field(default_factory=list)

    def numbered(self) -> Dataset:
        """The rows as the trainer's dataset, with their numbers. It stays as it is if the rows are replaced."""
        return self.rows.add_column(NUMBER, list(range(len(self.rows))))

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        return {NUMBER: torch.tensor([row[NUMBER] for row in rows])}

    def collated(self, batch: dict[str, Tensor]) -> dict[str, Any]:
        """The batch of `collator`, of the rows that have these numbers now."""
        return self.collator([self.rows[number] for number in batch[NUMBER].tolist()])
