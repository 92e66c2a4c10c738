"""Model cards, the results table and the pictures."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import matplotlib.image
import mteb
import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from matplotlib.patches import Rectangle
from sentence_transformers import SentenceTransformer

from nlt_trainer.arguments.data import DataArguments
from nlt_trainer.arguments.model import ModelArguments
from nlt_trainer.arguments.stages import RECIPE_BLOCKS
from nlt_trainer.errors import NLTError
from nlt_trainer.evaluation.evaluator import BEIRFolderRetrieval
from nlt_trainer.injection.heads import HeadSet
from nlt_trainer.recipe.parsing import parse_recipe
from nlt_trainer.release.card import encoder_facts, prepare_card, read_release, write_card
from nlt_trainer.release.card_rendering import labels_sentence, render_card
from nlt_trainer.report import plots
from nlt_trainer.run.folder import Run
from nlt_trainer.run.results import Result, results_table, write_results
from nlt_trainer.run.resume import trainer_settings
from nlt_trainer.text_files import write_json
from nlt_trainer.training_arguments import NLTTrainingArguments

MODEL_CARDS = Path(__file__).parents[2] / "model_cards"
RESULTS = [
    Result("bm25", 0.5, 0.4, 0.9, 0, 0, None, "stdlib", "test"),
    Result("start", 0.1, 0.05, 0.3, 0, 0, None, "stdlib", "test"),
    Result("dream", 0.123456, 0.2, 0.6, 1234.5, 7654321, 7, "stdlib", "test"),
    Result("dream", 0.3, 0.2, 0.6, 1234.5, 7654321, 7, "scifact", "test"),
]


@pytest.fixture
def run(tiny_static_encoder: SentenceTransformer, tmp_path: Path) -> Path:
    """The folder of a finished run."""
    model = ModelArguments(
        encoder="org/start", encoder_revision="v2", llm="org/llm", heads="/home/somebody/heads.json"
    )
    data = DataArguments(collection=str(tmp_path / "stdlib"), num_candidates=5, train_split="train", dev_split="dev")
    args = NLTTrainingArguments(output_dir=str(tmp_path / "run"), objective="dream", seed=7, use_cpu=True)
    tiny_static_encoder.prompts = {"query": "Represent: ", "document": ""}
    prepare_card(tiny_static_encoder, name="run encoder")
    tiny_static_encoder.save_pretrained(str(tmp_path / "run" / "encoder"))
    report = {
        "objective": "dream",
        "target": "joint",
        "reads_gains": True,
        "scorer": {
            "llm": {"weights": "org/llm@c0ffee"},
            "template": {"version": 1, "query_prefix": "Claim:"},
            "target": "joint",
            "max_document_tokens": 99,
            "model": {"llm": "org/llm", "llm_revision": None},
        },
        "steps": 12,
        "queries": 34,
        "lm_tokens": 7654321,
        "train_seconds": 1234.5,
        "seed": 7,
        "encoder": encoder_facts(tiny_static_encoder),
        "log": [{"step": 5, "loss": 1.0}, {"step": 6, "eval_dev_ndcg_at_10": 0.23456}],
    }
    settings = {
        "model": dataclasses.asdict(model),
        "data": dataclasses.asdict(data),
        "trainer": trainer_settings(args),
    }
    write_json(tmp_path / "run" / "training.json", report)
    write_json(tmp_path / "run" / "settings.json", settings)
    return tmp_path / "run"


def test_the_table_shows_rows_in_order() -> None:
    """Reference: the rows by hand; systems that were not trained have no cost."""
    lines = results_table(RESULTS[1:3]).splitlines()
    assert lines[0].count("|") == lines[1].count("|") == lines[2].count("|") == lines[3].count("|") == 9
    assert lines[2] == "| stdlib test | start | 0.100 | 0.050 | 0.300 |  |  |  |"
    assert lines[3] == "| stdlib test | dream | 0.123 | 0.200 | 0.600 | 1,234 | 7,654,321 | 7 |"


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("Represent: ", "`Represent: `"),
        ("title: none | text: ", r"`title: none \| text: `"),
        ("Instruct: Find passages\nQuery: ", r"`'Instruct: Find passages\nQuery: '`"),
        ("Search `x`: ", "`` Search `x`:  ``"),
        ("", "none"),
    ],
)
def test_a_prompt_is_one_row_of_the_card(run: Path, text: str, cell: str) -> None:
    """Reference: rows by hand; in a cell GitHub's Markdown takes a bar after a backslash, and no line break."""
    training = json.loads((run / "training.json").read_text())
    training["encoder"]["prompts"] = {"query": text}
    training["scorer"]["template"]["query_prefix"] = "<|user|>\n"
    write_json(run / "training.json", training)
    write_card(Run(run), [dataclasses.replace(RESULTS[0], name="runs/a|b")])
    lines = (run / "encoder" / "README.md").read_text().splitlines()
    assert lines[lines.index("| prompt | text |") + 2 :][:2] == [f"| query | {cell} |", ""]
    (scored,) = (line for line in lines if line.startswith("| gains scored with |"))
    assert scored.endswith(r"query_prefix `'<\|user\|>\n'` |")
    assert any(line.startswith(r"| stdlib test | runs/a\|b | 0.500 |") for line in lines)


def test_results_are_a_list_of_objects(tmp_path: Path) -> None:
    """Reference: the fields of `Result`."""
    write_results(tmp_path / "results.json", RESULTS)
    found = json.loads((tmp_path / "results.json").read_text())
    assert [Result(**{key: row[key] for key in row if key != "checksum"}) for row in found] == RESULTS


def test_the_card_has_results_settings_and_a_snippet(run: Path) -> None:
    """Reference: the results and settings that were given, and where each is from."""
    write_card(Run(run), RESULTS)
    card = ModelCard.load(run / "encoder" / "README.md")
    found = [(r.dataset_name, r.dataset_split, r.metric_type, r.metric_value) for r in card.data.eval_results]
    assert found == [
        ("stdlib-test (default)", "test", "ndcg_at_10", 0.12346),
        ("stdlib-test (default)", "test", "mrr_at_10", 0.2),
        ("stdlib-test (default)", "test", "recall_at_100", 0.6),
        ("scifact-test (default)", "test", "ndcg_at_10", 0.3),
        ("scifact-test (default)", "test", "mrr_at_10", 0.2),
        ("scifact-test (default)", "test", "recall_at_100", 0.6),
    ]
    assert {"sentence-transformers", "sentence-similarity", "feature-extraction"} <= set(card.data.tags)
    assert card.data.library_name == "sentence-transformers"
    for part in (
        "objective `dream`",
        "| start | `org/start` at revision `v2` |",
        "| LLM | `org/llm` |",
        "| target | joint |",
        "| heads | 16 of the LLM's, found by `gradient` |",
        "| gains scored with | llm `'org/llm'`, target `'joint'`, max_document_tokens `99`, query_prefix `'Claim:'` |",
        "| training queries | 34, 5 candidates each |",
        "| LLM tokens | 7,654,321 |",
        "| query | `Represent: ` |",
        "| document | none |",
        "| 6 | 0.235 |",
        results_table(RESULTS),
        "On stdlib test its nDCG@10 is 0.123, 0.023 above the start, BM25 is still ahead by 0.377.",
        "| documents and queries | `stdlib` | not known: no card on the machine of training states one |",
        "arXiv:2606.24667",
        "num_candidates: 5",
    ):
        assert part in card.text
    assert "On scifact" not in card.text  # neither its start nor BM25 was evaluated there


@pytest.mark.filterwarnings("ignore:.*:FutureWarning", "ignore:.*:DeprecationWarning")
def test_results_are_written_as_mteb_writes_them(run: Path, tiny_collection_folder: Path) -> None:
    """Reference: mteb's own metadata of its own result of the same encoder on the same collection."""
    task = BEIRFolderRetrieval(tiny_collection_folder)
    task.metadata.dataset["path"] = "collection"  # mteb names a folder of this machine
    encoder = SentenceTransformer(str(run / "encoder"), device="cpu")
    result = mteb.evaluate(encoder, task, cache=None, co2_tracker=False, show_progress_bar=False).task_results[0]
    result.__dict__["task"] = task
    expected = result.get_hf_eval_results()[0]
    scores = {name: result.scores["test"][0][name] for name in ("ndcg_at_10", "mrr_at_10", "recall_at_100")}
    write_card(
        Run(run),
        [Result("dream", **scores, train_seconds=0, lm_tokens=0, seed=7, collection="collection", split="test")],
    )
    found = ModelCard.load(run / "encoder" / "README.md").data.eval_results[0]
    for name in vars(expected):
        if name not in ("dataset_revision", "metric_config", "verified", "verify_token"):
            assert getattr(found, name) == getattr(expected, name), name


def test_the_recipe_is_what_differs_from_the_defaults_and_parses(run: Path) -> None:
    """Reference: the settings of the run, after a round trip; of a path of one machine the name alone."""
    write_card(Run(run))
    path = run / "encoder" / "recipe.yaml"
    assert yaml.safe_load(path.read_text()) == {
        "model": {"encoder": "org/start", "encoder_revision": "v2", "llm": "org/llm", "heads": "heads.json"},
        "data": {"collection": "stdlib", "train_split": "train", "num_candidates": 5, "dev_split": "dev"},
        "trainer": {"objective": "dream", "seed": 7},
    }
    model, data, args = parse_recipe(RECIPE_BLOCKS, ["--config", str(path), "--use_cpu", "true"])
    settings = json.loads((run / "settings.json").read_text())
    assert dataclasses.asdict(model) == {**settings["model"], "heads": "heads.json"}
    assert dataclasses.asdict(data) == {**settings["data"], "collection": "stdlib"}
    assert trainer_settings(args) == settings["trainer"]
    for file in ("README.md", "recipe.yaml", "record.json"):
        assert "somebody" not in (run / "encoder" / file).read_text()


def test_a_row_of_the_card_does_not_say_where_a_checkpoint_lies(run: Path) -> None:
    """Reference: the folder's name alone, with what was made of it; a relative path stands as it was given."""
    names = ["/home/somebody/other, int8", "/home/somebody/other + bm25", "runs/demo/start"]
    write_card(Run(run), [*RESULTS, *(dataclasses.replace(RESULTS[1], name=name) for name in names)])
    _, record = read_release(run / "encoder")
    assert [row["name"] for row in record["results"][4:]] == ["other, int8", "other + bm25", "runs/demo/start"]
    assert "somebody" not in (run / "encoder" / "README.md").read_text()


def test_text_of_prompts_that_looks_like_a_path_is_not_cut(run: Path) -> None:
    """Reference: the prompts as they were set."""
    settings = json.loads((run / "settings.json").read_text())
    settings["data"]["query_prefix"] = "/no_think\n~/Question:"
    settings["model"]["encoder_prompts"] = {"query": "/home/somebody asks: "}
    write_json(run / "settings.json", {key: value for key, value in settings.items() if key != "checksum"})
    write_card(Run(run), RESULTS)
    recipe, _ = read_release(run / "encoder")
    assert recipe["data"]["query_prefix"] == settings["data"]["query_prefix"]
    assert recipe["model"]["encoder_prompts"] == settings["model"]["encoder_prompts"]


def test_a_second_card_replaces_the_first(run: Path) -> None:
    """Reference: one section, with the later results; the encoder still loads."""
    write_card(Run(run), RESULTS)
    write_card(Run(run), RESULTS[:3])
    text = (run / "encoder" / "README.md").read_text()
    assert text.count("## Training") == text.count("```python") == text.count("## Architecture") == 1
    assert "scifact" not in text
    assert SentenceTransformer(str(run / "encoder"), device="cpu").encode("a").shape == (32,)


def test_the_card_before_the_evaluation(run: Path) -> None:
    """Reference: all but the results; what was read where no gains and no LLM were; the base of a Hub model."""
    write_card(Run(run))
    card = ModelCard.load(run / "encoder" / "README.md")
    assert not card.data.eval_results
    assert card.data.base_model == "org/start"
    assert "`nlt evaluate` puts them here" in card.text
    assert "| target | joint |" in card.text
    report = json.loads((run / "training.json").read_text())
    write_json(
        run / "training.json",
        {**report, "objective": "info_nce", "target": None, "reads_gains": False, "scorer": None, "log": []},
    )
    write_card(Run(run))
    text = (run / "encoder" / "README.md").read_text()
    assert not re.search(r"^\| (LLM|target|heads|gains scored with) \|", text, flags=re.MULTILINE)
    assert "Progress on the dev queries" not in text
    write_json(run / "training.json", {**report, "scorer": None})
    write_card(Run(run))
    assert "| gains scored with | not known: no audit stands" in (run / "encoder" / "README.md").read_text()


@pytest.mark.parametrize("kept", ["start", "adapted"])
def test_the_card_of_a_start_that_was_kept_says_so(run: Path, kept: str) -> None:
    """Reference: what `nlt adapt` has decided."""
    write_json(Run(run).decision_file, {"sentence": "The verdict.", "kept": kept})
    write_card(Run(run))
    card = (run / "encoder" / "README.md").read_text()
    assert "**The verdict.**" in card
    assert ("This is the encoder that training began with" in card) == (kept == "start")
    for trained in ("nlt_trainer trained this encoder", "It was fitted to"):
        assert (trained in card) == (kept == "adapted")


def test_the_card_is_true_of_the_encoder(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Reference: the encoder itself; the only Python in the card runs, and nothing of a template is left."""
    write_card(Run(run), RESULTS)
    text = (run / "encoder" / "README.md").read_text()
    assert text.count("```python") == 1
    exec(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)[0], {})
    assert "tensor([[" in capsys.readouterr().out
    assert "vectors of\n32 numbers: the higher their cosine similarity, the better" in text
    assert not re.search(r"\{\{|\{%|\$|Unknown|None|More Information|model_id|\binf\b", text)


def test_a_card_is_a_function_of_recipe_and_record(run: Path) -> None:
    """Reference: the card that was written; another place to load from is all that differs."""
    write_card(Run(run), RESULTS)
    card = (run / "encoder" / "README.md").read_text()
    recipe, record = read_release(run / "encoder")
    assert render_card(recipe, record, load_as=f"{run}/encoder") == card
    assert render_card(recipe, record, load_as="org/name") == card.replace(f"{run}/encoder", "org/name")


@pytest.mark.parametrize("folder", sorted(MODEL_CARDS.glob("*/")), ids=lambda folder: folder.name)
def test_a_released_card_is_what_its_record_says(folder: Path) -> None:
    """Reference: the card that is kept; its recipe is one that the stages take."""
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card == render_card(*read_release(folder), load_as=f"ORG/{folder.name}")
    _, _, args = parse_recipe(RECIPE_BLOCKS, ["--config", str(folder / "recipe.yaml"), "--use_cpu", "true"])
    record = read_release(folder)[1]
    assert args.objective == record["training"]["objective"]
    assert {row["name"] for row in record["results"]} >= {"bm25", "start", args.objective}
    assert ModelCard(card).data.to_dict()["model-index"]


@pytest.mark.parametrize(
    ("objective", "data", "sentence"),
    [
        ("info_nce", {"labels": True}, "Its positives are the relevance judgements of `qrels/train.tsv`."),
        ("info_nce", {"labels": False}, "from no relevance judgement."),
        (
            "dream",
            {"head_method": "qrels", "head_qrels": "dev"},
            "Relevance judgements of `qrels/dev.tsv` chose the LLM's heads, no more.",
        ),
        ("likelihood_gain", {"dev_split": "dev"}, "Judgements of `qrels/dev.tsv` measured its progress."),
    ],
)
def test_the_card_says_which_judgements_were_read(objective: str, data: dict[str, Any], sentence: str) -> None:
    """Reference: the settings that name judgements."""
    given = DataArguments(train_split="train", **data)
    assert sentence in labels_sentence(objective, given, watched=True)
    assert "progress" not in labels_sentence(objective, given)  # a split is named, and nothing was evaluated


def test_an_encoder_that_is_missing_or_older_is_refused(run: Path) -> None:
    """Reference: the remedy in the message."""
    report = json.loads((run / "training.json").read_text())
    write_json(run / "training.json", {key: value for key, value in report.items() if key != "encoder"})
    with pytest.raises(NLTError, match=r"training.json says nothing of the encoder, .* train again"):
        write_card(Run(run), RESULTS)
    shutil.rmtree(run / "encoder")
    with pytest.raises(NLTError, match=r"run has no finished encoder; train it again"):
        write_card(Run(run), RESULTS)


def test_the_learning_curve_shows_each_run(tmp_path: Path) -> None:
    """Reference: the logged points; the file's size in pixels."""
    logs = {
        "gain": [{"step": 0, "ndcg": 0.1}, {"step": 5, "loss": 1.0}, {"step": 10, "ndcg": 0.3}],
        "dream": [{"step": 0, "ndcg": 0.1}, {"step": 20, "ndcg": 0.2}],
        "silent": [{"step": 10, "loss": 2.0}],
    }
    figure = plots.learning_curve(logs, metric="ndcg", label="nDCG")
    lines = figure.axes[0].get_lines()
    points = {line.get_label(): np.asarray(line.get_xydata()).tolist() for line in lines}
    assert points == {"gain": [[0, 0.1], [10, 0.3]], "dream": [[0, 0.1], [20, 0.2]]}
    plots.save_png(figure, tmp_path / "figures" / "curve.png")
    image = matplotlib.image.imread(tmp_path / "figures" / "curve.png")
    assert image.shape[:2] == (504, 812)
    assert image[..., :3].std() > 0
    with pytest.raises(NLTError, match=r"no run has logged 'mrr'; set dev_split and eval_strategy"):
        plots.learning_curve(logs, metric="mrr", label="MRR")


def test_more_runs_than_colours_are_all_drawn_under_their_names() -> None:
    """Reference: one line a run; a dollar is no formula, and an underscore hides no run."""
    logs = {name: [{"step": i, "ndcg": 0.1}] for i, name in enumerate(["a", "b", "c", "d", "_e", "$f$"])}
    figure = plots.learning_curve(logs, metric="ndcg", label="nDCG")
    svg = str(plots.to_svg(figure, key="k"))
    assert [text for text in ("a", "b", "c", "d", "e", "$f$") if f">{text}</text>" not in svg] == []


def test_the_heat_map_frames_the_chosen_heads() -> None:
    """Reference: the score table, and one frame around each chosen head."""
    scores = np.random.default_rng(0).random((14, 4)).round(3)
    chosen = tuple((layer, head) for layer in range(5) for head in range(4))
    settings = {"score": "reciprocal_rank", "selection": "worst"}
    heads = HeadSet(chosen, tuple(map(tuple, scores.tolist())), "llm", {"weights": "w"}, settings)
    figure = plots.head_heat_map(heads, name="runs/heads.json")
    axes = figure.axes[0]
    np.testing.assert_allclose(np.asarray(axes.images[0].get_array()), scores.astype(np.float64))
    assert axes.get_title() == f"runs/heads.json\n{len(chosen)} worst heads framed"
    assert figure.axes[1].get_ylabel() == "mean reciprocal rank"
    frames = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    centres = {(frame.get_y() + 0.5, frame.get_x() + 0.5) for frame in frames}
    assert centres == {(float(layer), float(head)) for layer, head in chosen}


def test_the_change_chart_shows_every_query_once() -> None:
    """Reference: the sorted differences; the area above 0 and below it in two colours."""
    figure = plots.change_chart([-0.5, 0.25, 0.0, 1.0], label="change")
    axes = figure.axes[0]
    assert axes.get_xlim() == (0.5, 4.5)
    tops = [collection.get_datalim(axes.transData) for collection in axes.collections]
    assert (tops[0].y1, tops[1].y0) == (1.0, -0.5)


def test_an_svg_stands_in_a_page_beside_others() -> None:
    """Reference: ids stand once a page, references stay in it, size and colour are the page's."""
    logs = {"<b>run</b>": [{"step": 1, "loss": 1.0}]}
    first, second = (str(plots.to_svg(plots.learning_curve(logs, metric="loss", label="l"), key=k)) for k in "ab")
    ids = [re.findall(r'\sid="([^"]+)"', svg) for svg in (first, second)]
    assert ids[0]
    assert not set(ids[0]) & set(ids[1])
    assert {reference.removeprefix("#") for reference in re.findall(r'href="([^"]+)"', first)} <= set(ids[0])
    assert first.startswith("<svg ")
    assert not re.search(r"<svg[^>]*\s(width|height)=", first)
    assert "&lt;b&gt;run&lt;/b&gt;" in first
    assert "#000000" not in first
    assert "currentColor" in first
    assert "var(--series-1, #1f5fa8)" in first
