"""Evaluation: mteb, trec_eval and the evaluator for training give the same figures; nothing is cached or fetched."""

from __future__ import annotations

import dataclasses
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from nlt_trainer.data.beir import Collection, Document, Query, load_collection, write_collection
from nlt_trainer.data.bm25 import bm25_rankings
from nlt_trainer.errors import DataError, NLTError
from nlt_trainer.evaluation.evaluator import FixedRankings, RetrievalEvaluator, evaluate_bm25, evaluate_encoder, search
from nlt_trainer.evaluation.folder_task import METRICS, BEIRFolderRetrieval
from nlt_trainer.evaluation.retrieval_metric import RetrievalMetric

WORDS = "amber birch cedar dune ember fjord grove heath islet jetty knoll larch marsh notch oasis plain".split()


@pytest.fixture
def collection(tmp_path: Path) -> Collection:
    """150 documents of random words and 30 queries with graded judgements, one of them a grade of 0 alone."""
    rng = np.random.default_rng(0)
    corpus = [Document(f"d{i}", "", " ".join(rng.choice(WORDS, size=6))) for i in range(150)]
    queries = [Query(f"q{i}", " ".join(rng.choice(WORDS, size=3, replace=False))) for i in range(30)]
    grades = {
        q.id: {f"d{d}": int(rng.integers(0, 3)) for d in rng.choice(150, size=12, replace=False)} for q in queries
    }
    grades["q29"] = {"d0": 0}
    return load_collection(
        write_collection(
            tmp_path / "random", corpus=corpus, queries=queries, qrels={"test": grades}, stage="nlt build_collection"
        )
    )


class _Unrounded(BEIRFolderRetrieval):
    """Keeps trec_eval's scores of each query, which mteb rounds after averaging."""

    def task_specific_scores(self, scores: dict[str, dict[str, float]], *args: Any, **kwargs: Any) -> dict[str, float]:
        self.means = {
            name: float(np.mean([row[key] for row in scores.values()]))
            for name, key in (("ndcg_at_10", "ndcg_cut_10"), ("recall_at_100", "recall_100"))
        }
        return {}


def _metric(collection: Collection, rankings: dict[str, dict[str, float]]) -> dict[str, float]:
    qrels = collection.qrels["test"]
    return RetrievalMetric(keep_in_memory=True).compute(
        predictions=[{"document_ids": list(row), "scores": list(row.values())} for row in rankings.values()],
        references=[{"document_ids": list(qrels[q]), "grades": list(qrels[q].values())} for q in rankings],
    )


def test_mteb_and_the_metric_agree_on_the_same_rankings(collection: Collection) -> None:
    """Reference: mteb's own scoring, before it rounds to 5 digits."""
    rankings = bm25_rankings(collection, collection.split_queries("test"))
    task = _Unrounded(collection, split="test")
    model = FixedRankings({("test", "default"): rankings})
    scores = mteb.evaluate(model, task, cache=None).task_results[0].scores["test"][0]
    ours = _metric(collection, rankings)
    assert 0.05 < ours["ndcg_at_10"] < 0.95
    assert {**task.means, "mrr_at_10": scores["mrr_at_10"]} == pytest.approx(ours, abs=1e-6)


def test_bm25_is_scored_by_mteb(collection: Collection) -> None:
    rankings = bm25_rankings(collection, collection.split_queries("test"))
    scores = evaluate_bm25(collection, split="test")
    assert scores == pytest.approx(_metric(collection, rankings), abs=1e-5)
    assert tuple(scores) == METRICS
    assert {type(value) for value in scores.values()} == {float}


@pytest.mark.parametrize("encoder_name", ["tiny_encoder", "tiny_static_encoder"])
def test_the_evaluator_agrees_with_mteb(
    collection: Collection, encoder_name: str, request: pytest.FixtureRequest
) -> None:
    encoder: SentenceTransformer = request.getfixturevalue(encoder_name)
    expected = evaluate_encoder(encoder, collection, split="test")
    evaluator = RetrievalEvaluator(collection, split="test", name="part", batch_size=7)
    assert evaluator.primary_metric == "part_ndcg_at_10"
    assert evaluator(encoder) == pytest.approx({f"part_{name}": expected[name] for name in METRICS}, abs=1e-4)


def test_the_query_itself_is_no_hit(collection: Collection, tiny_static_encoder: SentenceTransformer) -> None:
    """Reference: trec_eval on the cosines of all documents but the query itself, as BEIR evaluates ArguAna."""
    ids = [f"d{i}" for i in range(30)]
    queries = {i: Query(i, collection.corpus[i].content) for i in ids}
    judged = dict(
        zip(ids, ({f"d{d + 30}": 1 for d in range(number, number + 5)} for number in range(30)), strict=True)
    )
    arguments = dataclasses.replace(collection, queries=queries, qrels={"test": judged})
    contents = [document.content for document in collection.corpus.values()]
    embeddings = tiny_static_encoder.encode(contents, normalize_embeddings=True)
    cosines = (embeddings @ embeddings.T)[:30]
    rankings = {
        q: dict(zip(collection.corpus, map(float, row), strict=True)) for q, row in zip(ids, cosines, strict=True)
    }
    itself = _metric(arguments, rankings)["ndcg_at_10"]
    for query_id, ranking in rankings.items():
        del ranking[query_id]
    best = {q: dict(sorted(row.items(), key=lambda item: -item[1])[:100]) for q, row in rankings.items()}
    expected = _metric(arguments, best)
    assert abs(expected["ndcg_at_10"] - itself) > 0.01
    assert evaluate_encoder(tiny_static_encoder, arguments) == pytest.approx(expected, abs=1e-4)
    quick = RetrievalEvaluator(arguments, split="test")(tiny_static_encoder)
    assert quick == pytest.approx({f"test_{name}": value for name, value in expected.items()}, abs=1e-4)
    assert all(
        len(row) == 100 and q not in row
        for q, row in search(tiny_static_encoder, arguments, [*queries.values()]).items()
    )
    without = bm25_rankings(arguments, [*queries.values()])
    assert all(q not in row for q, row in without.items())
    assert evaluate_bm25(arguments) == pytest.approx(_metric(arguments, without), abs=1e-4)


@pytest.mark.parametrize("encoder_name", ["tiny_encoder", "tiny_static_encoder"])
def test_empty_documents_are_ranked_and_missing_ones_count(
    tmp_path: Path, encoder_name: str, request: pytest.FixtureRequest
) -> None:
    """Reference: trec_eval by hand. A query finds its document first; the document of another is not there."""
    corpus = [Document("d1", "", "amber birch"), Document("d2", "", "cedar dune"), Document("d3", "", "")]
    queries = [Query("q1", "amber birch"), Query("q2", "cedar dune"), Query("q3", "cedar dune")]
    judged = {"q1": {"d1": 1}, "q2": {"gone": 1}, "q3": {"d2": 1, "gone": 1}}
    folder = write_collection(
        tmp_path / "public", corpus=corpus, queries=queries, qrels={"test": judged}, stage="nlt build_collection"
    )
    encoder: SentenceTransformer = request.getfixturevalue(encoder_name)
    expected = {"ndcg_at_10": (1 + 0 + 1 / (1 + 1 / np.log2(3))) / 3, "mrr_at_10": 2 / 3, "recall_at_100": 0.5}
    assert evaluate_bm25(folder) == pytest.approx(expected, abs=1e-5)
    assert evaluate_encoder(encoder, folder) == pytest.approx(expected, abs=1e-5)
    assert RetrievalEvaluator(folder, split="test")(encoder) == pytest.approx(
        {f"test_{name}": value for name, value in expected.items()}
    )


def test_search_is_a_product_of_embeddings_in_every_chunk(
    collection: Collection, tiny_static_encoder: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: cosine similarities of all pairs in numpy."""
    monkeypatch.setattr("nlt_trainer.encoder.search.QUERIES", 7)
    queries = collection.split_queries("test")
    rankings = search(tiny_static_encoder, collection, queries, top_k=5, batch_size=16)
    contents = [document.content for document in collection.corpus.values()]
    documents = tiny_static_encoder.encode_document(contents, normalize_embeddings=True)
    embeddings = tiny_static_encoder.encode_query([query.text for query in queries], normalize_embeddings=True)
    expected = -np.sort(-(embeddings @ documents.T), axis=1)[:, :5]
    assert list(rankings) == [query.id for query in queries]
    np.testing.assert_allclose([list(row.values()) for row in rankings.values()], expected, atol=1e-5)


def test_queries_and_documents_get_their_prompts_and_contents(
    tiny_collection_folder: Path, tiny_static_encoder: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = tiny_static_encoder
    encoder.prompts = {"query": "ask: ", "document": "read: "}
    seen: set[tuple[str, str]] = set()
    encode = SentenceTransformer.encode

    def record(self: SentenceTransformer, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        prompt = kwargs.get("prompt") or self.prompts[kwargs["prompt_name"]]
        seen.update((str(prompt), text) for text in inputs)
        return encode(self, inputs, *args, **kwargs)

    monkeypatch.setattr(SentenceTransformer, "encode", record)
    collection = load_collection(tiny_collection_folder)
    expected = {("ask: ", collection.queries[key].text) for key in ("q7", "q8")}
    expected |= {("read: ", document.content) for document in collection.corpus.values()}
    evaluate_encoder(encoder, collection, split="test")
    assert seen == expected
    seen.clear()
    RetrievalEvaluator(collection, split="test")(encoder)
    assert seen == expected


def test_changed_weights_and_changed_data_change_the_result(
    collection: Collection, tiny_static_encoder: SentenceTransformer
) -> None:
    before = evaluate_encoder(tiny_static_encoder, collection, split="test")
    assert evaluate_encoder(tiny_static_encoder, collection, split="test") == before
    with torch.no_grad():
        for weights in tiny_static_encoder.parameters():
            weights.copy_(torch.randn_like(weights))
    assert evaluate_encoder(tiny_static_encoder, collection, split="test") != before


def test_a_task_can_run_twice_and_its_revision_follows_the_data(tiny_collection_folder: Path) -> None:
    def revision() -> str:
        return BEIRFolderRetrieval(tiny_collection_folder, split="test").metadata.dataset["revision"]

    task = BEIRFolderRetrieval(tiny_collection_folder, split="test")
    rankings = FixedRankings({("test", "default"): {"q7": {"d11": 1.0}, "q8": {"d01": 1.0}}})
    first, second = (mteb.evaluate(rankings, task, cache=None).task_results[0].scores for _ in range(2))
    assert first == second
    assert first["test"][0]["ndcg_at_10"] == 0.5
    before = revision()
    assert before == revision() == task.metadata.dataset["revision"]
    corpus = tiny_collection_folder / "corpus.jsonl"
    corpus.write_text(corpus.read_text().replace("blue whale", "grey whale"))
    assert revision() != before


@pytest.mark.parametrize("make", [evaluate_bm25, RetrievalEvaluator, BEIRFolderRetrieval])
def test_a_missing_split_or_folder_is_refused(make: Any, tiny_collection_folder: Path) -> None:
    with pytest.raises(DataError, match=r"qrels/valid.tsv: .* split that is there: dev, test, train"):
        make(tiny_collection_folder, split="valid")
    with pytest.raises(DataError, match=r"qrels/valid.tsv: .* split that is there: dev, test, train"):
        make(load_collection(tiny_collection_folder), split="valid")
    with pytest.raises(DataError, match="file not found"):
        make(tiny_collection_folder / "nothing", split="test")


def test_the_evaluator_leaves_random_generators_alone(
    collection: Collection, tiny_static_encoder: SentenceTransformer
) -> None:
    evaluator = RetrievalEvaluator(collection, split="test")
    before = _random_states()
    evaluator(tiny_static_encoder)
    assert _random_states() == before


def _random_states() -> bytes:
    return pickle.dumps((random.getstate(), np.random.get_state(), torch.get_rng_state().tolist()))


def test_the_trainer_chooses_the_best_checkpoint_by_it(
    tiny_collection_folder: Path, tiny_static_encoder: SentenceTransformer, tmp_path: Path
) -> None:
    pairs = {"anchor": ["tides of the sea", "made of glass"], "positive": ["the moon", "melting sand"]}
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path / "run"),
        max_steps=2,
        eval_strategy="steps",
        eval_steps=1,
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_dev_ndcg_at_10",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = SentenceTransformerTrainer(
        model=tiny_static_encoder,
        args=arguments,
        train_dataset=Dataset.from_dict(pairs),
        loss=MultipleNegativesRankingLoss(tiny_static_encoder),
        evaluator=RetrievalEvaluator(tiny_collection_folder, split="dev"),
    )
    trainer.train()
    logged = [entry["eval_dev_ndcg_at_10"] for entry in trainer.state.log_history if "eval_dev_ndcg_at_10" in entry]
    assert len(logged) == 2
    assert trainer.state.best_metric == max(logged)


OFFLINE = """
import socket, sys, warnings
tried = []
def refuse(*args, **kwargs):
    tried.append(args)
    raise OSError("no network")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
warnings.simplefilter("error")
warnings.filterwarnings("ignore", module=r"(?!nlt_trainer)")
from sentence_transformers import SentenceTransformer
from nlt_trainer.evaluation.evaluator import RetrievalEvaluator, evaluate_bm25, evaluate_encoder
encoder = SentenceTransformer(sys.argv[1], device="cpu")
evaluate_encoder(encoder, sys.argv[2], split="test")
evaluate_bm25(sys.argv[2], split="test")
RetrievalEvaluator(sys.argv[2], split="test")(encoder)
assert not tried, tried
"""


def test_no_network_is_used_without_any_offline_switch(
    tiny_encoder_folder: Path, tiny_collection_folder: Path, tmp_path: Path
) -> None:
    environment = {key: value for key, value in os.environ.items() if "OFFLINE" not in key}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2]), "MTEB_CACHE": str(tmp_path / "mteb")}
    command = [sys.executable, "-c", OFFLINE, str(tiny_encoder_folder), str(tiny_collection_folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "mteb" / "results").exists()


def test_an_encoder_that_diverged_is_refused(
    tiny_collection_folder: Path, tiny_static_encoder: SentenceTransformer
) -> None:
    """Against the message; mteb would rank NaN scores and report a figure."""
    next(tiny_static_encoder.parameters()).data[0, 0] = float("nan")
    with pytest.raises(NLTError, match=r"infinite or NaN.*lower learning rate"):
        evaluate_encoder(tiny_static_encoder, tiny_collection_folder, split="test")
