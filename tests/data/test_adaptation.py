"""Texts for an adapter of the LLM: which are read, in which layout, and how they are padded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from nlt_trainer.choices import TargetKind
from nlt_trainer.data.adaptation import IGNORED, adaptation_rows, best_pairs, choose_texts, pad_rows
from nlt_trainer.data.beir import Collection, load_collection
from nlt_trainer.data.candidates import QueryCandidates
from nlt_trainer.errors import NLTError
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.lm.prompt_tokens import PromptTokens
from nlt_trainer.lm.scoring import LikelihoodScorer
from nlt_trainer.prompts import PromptTemplate

CANDIDATES = [
    QueryCandidates("q1", "which animal", "the whale", ("d01", "d02"), (2.0, 1.0)),
    QueryCandidates("q2", "why does bread rise", "yeast", ("d03", "d07"), (2.0, 1.0)),
    QueryCandidates("q3", "what makes tides", "the moon", ("d08", "d09"), (2.0, 1.0)),
]
GAIN = np.array([[0.5, -0.5], [-0.2, 0.3], [-0.1, -0.2]])


@pytest.fixture
def collection(tiny_collection_folder: Path) -> Collection:
    return load_collection(tiny_collection_folder, splits=[])


def test_pairs_are_the_best_candidates_that_help() -> None:
    """Reference: the largest gain by eye; q3 has no positive one."""
    assert [(document_id, c.query_id) for document_id, c in best_pairs(CANDIDATES, GAIN)] == [
        ("d01", "q1"),
        ("d07", "q2"),
    ]


def test_documents_to_measure_on_are_not_trained_on(collection: Collection) -> None:
    """Reference: set arithmetic over the 12 documents, for ten seeds; a seed gives the same draw again."""
    pairs = best_pairs(CANDIDATES, GAIN)
    for seed in range(10):
        texts = choose_texts(collection, pairs, num_documents=None, seed=seed)
        trained = [*texts.documents, *(document_id for document_id, _ in texts.pairs)]
        assert sorted([*trained, *texts.held_out]) == sorted(collection.corpus)
        assert len(texts.held_out) == 1
        assert choose_texts(collection, pairs, num_documents=None, seed=seed) == texts
    draws = [choose_texts(collection, [], num_documents=3, seed=seed).documents for seed in range(10)]
    assert [len(draw) for draw in draws] == [3] * 10
    assert len({tuple(draw) for draw in draws}) > 1


def test_a_corpus_of_one_document_is_refused(collection: Collection) -> None:
    """Reference: the remedy in the message."""
    single = Collection("one", collection.folder, {"d01": collection.corpus["d01"]}, {}, {})
    with pytest.raises(NLTError, match=r"has 1 document; adaptation needs one to train on and one to measure on"):
        choose_texts(single, [], num_documents=None, seed=0)


@pytest.mark.parametrize("target", ["answer", "query", "joint"])
@pytest.mark.parametrize("bos", [False, True])
def test_the_loss_of_a_pair_is_the_scorers_likelihood(
    tiny_lm: FrozenLM, tiny_bos_lm: FrozenLM, target: TargetKind, bos: bool
) -> None:
    """Reference: `LikelihoodScorer`, once the labels of the document are taken away."""
    lm = tiny_bos_lm if bos else tiny_lm
    scorer = LikelihoodScorer(lm, target=target, max_document_tokens=6)
    document = "The blue whale is the largest animal that ever lived."
    (row,) = adaptation_rows(scorer.tokens, [(document, CANDIDATES[0])], target=target, context_length=256)
    labels = torch.tensor([row["labels"]])
    own = len(lm.tokenizer("Document: ", add_special_tokens=False).input_ids) + len(scorer.tokens.start)
    expected_own, cut = scorer.tokens.document(document)
    assert cut
    assert tuple(row["labels"][own : own + 6]) == expected_own
    assert row["labels"][:own] == [IGNORED] * own
    labels[0, : own + 6] = IGNORED
    with torch.no_grad():
        loss = lm.model(input_ids=torch.tensor([row["input_ids"]]), labels=labels).loss
    found = scorer.log_likelihood([(document, CANDIDATES[0].query, CANDIDATES[0].answer)])
    expected = -found.log_likelihood[0] / found.target_tokens[0]
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert int((labels != IGNORED).sum()) == found.target_tokens[0]


def test_a_document_alone_ends_with_its_last_token(tiny_lm: FrozenLM) -> None:
    """Reference: the tokenizer on the written-out text; nothing is asked of the template."""
    tokens = PromptTokens(tiny_lm.tokenizer, PromptTemplate(), max_document_tokens=100)
    (row,) = adaptation_rows(tokens, [("green tea", None)], target="query", context_length=256)
    prefix, own = (tiny_lm.tokenizer(text).input_ids for text in ("Document: ", "green tea"))
    assert row == {
        "input_ids": prefix + own,
        "labels": [IGNORED] * len(prefix) + own,
        "length": len(prefix + own),
    }


def test_a_row_fits_the_context(tiny_lm: FrozenLM) -> None:
    """Reference: the context's length; the query and its target are never cut."""
    tokens = PromptTokens(tiny_lm.tokenizer, PromptTemplate(), max_document_tokens=100)
    document = "The moon pulls the water of the sea and so makes the tides. " * 3
    (whole,) = adaptation_rows(tokens, [(document, CANDIDATES[0])], target="query", context_length=256)
    (cut,) = adaptation_rows(tokens, [(document, CANDIDATES[0])], target="query", context_length=40)
    suffix = tokens.suffix(CANDIDATES[0].query, None, "query")
    assert (cut["length"], cut["input_ids"][-len(suffix.ids) :]) == (40, list(suffix.ids))
    assert whole["length"] > 40
    with pytest.raises(NLTError, match=r"leaves no room for a document in the 12 of the LLM's context; shorten"):
        adaptation_rows(tokens, [(document, CANDIDATES[0])], target="query", context_length=12)


def test_padding_changes_no_loss(tiny_lm: FrozenLM) -> None:
    """Reference: the rows one at a time."""
    tokens = PromptTokens(tiny_lm.tokenizer, PromptTemplate(), max_document_tokens=100)
    texts = [("green tea", None), ("The moon pulls the water of the sea.", CANDIDATES[1])]
    rows = list(adaptation_rows(tokens, texts, target="query", context_length=256))
    batch = pad_rows(rows)
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape
    assert batch["attention_mask"].sum(1).tolist() == [row["length"] for row in rows]
    with torch.no_grad():
        logits = tiny_lm.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        for r, row in enumerate(rows):
            ids = torch.tensor([row["input_ids"]])
            expected = tiny_lm.model(input_ids=ids, labels=torch.tensor([row["labels"]])).loss
            found = torch.nn.functional.cross_entropy(logits[r, :-1], batch["labels"][r, 1:], ignore_index=IGNORED)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
