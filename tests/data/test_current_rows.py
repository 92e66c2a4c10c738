"""A data loader that runs ahead of rows that are replaced."""

from __future__ import annotations

import numpy as np
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from torch.utils.data import DataLoader

from nlt_trainer.data.collator import NLTCollator
from nlt_trainer.data.current_rows import CurrentRows

ROWS = [{"query": f"query {b}", "documents": [f"text {b}", "tea"]} for b in range(4)]
OTHERS = [{"query": f"query {b}", "documents": ["an owl", f"silk {b}"]} for b in range(4)]


def test_batches_have_the_rows_of_when_they_are_collated(tiny_encoder: SentenceTransformer) -> None:
    """Reference: the collator on the rows themselves; the loader has given both batches before they are replaced."""
    collator = NLTCollator(tiny_encoder)
    rows = CurrentRows(collator, Dataset.from_list(ROWS))
    first, second = DataLoader(rows.numbered(), batch_size=2, collate_fn=rows)
    found = [rows.collated(first)]
    rows.rows = Dataset.from_list(OTHERS)
    found.append(rows.collated(second))
    for batch, expected in zip(found, (collator(ROWS[:2]), collator(OTHERS[2:])), strict=True):
        assert batch.keys() == expected.keys()
        assert all(np.array_equal(batch[name], value) for name, value in expected.items())
