"""Model cards, the results table and the two pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from huggingface_hub import ModelCard
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from sentence_transformers import SentenceTransformer

from nlt_trainer import cards, plots
from nlt_trainer.cards import write_card
from nlt_trainer.errors import NLTError
from nlt_trainer.files import write_json
from nlt_trainer.models.heads import HeadSet
from nlt_trainer.results import Result, results_table, write_results

RESULTS = [
    Result("bm25", 0.5, 0.4, 0.9, 0, 0, None, "stdlib", "test"),
    Result("start", 0.1, 0.05, 0.3, 0, 0, None, "stdlib", "test"),
    Result("dream", 0.123456, 0.2, 0.6, 1234.5, 7654321, 7, "stdlib", "test"),
    Result("dream", 0.3, 0.2, 0.6, 1234.5, 7654321, 7, "scifact", "test"),
]
DATA = {
    "num_candidates": 5,
    "target": None,
    "labels": False,
    "head_qrels": None,
    "dev_split": None,
    "train_split": "train",
}


@pytest.fixture
def run(tiny_static_encoder: SentenceTransformer, tmp_path: Path) -> Path:
    """The folder of a finished run."""
    tiny_static_encoder.save_pretrained(str(tmp_path / "run" / "encoder"))
    report = {
        "objective": "dream",
        "steps": 12,
        "queries": 34,
        "lm_tokens": 7654321,
        "train_seconds": 1234.5,
        "seed": 7,
    }
    model = {"encoder": "org/start", "llm": "org/llm", "adapter": None}
    settings: dict[str, Any] = {"model": model, "data": DATA, "trainer": {"seed": 7}}
    write_json(tmp_path / "run" / "training.json", report)
    write_json(tmp_path / "run" / "settings.json", settings)
    return tmp_path / "run"


def test_the_table_shows_rows_in_order() -> None:
    """Reference: the rows by hand; systems that were not trained have no cost."""
    lines = results_table(RESULTS[1:3]).splitlines()
    assert lines[0].count("|") == lines[1].count("|") == lines[2].count("|") == lines[3].count("|") == 9
    assert lines[2] == "| stdlib test | start | 0.100 | 0.050 | 0.300 |  |  |  |"
    assert lines[3] == "| stdlib test | dream | 0.123 | 0.200 | 0.600 | 1,234 | 7,654,321 | 7 |"


def test_results_are_a_list_of_objects(tmp_path: Path) -> None:
    """Reference: the fields of `Result`."""
    write_results(tmp_path / "results.json", RESULTS)
    found = json.loads((tmp_path / "results.json").read_text())
    assert [Result(**row) for row in found] == RESULTS


def test_the_card_has_results_settings_and_a_snippet(run: Path) -> None:
    """Reference: the results and settings that were given; the library's own tags stay."""
    before = ModelCard.load(run / "encoder" / "README.md")
    write_card(run, RESULTS)
    card = ModelCard.load(run / "encoder" / "README.md")
    found = [(r.dataset_name, r.metric_type, r.metric_value) for r in card.data.eval_results]
    assert found == [
        ("stdlib test", "ndcg_at_10", 0.1235),
        ("stdlib test", "mrr_at_10", 0.2),
        ("stdlib test", "recall_at_100", 0.6),
        ("scifact test", "ndcg_at_10", 0.3),
        ("scifact test", "mrr_at_10", 0.2),
        ("scifact test", "recall_at_100", 0.6),
    ]
    assert set(before.data.tags) <= set(card.data.tags)
    assert card.data.library_name == "sentence-transformers"
    for part in (
        "objective `dream`",
        "| start | `org/start` |",
        "| frozen LLM | `org/llm` |",
        "| training queries | 34, 5 candidates each |",
        "| LLM tokens | 7,654,321 |",
        results_table(RESULTS),
        "- num_candidates: `5`",
    ):
        assert part in card.text
    assert "- adapter" not in card.text


def test_a_second_card_replaces_the_first(run: Path) -> None:
    """Reference: one section, with the later results; the encoder still loads."""
    write_card(run, RESULTS)
    write_card(run, RESULTS[:3])
    text = (run / "encoder" / "README.md").read_text()
    assert text.count("## Trained by nlt_trainer") == 1
    assert "scifact" not in text
    assert SentenceTransformer(str(run / "encoder"), device="cpu").encode("a").shape == (32,)


@pytest.mark.parametrize(
    ("objective", "data", "sentence"),
    [
        ("info_nce", {"labels": True}, "Its positives are the relevance judgements of `qrels/train.tsv`."),
        ("info_nce", {"labels": False}, "from no relevance judgement."),
        ("dream", {"head_qrels": "dev"}, "Relevance judgements of `qrels/dev.tsv` chose the LLM's heads, no more."),
        ("likelihood_gain", {"dev_split": "dev"}, "Judgements of `qrels/dev.tsv` measured its progress."),
    ],
)
def test_the_card_says_which_judgements_were_read(objective: str, data: dict[str, Any], sentence: str) -> None:
    """Reference: the settings that name judgements."""
    assert sentence in cards._labels(objective, {**DATA, **data}, llm_trained=False)


def test_an_encoder_without_a_card_is_refused(run: Path) -> None:
    """Reference: the remedy in the message."""
    (run / "encoder" / "README.md").unlink()
    with pytest.raises(NLTError, match=r"README.md is missing; train the encoder again"):
        write_card(run, RESULTS)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn, besides their files."""
    drawn: list[Figure] = []
    real = plots._save

    def save(figure: Figure, path: str | Path) -> None:
        drawn.append(figure)
        real(figure, path)

    monkeypatch.setattr(plots, "_save", save)
    return drawn


def test_the_learning_curve_shows_each_run(figures: list[Figure], tmp_path: Path) -> None:
    """Reference: the logged points."""
    logs = {
        "gain": [{"epoch": 0, "ndcg": 0.1}, {"epoch": 0.5, "loss": 1.0}, {"epoch": 1.0, "ndcg": 0.3}],
        "dream": [{"epoch": 0, "ndcg": 0.1}, {"epoch": 2, "ndcg": 0.2}],
        "silent": [{"epoch": 1, "loss": 2.0}],
    }
    plots.learning_curve(logs, tmp_path / "figures" / "curve.png", metric="ndcg", queries=10)
    image = matplotlib.image.imread(tmp_path / "figures" / "curve.png")
    assert image.shape[:2] == (588, 980)
    assert image[..., :3].std() > 0
    lines = figures[0].axes[0].get_lines()
    points = {line.get_label(): np.asarray(line.get_xydata()).tolist() for line in lines}
    assert points == {"gain": [[0, 0.1], [10, 0.3]], "dream": [[0, 0.1], [20, 0.2]]}
    with pytest.raises(NLTError, match=r"no run has logged 'mrr'; set dev_split and eval_strategy"):
        plots.learning_curve(logs, tmp_path / "none.png", metric="mrr", queries=10)
    assert not (tmp_path / "none.png").exists()


def test_more_runs_than_colours_are_all_drawn(figures: list[Figure], tmp_path: Path) -> None:
    """Reference: one line a run."""
    logs = {f"seed {i}": [{"epoch": i, "ndcg": 0.1}] for i in range(6)}
    plots.learning_curve(logs, tmp_path / "curve.png", metric="ndcg", queries=10)
    assert [line.get_label() for line in figures[0].axes[0].get_lines()] == list(logs)


def test_the_heat_map_frames_the_chosen_heads(figures: list[Figure], tmp_path: Path) -> None:
    """Reference: the score table, and one frame around each chosen head."""
    scores = np.random.default_rng(0).random((14, 4)).round(3)
    chosen = tuple((layer, head) for layer in range(5) for head in range(4))
    settings = {"score": "correlation", "selection": "worst"}
    heads = HeadSet(chosen, tuple(map(tuple, scores.tolist())), "llm", {"weights": "w"}, settings)
    plots.head_heat_map(heads, tmp_path / "heads.png", name="runs/heads.json")
    assert matplotlib.image.imread(tmp_path / "heads.png")[..., :3].std() > 0
    axes = figures[0].axes[0]
    np.testing.assert_allclose(np.asarray(axes.images[0].get_array()), scores.astype(np.float64))
    assert axes.get_title() == f"runs/heads.json\n{len(chosen)} worst heads framed"
    assert figures[0].axes[1].get_ylabel() == "mean correlation"
    frames = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    centres = {(frame.get_y() + 0.5, frame.get_x() + 0.5) for frame in frames}
    assert centres == {(float(layer), float(head)) for layer, head in chosen}
