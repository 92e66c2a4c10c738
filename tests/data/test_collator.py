"""The collator: shapes, row order, alignment of gains and documents, and gains that are computed on the way."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch.utils.data import DataLoader

from nlt_trainer.data.collator import ChunkBuilder, NLTCollator, PromptBuilder
from nlt_trainer.data.questions import text_key
from nlt_trainer.errors import NLTError
from nlt_trainer.injection.chunks import ChunkGroups
from nlt_trainer.injection.document_prompts import DocumentPrompts
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.lm.prompt_tokens import PromptTokens
from nlt_trainer.lm.scoring import LikelihoodScorer
from nlt_trainer.prompts import PromptTemplate

TEXTS = ["green tea", "an owl", "the moon", "bread rises", "silk", "a furnace of glass", "honey"]
ROWS: list[dict[str, Any]] = [
    {"query": f"query number {b}", "answer": f"answer {b}", "documents": [TEXTS[(b + k) % 7] for k in range(4)]}
    for b in range(5)
]
GAIN_OF = {text: i / 8 for i, text in enumerate(TEXTS)}


def with_gains(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows whose gains name their documents."""
    return [{**row, "gain": [GAIN_OF[text] for text in row["documents"]]} for row in rows]


def texts_of(encoder: SentenceTransformer, batch: dict[str, Any], kind: str) -> list[str]:
    """Decoded encoder inputs."""
    return encoder.tokenizer.batch_decode(batch[f"{kind}_input_ids"], skip_special_tokens=True)


def test_a_batch_is_query_major_and_plain(tiny_encoder: SentenceTransformer) -> None:
    """Reference: the texts themselves, decoded; documents of query b stand in rows b * K to b * K + K - 1."""
    batch = NLTCollator(tiny_encoder)(with_gains(ROWS))
    assert type(batch) is dict
    assert texts_of(tiny_encoder, batch, "query") == [row["query"] for row in ROWS]
    documents = texts_of(tiny_encoder, batch, "document")
    assert len(documents) == 20
    for b, row in enumerate(ROWS):
        assert sorted(documents[4 * b : 4 * b + 4]) == sorted(row["documents"])
    assert batch["gain"].shape == batch["candidate_keys"].shape == (5, 4)
    assert batch["gain"].dtype == torch.float32
    assert batch["candidate_keys"].dtype == torch.int64
    assert "positive" not in batch
    assert "prompt_ids" not in batch


def test_shuffling_keeps_documents_gains_and_keys_together(tiny_encoder: SentenceTransformer) -> None:
    """Reference: gains that name their documents; each row has its own order, and no row is left as it was by rule."""
    batch = NLTCollator(tiny_encoder)(with_gains(ROWS))
    documents = texts_of(tiny_encoder, batch, "document")
    np.testing.assert_allclose(batch["gain"].flatten(), [GAIN_OF[text] for text in documents])
    assert batch["candidate_keys"].flatten().tolist() == [text_key(text) for text in documents]
    orders = [[ROWS[b]["documents"].index(text) for text in documents[4 * b : 4 * b + 4]] for b in range(5)]
    assert len({tuple(order) for order in orders}) > 1
    labelled = [{**row, "positive": 2} for row in ROWS]
    positive = NLTCollator(tiny_encoder)(labelled)["positive"]
    assert [documents[4 * b + int(k)] for b, k in enumerate(positive)] == [row["documents"][2] for row in ROWS]


def test_keys_of_no_negatives_are_padded(tiny_encoder: SentenceTransformer) -> None:
    """Reference: the rows' keys, which stay in their order, and -1, which is no key."""
    keys = [[text_key("a"), text_key("b")], [], [text_key("c")], [2**63 - 1], [0]]
    batch = NLTCollator(tiny_encoder)([{**row, "no_negatives": own} for row, own in zip(ROWS, keys, strict=True)])
    assert batch["no_negatives"].tolist() == [[*own, -1, -1][:2] for own in keys]
    assert batch["no_negatives"].dtype == torch.int64


def test_likelihoods_are_shuffled_with_their_documents_and_padded(tiny_encoder: SentenceTransformer) -> None:
    """Reference: likelihoods that name document and token; targets of 1 to 3 tokens, 0 after their end."""
    rows = [
        {
            **row,
            "log_likelihood": [-GAIN_OF[text] for text in row["documents"]],
            "token_log_likelihoods": [[-GAIN_OF[text] - t for t in range(1 + b % 3)] for text in row["documents"]],
            "target_tokens": 1 + b % 3,
        }
        for b, row in enumerate(ROWS)
    ]
    batch = NLTCollator(tiny_encoder)(rows)
    texts = texts_of(tiny_encoder, batch, "document")
    gain = torch.tensor([GAIN_OF[text] for text in texts]).reshape(5, 4)
    assert not torch.equal(gain, torch.tensor([[GAIN_OF[text] for text in row["documents"]] for row in ROWS]))
    torch.testing.assert_close(batch["log_likelihood"], -gain)
    assert batch["target_tokens"].tolist() == [1, 2, 3, 1, 2]
    assert batch["token_log_likelihoods"].shape == (5, 4, 3)
    for b, t in itertools.product(range(5), range(3)):
        expected = -gain[b] - t if t < 1 + b % 3 else torch.zeros(4)
        torch.testing.assert_close(batch["token_log_likelihoods"][b, :, t], expected)
    half = NLTCollator(tiny_encoder)([rows[0], ROWS[1]])
    assert not {"log_likelihood", "token_log_likelihoods", "target_tokens"} & set(half)


def test_the_order_depends_on_seed_and_query_alone(tiny_encoder: SentenceTransformer) -> None:
    """Reference: the same query in another batch, later, with the global generators elsewhere."""
    collator = NLTCollator(tiny_encoder, seed=3)
    first = collator(with_gains(ROWS))["gain"]
    torch.rand(7)
    torch.testing.assert_close(collator(with_gains(ROWS[::-1]))["gain"].flip(0), first, rtol=0, atol=0)
    assert not torch.equal(NLTCollator(tiny_encoder, seed=4)(with_gains(ROWS))["gain"], first)


def test_prompts_stand_before_texts(tiny_encoder: SentenceTransformer) -> None:
    """Reference: the decoded inputs."""
    tiny_encoder.prompts = {"query": "find: ", "document": "passage: "}
    batch = NLTCollator(tiny_encoder)(ROWS[:2])
    assert texts_of(tiny_encoder, batch, "query") == [f"find: {row['query']}" for row in ROWS[:2]]
    assert all(text.startswith("passage: ") for text in texts_of(tiny_encoder, batch, "document"))


def test_texts_are_cut_in_training_alone(tiny_encoder: SentenceTransformer) -> None:
    """Reference: the encoder's own length, which stays as it was."""
    row = {"query": "how", "documents": ["the moon makes the tides of the sea " * 9, "silk"]}
    own = tiny_encoder.max_seq_length
    assert NLTCollator(tiny_encoder, max_length=8)([row])["document_input_ids"].shape == (2, 8)
    assert NLTCollator(tiny_encoder)([row])["document_input_ids"].shape == (2, own)
    assert tiny_encoder.max_seq_length == own == 64


def test_missing_gains_are_computed_and_stored(
    tiny_encoder: SentenceTransformer, tiny_lm: FrozenLM, tmp_path: Path
) -> None:
    """Reference: the scorer on the unshuffled rows; a second batch reads the cache; given gains are kept."""
    scorer = LikelihoodScorer(tiny_lm, target="joint", cache_folder=str(tmp_path))
    collator = NLTCollator(tiny_encoder, scorer=scorer)
    rows: list[dict[str, Any]] = [with_gains(ROWS)[0], *ROWS[1:4], {**ROWS[4], "gain": None}]
    batch = collator(rows)
    plain = LikelihoodScorer(tiny_lm, target="joint").gain(
        [row["query"] for row in ROWS], [row["documents"] for row in ROWS], [row["answer"] for row in ROWS]
    )
    documents = texts_of(tiny_encoder, batch, "document")
    for b, row in enumerate(ROWS):
        for k, text in enumerate(documents[4 * b : 4 * b + 4]):
            expected = GAIN_OF[text] if b == 0 else plain[b, row["documents"].index(text)]
            assert float(batch["gain"][b, k]) == pytest.approx(expected, abs=1e-4)
    assert "log_likelihood" not in batch  # the first row's is not known
    computed_alone = collator(rows[1:])
    for b, row in enumerate(rows[1:]):
        shuffled = texts_of(tiny_encoder, computed_alone, "document")[4 * b : 4 * b + 4]
        found = scorer.log_likelihood([(text, row["query"], row["answer"]) for text in shuffled])
        np.testing.assert_allclose(computed_alone["log_likelihood"][b], found.log_likelihood, rtol=1e-5)
        assert computed_alone["target_tokens"][b] == found.target_tokens[0]
    computed = scorer.lm_tokens
    torch.testing.assert_close(collator(rows)["gain"], batch["gain"], rtol=0, atol=0)
    assert scorer.lm_tokens == computed > 0


def test_gains_that_nobody_computes_are_left_out(tiny_encoder: SentenceTransformer) -> None:
    """Reference: objectives that read no gain."""
    assert "gain" not in NLTCollator(tiny_encoder)(ROWS)


def test_prompts_of_the_llm_are_in_the_encoders_order(tiny_encoder: SentenceTransformer, tiny_lm: FrozenLM) -> None:
    """Reference: decoded tokens of document k of prompt b are the text in encoder row b * K + k."""
    tokens = PromptTokens(tiny_lm.tokenizer, PromptTemplate(), max_document_tokens=32)
    builder = PromptBuilder(tokens, "joint", 256)
    batch = NLTCollator(tiny_encoder, prompts=builder)(ROWS)
    prompts = DocumentPrompts.from_dict(batch)
    documents = texts_of(tiny_encoder, batch, "document")
    for b in range(5):
        for k in range(4):
            ids = prompts.prompt_ids[b][prompts.documents[b] == k]
            assert tiny_lm.tokenizer.decode(ids) == documents[4 * b + k]


def test_chunks_of_the_llm_are_in_the_encoders_order(tiny_encoder: SentenceTransformer, tiny_lm: FrozenLM) -> None:
    """Reference: decoded chunks against decoded encoder inputs; chunk 0 is the query."""
    tokens = PromptTokens(tiny_lm.tokenizer, PromptTemplate(), max_document_tokens=16)
    builder = ChunkBuilder(tokens, "joint", tiny_lm.context_length)
    batch = NLTCollator(tiny_encoder, chunks=builder)(ROWS)
    groups = ChunkGroups.from_dict(batch)
    assert groups.chunk_ids.shape[:2] == (5, 5)
    documents = texts_of(tiny_encoder, batch, "document")
    for b, row in enumerate(ROWS):
        texts = [f"Question: {row['query']}\nAnswer: {row['answer']}", *documents[4 * b : 4 * b + 4]]
        for c, text in enumerate(texts):
            assert tiny_lm.tokenizer.decode(groups.chunk_ids[b, c][groups.chunk_mask[b, c]]) == text


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{**with_gains(ROWS)[0], "gain": [0.1, float("nan"), 0, 0]}], "query 'query number 0' has the gains .*nan"),
        ([ROWS[0], {**ROWS[1], "documents": TEXTS[:3]}], r"queries of one batch have \[3, 4\] candidates"),
        ([ROWS[0], {**ROWS[1], "documents": []}], "query 'query number 1' has no candidates; mine candidates"),
    ],
)
def test_bad_rows_are_refused(tiny_encoder: SentenceTransformer, rows: list[dict[str, Any]], message: str) -> None:
    """Reference: the query and the remedy in each message."""
    with pytest.raises(NLTError, match=message):
        NLTCollator(tiny_encoder)(rows)


def test_a_data_loader_worker_computes_no_gains(tiny_encoder: SentenceTransformer, tiny_lm: FrozenLM) -> None:
    """Reference: the remedy in the message; a worker must not hold the LLM."""
    collator = NLTCollator(tiny_encoder, scorer=LikelihoodScorer(tiny_lm, target="query"))
    loader: DataLoader[Any] = DataLoader(ROWS, batch_size=2, num_workers=1, collate_fn=collator)  # type: ignore[arg-type]
    with pytest.raises(NLTError, match=r"set dataloader_num_workers to 0 or run nlt score"):
        next(iter(loader))


def test_keys_are_63_bits_of_the_text() -> None:
    """Reference: equal for equal texts only, never negative."""
    keys = [text_key(text) for text in [*TEXTS, ""]]
    assert len(set(keys)) == 8
    assert all(0 <= key < 2**63 for key in keys)
    assert text_key("an owl") == keys[1]
