"""Exact search against numpy, with ties, and mining with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer, SimilarityFunction

from nlt_trainer.data.beir import Collection, load_collection
from nlt_trainer.data.bm25 import bm25_rankings
from nlt_trainer.data.candidates import mine_candidates, ranking_depth, read_candidates
from nlt_trainer.data.fusion import fuse
from nlt_trainer.encoder.search import nearest
from nlt_trainer.errors import NLTError
from nlt_trainer.scripts import mine


@pytest.fixture
def collection(tiny_collection_folder: Path) -> Collection:
    """The twelve documents and eight queries of the tiny folder."""
    return load_collection(tiny_collection_folder, splits=["train"])


def rows_of(shape: tuple[int, int], *, seed: int) -> torch.Tensor:
    """Random rows, float32."""
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def cosine(q: np.ndarray, d: np.ndarray) -> np.ndarray:
    return (q / np.linalg.norm(q, axis=-1, keepdims=True) * d / np.linalg.norm(d, axis=-1, keepdims=True)).sum(-1)


DEFINITIONS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "cosine": cosine,
    "dot": lambda q, d: (q * d).sum(-1),
    "euclidean": lambda q, d: -np.sqrt(((q - d) ** 2).sum(-1)),
    "manhattan": lambda q, d: -np.abs(q - d).sum(-1),
}
"""What the similarity functions of Sentence-Transformers are."""


def brute_force(queries: Any, documents: Any, top_k: int, name: str = "cosine") -> tuple[list[Any], list[Any]]:
    """The definition: all similarities in float64, rounded to float32, and a stable sort."""
    q, d = np.asarray(queries, np.float64)[:, None], np.asarray(documents, np.float64)[None]
    scores = DEFINITIONS[name](q, d).astype(np.float32)  # (B, N)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    return np.take_along_axis(scores, order, 1).tolist(), order.tolist()


def found(queries: torch.Tensor, parts: Iterable[torch.Tensor], top_k: int, name: str = "cosine") -> Any:
    scores, rows = nearest(queries, parts, top_k=top_k, similarity=SimilarityFunction.to_similarity_fn(name))
    return scores.tolist(), rows.tolist()


@pytest.mark.parametrize("name", DEFINITIONS)
@pytest.mark.parametrize(("part", "top_k"), [(1000, 10), (64, 10), (7, 1), (300, 1000), (300, 2000)])
def test_search_is_exact(part: int, top_k: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: brute force in numpy, to the last bit; neither parts nor the other queries matter."""
    monkeypatch.setattr("nlt_trainer.encoder.search.QUERIES", 4)
    queries, documents = rows_of((9, 24), seed=0), rows_of((1000, 24), seed=1)
    expected = brute_force(queries, documents, top_k, name)
    assert found(queries, iter(documents.split(part)), top_k, name) == expected
    assert found(queries[4:5], documents.split(part), top_k, name) == (expected[0][4:5], expected[1][4:5])


@pytest.mark.parametrize("name", ["cosine", "dot"])
def test_equal_documents_stand_in_corpus_order(name: str) -> None:
    """Reference: brute force with a stable sort, where ties go on far beyond what is asked for."""
    few = rows_of((5, 16), seed=2)
    documents = few[np.random.default_rng(3).integers(0, 5, size=400)]
    queries = rows_of((6, 16), seed=4)
    for part in (90, 7, 400):
        scores, rows = found(queries, documents.split(part), 12, name)
        assert (scores, rows) == brute_force(queries, documents, 12, name)
        assert all(each == sorted(each) for each in rows)  # about 80 copies of the nearest
    assert found(queries, [torch.zeros_like(documents)], 3, name)[1] == [[0, 1, 2]] * 6


def test_scores_of_either_sign_and_of_nothing_are_in_order() -> None:
    """Reference: numbers by hand; 0 and -0 are equal."""
    scores = torch.tensor([[-1.5, 0.0, 2.0, -0.0, -1e-30, 1e-30, 2.0]])
    documents = torch.arange(7.0)[:, None]
    _, rows = nearest(
        torch.zeros(1, 1), documents.split(3), top_k=7, similarity=lambda q, d: scores[:, d[:, 0].long()]
    )
    assert rows.tolist() == [[2, 6, 5, 1, 3, 4, 0]]


def test_an_embedding_that_is_not_finite_is_refused() -> None:
    """Reference: the message."""
    documents = rows_of((10, 4), seed=6)
    documents[7, 2] = torch.nan
    with pytest.raises(NLTError, match="an embedding is infinite or NaN"):
        found(rows_of((1, 4), seed=7), [documents], 2)


def test_fusion_is_reciprocal_rank_fusion() -> None:
    """Reference: the sum of 1 / (60 + rank) for every document, with exact fractions in numpy's sort."""
    rng = np.random.default_rng(5)
    for _ in range(20):
        rankings = [rng.permutation(40)[:25].tolist() for _ in range(2)]
        scores = np.zeros(40)
        for ranking in rankings:
            for rank, document in enumerate(ranking):
                scores[document] += 1 / (61 + rank)
        expected = [i for i in np.argsort(-scores, kind="stable").tolist() if scores[i] > 0]
        assert fuse(*rankings) == expected
    assert fuse([3, 1], [2, 1]) == [1, 2, 3]  # 1 stands in both; 2 and 3 tie
    assert fuse([], [4, 2]) == [4, 2]
    assert (ranking_depth(8, fused=True), ranking_depth(8, fused=False), ranking_depth(300, fused=True)) == (
        100,
        8,
        300,
    )


def test_candidates_of_an_encoder_have_bm25_scores(collection: Collection) -> None:
    """Reference: the rankings that are given, BM25's own scores, and their fusion by rank."""
    queries = list(collection.queries.values())
    ids = list(collection.corpus)
    rankings = [np.random.default_rng(b).permutation(12).tolist() for b in range(len(queries))]
    bm25 = bm25_rankings(collection, queries)
    options: dict[str, Any] = {"num_candidates": 6, "encoder_rankings": rankings}
    for fused in (False, True):
        for b, row in enumerate(mine_candidates(collection, queries, **options, fused=fused)):
            by_bm25 = [ids.index(document_id) for document_id in bm25[row.query_id]]
            expected = fuse(by_bm25, rankings[b]) if fused else rankings[b]
            assert row.document_ids == tuple(ids[i] for i in expected[:6])
            assert row.bm25 == pytest.approx([bm25[row.query_id].get(d, 0.0) for d in row.document_ids])
    assert mine_candidates(replace(collection, qrels={}), queries, **options) == mine_candidates(
        collection, queries, **options
    )


@pytest.mark.parametrize(("miner", "name"), [("encoder", "cosine"), ("encoder", "dot"), ("fused", "cosine")])
def test_a_round_is_mined_with_the_trained_encoder(
    collection: Collection,
    tiny_encoder: SentenceTransformer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    miner: str,
    name: Any,
) -> None:
    """Reference: the parts that the stage puts together, with the encoder's own similarity; nothing else stays."""
    tiny_encoder.similarity_fn_name = name
    tiny_encoder.save_pretrained(str(tmp_path / "encoder"))
    path = tmp_path / "candidates.2.jsonl"
    flags = ["--collection", str(collection.folder), "--encoder", str(tmp_path / "encoder"), "--train_split", "train"]
    flags += ["--candidates", str(path), "--num_candidates", "5", "--use_cpu", "true"]
    mine.main([*flags, "--miner", miner, "--output_dir", str(tmp_path / "run"), "--seed", "3"])
    assert f"4 queries with 5 candidates each ({miner})" in capsys.readouterr().out
    queries = collection.split_queries("train")
    documents = tiny_encoder.encode([document.content for document in collection.corpus.values()])
    asked = tiny_encoder.encode([query.text for query in queries])
    _, rankings = brute_force(asked, documents, 12 if miner == "fused" else 5, name)
    expected = mine_candidates(
        collection, queries, num_candidates=5, seed=3, encoder_rankings=rankings, fused=miner == "fused"
    )
    assert read_candidates(path, collection) == expected
    assert not Path(f"{path}.embeddings").exists()
