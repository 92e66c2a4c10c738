"""Exact search against numpy, with ties, and mining with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from nlt_trainer.data.beir import Collection, load_collection
from nlt_trainer.data.candidates import bm25_rankings, fuse, mine_candidates, ranking_depth, read_candidates
from nlt_trainer.encoder.search import nearest
from nlt_trainer.errors import NLTError
from nlt_trainer.scripts import mine


@pytest.fixture
def collection(tiny_collection_folder: Path) -> Collection:
    """The twelve documents and eight queries of the tiny folder."""
    return load_collection(tiny_collection_folder, splits=["train"])


def rows_of(shape: tuple[int, int], *, seed: int) -> np.ndarray:
    """Random rows, float32."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def scaled(rows: np.ndarray) -> np.ndarray:
    """Rows of unit length, float64."""
    return rows / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)


def brute_force(queries: np.ndarray, documents: np.ndarray, top_k: int) -> list[list[int]]:
    """The definition: all cosines in float64, a stable sort."""
    cosines = (scaled(queries)[:, None, :] * scaled(documents)[None]).sum(2)  # (B, N)
    return np.argsort(-cosines, axis=1, kind="stable")[:, :top_k].tolist()


@pytest.mark.parametrize(("shard", "top_k"), [(1000, 10), (64, 10), (7, 1), (300, 1000)])
def test_search_is_exact(shard: int, top_k: int) -> None:
    """Reference: brute force in numpy; neither shards nor the other queries matter."""
    queries, documents = rows_of((9, 24), seed=0), rows_of((1000, 24), seed=1)
    shards = [documents[start : start + shard] for start in range(0, 1000, shard)]
    expected = brute_force(queries, documents, top_k)
    assert nearest(queries, shards, top_k=top_k) == expected
    assert nearest(queries[4:5], shards, top_k=top_k) == expected[4:5]


def test_equal_documents_stand_in_corpus_order() -> None:
    """Reference: brute force with a stable sort, where ties go on far beyond what is asked for."""
    few = rows_of((5, 16), seed=2)
    documents = few[np.random.default_rng(3).integers(0, 5, size=400)]
    queries = rows_of((6, 16), seed=4)
    shards = [documents[:90], documents[90:180], documents[180:270], documents[270:360], documents[360:]]
    found = nearest(queries, shards, top_k=12)
    assert found == brute_force(queries, documents, 12)
    assert all(rows == sorted(rows) for rows in found)  # about 80 copies of the nearest
    assert nearest(queries, [np.zeros_like(documents)], top_k=3) == [[0, 1, 2]] * 6


def test_an_embedding_that_is_not_finite_is_refused() -> None:
    """Reference: the message."""
    documents = rows_of((10, 4), seed=6)
    documents[7, 2] = np.nan
    with pytest.raises(NLTError, match="an embedding is infinite or NaN"):
        nearest(rows_of((1, 4), seed=7), [documents], top_k=2)


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


@pytest.mark.parametrize("miner", ["encoder", "fused"])
def test_a_round_is_mined_with_the_trained_encoder(
    collection: Collection, tiny_encoder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], miner: str
) -> None:
    """Reference: the parts that the stage puts together; nothing but the candidates stays."""
    path = tmp_path / "candidates.2.jsonl"
    flags = ["--collection", str(collection.folder), "--encoder", str(tiny_encoder_folder), "--train_split", "train"]
    flags += ["--candidates", str(path), "--num_candidates", "5", "--use_cpu", "true"]
    mine.main([*flags, "--miner", miner, "--output_dir", str(tmp_path / "run"), "--seed", "3"])
    assert f"4 queries with 5 candidates each ({miner})" in capsys.readouterr().out
    queries = collection.split_queries("train")
    encoder = SentenceTransformer(str(tiny_encoder_folder))
    documents = encoder.encode([document.content for document in collection.corpus.values()])
    asked = encoder.encode([query.text for query in queries])
    rankings = brute_force(asked, documents, 12 if miner == "fused" else 5)
    expected = mine_candidates(
        collection, queries, num_candidates=5, seed=3, encoder_rankings=rankings, fused=miner == "fused"
    )
    assert read_candidates(path, collection) == expected
    assert not Path(f"{path}.embeddings").exists()
