"""The report against the figures that it is made of, and its page against HTML's rules."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from nlt_trainer.arguments.data import DataArguments
from nlt_trainer.arguments.model import ModelArguments
from nlt_trainer.assembly.training import dev_evaluator
from nlt_trainer.data.beir import Collection, Query, load_collection, write_collection
from nlt_trainer.data.gains import audit_teacher
from nlt_trainer.errors import DataError, NLTError
from nlt_trainer.evaluation.evaluator import RetrievalEvaluator
from nlt_trainer.injection.heads import HeadSet
from nlt_trainer.report import page as report
from nlt_trainer.report.comparison import SearchIndex, ranks
from nlt_trainer.report.query_changes import RunChange, RunComparer, outcomes, query_changes, that_decide
from nlt_trainer.run.folder import changed_settings, find_runs, unique_results
from nlt_trainer.run.results import Result, write_results
from nlt_trainer.scripts import report as report_script
from nlt_trainer.text_files import write_json
from nlt_trainer.training_arguments import NLTTrainingArguments

HOSTILE = "</script><script>alert('$x$')</script><img src=x onerror=alert(1)>"
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """A page's elements; refuses one that is closed in the wrong place."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str | None]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def values(self, name: str) -> list[str | None]:
        """Values of an attribute of all elements."""
        return [value for _, attribute, value in self.attributes if attribute == name]


@pytest.fixture
def collection(tiny_collection_folder: Path) -> Collection:
    """The tiny collection with a text in it that would run if it were markup."""
    found = load_collection(tiny_collection_folder)
    corpus = {**found.corpus, "d10": dataclasses.replace(found.corpus["d10"], title=HOSTILE, text=HOSTILE)}
    found.queries["q8"] = dataclasses.replace(found.queries["q8"], text=HOSTILE)
    folder = tiny_collection_folder.parent / "judged"
    write_collection(
        folder,
        corpus=corpus.values(),
        queries=found.queries.values(),
        qrels=found.qrels,
        stage="nlt build_collection",
    )
    return load_collection(folder)


def make_run(folder: Path, collection: Collection, start: Path, encoder: SentenceTransformer, **trainer: Any) -> Path:
    """What `train` leaves of a run."""
    gains = folder.parent / "gains.jsonl"
    data = DataArguments(collection=str(collection.folder), gains=str(gains), dev_split="dev", max_queries=4)
    model = ModelArguments(encoder=str(start), heads=str(folder.parent / "heads.json"))
    args = NLTTrainingArguments(output_dir=str(folder), use_cpu=True, report_to="none", **trainer).to_dict()
    keys = ("objective", "temperature", "learning_rate", "lr_scheduler_type", "seed")
    blocks = {"model": dataclasses.asdict(model), "data": dataclasses.asdict(data)}
    write_json(folder / "settings.json", blocks | {"trainer": {key: args[key] for key in keys}})
    log = [
        {"step": 1, "loss": 0.9, "train_seconds": 2.0, "lm_tokens": 0},
        {"step": 1, "eval_dev_ndcg_at_10": 0.4, "train_seconds": 3.0, "lm_tokens": 50},
        {"step": 2, "loss": 0.8, "train_seconds": 4.0, "lm_tokens": 100},
        {"step": 2, "eval_dev_ndcg_at_10": 0.5, "train_seconds": 4.5, "lm_tokens": 100},
    ]
    costs = {"train_seconds": 10.0, "lm_tokens": 2100, "peak_memory_gib": 1.25}
    write_json(
        folder / "training.json",
        {"objective": args["objective"], "seed": 42, "steps": 2, "queries": 4, "log": log, **costs},
    )
    encoder.save_pretrained(str(folder / "encoder"))
    return folder


@pytest.fixture
def runs(
    collection: Collection, tiny_encoder_folder: Path, tiny_static_encoder: SentenceTransformer, tmp_path: Path
) -> Path:
    """A folder with two runs, gains with their audit, and heads."""
    folder = tmp_path / "runs"
    make_run(folder / "gain", collection, tiny_encoder_folder, tiny_static_encoder, learning_rate=0.125)
    dream = make_run(folder / "dream", collection, tiny_encoder_folder, tiny_static_encoder, objective="dream")
    rows = [
        Result(name, 0.5, 0.4, 0.9, 0, 0, seed, "judged", "test") for name, seed in (("bm25", None), ("dream", 42))
    ]
    write_results(dream / "results.json", rows)
    audit = audit_teacher(np.array([[0.5, 0.1, -0.2], [0.2, 0.3, 0.1]]), [[3, 2, 1], [1, 3, 2]])
    write_json(folder / "gains.audit.json", {**audit, "truncated_documents": 0.25})
    HeadSet(((1, 0),), ((0.1, 0.2), (0.9, 0.3)), HOSTILE, {"weights": "w"}, {"score": "mrr"}).save(
        folder / "heads.json"
    )
    return folder


def test_outcomes_are_those_of_the_evaluator(collection: Collection, tiny_encoder: SentenceTransformer) -> None:
    """Reference: `RetrievalEvaluator` (trec_eval) for nDCG@10, all ranks for the relevant document's."""
    index = SearchIndex("tiny", tiny_encoder, collection.corpus, cache=collection.folder.parent / "cache")
    found = outcomes(index, collection, "train")
    mean = RetrievalEvaluator(collection, split="train")(tiny_encoder)["train_ndcg_at_10"]
    assert np.mean([outcome.ndcg for outcome in found.values()]) == pytest.approx(mean, abs=1e-9)
    ids = list(collection.corpus)
    for query_id, outcome in found.items():
        places = ranks(index.scores([collection.queries[query_id].text])[0])
        assert outcome.rank == min(places[ids.index(d)] for d in collection.qrels["train"][query_id])
        assert outcome.first.id == ids[places.tolist().index(1)]


@pytest.mark.parametrize(("dev", "expected"), [(None, ["q2", "q3"]), ("held_out", ["q2", "q3"]), ("dev", ["q2"])])
def test_the_queries_of_an_adaptation_are_those_that_decide(
    dev: str | None, expected: list[str], collection: Collection
) -> None:
    """Reference: by hand; a grade of 0 says that nobody could judge, and on `dev` weights were chosen."""
    judged = {
        "held_out": {"q1": {"d01": 0}, "q2": {"d07": 1, "d08": 0}, "q3": {"d08": 1}},
        "dev": {"q3": {"d08": 1}},
    }
    found = that_decide(dataclasses.replace(collection, qrels=judged), "held_out", dev).qrels
    assert found == {"held_out": {query: judged["held_out"][query] for query in expected}}


def test_a_query_is_not_its_own_first_document(
    collection: Collection, tiny_static_encoder: SentenceTransformer
) -> None:
    """Reference: `RetrievalEvaluator` on queries that are documents of the corpus."""
    queries = {d.id: Query(d.id, d.content) for d in collection.corpus.values()}
    judged = {"train": {query_id: {other: 1} for query_id, other in zip(queries, [*queries][::-1], strict=True)}}
    alike = dataclasses.replace(collection, queries=queries, qrels=judged)
    index = SearchIndex("tiny", tiny_static_encoder, alike.corpus, cache=collection.folder.parent / "cache")
    found = outcomes(index, alike, "train")
    mean = RetrievalEvaluator(alike, split="train")(tiny_static_encoder)["train_ndcg_at_10"]
    assert np.mean([outcome.ndcg for outcome in found.values()]) == pytest.approx(mean, abs=1e-9)
    assert all(outcome.first.id != query_id for query_id, outcome in found.items())


def test_ties_and_queries_without_a_relevant_document(
    collection: Collection, tiny_encoder: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: trec_eval, for which the greater id of equal scores stands first; an unjudged rank is none.

    A judged document that the corpus lacks counts in the ideal ranking alone.
    """
    index = SearchIndex("tiny", tiny_encoder, collection.corpus, cache=collection.folder.parent / "cache")
    monkeypatch.setattr(index, "scores", lambda queries: np.zeros((len(queries), 12), np.float32))
    collection.qrels["train"] = {"q1": {"d12": 1, "d11": 2, "gone": 3}, "q2": {"d01": 1, "gone": 2}, "q3": {"d05": 0}}
    found = outcomes(index, collection, "train")
    ideal = 3 + 2 / np.log2(3) + 1 / 2  # with the judged document that the corpus lacks
    assert found["q1"].ndcg == pytest.approx((1 + 2 / np.log2(3)) / ideal)
    assert (found["q2"].ndcg, found["q3"].ndcg) == (0.0, 0.0)
    assert (found["q2"].rank, found["q3"].rank) == (1, None)
    (first, *_) = query_changes(index, index, collection, "train")
    assert (first.difference, first.relevant) == (0.0, collection.corpus["d11"])


def test_the_report_of_several_runs(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Reference: the files of the runs; HTML's rules; no address of another host, nothing that runs."""
    report_script.main([str(runs), "--embeddings", str(tmp_path / "embeddings")])
    pictures = ["heads", "learning_curve", "loss_dream", "loss_gain", "queries_dream", "queries_gain"]
    assert sorted(path.stem for path in runs.glob("*.png")) == pictures
    assert f"{runs}/report.html" in capsys.readouterr().out
    assert matplotlib.image.imread(runs / "queries_dream.png")[..., :3].std() > 0
    page = Page((runs / "report.html").read_text())
    assert page.tags["h1"] == 1
    assert page.tags["svg"] == 6
    assert page.tags["script"] == 0
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    loaded = [value or "" for name in ("src", "href", "xlink:href") for value in page.values(name)]
    assert [value for value in loaded if not value.startswith(("#", "data:image/png"))] == []
    ids = Counter(page.values("id"))
    assert max(ids.values()) == 1
    assert {value.removeprefix("#") for value in loaded if value.startswith("#")} <= {str(key) for key in ids}
    text = " ".join(" ".join(page.text).split())
    assert HOSTILE in text
    for shown in ("Audit of", "proposed teacher temperature", "25 %", "Heads of", "1.2", "learning_rate", "0.125"):
        assert shown in text
    assert page.tags["caption"] >= 8
    assert set(page.values("scope")) == {"col", "row"}


def test_a_figure_of_the_report_is_that_of_the_evaluator(runs: Path, collection: Collection, tmp_path: Path) -> None:
    """Reference: `RetrievalEvaluator` before and after, and the start's point of the learning curve."""
    report_script.main([str(runs / "gain"), "--embeddings", str(tmp_path / "embeddings")])
    text = " ".join((runs / "gain" / "report.html").read_text().split())
    encoders = [SentenceTransformer(str(path), device="cpu") for path in (start_of(runs), runs / "gain" / "encoder")]
    before, after = (RetrievalEvaluator(collection, split="test")(encoder)["test_ndcg_at_10"] for encoder in encoders)
    assert f"{before:.3f} → {after:.3f}" in text
    start = RetrievalEvaluator(collection, split="dev")(encoders[0])["dev_ndcg_at_10"]
    assert f"<td>0</td><td>{start:.4f}</td>" in text
    assert (runs / "gain" / "loss.png").is_file()
    assert "Heads of" not in text


@pytest.mark.parametrize("decided", [False, True])
def test_the_curve_begins_with_what_training_would_have_measured(
    decided: bool, runs: Path, collection: Collection, tmp_path: Path
) -> None:
    """Reference: the evaluator that `nlt train` makes of the same settings, before its first step.

    It searches 4 documents of 12. A query for which nothing is judged relevant counts, which a decision leaves out.
    """
    (collection.folder / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq5\td02\t1\nq6\td06\t0\n")
    settings = json.loads((runs / "gain" / "settings.json").read_text())
    settings["data"]["dev_documents"] = 4
    write_json(runs / "gain" / "settings.json", settings)
    if decided:
        write_json(runs / "gain" / "decision.json", {"kept": "adapted"})
    evaluator = dev_evaluator(DataArguments(**settings["data"]), seed=42, trained=[])
    assert evaluator is not None
    expected = evaluator(SentenceTransformer(start_of(runs), device="cpu"))["dev_ndcg_at_10"]
    part = RunComparer(tmp_path / "embeddings").compare(find_runs(runs / "gain")[0])
    assert part.start_ndcg == pytest.approx(expected, abs=1e-9)
    assert [change.query.id for change in part.changes] == ["q7", "q8"]


def start_of(runs: Path) -> str:
    return str(json.loads((runs / "gain" / "settings.json").read_text())["model"]["encoder"])


def test_what_is_gone_is_said(runs: Path, collection: Collection) -> None:
    """Reference: the notes; the rest of the page stands. What a killed report has left goes."""
    left = runs / ".report.html.01234567.partial"
    left.touch()
    (collection.folder / "corpus.jsonl").unlink()
    (runs / "gains.audit.json").unlink()
    (runs / "heads.json").unlink()
    page, *pictures = report.write_report(runs)
    text = page.read_text()
    assert f"Not compared: {collection.folder}/corpus.jsonl: file not found" in text
    assert "No audit stands beside the gains" in text
    assert not left.exists()
    assert sorted(path.stem for path in pictures) == ["learning_curve", "loss_dream", "loss_gain"]


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    """Reference: the message."""
    with pytest.raises(NLTError, match=r"has no training\.json, nor has a folder in it"):
        report_script.main([str(tmp_path)])


def test_settings_are_compared_with_the_defaults(runs: Path) -> None:
    """Reference: the settings that `make_run` sets."""
    dream, gain = find_runs(runs)
    changed = changed_settings(gain.settings)
    assert set(changed) == {"encoder", "collection", "gains", "heads", "dev_split", "max_queries", "learning_rate"}
    assert changed["learning_rate"] == (5e-5, 0.125)
    assert changed_settings(dream.settings)["objective"] == ("likelihood_gain", "dream")


def test_no_more_examples_are_shown_than_asked_for(
    collection: Collection, tiny_encoder: SentenceTransformer, runs: Path
) -> None:
    """Reference: the queries that changed, by their difference."""
    (_, gain) = find_runs(runs)
    index = SearchIndex("tiny", tiny_encoder, collection.corpus, cache=runs / "cache")
    (first, second) = query_changes(index, index, collection, "dev")
    better = dataclasses.replace(first, after=dataclasses.replace(first.after, ndcg=first.before.ndcg + 1))
    worse = dataclasses.replace(second, after=dataclasses.replace(second.after, ndcg=second.before.ndcg - 1))
    part = RunChange(gain, "dev", [better, worse])
    assert report._examples(part, 5) == ([better], [worse])
    assert report._examples(part, 0) == ([], [])
    with pytest.raises(NLTError, match="examples is -1; it must be at least 0"):
        report_script.main([str(runs), "--examples", "-1"])


def test_rows_of_one_name_are_told_apart(runs: Path) -> None:
    """Reference: BM25's row, which both runs have, once; two runs of one objective and seed, with other figures."""
    bm25, dream = find_runs(runs)[0].results
    other = dataclasses.replace(dream, ndcg_at_10=0.75)
    write_results(runs / "gain" / "results.json", [bm25, other])
    found = {row.name: row.ndcg_at_10 for row in unique_results(find_runs(runs))}
    assert found == {"bm25": 0.5, "dream (dream)": 0.5, "dream (gain)": 0.75}


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "training.json",
            {"objective": "dream"},
            r"training.json: has no lm_tokens, log, queries, seed, steps, train_",
        ),
        ("settings.json", {"model": {}}, r"settings.json: has no data, trainer, as `nlt train` writes them"),
        ("results.json", [{"ndcg": 1}], r"results.json: is no table of results .*`nlt evaluate`"),
    ],
)
def test_a_file_of_a_run_that_is_malformed_is_named(runs: Path, file: str, content: Any, message: str) -> None:
    """Reference: what the file lacks."""
    write_json(runs / "gain" / file, content)
    with pytest.raises(DataError, match=message):
        find_runs(runs)


def test_a_figure_that_is_not_as_it_was_written_is_refused(runs: Path) -> None:
    """Reference: nDCG@10 of one row with another digit, which is still a share."""
    path = runs / "dream" / "results.json"
    rows = json.loads(path.read_text())
    rows[-1]["ndcg_at_10"] = 0.875
    path.write_text(json.dumps(rows))
    with pytest.raises(
        DataError, match=r"results\.json: is not as it was written.*write it again with `nlt evaluate`"
    ):
        find_runs(runs)
    del rows[-1]["checksum"]
    path.write_text(json.dumps(rows))
    assert find_runs(runs)[0].results[-1].ndcg_at_10 == 0.875


def test_the_curve_is_of_the_first_run_with_a_dev_split(runs: Path, tmp_path: Path) -> None:
    """Reference: the log of the run that has one; the other's comparison says what is missing."""
    settings = json.loads((runs / "dream" / "settings.json").read_text())
    settings["data"]["dev_split"] = settings["data"]["eval_split"] = None
    write_json(runs / "dream" / "settings.json", settings)
    page, *pictures = report.write_report(runs, embeddings=tmp_path / "embeddings")
    assert runs / "learning_curve.png" in pictures
    assert "Not compared: eval_split and dev_split are null" in page.read_text()


def test_runs_on_other_dev_queries_have_a_curve_of_their_own(runs: Path, tmp_path: Path) -> None:
    """Reference: a second collection whose dev split has the first one's name."""
    settings = json.loads((runs / "dream" / "settings.json").read_text())
    settings["data"]["collection"] = shutil.copytree(settings["data"]["collection"], tmp_path / "other")
    write_json(runs / "dream" / "settings.json", json.loads(json.dumps(settings, default=str)))
    page, *pictures = report.write_report(runs, embeddings=tmp_path / "embeddings")
    assert {runs / "learning_curve.png", runs / "learning_curve_2.png"} <= {*pictures}
    names = [Path(settings["data"]["collection"]).name, "judged"]
    assert all(page.read_text().count(f"nDCG@10 on dev queries of {name}") >= 1 for name in names)
