"""The number of tokens that an encoder reads of a passage: what is tried, what it finds, and which is taken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, WordEmbeddings
from sentence_transformers.sentence_transformer.modules.tokenizer import WhitespaceTokenizer

from nlt_trainer.adapt import length
from nlt_trainer.adapt.collection import HELD_OUT
from nlt_trainer.adapt.length import Length, best_length, lengths_tried
from nlt_trainer.data.beir import Document, Query, load_corpus, write_collection
from nlt_trainer.evaluation.evaluator import evaluate_encoder

WORDS = "cat dog moon sea bee honey paris france run jump".split()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Forty passages of 6 words, the last ten of 12; queries are the ends of passages."""
    texts = [" ".join(WORDS[(i * k + i // 7 + k) % 10] for k in range(6 if i < 30 else 12)) for i in range(40)]
    queries = [Query(f"q{i}", " ".join(texts[i].split()[-4:])) for i in range(40)]
    write_collection(
        tmp_path / "c",
        corpus=[Document(f"d{i}", "", text) for i, text in enumerate(texts)],
        queries=queries,
        qrels={HELD_OUT: {f"q{i}": {f"d{i}": 1} for i in range(40)}},
        stage="nlt build_collection",
    )
    return tmp_path / "c"


def test_what_is_found_is_what_the_encoder_finds_so(
    folder: Path, tiny_encoder: SentenceTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against mteb. A length that cuts no passage is not tried, and the first that finds less ends the trial."""
    own = tiny_encoder.max_seq_length
    assert own is not None
    texts = [document.content for document in load_corpus(folder).values()]
    longest = max(len(ids) for ids in tiny_encoder.tokenizer(texts)["input_ids"])
    assert longest < own
    monkeypatch.setattr(length, "LENGTHS", (2 * own, longest, 8, 7, 3))
    tried = lengths_tried(tiny_encoder, folder, embeddings=tmp_path / "e", bf16=False)
    assert tiny_encoder.max_seq_length == own
    expected = {}
    for tokens in (own, 8, 7, 3):
        tiny_encoder.max_seq_length = tokens
        expected[tokens] = evaluate_encoder(tiny_encoder, folder, split=HELD_OUT)["ndcg_at_10"]
    found = {one.tokens: one.ndcg_at_10 for one in tried}
    assert found == pytest.approx({tokens: expected[tokens] for tokens in found}, abs=1e-5)
    values = list(found.values())
    assert values[:-1] == sorted(values[:-1])
    assert list(found) == [own, 8, 7, 3][: len(found)]
    assert len(found) == 4 or values[-1] < values[-2]
    assert tried[0].p == 1


def test_an_encoder_without_a_limit_keeps_having_none(
    folder: Path, tiny_static_encoder: SentenceTransformer, tmp_path: Path
) -> None:
    assert lengths_tried(tiny_static_encoder, folder, embeddings=tmp_path / "e", bf16=False) == []
    assert best_length([]) is None


@pytest.mark.parametrize(
    ("shorter", "expected"),
    [
        ([], None),
        ([(128, 0.7, 0.01)], 128),
        ([(128, 0.7, 0.06)], None),
        ([(128, 0.3, 0.01)], None),
        ([(256, 0.7, 0.01), (128, 0.8, 0.2)], 256),
        ([(256, 0.7, 0.01), (128, 0.8, 0.01)], 128),
    ],
)
def test_a_shorter_length_is_taken_only_if_it_surely_finds_more(
    shorter: list[tuple[int, float, float]], expected: int | None
) -> None:
    chosen = best_length([Length(512, 0.5, 1.0), *(Length(*one) for one in shorter)])
    assert (chosen and chosen.tokens) == expected


def test_a_table_of_word_vectors_keeps_its_limit(folder: Path, tmp_path: Path) -> None:
    """Reference: nothing is tried, because its tokenizer only knows words."""
    table = WordEmbeddings(WhitespaceTokenizer(WORDS), np.eye(len(WORDS), dtype=np.float32))
    encoder = SentenceTransformer(modules=[table, Pooling(len(WORDS))], device="cpu")
    assert lengths_tried(encoder, folder, embeddings=tmp_path / "e", bf16=False) == []
