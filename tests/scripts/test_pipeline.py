"""The demo in miniature: every stage by its `main`, from a BEIR folder to results and a card, and bad input."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from sentence_transformers import SentenceTransformer

from nlt_trainer.assembly import head_detection, scoring
from nlt_trainer.errors import DataError, NLTError
from nlt_trainer.objectives.dream import DREAMLoss
from nlt_trainer.objectives.gradient_audit import GradientAudit
from nlt_trainer.run.folder import Run
from nlt_trainer.scripts import build_stdlib, detect_heads, evaluate, make_encoder, mine, report, score, train
from nlt_trainer.text_files import read_json

OBJECTIVES = ("likelihood_gain", "dream", "info_nce")
RESULT_KEYS = {
    "name", "ndcg_at_10", "mrr_at_10", "recall_at_100", "train_seconds", "lm_tokens", "seed", "collection", "split",
    "ndcg_at_10_low", "ndcg_at_10_high", "p_against_start", "kept", "trained_on", "queries", "checksum",
}  # fmt: skip


class Project:
    """A folder with a collection, a recipe for each objective, and the stages that run on them."""

    def __init__(self, root: Path, llm: Path) -> None:
        self.root, self.llm = root, llm

    def recipe(self, objective: str) -> str:
        """Write the YAML of an objective; returns its path."""
        root = self.root
        blocks: dict[str, dict[str, Any]] = {
            "model": {
                "encoder": f"{root}/encoder",
                "llm": str(self.llm),
                "heads": f"{root}/heads.json",
                "num_heads": 3,
            },
            "data": {
                "collection": f"{root}/collection",
                "train_split": "train",
                "dev_split": "dev",
                "candidates": f"{root}/candidates.jsonl",
                "num_candidates": 3,
                "gains": f"{root}/gains.jsonl",
                "score_cache": f"{root}/scores",
                "max_document_tokens": 24,
            },
            "trainer": {
                "objective": objective,
                "output_dir": f"{root}/{objective}",
                "max_steps": 4,
                "per_device_train_batch_size": 2,
                "learning_rate": "1e-1",
                "eval_strategy": "steps",
                "eval_steps": 2,
                "logging_steps": 2,
                "save_steps": 2,
                "report_to": "none",
                "use_cpu": True,
                "disable_tqdm": True,
            },
        }
        path = root / f"{objective}.yaml"
        path.write_text(yaml.safe_dump(blocks))
        return str(path)

    def run(self, stage: Any, objective: str = "likelihood_gain", *extra: str) -> None:
        stage.main(["--config", self.recipe(objective), *extra])


@pytest.fixture
def project(tiny_llm_folder: Path, tiny_collection_folder: Path, tmp_path: Path) -> Project:
    """A project with its encoder and candidates."""
    project = Project(tmp_path, tiny_llm_folder)
    project.run(make_encoder)
    project.run(mine)
    return project


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_all_stages(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """Reference: the files that each stage promises, and embeddings of the encoder that the training saved."""
    root = project.root
    start = SentenceTransformer(str(root / "encoder"), device="cpu")
    assert [row["query_id"] for row in rows_of(root / "candidates.jsonl")] == ["q1", "q2", "q3", "q4"]
    project.run(score)
    assert np.isfinite([row["gain"] for row in rows_of(root / "gains.jsonl")]).all()
    audit = json.loads((root / "gains.audit.json").read_text())
    assert (audit["queries"], audit["candidates"], audit["target"]) == (4, 3, "joint")
    project.run(detect_heads)
    heads = json.loads((root / "heads.json").read_text())
    assert len(heads["heads"]) == 3
    assert heads["settings"]["gold"] == "candidate of the highest gain"
    texts = ["the largest animal", "bread and gas"]
    for objective in OBJECTIVES:
        project.run(train, objective)
        check_card_of_training(root / objective, objective, audit=audit)
        project.run(evaluate, objective)
        encoder = SentenceTransformer(str(root / objective / "encoder"), device="cpu")
        checkpoint = SentenceTransformer(str(root / objective / "checkpoint-4"), device="cpu")
        np.testing.assert_allclose(encoder.encode(texts), checkpoint.encode(texts), atol=1e-6)
        assert np.abs(encoder.encode(texts) - start.encode(texts)).max() > 1e-3
        assert encoder.prompts == {"query": "", "document": ""}
        check_results(root / objective, objective)
        card = (root / objective / "encoder" / "README.md").read_text()
        assert not [row["query"] for row in rows_of(root / "candidates.jsonl") if row["query"] in card]
        check_report(root / objective, objective, audit=audit, heads=heads)
    assert "| collection test | dream |" in capsys.readouterr().out


def check_card_of_training(run: Path, objective: str, *, audit: dict[str, Any]) -> None:
    """Everything but results: what was trained, with which target and, where gains were read, their scorer."""
    card = ModelCard.load(run / "encoder" / "README.md")
    assert not card.data.eval_results
    assert f"objective `{objective}`" in card.text
    assert "| target | joint |" in card.text
    assert ("| gains scored with |" in card.text) == (objective != "dream")
    assert f'SentenceTransformer("{run.as_posix()}/encoder")' in card.text
    if objective != "dream":
        assert json.loads((run / "training.json").read_text())["scorer"] == audit["scorer"]


def check_results(run: Path, objective: str) -> None:
    """Rows of BM25, start and the run, and the same figures in the card's metadata."""
    results = json.loads((run / "results.json").read_text())
    assert [row["name"] for row in results] == ["bm25", "start", objective]
    assert all(set(row) == RESULT_KEYS for row in results)
    assert all(0 <= row[metric] <= 1 for row in results for metric in ("ndcg_at_10", "mrr_at_10", "recall_at_100"))
    assert all(row["recall_at_100"] == 1 for row in results[1:])  # 12 documents
    assert [row["seed"] for row in results] == [None, None, 42]
    card = ModelCard.load(run / "encoder" / "README.md")
    metrics = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert metrics == {
        name: pytest.approx(results[2][name], abs=1e-4) for name in ("ndcg_at_10", "mrr_at_10", "recall_at_100")
    }
    assert f"objective `{objective}`" in card.text


def check_report(run: Path, objective: str, *, audit: dict[str, Any], heads: dict[str, Any]) -> None:
    """The cost of a run: the LLM stage before it, and for DREAM what training itself read."""
    report = json.loads((run / "training.json").read_text())
    assert (report["objective"], report["steps"], report["queries"], report["seed"]) == (objective, 4, 4, 42)
    assert [entry["step"] for entry in report["log"] if "eval_dev_ndcg_at_10" in entry] == [2, 4]
    if objective == "dream":
        assert report["lm_tokens"] > heads["settings"]["lm_tokens"] > 0
    else:
        assert report["lm_tokens"] == audit["lm_tokens"] > 0
    assert report["train_seconds"] > 0


def test_another_encoder_in_the_same_place_has_no_results_yet(project: Project) -> None:
    """Reference: none of the files that `evaluate` has written of the one before."""
    run = project.root / "info_nce"
    project.run(score)
    project.run(train, "info_nce")
    project.run(evaluate, "info_nce")
    assert (run / "results.json").is_file()
    shutil.rmtree(run / "checkpoint-4")
    shutil.rmtree(run / "checkpoint-2")
    with pytest.raises(NLTError, match=r"info_nce holds a run with other settings \(learning_rate: 0.1 there, 0.01"):
        project.run(train, "info_nce", "--learning_rate", "0.01")
    assert (run / "results.json").is_file()
    (run / "training.json").unlink()  # as `nlt adapt` does before another training
    project.run(train, "info_nce", "--learning_rate", "0.01")
    assert not (run / "results.json").exists()
    assert not (run / "evaluation").exists()
    assert "None yet" in (run / "encoder" / "README.md").read_text()


@pytest.mark.parametrize("queries", [3, 1024])
def test_single_tokens_are_written_beside_gains(
    project: Project, monkeypatch: pytest.MonkeyPatch, queries: int
) -> None:
    """Reference: the sums in the same file; they are read for some queries at a time, or for all."""
    monkeypatch.setattr(scoring, "READ_QUERIES", queries)
    project.run(score, "likelihood_gain", "--token_likelihoods", "true")
    for row in rows_of(project.root / "gains.jsonl"):
        tokens = row["token_log_likelihoods"]
        assert [len(values) for values in tokens] == [row["target_tokens"]] * 3
        np.testing.assert_allclose([sum(values) for values in tokens], row["log_likelihood"], atol=1e-4)


def test_what_cannot_be_scored_is_found_before_the_first_score(project: Project) -> None:
    """Reference: a last query longer than the LLM's context; the message names it, and the cache stays empty."""
    path = project.root / "collection" / "queries.jsonl"
    queries = rows_of(path)
    queries[3]["text"] = "owl " * 5000
    path.write_text("\n".join(json.dumps(row) for row in queries))
    project.run(mine)
    with pytest.raises(NLTError, match=r"query 'owl owl .* do not fit the"):
        project.run(score)
    (cache,) = (project.root / "scores").glob("*.sqlite")
    with sqlite3.connect(cache) as connection:
        assert connection.execute("SELECT COUNT(*) FROM scores").fetchone() == (0,)
    connection.close()


def test_a_second_run_of_each_stage_changes_nothing(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """Reference: the files of the first run; scores come from the cache, training from its last checkpoint."""
    project.run(score)
    project.run(train)
    names = (
        "candidates.jsonl",
        "gains.jsonl",
        "gains.audit.json",
        "likelihood_gain/settings.json",
        "likelihood_gain/training.json",
    )
    first = [(project.root / name).read_bytes() for name in names]
    weights = next((project.root / "likelihood_gain" / "encoder").rglob("model.safetensors")).read_bytes()
    project.run(evaluate)
    card = (project.root / "likelihood_gain" / "encoder" / "README.md").read_bytes()
    project.run(mine)
    project.run(score)
    project.run(train)
    assert (project.root / "likelihood_gain" / "encoder" / "README.md").read_bytes() == card
    assert [(project.root / name).read_bytes() for name in names] == first
    assert next((project.root / "likelihood_gain" / "encoder").rglob("model.safetensors")).read_bytes() == weights
    assert "all 4 steps were done before" in capsys.readouterr().out
    assert json.loads((project.root / "likelihood_gain" / "training.json").read_text())["steps"] == 4
    with pytest.raises(NLTError, match=r"holds a run with other settings .*temperature: 0.05 there, 0.1"):
        project.run(train, "likelihood_gain", "--temperature", "0.1")


def test_labels_are_used_where_they_are_asked_for(project: Project) -> None:
    """Reference: where gold comes from, and that no gains are needed then."""
    project.run(detect_heads, "dream", "--head_method", "qrels", "--head_qrels", "train")
    heads = json.loads((project.root / "heads.json").read_text())
    assert heads["settings"]["gold"] == "qrels/train.tsv"
    project.run(train, "info_nce", "--labels", "true")
    report = json.loads((project.root / "info_nce" / "training.json").read_text())
    assert report["lm_tokens"] == 0
    assert 1 <= report["queries"] <= 4


def test_queries_of_the_evaluation_that_were_trained_on_are_counted(
    project: Project, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reference: without a train_split all eight queries train, with one the four of that split.

    The number stands in the table, its verdict, the card and the report. It is the same if the run is named as a
    checkpoint, or its encoder, one of its checkpoints or a copy of its encoder, as a pull makes one.
    """
    root = project.root
    (root / "candidates.jsonl").unlink()
    path = Path(project.recipe("likelihood_gain"))
    path.write_text(path.read_text().replace("  train_split: train\n", ""))
    for stage in (mine, score, train, evaluate):
        stage.main(["--config", str(path)])
    assert "2 of 2 queries of dev_split dev are trained on" in caplog.text
    results = json.loads((root / "likelihood_gain" / "results.json").read_text())
    counts = {row["name"]: (row["trained_on"], row["queries"]) for row in results}
    assert counts == {"bm25": (0, 0), "start": (None, 0), "likelihood_gain": (2, 2)}
    card = (root / "likelihood_gain" / "encoder" / "README.md").read_text()
    for text in (capsys.readouterr().out, card):
        assert ", 2 of 2 queries were trained on.\n" in text
        assert "| seed | queries trained on |\n" in text
    report.main([str(root / "likelihood_gain"), "--embeddings", str(root / "embeddings")])
    page = (root / "likelihood_gain" / "report.html").read_text()
    assert '<th scope="col">queries trained on</th>' in page
    assert "<td>42</td><td>2 of 2</td></tr>" in page
    run = Run(root / "likelihood_gain")
    copy = shutil.copytree(run.encoder, root / "pulled")
    named = [str(path) for path in (run.folder, run.encoder, *run.checkpoints().values(), copy)]
    flags = ["--output_dir", str(root / "other"), "--use_cpu", "true", "--fused", "true"]
    tasks = ["--tasks", f"{root}/collection:train", f"{root}/collection:test"]
    evaluate.main([*flags, *tasks, "--checkpoints", *named])
    results = json.loads((root / "other" / "results.json").read_text())
    both = [name for path in named for name in (path, f"{path} + bm25")]
    assert [row["name"] for row in results] == 2 * ["bm25", *both]
    assert [row["trained_on"] for row in results] == [0, *[4] * len(both), 0, *[2] * len(both)]


def test_heads_by_each_method(project: Project) -> None:
    """Reference: what the head file says, and what each method needs: gains, or a corpus with sentences alone."""
    with pytest.raises(NLTError, match=r"0 documents have a sentence"):
        project.run(detect_heads, "dream", "--head_method", "needle")
    path = project.root / "collection" / "corpus.jsonl"
    rows = [{**row, "text": f"{row['text']} It is an old story of the {row['title']}."} for row in rows_of(path)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (project.root / "candidates.jsonl").unlink()
    project.run(detect_heads, "dream", "--head_method", "needle", "--head_queries", "5")
    found = json.loads((project.root / "heads.json").read_text())["settings"]
    assert (found["method"], found["score"], found["num_queries"]) == ("needle", "reciprocal_rank", 5)
    assert found["gold"] == "the document that the query was cut out of"
    project.run(mine)
    project.run(score)
    project.run(detect_heads, "dream", "--head_method", "gain")
    found = json.loads((project.root / "heads.json").read_text())["settings"]
    assert (found["method"], found["score"], found["num_queries"]) == ("gain", "reciprocal_rank", 4)
    assert (found["gold"], found["collection"]) == ("candidate of the highest gain", "collection")
    project.run(detect_heads, "dream", "--head_method", "gradient")
    found = json.loads((project.root / "heads.json").read_text())["settings"]
    assert (found["method"], found["score"], found["target"]) == ("gradient", "signal_to_noise", "joint")
    assert found["gold"] == "candidate of the highest gain"


def test_heads_may_be_found_in_another_layout(project: Project) -> None:
    """Reference: what the head file says; the scores of heads depend on whether documents see each other."""
    project.run(score)
    found = {}
    for layout in ("sequential", "independent"):
        flags = ("--document_layout", "independent", "--head_layout", layout)
        project.run(detect_heads, "dream", *flags)
        found[layout] = json.loads((project.root / "heads.json").read_text())
        assert found[layout]["settings"]["layout"] == layout
    project.run(detect_heads, "dream", "--document_layout", "independent")
    unset = json.loads((project.root / "heads.json").read_text())
    assert unset["scores"] == found["independent"]["scores"] != found["sequential"]["scores"]


def test_dreams_gradient_is_audited_with_the_heads_that_were_found(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reference: the objective's loss with these heads. So few queries say nothing, unless they are told to."""
    project.run(score)
    project.run(detect_heads, "dream")
    assert "DREAM as a teacher" not in capsys.readouterr().out
    monkeypatch.setattr(head_detection, "LEAST_AUDITED", 1)
    seen: dict[str, Any] = {}

    def audit(loss: DREAMLoss, collator: Any, rows: list[dict[str, Any]]) -> dict[str, GradientAudit]:
        seen.update(heads=loss.get_config_dict()["heads"], rows=rows)
        return {"equal": GradientAudit(0.75, 1.5), "start": GradientAudit(0.5, 0.25)}

    monkeypatch.setattr(head_detection, "audit_gradient", audit)
    project.run(detect_heads, "dream")
    printed = capsys.readouterr().out
    assert "against the candidate of the highest gain of" in printed
    assert (
        "at equal scores its gradient ranks it with a mean reciprocal rank of 0.750, signal to noise 1.50" in printed
    )
    assert "at the start's scores its gradient ranks it with a mean reciprocal rank of 0.500" in printed
    assert seen["heads"] == sorted(json.loads((project.root / "heads.json").read_text())["heads"])
    assert all(sum(row["gain"]) >= 1 for row in seen["rows"])


def test_controls_come_from_the_same_scores(project: Project) -> None:
    """Reference: the score table of the first file, ordered by hand; the LLM is not read again."""
    project.run(score)
    project.run(detect_heads, "dream", "--num_heads", "8")
    first = json.loads((project.root / "heads.json").read_text())
    for selection in ("best", "worst", "random"):
        target = project.root / f"{selection}.json"
        flags = ["--head_scores", f"{project.root}/heads.json", "--heads", str(target), "--llm", "/nowhere"]
        project.run(detect_heads, "dream", *flags, "--head_selection", selection)
        found = json.loads(target.read_text())
        assert found["scores"] == first["scores"]
        assert found["settings"] == {**first["settings"], "selection": selection, "selection_seed": 42}
        values = sorted(np.ravel(first["scores"]), reverse=selection == "best")[:3]
        if selection != "random":
            assert [first["scores"][layer][head] for layer, head in found["heads"]] == values
        assert len(found["heads"]) == 3
    project.run(train, "dream", "--heads", str(project.root / "random.json"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--head_method", "best"],
            r"--head_method: is 'best', expected one of gain, gradient, needle, qrels",
        ),
        (["--head_qrels", "train"], r"head_method is 'gradient' and head_qrels 'train'; judgements are read where"),
        (["--head_method", "qrels"], r"head_method is 'qrels' and head_qrels None; judgements are read where"),
        (["--head_layout", "mixed"], r"--head_layout: is 'mixed', expected one of sequential, independent"),
        (["--head_selection", "all"], r"--head_selection: is 'all', expected one of best, random, worst"),
    ],
)
def test_wrong_options_of_head_detection(project: Project, flags: list[str], message: str) -> None:
    """Reference: the remedy in each message."""
    project.run(score)
    with pytest.raises(NLTError, match=message):
        project.run(detect_heads, "dream", *flags)


def test_labels_are_read_nowhere_else(project: Project) -> None:
    """Reference: the same stages with judgements that all name another document."""

    def run_all(name: str) -> list[bytes]:
        project.run(mine)
        project.run(score)
        project.run(detect_heads)
        (project.root / name).mkdir()
        weights = []
        for objective in ("likelihood_gain", "info_nce"):
            output = project.root / name / objective
            project.run(train, objective, "--output_dir", str(output))
            weights.append(next((output / "encoder").rglob("model.safetensors")).read_bytes())
        heads = json.loads((project.root / "heads.json").read_text())["scores"]
        files = [(project.root / file).read_bytes() for file in ("candidates.jsonl", "gains.jsonl")]
        return [*files, *weights, json.dumps(heads).encode()]

    expected = run_all("judged")
    path = project.root / "collection" / "qrels" / "train.tsv"
    header, *lines = path.read_text().splitlines()
    path.write_text("\n".join([header, *(f"{line.split()[0]}\td12\t1" for line in lines)]) + "\n")
    assert run_all("misjudged") == expected


def test_queries_without_answers_have_the_query_as_target(project: Project, caplog: pytest.LogCaptureFixture) -> None:
    """Reference: the rule of the default target, and the refusal of a target that needs answers."""
    path = project.root / "collection" / "queries.jsonl"
    rows = rows_of(path)
    next(row for row in rows if row["_id"] == "q2")["answer"] = None
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(NLTError, match=r"has another text or answer .* for 1 queries, e.g. 'q2'; run nlt mine again"):
        project.run(score)
    project.run(mine)
    project.run(score)
    assert "1 of 4 queries have no answer, e.g. 'q2'" in caplog.text
    assert json.loads((project.root / "gains.audit.json").read_text())["target"] == "query"
    with pytest.raises(NLTError, match=r"target 'answer' needs answers, and 1 queries .* have none, e.g. 'q2'"):
        project.run(score, "likelihood_gain", "--target", "answer")


@pytest.mark.parametrize("stage", [score, detect_heads, train])
def test_queries_that_are_held_out_are_refused(project: Project, stage: Any) -> None:
    """Reference: candidates of all queries, mined before the recipe named a split; judgements of test are held out."""
    project.run(score)
    recipe = Path(project.recipe("dream"))
    without = recipe.with_name("without.yaml")
    without.write_text("".join(line for line in recipe.read_text().splitlines(True) if "train_split" not in line))
    mine.main(["--config", str(without)])
    with pytest.raises(NLTError, match=r"has \d queries that are not in split 'train' of .*run nlt mine again"):
        project.run(stage, "dream")


def test_evaluating_before_training_is_refused(project: Project) -> None:
    """Reference: the remedy in each message, also for a folder that was left half-written."""
    with pytest.raises(NLTError, match=r"likelihood_gain has no finished encoder; run `nlt train`"):
        project.run(evaluate)
    (project.root / "likelihood_gain" / "encoder").mkdir(parents=True)
    with pytest.raises(NLTError, match=r"has no finished encoder"):
        project.run(evaluate)


def test_a_run_goes_on_from_the_checkpoint_that_is_named(project: Project) -> None:
    """Reference: the weights of the run that the checkpoint is of; the steps before it are not made again."""
    project.run(score)
    project.run(train)
    whole, branch = project.root / "likelihood_gain", project.root / "branch"
    flags = ("--output_dir", str(branch), "--resume_from_checkpoint")
    with pytest.raises(
        NLTError,
        match=r"resume_from_checkpoint: nosuch is no whole checkpoint .*no such folder.*; name another, or leave the",
    ):
        project.run(train, "likelihood_gain", *flags, "nosuch")
    with pytest.raises(NLTError, match=r"likelihood_gain holds a run with other settings .*seed: 42"):
        project.run(train, "likelihood_gain", *flags, str(whole / "checkpoint-2"), "--seed", "3")
    project.run(train, "likelihood_gain", *flags, str(whole / "checkpoint-2"))
    assert [path.name for path in branch.glob("checkpoint-*")] == ["checkpoint-4"]
    expected, found = (next((run / "encoder").rglob("model.safetensors")) for run in (whole, branch))
    assert found.read_bytes() == expected.read_bytes()


def test_a_collection_that_is_named_twice_is_reported_once(project: Project) -> None:
    """Reference: a row of each system for each split, whatever the folder is called."""
    project.run(score)
    project.run(train)
    folder = project.root / "collection"
    project.run(evaluate, "likelihood_gain", "--eval_collections", f"{folder}/:test", f"{folder}:dev", f"{folder}:dev")
    results = json.loads((project.root / "likelihood_gain" / "results.json").read_text())
    assert [row["split"] for row in results] == ["test"] * 3 + ["dev"] * 3


@pytest.mark.parametrize("entry", ["data/scifact", ":test", "data/scifact:"])
def test_malformed_eval_collections_are_refused(project: Project, entry: str) -> None:
    """Reference: the form that the message shows; nothing is evaluated before."""
    with pytest.raises(NLTError, match=rf"eval_collections has '{entry}'; write FOLDER:SPLIT"):
        project.run(evaluate, "likelihood_gain", "--eval_collections", entry)


def test_heads_of_another_llm_are_refused(project: Project) -> None:
    """Reference: an LLM with other weights."""
    project.run(score)
    project.run(detect_heads)
    path = project.root / "heads.json"
    heads = read_json(path)
    path.write_text(json.dumps({**heads, "llm": "org/other", "llm_fingerprint": {"weights": "other"}}))
    with pytest.raises(NLTError, match=r"found in LLM 'org/other', not in"):
        project.run(train, "dream")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--max_document_tokens", "20"],
            r"scored with max_document_tokens 24 and not 20; run nlt score again",
        ),
        (["--query_prefix", "Claim:"], r"scored with query_prefix 'Question:' and not 'Claim:'"),
        (["--document_suffix", " "], r"scored with document_suffix"),
        (["--target", "query"], r"scored with target 'joint' and not 'query'"),
        (["--llm", "org/other", "--llm_revision", "v1"], r"scored with llm '.*', llm_revision None and not 'v1'"),
        (["--adapter", "org/adapter"], r"scored with adapter None and not 'org/adapter'"),
    ],
)
def test_gains_of_another_scorer_are_refused(project: Project, flags: list[str], message: str) -> None:
    """Reference: the audit beside the gains; what an older one lacks is not compared."""
    project.run(score)
    with pytest.raises(NLTError, match=rf"gains.jsonl was {message}"):
        project.run(train, "likelihood_gain", *flags)
    audit = project.root / "gains.audit.json"
    written = read_json(audit)
    kept = {key: value for key, value in written["scorer"].items() if key == "llm"}
    audit.write_text(json.dumps({**written, "scorer": kept}))
    project.run(train, "likelihood_gain", *flags)


def test_heads_are_found_by_gains_of_the_same_scorer(project: Project) -> None:
    """Reference: the audit beside the gains. The LLM may read less of a document than it did when it scored it."""
    project.run(score)
    project.run(detect_heads, "dream", "--max_document_tokens", "20")
    heads = project.root / "heads.json"
    heads.unlink()
    for flags, message in (
        (["--query_prefix", "Claim:"], "query_prefix 'Question:' and not 'Claim:'"),
        (["--llm_revision", "v1"], "llm_revision None and not 'v1'"),
    ):
        with pytest.raises(NLTError, match=rf"gains.jsonl was scored with {message}; run nlt score again"):
            project.run(detect_heads, "dream", *flags)
    gains = project.root / "gains.jsonl"
    gains.write_text(gains.read_text().replace('"gain": [', '"gain": [1', 1))
    with pytest.raises(DataError, match=r"gains.jsonl: is not as `nlt score` wrote it"):
        project.run(detect_heads, "dream")
    assert not heads.exists()


@pytest.mark.parametrize(("stage", "objective"), [(train, "likelihood_gain"), (detect_heads, "dream")])
def test_gains_without_an_audit_are_read_with_a_warning(
    project: Project, caplog: pytest.LogCaptureFixture, stage: Any, objective: str
) -> None:
    """Reference: gains that somebody has made with another program; one line says what is not known of them."""
    project.run(score)
    project.run(stage, objective)
    assert "has no audit" not in caplog.text
    (project.root / "gains.audit.json").unlink()
    project.run(stage, objective)
    said = [record.message for record in caplog.records if "has no audit" in record.message]
    assert said == [
        f"{project.root}/gains.jsonl has no audit gains.audit.json, so that nothing says which LLM and which prompt "
        "its gains come from; `nlt score` writes both"
    ]


@pytest.mark.parametrize("scorer", [None, [], {"llm": "smollm2"}, {"template": 3}])
def test_a_malformed_audit_is_refused(project: Project, scorer: Any) -> None:
    """Reference: file and value in the message."""
    project.run(score)
    (project.root / "gains.audit.json").write_text(json.dumps({"scorer": scorer}))
    with pytest.raises(DataError, match=r"gains.audit.json: its entry scorer has .*, and no object; run `nlt score`"):
        project.run(train)


def test_an_objective_that_reads_no_gains_may_have_another_prompt(project: Project) -> None:
    """Reference: the card's row of gains, which is missing; DREAM's heads came from gains of another prompt."""
    project.run(score)
    project.run(detect_heads, "dream")
    project.run(train, "dream", "--max_document_tokens", "20")
    assert "gains scored with" not in (project.root / "dream" / "encoder" / "README.md").read_text()


def test_gains_of_other_candidates_are_refused(project: Project) -> None:
    """Reference: candidates that were mined again with another seed after the scores."""
    project.run(score)
    project.run(mine, "likelihood_gain", "--num_candidates", "4")
    with pytest.raises(DataError, match=r"gains.jsonl:1: query 'q1' has other candidates here; run `nlt score` again"):
        project.run(train, "likelihood_gain", "--num_candidates", "4")


def test_candidates_and_gains_of_other_documents_are_refused(project: Project) -> None:
    """Reference: documents that were edited after the scores, under the same ids; the heads are found by gains too."""
    project.run(score)
    corpus = project.root / "collection" / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({**row, "text": f"{row['text']} edited"}) + "\n" for row in rows_of(corpus)))
    readers = ((train, "likelihood_gain"), (train, "emdr2"), (detect_heads, "dream"))
    for stage, objective in ((score, "likelihood_gain"), *readers):
        with pytest.raises(DataError, match=r"candidates.jsonl:1: query 'q1', .* had another text when it was mined"):
            project.run(stage, objective)
    project.run(mine)
    for stage, objective in readers:
        with pytest.raises(DataError, match=r"gains.jsonl:1: query 'q1', .* had another text when it was scored"):
            project.run(stage, objective)
    project.run(score)
    project.run(train)


def test_gains_that_have_changed_are_refused(project: Project) -> None:
    """Reference: another digit of one gain, as a disk may leave it; without the audit nobody knows what it was."""
    project.run(score)
    gains = project.root / "gains.jsonl"
    first = f"{json.loads(gains.read_text().splitlines()[0])['gain'][0]}"
    other = first[:-1] + str((int(first[-1]) + 1) % 10)
    gains.write_text(gains.read_text().replace(first, other, 1))
    with pytest.raises(
        DataError, match=r"gains.jsonl: is not as `nlt score` wrote it; run that again, .* or remove .*"
    ):
        project.run(train)
    (project.root / "gains.audit.json").unlink()
    project.run(train)


def test_gains_of_an_llm_with_other_weights_are_refused(project: Project) -> None:
    """Reference: a folder whose files have changed under the same name; one that is gone is not needed."""
    llm = project.llm = Path(shutil.copytree(project.llm, project.root / "llm"))
    project.run(score)
    config = llm / "config.json"
    before = config.read_text()
    config.write_text(json.dumps({**json.loads(before), "rms_norm_eps": 0.5}))
    with pytest.raises(NLTError, match=r"gains.jsonl was scored with other files in .*llm than it has now; run nlt"):
        project.run(train)
    config.write_text(before)
    project.run(train)
    shutil.rmtree(llm)
    project.run(train, "likelihood_gain", "--output_dir", str(project.root / "elsewhere"))


@pytest.mark.parametrize(
    ("stage", "objective", "missing", "message"),
    [
        (score, "likelihood_gain", "candidates.jsonl", "file not found; run `nlt mine` first, which writes it"),
        (train, "likelihood_gain", "gains.jsonl", "file not found; run `nlt score` first, which writes it"),
        (detect_heads, "dream", "gains.jsonl", "file not found; run `nlt score` first, which writes it"),
        (train, "dream", "heads.json", "file not found; run `nlt detect_heads` first, which writes it"),
        (mine, "likelihood_gain", "collection", "file not found; a collection is a folder"),
        (train, "likelihood_gain", "encoder", "does not exist. Give a Hub id"),
    ],
)
def test_a_stage_that_was_left_out_is_named(
    project: Project, stage: Any, objective: str, missing: str, message: str
) -> None:
    """Reference: the remedy in each message."""
    path = project.root / missing
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    with pytest.raises(NLTError, match=message):
        project.run(stage, objective)


def test_labels_need_a_split(project: Project) -> None:
    """Reference: the remedy in the message."""
    recipe = Path(project.recipe("info_nce"))
    blocks = yaml.safe_load(recipe.read_text())
    del blocks["data"]["train_split"]
    recipe.write_text(yaml.safe_dump(blocks))
    mine.main(["--config", str(recipe)])
    with pytest.raises(NLTError, match=r"labels: true takes positives from qrels/<train_split>.tsv; set train_split"):
        train.main(["--config", str(recipe), "--labels", "true"])


def test_stages_replace_no_folder_of_the_user(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: the files before; what a stage wrote itself it does replace."""
    project.run(make_encoder)
    collection = project.root / "collection"
    before = {path: path.read_bytes() for path in collection.rglob("*") if path.is_file()}
    message = r"is there already and was not written by nlt.*name another folder"
    with monkeypatch.context() as patched:
        for work in ("assembly.starts.encoder_from_token_embeddings", "data.stdlib._collect"):
            patched.setattr(f"nlt_trainer.{work}", lambda *_: pytest.fail("worked for nothing"))
        with pytest.raises(NLTError, match=f"qrels {message}"):
            project.run(
                make_encoder, "likelihood_gain", "--collection", "another", "--encoder", str(collection / "qrels")
            )
        with pytest.raises(NLTError, match=f"collection {message}"):
            project.run(build_stdlib)
    assert {path: path.read_bytes() for path in collection.rglob("*") if path.is_file()} == before
    with pytest.raises(NLTError, match=r"'package:a/model' is a model in a package; name a folder"):
        project.run(make_encoder, "likelihood_gain", "--encoder", "package:a/model")
    monkeypatch.chdir(project.root)
    with pytest.raises(NLTError, match=r"'org/model' looks like a model on the Hub.*e.g. ./org/model"):
        project.run(make_encoder, "likelihood_gain", "--encoder", "org/model")
    project.run(make_encoder, "likelihood_gain", "--encoder", "./org/model")
    assert (project.root / "org" / "model" / "modules.json").is_file()


def test_an_encoder_folder_that_is_no_run_is_refused_before_training(project: Project) -> None:
    """Reference: a folder as a copy that was cut short leaves it, and a file in the run's place; no step is made."""
    project.run(score)
    half = project.root / "likelihood_gain" / "encoder"
    half.mkdir(parents=True)
    (half / "config.json").write_text("{}")
    with pytest.raises(NLTError, match=r"encoder is there already and was not written by nlt.*name another folder"):
        project.run(train)
    assert list(half.parent.iterdir()) == [half]
    half.rename(half.parent / "adapter")
    with pytest.raises(NLTError, match=r"adapter is there already and was not written by nlt.*name another folder"):
        project.run(train, "likelihood_gain", "--lora", "{r: 2, target_modules: all-linear}")
    assert list(half.parent.iterdir()) == [half.parent / "adapter"]
    (project.root / "notes").write_text("text")
    with pytest.raises(NLTError, match=r"notes is a file, and a folder is to be written there; name a folder"):
        project.run(train, "likelihood_gain", "--output_dir", str(project.root / "notes"))


@pytest.mark.parametrize("stage", [score, train, detect_heads])
def test_settings_that_only_mine_reads_are_refused_elsewhere(project: Project, stage: Any) -> None:
    """Reference: the candidates file has 4 queries with 3 candidates each; the message names the remedy."""
    project.run(score)
    with pytest.raises(DataError, match=r"candidates.jsonl:1: .*run `nlt mine` again"):
        project.run(stage, "likelihood_gain", "--num_candidates", "2")
    with pytest.raises(NLTError, match=r"has 4 queries and max_queries is 3; only mine draws them"):
        project.run(stage, "likelihood_gain", "--max_queries", "3")


def test_rows_that_do_not_fill_a_batch(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """Reference: 4 rows in batches of 5 and of 3; several processes drop what does not fill one as well."""
    project.run(score)
    flags = ("--dataloader_drop_last", "true", "--per_device_train_batch_size")
    with pytest.raises(NLTError, match=r"4 training rows do not fill one batch of 5 \(.* 5 x 1 processes\).*; lower"):
        project.run(train, "likelihood_gain", *flags, "5")
    project.run(train, "likelihood_gain", *flags, "3")
    assert "Each epoch leaves out 1 of 4 rows" in capsys.readouterr().out
    project.run(train, "info_nce", "--per_device_train_batch_size", "5", "--eval_on_start", "true")
    printed = capsys.readouterr().out
    assert "leaves out" not in printed
    assert_dev_gain(printed.splitlines()[-1], project.root / "info_nce" / "training.json")


def assert_dev_gain(line: str, report: Path) -> None:
    """The last line says what the dev queries' nDCG@10 was before and after; reference: the log."""
    log = json.loads(report.read_text())["log"]
    values = {entry["step"]: entry["eval_dev_ndcg_at_10"] for entry in log if "eval_dev_ndcg_at_10" in entry}
    assert f"nDCG@10 on dev was {values[0]:.3f} before and is {values[4]:.3f} now; `nlt evaluate`" in line


def test_another_number_of_heads_than_the_file_has_is_refused(project: Project) -> None:
    """Reference: the file has 3 heads; the message names the remedy."""
    project.run(score)
    project.run(detect_heads, "dream")
    with pytest.raises(NLTError, match=r"heads.json has 3 heads and num_heads is 2; only detect_heads chooses them"):
        project.run(train, "dream", "--num_heads", "2")


def test_queries_without_an_answer_among_others(project: Project, tiny_encoder_folder: Path) -> None:
    """Reference: the query alone as target in the audit; every query is used, with a transformer as encoder."""
    queries = project.root / "collection" / "queries.jsonl"
    rows = rows_of(queries)
    del rows[2]["answer"]
    queries.write_text("\n".join(map(json.dumps, rows)))
    project.run(mine)
    project.run(score)
    project.run(train, "likelihood_gain", "--encoder", str(tiny_encoder_folder))
    assert json.loads((project.root / "gains.audit.json").read_text())["target"] == "query"
    assert json.loads((project.root / "likelihood_gain" / "training.json").read_text())["queries"] == 4
