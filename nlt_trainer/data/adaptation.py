"""Choose and tokenise the texts that an adapter of the scoring LLM is trained on, in the layout of scoring."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from nlt_trainer.choices import TargetKind
from nlt_trainer.data.beir import Collection
from nlt_trainer.data.candidates import QueryCandidates
from nlt_trainer.errors import NLTError
from nlt_trainer.injection.detection import relevant_by_gain
from nlt_trainer.lm.prompt_tokens import PromptTokens, Suffix

IGNORED = -100
"""Label of a token that is read and not predicted; transformers' losses use this number."""

HELD_OUT = 32
"""The most documents that measure the adapter and do not train it."""


@dataclass(frozen=True)
class AdaptationTexts:
    """The texts that an adapter reads.

    Args:
        documents: ids of the documents that are read alone.
        pairs: documents and queries that are read one after the other.
        held_out: ids of the documents that only measure the adapter.
    """

    documents: list[str]
    pairs: list[tuple[str, QueryCandidates]]
    held_out: list[str]


def best_pairs(candidates: Sequence[QueryCandidates], gain: np.ndarray) -> list[tuple[str, QueryCandidates]]:
    """Pair each query with its candidate of the highest gain; queries without a positive gain are left out.

    Args:
        candidates: B queries with K candidates each.
        gain: `(B, K)`, nats per target token.
    """
    best = relevant_by_gain(gain)
    return [(c.document_ids[int(row.argmax())], c) for c, row in zip(candidates, best, strict=True) if row.any()]


def choose_texts(
    collection: Collection,
    pairs: Sequence[tuple[str, QueryCandidates]],
    *,
    num_documents: int | None,
    seed: int,
) -> AdaptationTexts:
    """Draw documents by seed: first a tenth of the corpus, 32 at most, to measure; then those to train on.

    Args:
        collection: the corpus; its qrels are not read.
        pairs: what `best_pairs` returned, or nothing; a pair whose document is held out is left out.
        num_documents: how many documents to read alone, not counting those of pairs; `None` reads all.
        seed: of the draw.

    Raises:
        NLTError: the corpus has a single document, so that none can be held out.
    """
    ids = list(collection.corpus)
    if len(ids) < 2:
        raise NLTError(f"{collection.folder} has 1 document; adaptation needs one to train on and one to measure on")
    order = random.Random(seed).sample(ids, len(ids))
    number = min(HELD_OUT, max(1, len(ids) // 10))
    held_out = set(order[:number])
    kept = [pair for pair in pairs if pair[0] not in held_out]
    paired = {document_id for document_id, _ in kept}
    alone = [document_id for document_id in order[number:] if document_id not in paired]
    return AdaptationTexts(alone[:num_documents], kept, order[:number])


def adaptation_rows(
    tokens: PromptTokens,
    texts: Sequence[tuple[str, QueryCandidates | None]],
    *,
    target: TargetKind,
    context_length: int,
) -> Dataset:
    """Tokenise documents, each alone or followed by a query and its target, in the layout of scoring.

    Args:
        tokens: tokeniser of the prompt's segments.
        texts: contents of documents, each with the query that follows it, if any.
        target: which text is predicted, as in scoring.
        context_length: of the LLM, tokens; documents are cut so that a row fits.

    Returns:
        Rows of `input_ids`, `labels` (a text's own tokens; `IGNORED` at tokens of the template) and `length`.

    Raises:
        NLTError: a query and its target leave no room for a document.
    """
    rows = []
    for content, asked in texts:
        suffix = None if asked is None else tokens.suffix(asked.query, asked.answer, target)
        ids, labels = _row(tokens, content, suffix, context_length)
        rows.append({"input_ids": ids, "labels": labels, "length": len(ids)})
    return Dataset.from_list(rows)


def _row(
    tokens: PromptTokens, content: str, suffix: Suffix | None, context_length: int
) -> tuple[list[int], list[int]]:
    before, after = tokens.document_frame
    before = (*tokens.start, *before)
    after = () if suffix is None else after  # without a query, nothing after it is predicted
    end = () if suffix is None else suffix.ids
    own, _ = tokens.document(content)
    own = own[: max(0, context_length - len(before) - len(after) - len(end))]
    if not own:
        raise NLTError(
            f"the template, a query and its target have {len(before) + len(after) + len(end)} tokens, which leaves no "
            f"room for a document in the {context_length} of the LLM's context; shorten the query"
        )
    marks = () if suffix is None else suffix.target
    labels = [IGNORED] * len(before) + [*own] + [IGNORED] * len(after)
    labels += [i if marked else IGNORED for i, marked in zip(end, marks, strict=True)]
    return [*before, *own, *after, *end], labels


def pad_rows(rows: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
    """Collate R rows, padded on the right: `input_ids`, `labels` and `attention_mask`, each `(R, L)` int64."""
    length = max(len(row["input_ids"]) for row in rows)
    filling = {"input_ids": 0, "labels": IGNORED, "attention_mask": 0}
    columns = {name: torch.full((len(rows), length), value) for name, value in filling.items()}
    for r, row in enumerate(rows):
        size = len(row["input_ids"])
        columns["input_ids"][r, :size] = torch.tensor(row["input_ids"])
        columns["labels"][r, :size] = torch.tensor(row["labels"])
        columns["attention_mask"][r, :size] = 1
    return columns
