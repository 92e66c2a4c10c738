"""Mining with an encoder: exact search, ties, both rankings fused, and work that is taken up after a kill."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from nlt_trainer.data import encoder_rankings
from nlt_trainer.data.beir import Collection, Document, load_collection
from nlt_trainer.data.candidates import bm25_rankings, fuse, mine_candidates, ranking_depth, read_candidates
from nlt_trainer.data.encoder_rankings import CorpusEmbeddings, nearest
from nlt_trainer.errors import NLTError
from nlt_trainer.scripts import mine


@pytest.fixture
def collection(tiny_collection_folder: Path) -> Collection:
    """The twelve documents and eight queries of the tiny folder."""
    return load_collection(tiny_collection_folder, splits=["train"])


def unit(shape: tuple[int, int], *, seed: int) -> np.ndarray:
    """Random rows of unit length, float32."""
    rows = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def brute_force(queries: np.ndarray, documents: np.ndarray, top_k: int) -> list[list[int]]:
    """The definition: all cosines in float64, a stable sort."""
    cosines = (queries[:, None, :].astype(np.float64) * documents[None]).sum(2)  # (B, N)
    return np.argsort(-cosines, axis=1, kind="stable")[:, :top_k].tolist()


@pytest.mark.parametrize(("shard", "top_k"), [(1000, 10), (64, 10), (7, 1), (300, 1000)])
def test_search_is_exact(shard: int, top_k: int) -> None:
    """Reference: brute force in numpy; neither shards nor the other queries matter."""
    queries, documents = unit((9, 24), seed=0), unit((1000, 24), seed=1)
    shards = [documents[start : start + shard] for start in range(0, 1000, shard)]
    expected = brute_force(queries, documents, top_k)
    assert nearest(queries, shards, top_k=top_k) == expected
    assert nearest(queries[4:5], shards, top_k=top_k) == expected[4:5]


def test_equal_documents_stand_in_corpus_order() -> None:
    """Reference: brute force with a stable sort, where ties go on far beyond what is asked for."""
    few = unit((5, 16), seed=2)
    documents = few[np.random.default_rng(3).integers(0, 5, size=400)]
    queries = unit((6, 16), seed=4)
    shards = [documents[:90], documents[90:180], documents[180:270], documents[270:360], documents[360:]]
    found = nearest(queries, shards, top_k=12)
    assert found == brute_force(queries, documents, 12)
    assert all(rows == sorted(rows) for rows in found)  # about 80 copies of the nearest
    assert nearest(queries, [np.zeros_like(documents)], top_k=3) == [[0, 1, 2]] * 6


def test_embeddings_are_those_of_the_encoder(
    collection: Collection, tiny_encoder: SentenceTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: the encoder's own cosines, with its prompts, over the whole corpus at once."""
    monkeypatch.setattr(encoder_rankings, "SHARD_DOCUMENTS", 5)
    tiny_encoder.prompts = {"query": "what: ", "document": "text: "}
    queries = list(collection.queries.values())
    embeddings = CorpusEmbeddings(tiny_encoder, collection, tmp_path)
    embeddings.compute()
    documents = tiny_encoder.encode([f"text: {d.content}" for d in collection.corpus.values()], convert_to_tensor=True)
    asked = tiny_encoder.encode([f"what: {query.text}" for query in queries], convert_to_tensor=True)
    cosines = torch.nn.functional.cosine_similarity(asked[:, None], documents[None], dim=2)  # (B, N)
    assert embeddings.rank(queries, top_k=4) == cosines.topk(4).indices.tolist()


def test_a_killed_run_goes_on(
    collection: Collection, tiny_encoder: SentenceTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: a run that was not killed, and the documents that are encoded the second time."""
    monkeypatch.setattr(encoder_rankings, "SHARD_DOCUMENTS", 5)
    seen: list[str] = []
    encode = tiny_encoder.encode_document

    def counting(texts: list[str], **options: Any) -> Any:
        if len(seen) == 5 and not (tmp_path / "killed").exists():
            (tmp_path / "killed").touch()
            raise KeyboardInterrupt
        seen.extend(texts)
        return encode(texts, **options)

    monkeypatch.setattr(tiny_encoder, "encode_document", counting)
    embeddings = CorpusEmbeddings(tiny_encoder, collection, tmp_path / "e")
    with pytest.raises(KeyboardInterrupt):
        embeddings.compute()
    assert [file.name for file in embeddings.folder.iterdir()] == ["0.npy"]
    again = CorpusEmbeddings(tiny_encoder, collection, tmp_path / "e")
    again.compute()
    assert seen == [document.content for document in collection.corpus.values()]
    assert [len(np.load(file)) for file in again.files] == [5, 5, 2]


def test_processes_share_the_corpus(
    collection: Collection, tiny_encoder: SentenceTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: every shard is written once, also where one process starts when the other has written some."""
    monkeypatch.setattr(encoder_rankings, "SHARD_DOCUMENTS", 2)
    embeddings = CorpusEmbeddings(tiny_encoder, collection, tmp_path)
    embeddings.compute(process=0, processes=2)
    assert [file.is_file() for file in embeddings.files] == [True, False] * 3
    embeddings.compute(process=1, processes=2)
    assert all(file.is_file() for file in embeddings.files)


def test_other_weights_texts_and_prompts_are_other_embeddings(
    collection: Collection, tiny_encoder: SentenceTransformer, tmp_path: Path
) -> None:
    """Reference: the folders' names."""

    def name() -> str:
        return CorpusEmbeddings(tiny_encoder, collection, tmp_path).folder.name

    names = [name()]
    assert name() == names[0]
    tiny_encoder.prompts = {"query": "", "document": "text: "}
    names.append(name())
    tiny_encoder.max_seq_length = 12
    names.append(name())
    with torch.no_grad():
        next(tiny_encoder.parameters())[7, 3] += 1e-3
    names.append(name())
    collection.corpus["d12"] = Document("d12", "Silk", "another text")
    names.append(name())
    assert len(set(names)) == 5


def test_an_embedding_that_is_not_finite_is_refused(
    collection: Collection, tiny_encoder: SentenceTransformer, tmp_path: Path
) -> None:
    """Reference: the text in the message."""
    with torch.no_grad():
        next(tiny_encoder.parameters()).fill_(float("nan"))
    with pytest.raises(NLTError, match=r"the encoder's embedding of 'Whale.* is infinite or NaN"):
        CorpusEmbeddings(tiny_encoder, collection, tmp_path).compute()


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


def test_candidates_of_an_encoder_have_bm25_scores_and_random_rest(collection: Collection) -> None:
    """Reference: the rankings that are given, BM25's own scores, and their fusion by rank."""
    queries = list(collection.queries.values())
    ids = list(collection.corpus)
    rankings = [np.random.default_rng(b).permutation(12).tolist() for b in range(len(queries))]
    bm25 = bm25_rankings(collection, queries)
    options: dict[str, Any] = {"num_candidates": 6, "num_random": 2, "encoder_rankings": rankings}
    for fused in (False, True):
        for b, row in enumerate(mine_candidates(collection, queries, **options, fused=fused)):
            by_bm25 = [ids.index(document_id) for document_id in bm25[row.query_id]]
            expected = fuse(by_bm25, rankings[b]) if fused else rankings[b]
            assert row.document_ids[:4] == tuple(ids[i] for i in expected[:4])
            assert len(set(row.document_ids)) == 6
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
    flags += ["--candidates", str(path), "--num_candidates", "5", "--num_random_candidates", "1", "--use_cpu", "true"]
    mine.main([*flags, "--miner", miner, "--output_dir", str(tmp_path / "run"), "--seed", "3"])
    assert f"4 queries with 5 candidates each ({miner})" in capsys.readouterr().out
    queries = collection.split_queries("train")
    embeddings = CorpusEmbeddings(SentenceTransformer(str(tiny_encoder_folder)), collection, tmp_path / "e")
    embeddings.compute()
    rankings = embeddings.rank(queries, top_k=12 if miner == "fused" else 4)
    expected = mine_candidates(
        collection, queries, num_candidates=5, num_random=1, seed=3, encoder_rankings=rankings, fused=miner == "fused"
    )
    assert read_candidates(path, collection) == expected
    assert not Path(f"{path}.embeddings").exists()
