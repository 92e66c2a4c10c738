"""Systems on tasks against mteb on the encoder itself, trec_eval on files, and formulas by hand; what is kept."""

from __future__ import annotations

import json
import re
import shutil
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import pytest
import pytrec_eval
import regex
import Stemmer
from datasets import Dataset
from mteb.models.hybrid_wrappers import fuse_rrf
from sentence_transformers import SentenceTransformer
from trec_runs import write_run

from nlt_trainer.data import bm25_matrix
from nlt_trainer.data.beir import Collection, Document, Query, load_collection, write_collection
from nlt_trainer.data.bm25 import LANGUAGE_SHARE, RUN, STOP_WORDS, _reader, tokenize
from nlt_trainer.data.bm25_matrix import BM25Matrix
from nlt_trainer.data.trec import read_run
from nlt_trainer.encoder.embedding_cache import EmbeddingCache, _is_whole
from nlt_trainer.errors import NLTError
from nlt_trainer.evaluation import task_scores
from nlt_trainer.evaluation.evaluator import best, evaluate_bm25, evaluate_encoder
from nlt_trainer.evaluation.folder_task import METRICS, BEIRFolderRetrieval
from nlt_trainer.evaluation.systems import BM25, Checkpoint, EncoderSystems, RunFile
from nlt_trainer.evaluation.task_scores import (
    TaskRankings,
    TaskScoreCache,
    TaskScores,
    fuse,
    rank_bm25,
    rank_encoder,
    score,
)
from nlt_trainer.evaluation.tasks import EvaluationTask, load_task
from nlt_trainer.text_files import read_json, write_json

WORDS = "amber birch cedar dune ember fjord grove heath islet jetty knoll larch marsh notch oasis plain".split()
STEMMER = Stemmer.Stemmer
SCRIPTS = ("Han", "Hira", "Kana", "Hang", "Thai", "Laoo", "Khmr", "Mymr")
SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture
def collection(tmp_path: Path) -> Collection:
    """120 documents of random words with titles and 20 queries with graded judgements, ids that are in both."""
    rng = np.random.default_rng(0)
    corpus = [Document(f"{i}", str(rng.choice(WORDS)), " ".join(rng.choice(WORDS, size=5))) for i in range(120)]
    queries = [Query(f"{i}", " ".join(rng.choice(WORDS, size=3, replace=False))) for i in range(20)]
    grades = {q.id: {f"{d}": int(rng.integers(0, 3)) for d in rng.choice(120, 15, replace=False)} for q in queries}
    folder = write_collection(
        tmp_path / "random", corpus=corpus, queries=queries, qrels={"test": grades}, stage="nlt build_collection"
    )
    return load_collection(folder)


@pytest.fixture
def entry(collection: Collection) -> EvaluationTask:
    entry = EvaluationTask.of(BEIRFolderRetrieval(collection, split="test"))
    load_task(entry)
    return entry


def means(cell: TaskScores) -> dict[str, float]:
    (part,) = cell.values.values()
    return {name: float(np.mean(part[name])) for name in METRICS}


@pytest.mark.parametrize("encoder_name", ["tiny_encoder", "tiny_static_encoder"])
def test_an_encoder_scores_what_mteb_gives_it(
    entry: EvaluationTask,
    encoder_name: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Reference: `mteb.evaluate` of the encoder itself, with prompts; a second call reads the embeddings."""
    encoder: SentenceTransformer = request.getfixturevalue(encoder_name)
    encoder.prompts = {"query": "ask: ", "document": "read: "}
    expected = evaluate_encoder(encoder, entry.task.collection, split="test")  # type: ignore[attr-defined]
    cached = EmbeddingCache(encoder, tmp_path / "embeddings")
    cell = score(entry, rank_encoder(entry, cached, batch_size=16))
    assert means(cell) == pytest.approx(expected, abs=1e-5)
    assert cell.mteb["scores"]["test"][0]["ndcg_at_10"] == pytest.approx(expected["ndcg_at_10"])
    monkeypatch.setattr(EmbeddingCache, "_embed", lambda *_: pytest.fail("embedded again"))
    assert score(entry, rank_encoder(entry, cached, batch_size=16)).values == cell.values


def test_bm25_scores_what_it_scores_alone(entry: EvaluationTask) -> None:
    """Reference: `evaluate_bm25`."""
    expected = evaluate_bm25(entry.task.collection, split="test")  # type: ignore[attr-defined]
    assert means(score(entry, rank_bm25(entry))) == pytest.approx(expected, abs=1e-5)


def test_bm25_says_how_many_queries_match_nothing(
    entry: EvaluationTask, collection: Collection, caplog: pytest.LogCaptureFixture
) -> None:
    """Reference: no line where every query matches; one query whose text is in another script."""
    BM25(keep=False).rank(entry)
    assert not caplog.messages
    strange = replace(next(iter(collection.split_queries("test"))), text="исток реки")
    other = replace(collection, queries={**collection.queries, strange.id: strange})
    foreign = EvaluationTask.of(BEIRFolderRetrieval(other, split="test"))
    load_task(foreign)
    BM25(keep=False).rank(foreign)
    number = len(collection.split_queries("test"))
    assert caplog.messages[0].startswith(f"{foreign.title}: 1 of {number} queries share no word with the corpus")


def test_an_encoder_that_diverged_is_refused(
    entry: EvaluationTask, tiny_static_encoder: SentenceTransformer, tmp_path: Path
) -> None:
    next(tiny_static_encoder.parameters()).data[0, 0] = float("nan")
    cached = EmbeddingCache(tiny_static_encoder, tmp_path)
    with pytest.raises(NLTError, match=r"the encoder: weight .* is infinite or NaN.*lower learning rate"):
        rank_encoder(entry, cached, batch_size=16)


def test_a_text_without_a_finite_embedding_is_named(
    entry: EvaluationTask,
    tiny_static_encoder: SentenceTransformer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Reference: encoder, text and remedy; weights that are finite, and embeddings that an older version has kept."""
    row = entry.task.dataset["default"]["test"]["corpus"][3]
    strange = Document(row["id"], row.get("title") or "", row["text"]).content
    encode = tiny_static_encoder.encode_document

    def overflowing(texts: list[str], **options: Any) -> Any:
        found = encode(texts, **options)
        found[[text == strange for text in texts], 0] = float("nan")
        return found

    monkeypatch.setattr(tiny_static_encoder, "encode_document", overflowing)
    cached = EmbeddingCache(tiny_static_encoder, tmp_path, bf16=True, name="runs/x/encoder")
    message = (
        "runs/x/encoder gives 1 of 120 texts an embedding that is infinite or NaN, the first is document "
        rf"{re.escape(repr(strange))}; set bf16_full_eval: false, take the texts out if they are few, or train the"
    )
    with pytest.raises(NLTError, match=message):
        rank_encoder(entry, cached, batch_size=16)
    file = tmp_path / "old.npy"
    np.save(file, np.array([[1.0, np.nan]], np.float32))
    assert not _is_whole(file, 1)


def test_fusion_is_the_sum_of_reciprocal_ranks() -> None:
    """Reference: 1 / (60 + rank) by hand, and mteb's own; of equal scores the last id comes first; 100 of each."""
    part = ("test", "default")
    first: TaskRankings = {part: {"q": {"a": 3.0, "b": 2.0, "c": 2.0}}}
    second: TaskRankings = {part: {"q": {"b": 0.9, "d": 0.1}}}
    expected = {"a": 1 / 61, "b": 1 / 63 + 1 / 61, "c": 1 / 62, "d": 1 / 62}
    assert fuse(first, second)[part]["q"] == pytest.approx(expected)
    assert fuse(first, second)[part]["q"] == fuse_rrf([first[part]["q"], second[part]["q"]], [1.0, 1.0])
    long: TaskRankings = {part: {"q": {f"d{i:03}": 1.0 - i / 1000 for i in range(150)}}}
    assert len(fuse(long, second)[part]["q"]) == 102


def test_fusion_by_a_weight_is_that_of_the_search() -> None:
    """Reference: scores on a line from 0 to 1 by hand; the queries are the encoder's."""
    part = ("test", "default")
    encoder: TaskRankings = {part: {"q": {"a": 0.9, "b": 0.5, "c": 0.1}}}
    bm25: TaskRankings = {part: {"q": {"c": 8.0, "b": 2.0}, "other": {"a": 1.0}}}
    fused = fuse(encoder, bm25, weight=0.25)
    assert fused[part] == {"q": pytest.approx({"a": 0.75, "b": 0.375, "c": 0.25})}


@pytest.fixture
def twins(collection: Collection) -> EvaluationTask:
    """A task whose queries are documents of the corpus."""
    queries = {f"{i}": Query(f"{i}", collection.corpus[f"{i}"].content) for i in range(20)}
    judged = {
        "test": {q: {d: grade for d, grade in row.items() if d != q} for q, row in collection.qrels["test"].items()}
    }
    entry = EvaluationTask.of(BEIRFolderRetrieval(replace(collection, queries=queries, qrels=judged), split="test"))
    load_task(entry)
    return entry


def test_a_query_does_not_find_itself(
    twins: EvaluationTask, tiny_static_encoder: SentenceTransformer, tmp_path: Path
) -> None:
    """Reference: mteb's own figure for a run with the query itself (`score` compares the two), and rankings without.

    Nothing of the query itself is left where BM25 and an encoder are fused, either, or the best score would be its.
    """
    near = {f"{q}": {f"{d}": float(-abs(d - q)) for d in range(120)} for q in range(20)}
    without = {q: {d: value for d, value in row.items() if d != q} for q, row in near.items()}
    part = ("test", "default")
    assert score(twins, {part: near}).values == score(twins, {part: without}).values
    words, found = rank_bm25(twins), rank_encoder(twins, EmbeddingCache(tiny_static_encoder, tmp_path), batch_size=8)
    for rankings in (words, found, fuse(found, words), fuse(found, words, weight=0.5)):
        assert all(q not in row for q, row in rankings[part].items())
    assert {len(row) for row in found[part].values()} == {100}


def test_a_task_of_mteb_says_itself_whether_a_query_may_find_itself(
    twins: EvaluationTask, tiny_static_encoder: SentenceTransformer, tmp_path: Path
) -> None:
    """Reference: each query is the best document for itself, and the kept results are not those of the other kind."""
    before, cached = twins.fingerprint, EmbeddingCache(tiny_static_encoder, tmp_path)
    twins.task.ignore_identical_ids = False
    for rankings in (rank_bm25(twins), rank_encoder(twins, cached, batch_size=8)):
        assert all(best(row, 1).keys() == {q} for q, row in rankings["test", "default"].items())
    assert EvaluationTask.of(twins.task).fingerprint != before


def test_a_task_that_scores_in_its_own_way_is_refused(entry: EvaluationTask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: values that are not those of mteb."""

    def wrong(run: Mapping[str, Any], qrels: Mapping[str, Any]) -> dict[str, list[float]]:
        return {name: [0.5] * len(qrels) for name in METRICS}

    monkeypatch.setattr(task_scores, "query_values", wrong)
    with pytest.raises(NLTError, match=r"random test: ndcg_at_10 is .* by mteb and 0.5 by trec_eval"):
        score(entry, rank_bm25(entry))


def trec_eval(qrels: dict[str, dict[str, int]], run: Path) -> dict[str, dict[str, float]]:
    """trec_eval's own code on files: query id -> nDCG@10, reciprocal rank and recall@100."""
    with run.open() as handle:
        rows = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "recip_rank", "recall.100"}).evaluate(
            pytrec_eval.parse_run(handle)
        )
    return {
        q: {
            "ndcg_at_10": row["ndcg_cut_10"],
            "mrr_at_10": row["recip_rank"] if row["recip_rank"] >= 0.1 else 0,
            "recall_at_100": row["recall_100"],
        }
        for q, row in rows.items()
    }


def with_ties(rankings: TaskRankings, digits: int) -> TaskRankings:
    """Rankings with rounded scores, so that many are equal."""
    return {
        part: {q: {d: round(s, digits) for d, s in ranking.items()} for q, ranking in of_part.items()}
        for part, of_part in rankings.items()
    }


def check_against_trec_eval(entry: EvaluationTask, rankings: TaskRankings, tmp_path: Path) -> None:
    """Every query's values, through the run file and without it; equal scores are there."""
    (part,) = rankings
    scores = [list(ranking.values()) for ranking in rankings[part].values()]
    assert sum(len(row) - len(set(row)) for row in scores) > 50
    write_run(tmp_path / "run.txt", rankings[part], tag="x")
    qrels = {q: dict(grades) for q, grades in entry.task.dataset["default"]["test"]["relevant_docs"].items()}
    expected = trec_eval(qrels, tmp_path / "run.txt")
    for found in (rankings, RunFile(str(tmp_path / "run.txt")).rank(entry)):
        cell = score(entry, found)
        for name in METRICS:
            values = dict(zip(cell.queries["test/default"], cell.values["test/default"][name], strict=True))
            assert values == pytest.approx({q: row[name] for q, row in expected.items()}, abs=1e-6)


def test_ties_are_scored_as_trec_eval_does(entry: EvaluationTask, tmp_path: Path) -> None:
    """Reference: trec_eval's code on a run file."""
    check_against_trec_eval(entry, with_ties(rank_bm25(entry), 0), tmp_path)


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="no real collections beside the repository")
@pytest.mark.parametrize("name", ["cranfield", "cisi", "scifact"])
def test_real_collections_are_scored_as_trec_eval_does(name: str, tmp_path: Path) -> None:
    """Reference: trec_eval's code on a run file of BM25, with graded judgements and equal scores."""
    entry = EvaluationTask.of(BEIRFolderRetrieval(SHARED_DATA / name, split="test"))
    load_task(entry)
    check_against_trec_eval(entry, with_ties(rank_bm25(entry), 1), tmp_path)


def test_a_run_without_a_query_counts_0_for_it(entry: EvaluationTask, tmp_path: Path) -> None:
    """Reference: trec_eval with -c; a run of another task is refused."""
    (part,) = (rankings := rank_bm25(entry))
    write_run(tmp_path / "run.txt", {q: r for q, r in rankings[part].items() if q != "3"}, tag="x")
    full, lacking = score(entry, rankings), score(entry, RunFile(str(tmp_path / "run.txt")).rank(entry))
    place = full.queries["test/default"].index("3")
    expected = list(full.values["test/default"]["recall_at_100"])
    assert expected[place] > 0
    expected[place] = 0
    assert lacking.values["test/default"]["recall_at_100"] == pytest.approx(expected)
    write_run(tmp_path / "other.txt", {"x": {"1": 1.0}}, tag="x")
    with pytest.raises(NLTError, match=r"other.txt ranks for no query of random test"):
        RunFile(str(tmp_path / "other.txt")).rank(entry)
    assert read_run(tmp_path / "other.txt") == {"x": {"1": 1.0}}


class _TwoLanguages(BEIRFolderRetrieval):
    """The same corpus under two subsets, the second with other judgements, titles apart and turns as queries."""

    def __init__(self, collection: Collection):
        super().__init__(collection, split="test")
        self.metadata = self.metadata.model_copy(update={"eval_langs": {"en": ["eng-Latn"], "de": ["deu-Latn"]}})
        self.hf_subsets = ["en", "de"]

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
        super().load_data()
        data = self.dataset["default"]["test"]
        rows = self.collection.corpus.values()
        apart = {"id": [d.id for d in rows], "title": [d.title for d in rows], "text": [d.text for d in rows]}
        turns = [[{"role": "user", "content": text}] for text in data["queries"]["text"]]
        other: Any = {
            "corpus": Dataset.from_dict(apart),
            "queries": Dataset.from_dict({"id": data["queries"]["id"], "text": turns}),
            "relevant_docs": {q: {d: g % 2 for d, g in row.items()} for q, row in data["relevant_docs"].items()},
            "top_ranked": None,
        }
        self.dataset = {"en": {"test": data}, "de": {"test": other}}


def test_subsets_are_kept_apart(
    collection: Collection, tiny_static_encoder: SentenceTransformer, tmp_path: Path
) -> None:
    """Reference: mteb's figures for each subset; int8 takes the steps of each corpus."""
    entry = EvaluationTask.of(_TwoLanguages(collection))
    load_task(entry)
    assert entry.parts() == [("test", "en"), ("test", "de")]
    cached = EmbeddingCache(tiny_static_encoder, tmp_path / "embeddings")
    cell = score(entry, rank_encoder(entry, cached, batch_size=16, precision="int8"))
    assert list(cell.values) == ["test/en", "test/de"]
    assert cell.values["test/en"] != cell.values["test/de"]
    bm25 = rank_bm25(entry)
    assert bm25["test", "en"] == bm25["test", "de"]
    write_run(tmp_path / "run.txt", bm25["test", "en"], tag="x")
    with pytest.raises(NLTError, match=r"run.txt is one run, and random test has 2 parts \(test/en, test/de\)"):
        RunFile(str(tmp_path / "run.txt")).rank(entry)


def test_a_result_is_kept_for_its_system_and_task_alone(
    entry: EvaluationTask, tiny_collection_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: the cell; another system, task or version of a library has none."""
    cell, cache = score(entry, rank_bm25(entry)), TaskScoreCache(tmp_path / "results")
    cache.put("bm25", entry, cell)
    assert cache.get("bm25", entry) == cell
    assert mteb.TaskResult.from_dict(cell.mteb).task_name == "random-test"
    other = EvaluationTask.of(BEIRFolderRetrieval(tiny_collection_folder, split="test"))
    assert cache.get("other", entry) is cache.get("bm25", other) is None
    with monkeypatch.context() as patch:
        patch.setattr(task_scores, "version", lambda name: "0")
        assert TaskScoreCache(tmp_path / "results").get("bm25", entry) is None


def test_a_damaged_result_is_computed_again(
    entry: EvaluationTask, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Reference: the file in the warning; every flip of a bit is damage, as is another content."""
    cell, cache = score(entry, rank_bm25(entry)), TaskScoreCache(tmp_path / "results")
    cache.put("bm25", entry, cell)
    path = cache.path("bm25", entry)
    content = path.read_bytes()
    for at in range(0, len(content), 97):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << at % 7]) + content[at + 1 :])
        if path.read_text().split() != content.decode().split():  # white space around values says nothing
            assert cache.get("bm25", entry) is None
            assert f"{path} is damaged, and the result is computed again" in caplog.text
            caplog.clear()
    write_json(path, {"unknown": 1})
    assert cache.get("bm25", entry) is None
    write_json(path, {key: value for key, value in json.loads(content).items() if key != "checksum"})
    assert cache.get("bm25", entry) == cell  # as an older version wrote it


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.5, 1.5, "x", None])
def test_an_impossible_result_is_computed_again(entry: EvaluationTask, tmp_path: Path, value: Any) -> None:
    """Reference: a file without a checksum, as an older version wrote it, with one value that no metric has."""
    cell, cache = score(entry, rank_bm25(entry)), TaskScoreCache(tmp_path / "results")
    kept = json.loads(json.dumps(asdict(cell)))
    write_json(cache.path("bm25", entry), kept)
    assert cache.get("bm25", entry) == cell
    values = next(iter(kept["values"].values()))[METRICS[0]]
    last = values.pop()
    write_json(cache.path("bm25", entry), kept)
    assert cache.get("bm25", entry) is None, "a query without a value"
    values.append(value)
    write_json(cache.path("bm25", entry), kept)
    assert cache.get("bm25", entry) is None
    values[-1] = last
    write_json(cache.path("bm25", entry), {**kept, "values": {}})
    assert cache.get("bm25", entry) is None


def matrix_with(name: str, value: object) -> Callable[[Iterable[list[str]]], BM25Matrix]:
    """The function `build`, for which a part of BM25's formula has another value."""

    def build(documents: Iterable[list[str]]) -> BM25Matrix:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bm25_matrix, name, value)
            return bm25_matrix.build(documents)

    return build


def without_case(text: str, language: str) -> list[str]:
    return text.casefold().split()


def stop_words(language: str, change: frozenset[str]) -> dict[str, frozenset[str]]:
    """The stop words, of which those of one language that are in `change` are left out, and the others added."""
    return {**STOP_WORDS, language: STOP_WORDS[language] ^ change}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("STOP_WORDS", stop_words("english", frozenset({"more"}))),
        ("STOP_WORDS", stop_words("english", frozenset({"their"}))),
        ("STOP_WORDS", stop_words("german", frozenset({"nicht"}))),
        ("LANGUAGE_SHARE", 10 * LANGUAGE_SHARE),
        ("WORD", re.compile(r"\w+")),
        ("WORD", re.compile(r"[\w'-]+")),
        ("RUN", re.compile(r"(?P<unspaced>$)|\w\w+")),
        *(("RUN", regex.compile(RUN.pattern.replace(rf"\p{{scx={script}}}", ""))) for script in SCRIPTS),
        ("CHARACTER", re.compile(".")),
        ("PART_BOUNDARY", re.compile("_+")),
        ("PART_BOUNDARY", re.compile(r"_+|(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|(?<=[a-z])(?=[0-9])")),
        ("Stemmer.Stemmer", lambda language: STEMMER({"english": "porter"}.get(language, language))),
        ("Stemmer.Stemmer", lambda language: STEMMER("english")),
        ("tokenize", without_case),
        ("tokenize", lambda text, language: [token[:5] for token in tokenize(text, language)]),
        ("tokenize", lambda text, language: tokenize(unicodedata.normalize("NFKC", text), language)),
        ("unicodedata.normalize", lambda form, text: text),
        ("build", matrix_with("K1", 1.2)),
        ("build", matrix_with("B", 0.5)),
        ("build", matrix_with("_idf", lambda frequencies, documents: np.ones(len(frequencies), np.float32))),
    ],
)
def test_bm25_is_known_by_how_it_ranks(name: str, value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: another tokeniser, other stop words or another formula, each with another fingerprint."""
    before = BM25(keep=False).fingerprint
    assert BM25(keep=True).fingerprint == before
    monkeypatch.setattr(f"nlt_trainer.data.bm25.{name}", value)
    _reader.cache_clear()
    changed = BM25(keep=False).fingerprint
    monkeypatch.undo()
    _reader.cache_clear()
    assert changed != before


def test_a_checkpoint_is_known_by_its_content(tiny_encoder_folder: Path, tmp_path: Path) -> None:
    """Reference: what changes embeddings changes the fingerprint; a card, an optimizer and the place do not."""
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        shutil.copytree(tiny_encoder_folder, folder)
    content = Checkpoint.named(str(first)).fingerprint
    for name in ("README.md", "record.json", "recipe.yaml"):  # an evaluation writes them into the folder
        (second / name).write_text("another")
    (second / "optimizer.pt").write_bytes(b"x")
    assert Checkpoint.named(str(second)).fingerprint == content
    assert Checkpoint("a", str(first), {"max_seq_length": 8}).fingerprint != content
    assert Checkpoint("a", str(first), {"max_seq_length": None}).fingerprint == content
    config = next(second.rglob("1_Pooling/config.json"))
    config.write_text(config.read_text().replace("mean", "cls"))
    assert Checkpoint.named(str(second)).fingerprint != content


def test_a_hub_id_is_known_by_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: the commit in the Hub's cache; an id that is not there says what to do."""
    folder = tmp_path / "models--org--model"
    (folder / "snapshots" / "c0ffee").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("c0ffee")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path))
    assert Checkpoint.named("org/model").fingerprint.startswith("org/model@c0ffee ")
    with pytest.raises(NLTError, match=r"model 'org/other' cannot be loaded: .*hf download org/other"):
        _ = Checkpoint.named("org/other").fingerprint


NOTHING: dict[str, Any] = {"steps": 0, "queries": 0, "log": []}
"""What a run's report holds besides, here of no interest."""


def test_the_rows_of_a_checkpoint(tiny_encoder_folder: Path, tmp_path: Path) -> None:
    """Reference: names by hand, each with a fingerprint of its own; what a run has cost."""
    run = tmp_path / "run"
    shutil.copytree(tiny_encoder_folder, run / "encoder")
    write_json(
        run / "training.json", {"train_seconds": 3.5, "lm_tokens": 7, "seed": 1, "objective": "dream", **NOTHING}
    )
    options: dict[str, Any] = {
        "folder": tmp_path, "batch_size": 8, "bm25": BM25(keep=True),
        "bm25_weights": [0.25], "truncate_dims": [16], "precisions": ["int8"],
    }  # fmt: skip
    rows, rounded = (EncoderSystems(Checkpoint.named(str(run)), bf16=b, **options).systems() for b in (False, True))
    ends = ("", " + bm25", " + 0.25 bm25", ", int8", ", 16 dimensions", ", 16 dimensions, int8")
    assert [row.name for row in rows] == [f"{run}{end}" for end in ends]
    assert len({row.fingerprint for row in [*rows, *rounded]}) == 12
    assert [row.is_encoder for row in rows] == [True, False, False, False, False, False]
    assert (rows[0].train_seconds, rows[0].lm_tokens, rows[0].seed) == (3.5, 7, 1)
    assert read_json(run / "training.json")["objective"] == "dream"
