"""How long a text may be for an encoder that has a learned table of positions."""

from __future__ import annotations

from sentence_transformers import SentenceTransformer
from torch import nn

TABLES = ("position_embeddings", "position_embedding", "wpe")
"""Names under which the models of transformers keep a table of learned positions."""


def position_limit(encoder: SentenceTransformer) -> int | None:
    """The most tokens of a text that the encoder has positions for; `None` where no table limits them.

    Only tables that are read for a text count, so the encoder embeds a short one where it has a table.
    """
    tables = [
        module
        for name, module in encoder.named_modules()
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in TABLES
    ]
    if not tables:
        return None
    read: set[nn.Embedding] = set()
    hooks = [table.register_forward_hook(lambda table, *_: read.add(table)) for table in tables]
    try:
        encoder.encode(["a"], show_progress_bar=False)
    finally:
        for hook in hooks:
            hook.remove()
    # a table with a row for padding begins after that row, as RoBERTa's does
    rows = [table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1) for table in read]
    return min(rows, default=None)
