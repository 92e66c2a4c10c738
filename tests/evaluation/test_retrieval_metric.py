"""The metric against its formulas in numpy, through the class and through `evaluate.load`."""

from __future__ import annotations

import doctest
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import pytest

from nlt_trainer.evaluation import retrieval_metric
from nlt_trainer.evaluation.retrieval_metric import RetrievalMetric

Rows = list[dict[str, Any]]


def _random_rows(num_queries: int = 20) -> tuple[Rows, Rows]:
    rng = np.random.default_rng(0)
    predictions, references = [], []
    for _ in range(num_queries):
        ranked = [f"d{number}" for number in rng.permutation(200)[:150]]
        judged = [f"d{number}" for number in rng.permutation(200)[:30]]
        predictions.append({"document_ids": ranked, "scores": rng.permutation(150).astype(float).tolist()})
        references.append({"document_ids": judged, "grades": rng.integers(0, 4, size=30).tolist()})
    return predictions, references


def _expected(predictions: Rows, references: Rows, *, ndcg: int, mrr: int, recall: int) -> dict[str, float]:
    """The textbook formulas; the gain of a document is its grade, as trec_eval has it."""
    sums = np.zeros(3)
    for predicted, judged in zip(predictions, references, strict=True):
        order = np.argsort(-np.array(predicted["scores"]))
        grades = dict(zip(judged["document_ids"], judged["grades"], strict=True))
        gains = np.array([grades.get(predicted["document_ids"][i], 0) for i in order])
        ideal = np.sort(judged["grades"])[::-1][:ndcg]
        dcg = (gains[:ndcg] / np.log2(np.arange(2, ndcg + 2))).sum()
        sums[0] += dcg / (ideal / np.log2(np.arange(2, len(ideal) + 2))).sum()
        hits = np.flatnonzero(gains[:mrr] > 0)
        sums[1] += 1 / (hits[0] + 1) if len(hits) else 0.0
        sums[2] += (gains[:recall] > 0).sum() / (np.array(judged["grades"]) > 0).sum()
    names = (f"ndcg_at_{ndcg}", f"mrr_at_{mrr}", f"recall_at_{recall}")
    return dict(zip(names, (sums / len(predictions)).tolist(), strict=True))


def test_scores_are_those_of_the_formulas() -> None:
    predictions, references = _random_rows()
    result = RetrievalMetric(keep_in_memory=True).compute(predictions=predictions, references=references)
    assert result == pytest.approx(_expected(predictions, references, ndcg=10, mrr=10, recall=100), abs=1e-9)


def test_cut_offs_can_be_chosen() -> None:
    predictions, references = _random_rows()
    metric = RetrievalMetric(keep_in_memory=True)
    result = metric.compute(predictions=predictions, references=references, ndcg=[5], mrr=[3], recall=[20, 50])
    expected = _expected(predictions, references, ndcg=5, mrr=3, recall=20)
    expected |= _expected(predictions, references, ndcg=5, mrr=3, recall=50)
    assert result == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("rank", "expected"), [(1, 1.0), (3, 1 / 3), (10, 0.1), (11, 0.0)])
def test_the_reciprocal_rank_ends_at_its_cut_off(rank: int, expected: float) -> None:
    ids = [f"d{number}" for number in range(1, 21)]
    predictions = [{"document_ids": ids, "scores": [-float(number) for number in range(20)]}]
    references = [{"document_ids": [f"d{rank}"], "grades": [1]}]
    result = RetrievalMetric(keep_in_memory=True).compute(predictions=predictions, references=references)
    assert result["mrr_at_10"] == pytest.approx(expected)


def test_a_query_without_predictions_counts_zero_and_ties_go_to_the_last_id() -> None:
    predictions = [{"document_ids": ["a", "b"], "scores": [1.0, 1.0]}, {"document_ids": [], "scores": []}]
    references = [{"document_ids": ["a"], "grades": [1]}, {"document_ids": ["a"], "grades": [1]}]
    result = RetrievalMetric(keep_in_memory=True).compute(predictions=predictions, references=references)
    assert result["mrr_at_10"] == pytest.approx(0.25)
    assert result["recall_at_100"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("prediction", "reason"),
    [
        ({"document_ids": ["a", "a"], "scores": [1.0, 2.0]}, "row 0: a document stands twice"),
        ({"document_ids": ["a", "b"], "scores": [1.0]}, "row 0: 2 document_ids but 1 scores"),
        ({"document_ids": ["a"], "scores": [float("nan")]}, "row 0: scores are not finite"),
    ],
)
def test_bad_rows_are_refused(prediction: dict[str, Any], reason: str) -> None:
    reference = {"document_ids": ["a"], "grades": [1]}
    with pytest.raises(ValueError, match=reason):
        RetrievalMetric(keep_in_memory=True).compute(predictions=[prediction], references=[reference])


def test_no_query_is_refused() -> None:
    with pytest.raises(ValueError, match="no query to score"):
        RetrievalMetric(keep_in_memory=True).compute(predictions=[], references=[])


def test_the_file_loads_through_evaluate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    metric = evaluate.load(retrieval_metric.__file__, cache_dir=str(tmp_path / "cache"))
    predictions, references = _random_rows()
    plain = RetrievalMetric(cache_dir=str(tmp_path / "plain")).compute(predictions=predictions, references=references)
    metric.add_batch(predictions=predictions[:7], references=references[:7])
    metric.add_batch(predictions=predictions[7:], references=references[7:])
    assert metric.compute() == plain


def test_the_example_of_the_documentation_runs() -> None:
    names = {"RetrievalMetric": RetrievalMetric}
    example = doctest.DocTestParser().get_doctest(RetrievalMetric().inputs_description, names, "metric", None, 0)
    assert len(example.examples) == 4
    assert doctest.DocTestRunner().run(example).failed == 0
