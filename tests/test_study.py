"""The study of recipes/study at miniature size, and its grids, whose every combination has to be a recipe."""

from __future__ import annotations

import itertools
import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from sentence_transformers import SentenceTransformer

from nlt_trainer.data.beir import load_collection
from nlt_trainer.evaluation.evaluator import evaluate_encoder
from nlt_trainer.scripts import train

FOLDER = Path(__file__).parents[1] / "recipes" / "study"
GRIDS = sorted(FOLDER.glob("*.yaml"))


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(str(FOLDER))
    return runpy.run_path(str(FOLDER / "study.py"))


@pytest.fixture
def grid(tiny_llm_folder: Path, tiny_encoder_folder: Path) -> dict[str, Any]:
    return {
        "base": {
            "llm": str(tiny_llm_folder), "train_split": "train", "max_queries": 4, "num_candidates": 8,
            "max_document_tokens": 16, "per_device_train_batch_size": 2, "num_train_epochs": 2, "use_cpu": True,
            "max_seq_length": 32,
        },
        "encoders": {"tiny": {"encoder": str(tiny_encoder_folder), "miner": "fused"}},
        "train_data": {"collection": {"own_split": "dev"}},
        "objectives": {
            "gain": {"objective": "likelihood_gain"},
            "BM25's first": {"objective": "info_nce", "gains": "bm25"},
            "wrong labels": {"objective": "info_nce", "wrong_labels": 0.5},
            "InfoNCE after gain": {"objective": "info_nce", "after": "gain", "tuned_like": "gain"},
            "DREAM": {"objective": "dream", "document_layout": "independent", "num_heads": 2, "head_queries": 4},
        },
        "tuning": {
            "train_data": "collection", "split": "dev", "seed": 0,
            "tried": {"tiny": {"learning_rate": [1e-3, 1e-2]}},
        },
        "runs": [
            {
                "encoders": ["tiny"], "train_data": ["collection"], "seeds": [1, 2],
                "objectives": ["BM25", "start", "gain", "BM25's first", "wrong labels", "DREAM"], "measured_on": [],
            }
        ],
    }  # fmt: skip


def test_every_training_is_that_of_its_recipe(
    study: dict[str, Any],
    grid: dict[str, Any],
    tiny_collection_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Reference: `nlt train` with the same settings and mteb's evaluation; a second call trains nothing."""
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid))
    data, folder = tiny_collection_folder.parent, tmp_path / "study"
    given = [str(tmp_path / "grid.yaml"), "--data", str(data), "--folder", str(folder)]
    study["main"](given)
    results = pd.read_parquet(folder / "results.parquet")
    assert set(results.eval_data) == {"collection"}
    assert len(results[results.seed == 0]) == 4 * 2, "tuning tries two learning rates for each objective"
    rows = results[results.seed != 0]
    expected = [
        ("BM25", None),
        ("start", None),
        *itertools.product(["gain", "BM25's first", "wrong labels", "DREAM"], [1, 2]),
    ]
    found = [
        (name, None if pd.isna(seed) else int(seed)) for name, seed in zip(rows.objective, rows.seed, strict=True)
    ]
    assert found == expected
    own = study["Study"](grid, data=data, folder=folder)
    limited = study["Study"](grid, data=data, folder=folder, only={"seeds": [2], "objectives": ["gain", "DREAM"]})
    assert [(cell.objective, cell.seed) for cell in limited.cells()] == [("gain", 2), ("DREAM", 2)]
    collection = load_collection(tiny_collection_folder, splits=["dev"])
    cells = {(cell.objective, cell.seed): cell for cell in own.cells()}
    for row in rows[rows.seed == 2].itertuples():
        cell = cells[row.objective, int(row.seed)]
        prepared = own.prepare(cell.settings, seed=cell.seed) | {"output_dir": str(tmp_path / cell.key)}
        train.main(study["words"](prepared | {"seed": cell.seed}))
        encoder = SentenceTransformer(str(tmp_path / cell.key / "encoder"))
        assert row.ndcg_at_10 == pytest.approx(
            evaluate_encoder(encoder, collection, split="dev")["ndcg_at_10"], abs=1e-4
        )
        assert row.ndcg_at_10 == pytest.approx(np.mean(row.query_values), abs=1e-4)
        assert row.learning_rate in (1e-3, 1e-2)
        assert row.queries == 4
        assert (row.lm_tokens > 0) == (row.objective in ("gain", "DREAM"))
    assert not [*(folder / "runs").iterdir()]
    capsys.readouterr()
    study["main"](given)
    assert "seed" not in capsys.readouterr().out
    (folder / "cells" / f"{cells['gain', 2].key}.json").unlink()
    study["main"]([*given, "--finished"])
    left = pd.read_parquet(folder / "results.parquet")
    assert len(left) == len(results) - 1
    assert not ((left.objective == "gain") & (left.seed == 2)).any()


def test_earlier_results_stand_in_for_trainings(
    study: dict[str, Any], grid: dict[str, Any], tiny_collection_folder: Path, tmp_path: Path
) -> None:
    grid["runs"][0] |= {"objectives": ["start", "gain", "DREAM"], "seeds": [1]}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid))
    given = [str(tmp_path / "grid.yaml"), "--data", str(tiny_collection_folder.parent), "--folder"]
    study["main"]([*given, str(tmp_path / "first")])
    whole = pd.read_parquet(tmp_path / "first" / "results.parquet")
    half = tmp_path / "half.parquet"
    kept = whole[whole.objective != "DREAM"]
    kept.to_parquet(half)
    again = [*given, str(tmp_path / "second"), "--known", str(half)]
    study["main"]([*again, "--finished"])
    pd.testing.assert_frame_equal(
        pd.read_parquet(tmp_path / "second" / "results.parquet"), kept.reset_index(drop=True), check_dtype=False
    )
    study["main"](again)
    pd.testing.assert_frame_equal(
        pd.read_parquet(tmp_path / "second" / "results.parquet").drop(columns="train_seconds"),
        whole.drop(columns="train_seconds"),
        check_dtype=False,
    )


def test_an_objective_goes_on_with_the_encoder_of_another(
    study: dict[str, Any], grid: dict[str, Any], tiny_collection_folder: Path, tmp_path: Path
) -> None:
    """Reference: `nlt train` twice, the second time from the first one's encoder."""
    own = study["Study"](grid, data=tiny_collection_folder.parent, folder=tmp_path / "study")
    grid["runs"][0] |= {"objectives": ["InfoNCE after gain"], "seeds": [1]}
    (cell,) = own.cells()
    (row,) = own.rows(cell)
    first = own.prepare(cell.settings["after"], seed=1) | {"output_dir": str(tmp_path / "first"), "seed": 1}
    train.main(study["words"](first))
    second = own.prepare(cell.settings, seed=1) | {"output_dir": str(tmp_path / "second"), "seed": 1}
    train.main(study["words"](second | {"encoder": str(tmp_path / "first" / "encoder")}))
    encoder = SentenceTransformer(str(tmp_path / "second" / "encoder"))
    collection = load_collection(tiny_collection_folder, splits=["dev"])
    assert row["ndcg_at_10"] == pytest.approx(
        evaluate_encoder(encoder, collection, split="dev")["ndcg_at_10"], abs=1e-4
    )
    assert not [*(tmp_path / "study" / "runs").iterdir()]


@pytest.mark.parametrize(("margin", "expected"), [(0.0, 1e-2), (0.04, 1e-2), (0.06, 1e-3)])
def test_a_value_must_beat_the_middle_one_by_the_margin(
    margin: float, expected: float, study: dict[str, Any], grid: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: by hand, of three values that end at 0.50 (the middle one), 0.55 and 0.40."""
    found = {1e-3: 0.50, 1e-2: 0.55, 1e-4: 0.40}
    grid["tuning"] |= {"margin": margin, "tried": {"tiny": {"learning_rate": [1e-2, 1e-3, 1e-4]}}}
    own = study["Study"](grid, data=Path("data"), folder=Path("runs"))
    monkeypatch.setattr(own, "rows", lambda cell: [{"ndcg_at_10": found[cell.settings["learning_rate"]]}])
    assert own.tuned("gain", "tiny") == {"learning_rate": expected}


@pytest.mark.parametrize(("wrong", "expected"), [(0.0, 0), (0.5, 2), (1.0, 4)])
def test_wrong_labels_are_as_many_as_the_grid_says(
    wrong: float,
    expected: int,
    study: dict[str, Any],
    grid: dict[str, Any],
    tiny_collection_folder: Path,
    tmp_path: Path,
) -> None:
    """Reference: the judgements, looked up for the candidate that has the only gain of each query."""
    own = study["Study"](grid, data=tiny_collection_folder.parent, folder=tmp_path)
    settings = own.settings("wrong labels", "tiny", "collection") | {"wrong_labels": wrong}
    prepared = own.prepare(settings, seed=3)
    judgements = load_collection(tiny_collection_folder, splits=["train"]).split_qrels("train")
    rows = [json.loads(line) for line in Path(prepared["gains"]).read_text().splitlines()]
    found = [(row["query_id"], row["document_ids"][int(np.argmax(row["gain"]))]) for row in rows]
    assert all(sorted(row["gain"]) == [0] * 7 + [1] for row in rows)
    assert sum(judgements[query].get(document, 0) <= 0 for query, document in found) == expected
    assert len(rows) == 4


def test_an_llm_is_adapted_to_judged_pairs_that_are_not_trained_on(
    study: dict[str, Any], grid: dict[str, Any], tiny_collection_folder: Path, tmp_path: Path
) -> None:
    """Reference: the judgements and the candidates, read from their files; gains of the plain LLM are others."""
    own = study["Study"](grid, data=tiny_collection_folder.parent, folder=tmp_path)
    plain = own.settings("gain", "tiny", "collection") | {"max_queries": 2}
    settings = plain | {"judged_pairs": 1}
    prepared = own.prepare(settings, seed=1)
    assert "adapter" not in settings
    folder = Path(prepared["adapter"]).parent
    trained = {json.loads(line)["query_id"] for line in Path(prepared["candidates"]).read_text().splitlines()}
    judgements = load_collection(tiny_collection_folder, splits=["train"]).split_qrels("train")
    pairs = [json.loads(line) for line in (folder / "labels.jsonl").read_text().splitlines()]
    assert len(pairs) == 1
    assert not trained & {pair["query_id"] for pair in pairs}
    assert all(judgements[p["query_id"]][p["document_ids"][int(np.argmax(p["gain"]))]] > 0 for p in pairs)
    assert Path(prepared["gains"]).read_text() != Path(own.prepare(plain, seed=1)["gains"]).read_text()
    assert json.loads((folder / "adaptation.json").read_text())["pairs"] == 1


def test_dream_is_audited_on_judged_queries(
    study: dict[str, Any],
    grid: dict[str, Any],
    tiny_collection_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Reference: the queries with a relevant and another candidate, counted, and the bounds of a reciprocal rank."""
    audit = runpy.run_path(str(FOLDER / "audit.py"))
    grid["runs"][0]["objectives"] = ["start", "DREAM"]
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid))
    given = [str(tmp_path / "grid.yaml"), "--data", str(tiny_collection_folder.parent)]
    audit["main"]([*given, "--folder", str(tmp_path / "study")])
    (file,) = (tmp_path / "study" / "audits").iterdir()
    figures = json.loads(file.read_text())
    assert 1 <= figures["queries"] <= 4
    assert 1 / 8 <= figures["equal_reciprocal_rank"] <= 1
    assert f"| {figures['start_signal_to_noise']:.3f} |" in capsys.readouterr().out


@pytest.mark.parametrize("file", GRIDS, ids=lambda path: path.stem)
def test_a_grid_names_what_it_has(file: Path, study: dict[str, Any]) -> None:
    """Reference: the parser of recipes, for every combination; and the parts that the runs name."""
    grid = yaml.safe_load(file.read_text())
    own = study["Study"](grid, data=Path("data"), folder=Path("runs"))
    for run in grid["runs"]:
        for encoder, data, objective in itertools.product(*(run[part] for part in study["PARTS"])):
            if objective not in study["UNTRAINED"]:
                study["blocks"](own.settings(objective, encoder, data) | {"use_cpu": True})
        assert all(name.rpartition(":")[0] for name in run["measured_on"])
    for tried in grid.get("tuning", {"tried": {}})["tried"].values():
        assert tried.keys() <= {"learning_rate", "temperature", "num_train_epochs"}


def test_tables_say_what_is_gained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: means by hand; a difference in every query is sure, and one in none is not, nor one of seeds."""
    monkeypatch.syspath_prepend(str(FOLDER))
    tables = runpy.run_path(str(FOLDER / "tables.py"))
    shared = {"encoder": "tiny", "split": "test", "lm_tokens": 2000, "train_seconds": 3.0, "seed": 1}
    lifts = {"start": 0.0, "likelihood gain": 0.2, "InfoNCE, labels": 0.1, "DREAM": 0.2}
    lifts |= {"likelihood gain, 40 queries": 0.05, "InfoNCE, labels, 20 % wrong": 0.04}
    rows = []
    for objective, lift in lifts.items():
        for seed, eval_data in itertools.product([1] if objective in ("start", "DREAM") else [1, 2], "ab"):
            values = np.full(12, 0.3 + lift + (0.02 if seed == 2 else 0) - (0.1 if lift and eval_data == "b" else 0))
            own = {"objective": objective, "eval_data": eval_data, "seed": seed, "query_values": [*values]}
            train_data = None if objective == "start" else "a"
            rows.append(shared | own | {"train_data": train_data, "ndcg_at_10": values.mean()})
            if objective == "likelihood gain":
                rows.append({**rows[-1], "train_data": "b"})
    pd.DataFrame(rows).to_parquet(tmp_path / "results.parquet")
    guide = tmp_path / "README.md"
    wanted = [*(f"{name} tiny a" for name in tables["TABLES"]), "in_domain tiny"]
    marks = "".join(f"<!-- table: {table} -->\nold\n<!-- end of table -->\n" for table in wanted)
    guide.write_text(f"# Title\n\n{marks}")
    for _ in range(2):  # the second call finds its own tables
        plots = ["--plots", str(tmp_path), "--plotted", "tiny", "a"]
        tables["main"]([str(tmp_path / "results.parquet"), "--guide", str(guide), *plots])
    text, _, last = guide.read_text().partition("<!-- table: in_domain tiny -->")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert "old" not in text + last
    assert text.count("<!--") == 8
    assert "| likelihood gain | +0.210 | +0.110 | +0.160 | 2 |" in last
    assert "| DREAM | +0.200 |  |  | 1 |" in last
    assert "| likelihood gain, 40 queries | +0.060 | +0.060 |" in lines
    assert sum("40 queries" in line for line in lines) == 1
    assert {path.name for path in tmp_path.glob("*.png")} == {"objectives.png", "amounts.png"}
    against = "p against likelihood gain | p against InfoNCE, labels | p against DREAM"
    assert lines[0] == f"| objective | a | mean | seeds | {against} |"
    assert lines[2] == "| nDCG@10 of the start | 0.300 | 0.300 |  |  |  |  |"
    by_name = {line.split(" | ")[0].removeprefix("| "): line for line in lines[3:6]}
    assert by_name["DREAM"].startswith("| DREAM | +0.200 | +0.200 | 1 | 1 | 0.000")
    assert by_name["InfoNCE, labels"].startswith("| InfoNCE, labels | +0.110 | +0.110 | 2 | 0.000")
    assert by_name["InfoNCE, labels"].split(" | ")[5] == ""
    assert lines[8].split(" | ")[1] == "+0.110"
    assert lines[-1] == "| InfoNCE, labels | 2 | +0.110 | 0 |"


def test_amounts_are_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: the points by hand, with the usual amount of the objective that names none."""
    monkeypatch.syspath_prepend(str(FOLDER))
    amounts = runpy.run_path(str(FOLDER / "plots.py"))["amounts"]
    gains = pd.Series(
        {"g": 0.3, "g, 1280 queries": 0.4, "g, 40 queries": 0.1, "g, 4 candidates": 0.2, "h, 40 queries": 0.9}
    )
    assert amounts(gains, "g", "queries").to_dict() == {40: 0.1, 320: 0.3, 1280: 0.4}
    assert amounts(gains, "g", "candidates").to_dict() == {4: 0.2, 8: 0.3}
