"""The collator: it turns dataset rows into a batch of encoder inputs, likelihood gains and the LLM's prompts."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import get_worker_info

from nlt_trainer.choices import DocumentLayout, TargetKind
from nlt_trainer.data.questions import NO_KEY, text_key
from nlt_trainer.encoder.tokens import EncoderTokens
from nlt_trainer.errors import NLTError
from nlt_trainer.injection.chunks import ChunkGroups, build_chunks
from nlt_trainer.injection.document_prompts import DocumentPrompts, build_prompts, check_layout
from nlt_trainer.lm.prompt_tokens import PromptTokens
from nlt_trainer.lm.scorer import likelihood_gain
from nlt_trainer.lm.scoring import LikelihoodScorer


@dataclass(frozen=True)
class PromptBuilder:
    """How the collator builds the prompts of K documents that an LLM reads.

    Args:
        tokens: tokeniser of the prompt's segments.
        target: what the LLM has to predict.
        context_length: context length of the LLM, tokens.
        layout: whether documents see each other.

    Raises:
        NLTError: the layout is unknown.
    """

    tokens: PromptTokens
    target: TargetKind
    context_length: int
    layout: DocumentLayout = "sequential"

    def __post_init__(self) -> None:
        check_layout(self.layout)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> DocumentPrompts:
        """The prompts of rows that have `query`, `documents` and, if the target needs it, `answer`."""
        return build_prompts(
            self.tokens,
            **_texts(rows),
            target=self.target,
            context_length=self.context_length,
            layout=self.layout,
        )


@dataclass(frozen=True)
class ChunkBuilder:
    """How the collator builds the groups of chunks that Revela's LLM reads. Its Args are those of `PromptBuilder`."""

    tokens: PromptTokens
    target: TargetKind
    context_length: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> ChunkGroups:
        """The groups of rows that have `query`, `documents` and, if the target needs it, `answer`."""
        return build_chunks(self.tokens, **_texts(rows), target=self.target, context_length=self.context_length)


def _texts(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Queries, documents and answers of rows."""
    return {
        "queries": [row["query"] for row in rows],
        "documents": [row["documents"] for row in rows],
        "answers": [row.get("answer") for row in rows],
    }


BY_CANDIDATE = ("gain", "log_likelihood", "token_log_likelihoods")
"""Columns that hold K values in the order of the documents."""


@dataclass
class NLTCollator:
    """Collate rows of `query`, `documents` (K texts), and optionally `answer`, `positive` and the LLM's likelihoods.

    An objective makes the collator that it needs: `loss.collator(...)`. The encoder's prompts stand before the texts,
    as they do at inference. A batch is a plain dict of tensors:

    | Key | Shape | What |
    |---|---|---|
    | `query_*` | `(B, ...)` | tokenised queries |
    | `document_*` | `(B * K, ...)` | tokenised candidates, query-major: row `b * K + k` |
    | `candidate_keys` | `(B, K)` int64 | equal for equal texts |
    | `gain` | `(B, K)` float32 | likelihood gain, nats per target token: from the rows, else from `scorer` |
    | `log_likelihood` | `(B, K)` float32 | of the target, nats, if the rows have it or the scorer has run |
    | `target_tokens` | `(B,)` int64 | length of the target, under the same condition |
    | `token_log_likelihoods` | `(B, K, T)` float32 | of the target's tokens, nats, 0 after its end, if given |
    | `positive` | `(B,)` int64 | index of the labelled candidate, if the rows have one |
    | `no_negatives` | `(B, R)` int64 | keys of texts that are no negatives, then -1, if the rows have them |
    | fields of `DocumentPrompts` | `(B, ...)` | the LLM's prompts, with `prompts` |
    | fields of `ChunkGroups` | `(B, K + 1, ...)` | the LLM's chunks, with `chunks` |

    Args:
        encoder: the encoder that is trained. Its tokeniser and prompts are used as they are at the first batch. Each
            data loader worker tokenises a text only once.
        scorer: computes and stores the gains of rows that have none; `None` if gains are stored or not needed.
        prompts: builds prompts of K documents; `None` if no objective reads them.
        chunks: builds Revela's chunks; `None` if no objective reads them.
        max_length: tokens that the encoder reads of a text in training; `None` means its `max_seq_length`.
        seed: seed of the candidates' order. The order is drawn once a query, so that a position in a prompt has no
            meaning.

    Raises:
        NLTError: a query has no candidates, or another number of candidates than the others; a gain is not finite;
            gains would have to be computed in a data loader worker.
    """

    encoder: SentenceTransformer
    scorer: LikelihoodScorer | None = None
    prompts: PromptBuilder | None = None
    chunks: ChunkBuilder | None = None
    max_length: int | None = None
    seed: int = 0
    # read by SentenceTransformerTrainer
    valid_label_columns: list[str] = field(default_factory=list)
    _tokens: dict[str, EncoderTokens] = field(default_factory=dict, init=False, repr=False)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        rows = [self._shuffled(row) for row in rows]
        if len(sizes := {len(row["documents"]) for row in rows}) > 1:
            raise NLTError(f"queries of one batch have {sorted(sizes)} candidates; mine them with one num_candidates")
        queries = [row["query"] for row in rows]
        documents = [text for row in rows for text in row["documents"]]  # B * K texts, query-major
        keys = [text_key(text) for text in documents]
        batch = self._encode(queries, [text_key(text) for text in queries], "query")
        batch |= self._encode(documents, keys, "document")
        batch["candidate_keys"] = torch.tensor(keys).reshape(len(rows), -1)  # (B * K,) -> (B, K)
        batch |= self._likelihoods(rows)
        if "positive" in rows[0]:
            batch["positive"] = torch.tensor([row["positive"] for row in rows])
        if "no_negatives" in rows[0]:
            keys_of = [torch.tensor(row["no_negatives"], dtype=torch.int64) for row in rows]
            batch["no_negatives"] = pad_sequence(keys_of, batch_first=True, padding_value=NO_KEY)  # (B, R)
        if self.prompts is not None:
            batch |= self.prompts(rows).as_dict()
        if self.chunks is not None:
            batch |= self.chunks(rows).as_dict()
        return batch

    def truncated_documents(self, rows: Sequence[Mapping[str, Any]]) -> float:
        """Share of the documents that are cut to `max_document_tokens` for the LLM; 0 if no LLM reads them.

        Args:
            rows: rows with `query`, `documents` and, if the target needs it, `answer`.

        Raises:
            NLTError: a prompt or a chunk does not fit the LLM's context.
        """
        cut: list[bool] = []
        builders: list[PromptBuilder | ChunkBuilder] = [b for b in (self.prompts, self.chunks) if b is not None]
        for build in builders:
            for row in rows:
                build([row])
                cut += [build.tokens.document(text)[1] for text in row["documents"]]
        return sum(cut) / len(cut) if cut else 0.0

    def _shuffled(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with its candidates in an order that depends only on the seed and the query."""
        k = len(row["documents"])
        if not k:
            raise NLTError(f"query {row['query'][:60]!r} has no candidates; mine candidates for it or remove it")
        order = random.Random(f"{self.seed} {row['query']}").sample(range(k), k)
        row = {**row, "documents": [row["documents"][i] for i in order]}
        row |= {name: [row[name][i] for i in order] for name in BY_CANDIDATE if row.get(name) is not None}
        if "positive" in row:
            row["positive"] = order.index(row["positive"])
        return row

    def _encode(self, texts: list[str], keys: list[int], kind: str) -> dict[str, Any]:
        if kind not in self._tokens:
            self._tokens[kind] = EncoderTokens(self.encoder, kind, max_length=self.max_length)
        return {f"{kind}_{key}": value for key, value in self._tokens[kind](texts, keys).items()}

    def _likelihoods(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """The gains and likelihoods that all rows have; missing gains are computed first if there is a scorer."""
        missing = [row for row in rows if row.get("gain") is None]
        if missing and self.scorer is not None:
            self._score(missing)
        batch = {}
        for name in (*BY_CANDIDATE, "target_tokens"):
            values = [row.get(name) for row in rows]
            if any(value is None for value in values):
                continue
            if name == "token_log_likelihoods":  # K x T numbers a query, each with its own T; padded along T as (T, K)
                by_token = [torch.tensor(value, dtype=torch.float32).T for value in values]
                batch[name] = pad_sequence(by_token, batch_first=True).mT  # (B, K, T)
            else:
                batch[name] = torch.tensor(values, dtype=torch.int64 if name == "target_tokens" else torch.float32)
        for row in rows if "gain" in batch else ():
            if not np.isfinite(row["gain"]).all():
                raise NLTError(
                    f"query {row['query'][:60]!r} has the gains {row['gain']}; compute them again: nlt score"
                )
        return batch

    def _score(self, rows: Sequence[dict[str, Any]]) -> None:
        """Put the scorer's gains and likelihoods into the rows."""
        if get_worker_info() is not None:
            raise NLTError("gains are computed in the main process; set dataloader_num_workers to 0 or run nlt score")
        assert self.scorer is not None
        with_document, without = self.scorer.candidate_likelihoods(
            [row["query"] for row in rows],
            [row["documents"] for row in rows],
            [row.get("answer") for row in rows],
        )
        gain = likelihood_gain(with_document, without)  # (B, K)
        for b, row in enumerate(rows):
            row["gain"] = gain[b].tolist()
            row["log_likelihood"] = with_document.log_likelihood.reshape(gain.shape)[b].tolist()
            row["target_tokens"] = int(without.target_tokens[b])
