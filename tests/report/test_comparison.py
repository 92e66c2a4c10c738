"""Side-by-side results against the evaluator's search, and the page's texts against the scorer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from nlt_trainer.data.beir import Collection, Document, Query, load_collection
from nlt_trainer.data.bm25 import BM25Index, bm25_rankings
from nlt_trainer.data.fusion import weighted_fusion
from nlt_trainer.errors import NLTError
from nlt_trainer.evaluation.evaluator import search
from nlt_trainer.lm.frozen_lm import FrozenLM
from nlt_trainer.lm.scoring import LikelihoodScorer
from nlt_trainer.report.comparison import LEGEND, Hit, HybridIndex, SearchIndex, ranks, side_by_side
from nlt_trainer.report.search_page import SearchPage


@pytest.fixture
def collection(tiny_collection_folder: Path) -> Collection:
    return load_collection(tiny_collection_folder)


@pytest.fixture
def indexes(
    collection: Collection, tiny_encoder: SentenceTransformer, tiny_static_encoder: SentenceTransformer, tmp_path: Path
) -> list[SearchIndex]:
    """The tiny collection by two encoders."""
    pairs = (("trained", tiny_encoder), ("start", tiny_static_encoder))
    return [SearchIndex(name, encoder, collection.corpus, cache=tmp_path / "cache") for name, encoder in pairs]


def test_ranks_are_by_score_and_then_by_place() -> None:
    """Reference: by hand."""
    assert ranks(np.array([0.1, 0.5, 0.1, 0.9])).tolist() == [3, 2, 4, 1]


def test_results_are_those_of_the_evaluators_search(collection: Collection, indexes: list[SearchIndex]) -> None:
    """Reference: `evaluation.search`, whose whole ranking also gives the other encoder's rank."""
    query = collection.queries["q1"]
    rankings = [search(index.encoder, collection, [query], batch_size=4)[query.id] for index in indexes]
    found = side_by_side(query.text, indexes, top_k=5)
    for hits, own, other in zip(found, rankings, reversed(rankings), strict=True):
        assert [hit.document.id for hit in hits] == list(own)[:5]
        assert [hit.rank for hit in hits] == [1, 2, 3, 4, 5]
        np.testing.assert_allclose([hit.score for hit in hits], list(own.values())[:5], atol=1e-6)
        assert [hit.other_rank for hit in hits] == [list(other).index(hit.document.id) + 1 for hit in hits]


@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_a_hybrid_ranks_by_the_weighted_fusion(
    collection: Collection, indexes: list[SearchIndex], tmp_path: Path, weight: float
) -> None:
    """Reference: the evaluator's search and BM25's rankings, fused; a query that no document shares a word with."""
    corpus, bm25 = collection.corpus, BM25Index(collection.corpus)
    hybrid = HybridIndex("trained", indexes[0].encoder, corpus, bm25=bm25, weight=weight, cache=tmp_path / "cache")
    assert hybrid.name == f"trained, {weight:.0%} BM25"
    for text in ("why does bread rise", "zzz"):
        query = Query("q", text)
        by_encoder = search(indexes[0].encoder, collection, [query], batch_size=4)["q"]
        expected = weighted_fusion(by_encoder, bm25_rankings(collection, [query])["q"], weight=weight)
        (hits,) = side_by_side(text, [hybrid], top_k=12)
        assert {hit.document.id: hit.score for hit in hits} == pytest.approx(expected, abs=1e-5)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_a_hybrid_leaves_other_documents_in_the_encoders_order(
    tiny_static_encoder: SentenceTransformer, tmp_path: Path
) -> None:
    """Reference: the encoder's own order; only documents that neither has among its 100 best score below 0."""
    corpus = {f"d{i}": Document(f"d{i}", "", f"text {i} {'whale ' * (i % 7)}") for i in range(400)}
    plain = SearchIndex("plain", tiny_static_encoder, corpus, cache=tmp_path)
    bm25 = BM25Index(corpus)
    hybrid = HybridIndex("plain", tiny_static_encoder, corpus, bm25=bm25, weight=0.5, cache=tmp_path)
    (similarity,), (scores,) = plain.scores(["whale 3"]), hybrid.scores(["whale 3"])
    by_bm25 = np.argsort(-bm25.scores("whale 3"), kind="stable")[:100]
    others = set(range(400)) - set(np.argsort(ranks(similarity))[:100]) - set(by_bm25)
    assert 0 < len(others) == (scores < 0).sum()
    assert sorted(others, key=lambda i: ranks(scores)[i]) == sorted(others, key=lambda i: ranks(similarity)[i])


def test_embedding_names_the_encoder(
    collection: Collection, tiny_encoder: SentenceTransformer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reference: the bar on stderr."""
    SearchIndex("trained", tiny_encoder, collection.corpus, cache=tmp_path / "new")
    assert "embedding with trained: documents" in capsys.readouterr().err


def test_one_encoder_has_nothing_to_move_against(indexes: list[SearchIndex]) -> None:
    """Reference: no other rank; more documents are asked for than there are."""
    (hits,) = side_by_side("tea", indexes[:1], top_k=50)
    assert len(hits) == 12
    assert {(hit.other_rank, hit.move) for hit in hits} == {(None, "")}


@pytest.mark.parametrize(("other", "move"), [(1203, "▲ 1,200"), (1, "▼ 2"), (3, "=")])
def test_a_move_is_told_in_a_few_characters(other: int, move: str) -> None:
    """Reference: by hand, for rank 3."""
    assert Hit(Document("d", "", "text"), 3, 0.5, other).move == move


def test_the_page_shows_both_results_and_asks_the_llm_document_by_document(
    indexes: list[SearchIndex], tiny_lm: FrozenLM
) -> None:
    """Reference: the scorer on all documents at once; nothing is loaded before it is asked for."""
    loaded: list[LikelihoodScorer] = []

    def scorer() -> LikelihoodScorer:
        loaded.append(LikelihoodScorer(tiny_lm, target="query"))
        return loaded[-1]

    page = SearchPage(indexes, scorer, top_k=2)
    query, view, note = page.results("  why does bread rise ")
    assert (query, note) == ("why does bread rise", "Searched 12 documents.")
    assert view.count("<table>") == 2
    assert "<caption>trained</caption>" in view
    assert LEGEND in view
    assert LEGEND not in SearchPage(indexes[:1], scorer, top_k=2).results(query)[1]
    assert not loaded
    steps = list(page.gains(query))
    documents = {hit.document.id: hit.document for hits in side_by_side(query, indexes, top_k=2) for hit in hits}
    notes = [note for _, note in steps]
    assert notes[0] == "Loading the LLM ..."
    assert notes[1] == f"The LLM reads document 1 of {len(documents)} ..."
    assert notes[-1] == f"The LLM has read {len(documents)} documents."
    gains = loaded[0].gain([query], [[document.content for document in documents.values()]])[0]
    assert [f"{gain:+.2f}" for gain in gains if f">{gain:+.2f}</span>" not in steps[-1][0]] == []
    assert "not computed" in steps[-2][0]
    assert "not computed" not in steps[-1][0]


def test_the_page_asks_for_a_query_first(indexes: list[SearchIndex]) -> None:
    """Reference: the notes; no LLM is asked."""
    page = SearchPage(indexes, lambda: pytest.fail("the LLM was loaded"))
    assert page.results("  ") == ("", "", "Type a query first.")
    assert page.results("a" * 10_001) == ("", "", "The query has 10,001 characters, and at most 10,000 are searched.")
    assert page.results("te\ud800a")[0] == "te?a"
    assert list(page.gains("")) == [("", "Search first: the LLM reads the documents that are shown.")]


def test_the_page_says_why_the_llm_cannot_be_asked(indexes: list[SearchIndex]) -> None:
    """Reference: the message of whoever loads it; the results stay."""

    def scorer() -> LikelihoodScorer:
        raise NLTError("LLM 'org/llm' cannot be loaded: no network")

    page = SearchPage(indexes, scorer)
    *_, (view, note) = page.gains("tea")
    assert note == "The LLM cannot be asked: LLM 'org/llm' cannot be loaded: no network"
    assert view == page.results("tea")[1]


def test_texts_on_the_page_are_no_markup(tiny_encoder: SentenceTransformer, tmp_path: Path) -> None:
    """Reference: HTML's escapes, in document, title, id, query and name."""
    hostile = "<script>alert('x')</script>"
    corpus = {hostile: Document(hostile, hostile, hostile)}
    index = SearchIndex(hostile, tiny_encoder, corpus, cache=tmp_path)
    _, view, _ = SearchPage([index], lambda: pytest.fail("not asked")).results(hostile)
    assert "<script" not in view
    assert view.count("&lt;script&gt;") == 5
