"""Tasks by name against mteb's registry, and their data against files in a Hub cache; nothing is fetched."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import mteb
import pytest

from nlt_trainer.errors import DataError, NLTError
from nlt_trainer.evaluation.tasks import check_data, load_task, resolve_tasks
from nlt_trainer.hub_calls import hub_answers

CARD = """---
configs:
- config_name: default
  data_files: [{split: test, path: qrels/test.jsonl}]
- config_name: corpus
  data_files: [{split: corpus, path: corpus.jsonl}]
- config_name: queries
  data_files: [{split: queries, path: queries.jsonl}]
---
"""


def test_a_benchmark_is_its_public_tasks_of_text_retrieval() -> None:
    """Reference: mteb's own lists and the metadata in them."""
    for name in ("NanoBEIR", "CoIR", "MTEB(eng, v2)", "RTEB(beta)"):
        expected = [
            task.metadata.name
            for task in mteb.get_benchmark(name).tasks
            if task.metadata.type == "Retrieval" and task.metadata.is_public
        ]
        found = resolve_tasks([name])
        assert [entry.collection for entry in found.tasks] == expected
        assert len(found.averages[name]) == len(expected)
        left_out = len(mteb.get_benchmark(name).tasks) - len(expected)
        assert len(found.left_out.get(name, [])) == left_out
    assert "EnglishFinance1Retrieval (is private)" in found.left_out["RTEB(beta)"]


def test_a_task_that_is_a_mean_of_others_is_resolved_to_them() -> None:
    """Reference: BEIR's fifteen sets, of which CQADupStack is the mean of twelve; the split that it takes of each."""
    found = resolve_tasks(["BEIR"])
    assert len(found.tasks) == 14 + 12
    assert len(found.averages["BEIR"]) == 15
    assert "CQADupstackRetrieval" in found.averages["BEIR"]
    assert len(found.averages["CQADupstackRetrieval"]) == 12
    assert {entry.split for entry in found.tasks if entry.collection == "MSMARCO"} == {"dev"}
    assert len(resolve_tasks(["BEIR", "SciFact", "BEIR"]).tasks) == 14 + 12


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("scifact", "'scifact' is no folder, and no task or benchmark of mteb; did you mean 'SciFact'\\?$"),
        ("NanoBeir", "did you mean 'NanoBEIR'\\?"),
        ("MTEB(eng,v2)", "did you mean 'MTEB\\(eng, v2\\)'\\?"),
        ("no/such:test", "For a folder write FOLDER:SPLIT"),
        ("STS12", "task 'STS12' is of type STS; evaluate measures retrieval of text by text"),
        ("MTEB(eng, v1)-nothing-like-it-at-all-qqqqqqqqqqqqqqqqqqqq", "https://docs.mteb.org lists them"),
        ("EnglishFinance1Retrieval", "is private"),
    ],
)
def test_other_names_are_refused(name: str, message: str) -> None:
    """Reference: the nearest name by hand."""
    with pytest.raises(NLTError, match=message):
        resolve_tasks([name])


def test_folders_are_tasks(tiny_collection_folder: Path, tmp_path: Path) -> None:
    """Reference: name and split of the folder; the same content elsewhere is the same task, another is refused."""
    found = resolve_tasks([f"{tiny_collection_folder}:dev", f"{tiny_collection_folder}/:test"])
    assert [entry.title for entry in found.tasks] == ["collection dev", "collection test"]
    copy = tmp_path / "copy" / "collection"
    shutil.copytree(tiny_collection_folder, copy)
    assert len(resolve_tasks([f"{tiny_collection_folder}:dev", f"{copy}:dev"]).tasks) == 1
    (copy / "queries.jsonl").write_text((copy / "queries.jsonl").read_text().replace("pollen", "honey"))
    with pytest.raises(NLTError, match="two different tasks would be called 'collection dev'; rename one folder"):
        resolve_tasks([f"{tiny_collection_folder}:dev", f"{copy}:dev"])
    with pytest.raises(DataError, match=r"qrels/valid.tsv: not found"):
        resolve_tasks([f"{copy}:valid"])


def hub_cache(root: Path) -> tuple[Path, str]:
    """The Hub's cache as `hf download` leaves it, with SciFact's layout; returns the snapshot and the revision."""
    dataset = mteb.get_task("SciFact").metadata.dataset
    folder = root / f"datasets--{dataset['path'].replace('/', '--')}"
    snapshot = folder / "snapshots" / dataset["revision"]
    (snapshot / "qrels").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(dataset["revision"])
    rows: dict[str, list[dict[str, object]]] = {
        "corpus.jsonl": [{"_id": f"d{i}", "title": "t", "text": f"text {i}"} for i in range(5)],
        "queries.jsonl": [{"_id": f"q{i}", "text": f"text {i}"} for i in range(3)],
        "qrels/test.jsonl": [{"query-id": f"q{i}", "corpus-id": f"d{i}", "score": 1} for i in range(2)],
    }
    for name, lines in rows.items():
        (snapshot / name).write_text("".join(json.dumps(row) + "\n" for row in lines))
    (snapshot / "README.md").write_text(CARD)
    return snapshot, dataset["revision"]


def test_what_hf_download_brings_is_enough_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: the rows in the snapshot; a snapshot without a file says what to bring."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    snapshot, revision = hub_cache(tmp_path / "hub")
    (entry,) = resolve_tasks(["SciFact"]).tasks
    load_task(entry)
    data = entry.task.dataset["default"]["test"]
    assert (len(data["corpus"]), len(data["queries"]), len(data["relevant_docs"])) == (5, 2, 2)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "another machine's")
    (snapshot / "corpus.jsonl").unlink()
    (snapshot / "corpus.jsonl").write_text('{"_id": "d0", "title"')  # half a file
    (entry,) = resolve_tasks(["SciFact"]).tasks
    with pytest.raises(
        NLTError, match=r"(?s)^SciFact has data that cannot be loaded: it is not on this machine or not whole.*Error"
    ):
        load_task(entry)
    (snapshot / "qrels" / "test.jsonl").unlink()
    (entry,) = resolve_tasks(["SciFact"]).tasks
    with pytest.raises(NLTError, match=f"--repo-type dataset --revision {revision}"):
        load_task(entry)


def test_data_that_is_not_here_is_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: data set, revision and place by hand; the Hub is not asked."""
    monkeypatch.setattr("nlt_trainer.evaluation.tasks.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    (entry,) = resolve_tasks(["NanoSciFactRetrieval"]).tasks
    dataset = entry.task.metadata.dataset
    start = time.monotonic()
    with pytest.raises(NLTError) as error:
        load_task(entry)
    assert time.monotonic() - start < 5
    assert f"\n  hf download {dataset['path']} --repo-type dataset --revision {dataset['revision']}\n" in str(
        error.value
    )
    assert f"to {tmp_path}/hub here" in str(error.value)


def test_all_that_is_missing_is_named_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: a line for each set of a benchmark but the one that is in the Hub's cache, and the folder."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    hub_cache(tmp_path / "hub")
    tasks = resolve_tasks(["NanoBEIR", "SciFact"]).tasks
    with pytest.raises(
        NLTError, match=r"^NanoArguAnaRetrieval and 12 others have data that cannot be loaded"
    ) as error:
        check_data(tasks)
    assert str(error.value).count("\n  hf download mteb/Nano") == 13
    assert "mteb/scifact" not in str(error.value)
    check_data(tasks[13:])


def test_data_that_is_not_here_is_named_within_seconds_without_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: the same message where the Hub's host cannot be reached; `datasets` would try for half a minute."""
    monkeypatch.setattr("nlt_trainer.hub_calls.is_offline_mode", lambda: False)
    monkeypatch.setattr("nlt_trainer.hub_calls.HfApi", _Unreachable)
    hub_answers.cache_clear()
    (entry,) = resolve_tasks(["SciFact"]).tasks
    with pytest.raises(NLTError, match=r"^SciFact has data that cannot be loaded"):
        load_task(entry)
    hub_answers.cache_clear()


class _Unreachable:
    def dataset_info(self, *args: object, **kwargs: object) -> None:
        raise RuntimeError("no route to host")
