"""`nlt export`, `nlt push` and `nlt pull` on a run, and what others then load by the Hub's id."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml
from hub_server import TOKEN, Hub, running_hub
from huggingface_hub import HfApi, constants
from sentence_transformers import SentenceTransformer

from nlt_trainer.arguments.data import DataArguments
from nlt_trainer.arguments.model import ModelArguments
from nlt_trainer.assembly import publishing
from nlt_trainer.data.known_queries import write_query_keys
from nlt_trainer.encoder.loading import load_encoder
from nlt_trainer.errors import NLTError
from nlt_trainer.lm.score_cache import ScoreCache
from nlt_trainer.release.card import encoder_facts, prepare_card, write_card
from nlt_trainer.release.export import save_trained
from nlt_trainer.run.folder import Run
from nlt_trainer.run.resume import trainer_settings
from nlt_trainer.run.trained_queries import trained_queries_of
from nlt_trainer.scripts import export, pull, push
from nlt_trainer.text_files import write_json, write_jsonl
from nlt_trainer.training_arguments import NLTTrainingArguments

TEXTS = ["green tea", "an owl at night"]
LOADED_BY_OTHERS = """
import sys
from pathlib import Path
import mteb, numpy as np
from sentence_transformers import SentenceTransformer
from nlt_trainer.encoder.probes import Probe, difference, probe
from nlt_trainer.release.loading_check import probe_wrapper
trained = Probe.load(Path(sys.argv[1]))
print(difference(probe(SentenceTransformer("org/name", device="cpu")), trained))
print(difference(probe_wrapper(mteb.get_model("org/name", device="cpu")), trained))
"""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A Hub that the stages of this process talk to, logged in by HF_TOKEN."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with running_hub() as running:
        monkeypatch.setattr(publishing, "HfApi", partial(HfApi, endpoint=running.url))
        yield running


@pytest.fixture
def recipe(tiny_encoder_folder: Path, tmp_path: Path) -> str:
    """The recipe of a run that has trained an adapter, on a base that only this machine has."""
    lora = {"r": 2, "target_modules": ["query", "value"]}
    files = {"gains": str(tmp_path / "gains.jsonl"), "candidates": str(tmp_path / "candidates.jsonl")}
    blocks = {
        "model": {
            "encoder": str(tiny_encoder_folder),
            "llm": "/home/somebody/llm",
            "lora": lora,
            "encoder_prompts": {"query": "query: "},
        },
        "data": files | {"collection": str(tmp_path), "score_cache": str(tmp_path / "scores")},
        "trainer": {"output_dir": str(tmp_path / "run"), "use_cpu": True},
    }
    model, data = ModelArguments(**blocks["model"]), DataArguments(**blocks["data"])  # type: ignore[arg-type]
    encoder = load_encoder(model.encoder, lora=lora, prompts=model.encoder_prompts, device="cpu")
    prepare_card(encoder, name="run encoder")
    save_trained(Run(tmp_path / "run"), encoder, merge=True, keep_adapter=True)
    args = NLTTrainingArguments(**blocks["trainer"])  # type: ignore[arg-type]
    write_json(
        tmp_path / "run" / "settings.json",
        {
            "model": dataclasses.asdict(model),
            "data": dataclasses.asdict(data),
            "trainer": trainer_settings(args),
        },
    )
    report = {"objective": "likelihood_gain", "target": "query", "seed": 42, "steps": 1, "queries": 8, "log": []}
    report |= {"lm_tokens": 9, "train_seconds": 1.0, "encoder": encoder_facts(encoder)}
    write_json(tmp_path / "run" / "training.json", report)
    write_query_keys(Run(tmp_path / "run").trained_queries_file, [3, 5])
    write_card(Run(tmp_path / "run"))
    for system in ("likelihood_gain", "start"):
        write_json(tmp_path / "run" / "evaluation" / "mteb" / system / "collection_test.json", {"of": system})
    write_jsonl(files["gains"], [{"query_id": "q1"}])
    write_jsonl(files["candidates"], [{"query_id": "q1"}])
    audit = {"target": "query", "queries": 1, "candidates": 8, "scorer": {"model": {"llm": "/home/somebody/llm"}}}
    write_json(tmp_path / "gains.audit.json", audit)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(blocks))
    return str(path)


def test_an_adapter_gets_card_and_recipe_and_says_what_is_equal(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reference: the files of the merged encoder's folder, with the adapter's base in the card."""
    export.main(["--config", recipe, "--form", "adapter"])
    folder = tmp_path / "run" / "adapter"
    assert capsys.readouterr().out == (
        f"{folder}: adapter; equal to the trained encoder within 1e-5: SentenceTransformer, adapter merged, mteb\n"
    )
    assert "pip install sentence-transformers peft" in (folder / "README.md").read_text()
    for name in ("recipe.yaml", "trained_queries.json"):
        assert (folder / name).read_text() == (tmp_path / "run" / "encoder" / name).read_text()


def test_a_dry_run_lists_what_would_be_sent(hub: Hub, recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Reference: the files that the same command then sends; the dry run makes no call."""
    arguments = ["--config", recipe, "--repo", "org/name", "--gains_repo", "org/name-gains"]
    push.main([*arguments, "--dry_run", "true"])
    listed = capsys.readouterr().out
    assert hub.seen == []
    push.main(arguments)
    sent = capsys.readouterr().out
    assert sent.splitlines()[-1] == "org/name-gains: new release v1, private"
    assert [line for line in sent.splitlines() if "new release" not in line] == listed.splitlines()
    for key, repo in hub.repos.items():
        for name, content in repo.files.items():
            assert name == ".gitattributes" or f"{len(content):>15,}  {name}\n" in listed, (key, name)
    assert TOKEN not in sent + listed


def test_what_is_published_says_nothing_of_this_machine(hub: Hub, recipe: str, tmp_path: Path) -> None:
    """Reference: every byte that the Hub has; the token and the folder are in none."""
    push.main(["--config", recipe, "--repo", "org/name", "--gains_repo", "org/name-gains"])
    files = {**hub.repos["models/org/name"].files, **hub.repos["datasets/org/name-gains"].files}
    assert {"README.md", "recipe.yaml", "record.json", "model.safetensors", "gains.jsonl", "audit.json"} <= set(files)
    for name, content in files.items():
        for secret in (TOKEN, str(tmp_path.parent), "somebody"):
            assert secret.encode() not in content, (name, secret)
    card = hub.repos["models/org/name"].files["README.md"].decode()
    assert 'SentenceTransformer("org/name")' in card
    assert json.loads(files["mteb/collection_test.json"]) == {"of": "likelihood_gain"}
    assert json.loads(files["audit.json"])["scorer"]["model"]["llm"] == "llm"


def test_gains_of_another_scorer_are_not_published(hub: Hub, recipe: str) -> None:
    """Reference: the audit names the LLM that scored, and the recipe another; the Hub is not asked."""
    arguments = ["--config", recipe, "--repo", "org/name", "--gains_repo", "org/name-gains"]
    with pytest.raises(NLTError, match=r"gains.jsonl was scored with llm '/home/somebody/llm' and not 'org/other'"):
        push.main([*arguments, "--llm", "org/other"])
    assert hub.seen == []


def test_others_load_it_by_its_id(hub: Hub, recipe: str, tmp_path: Path) -> None:
    """Reference: the probe of the encoder in the trainer; Sentence-Transformers and mteb ask the Hub."""
    push.main(["--config", recipe, "--repo", "org/name"])
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONWARNINGS": "ignore",
    }
    result = subprocess.run(
        [sys.executable, "-c", LOADED_BY_OTHERS, str(tmp_path / "run" / "probe.safetensors")],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert result.stdout.splitlines()[-2:] == ["None", "None"], result.stderr
    assert hub.requests("GET", "/org/name/resolve/.*/model.safetensors")


def test_a_release_is_pulled_into_a_folder_that_loads(
    hub: Hub, recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reference: the embeddings of the run's encoder and the files on the Hub, which has no hash of a query."""
    push.main(["--config", recipe, "--repo", "org/name"])
    capsys.readouterr()
    pull.main(["--repo", "org/name", "--folder", str(tmp_path / "a"), "--dry_run", "true"])
    listed = capsys.readouterr().out
    repo = hub.repos["models/org/name"]
    total = sum(map(len, repo.files.values()))
    assert listed.splitlines()[0] == f"org/name at {repo.head}: {len(repo.files)} files, {total:,} bytes"
    assert not (tmp_path / "a").exists()
    pull.main(["--repo", "org/name", "--folder", str(tmp_path / "a"), "--revision", "v1"])
    assert capsys.readouterr().out == f"{tmp_path}/a: org/name at {repo.head}\n"
    found, expected = (SentenceTransformer(str(tmp_path / name), device="cpu") for name in ("a", "run/encoder"))
    np.testing.assert_array_equal(found.encode_query(TEXTS), expected.encode_query(TEXTS))
    assert "trained_queries.json" not in repo.files
    assert trained_queries_of(str(tmp_path / "a")) is None
    with pytest.raises(NLTError, match=r"argument --repo_type: is 'space', expected one of model, dataset"):
        pull.main(["--repo", "org/name", "--folder", "x", "--repo_type", "space"])


def test_nothing_is_sent_that_is_not_what_was_trained(hub: Hub, recipe: str, tmp_path: Path) -> None:
    """Reference: the Hub has seen nothing; an adapter on a base that nobody else has is no use to anyone either."""
    with pytest.raises(NLTError, match=r"is an adapter on /.*, which only this machine has; push --form merged"):
        push.main(["--config", recipe, "--repo", "org/name", "--form", "adapter"])
    with pytest.raises(NLTError, match=r"tag 'v 1' cannot be used; give letters, digits"):
        push.main(["--config", recipe, "--repo", "org/name", "--tag", "v 1"])
    (tmp_path / "gains.jsonl").unlink()
    with pytest.raises(
        NLTError, match=r"gains.jsonl is missing; run `nlt mine` and `nlt score`, or leave gains_repo out"
    ):
        push.main(["--config", recipe, "--repo", "org/name", "--gains_repo", "org/gains"])
    path = tmp_path / "run" / "encoder" / "config_sentence_transformers.json"
    path.write_text(path.read_text().replace("query: ", ""))
    with pytest.raises(NLTError, match=r"config_sentence_transformers.json: is not as it was saved"):
        push.main(["--config", recipe, "--repo", "org/name"])
    assert hub.seen == []


SCORER: dict[str, object] = {"llm": {"weights": "org/llm@abc", "dtype": "float32"}, "target": "query"}


def put(folder: Path, names: range, *, of: dict[str, object] = SCORER, value: float = -1.5) -> ScoreCache:
    cache = ScoreCache(folder, of)
    keys = [ScoreCache.key(f"a query of somebody {i}") for i in names]
    cache.put(dict.fromkeys(keys, (value, 3, False)), dict.fromkeys(keys, np.full(3, value / 3)))
    return cache


def rows(cache: ScoreCache) -> list[tuple[bytes, object]]:
    return [row for keys, scores in cache.rows(1000) for row in zip(keys.tolist(), scores.tolist(), strict=True)]


def test_scores_come_to_another_machine(
    hub: Hub, recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Reference: the caches of both machines; the scores of two LLMs, of which the other machine has some of one."""
    other = {**SCORER, "llm": {"weights": "org/other@abc"}}
    sent = [put(tmp_path / "scores", range(40)), put(tmp_path / "scores", range(7), of=other)]
    push.main(["--config", recipe, "--scores_repo", "org/scores"])
    assert capsys.readouterr().out.splitlines()[-1] == "org/scores: new release v1, private"
    assert list(hub.repos) == ["datasets/org/scores"]
    there = tmp_path / "there"
    own = put(there, range(30, 50))
    pull.main(["--repo", "org/scores", "--score_cache", str(there)])
    head = hub.repos["datasets/org/scores"].head
    assert capsys.readouterr().out == f"{there}: 37 new of 47 scores of org/scores at {head}\n"
    assert rows(own) == rows(put(tmp_path / "union", range(50)))
    assert rows(ScoreCache(there, other)) == rows(sent[1])
    assert "differ" not in caplog.text
    wrong = put(tmp_path / "wrong", range(1), value=-9.0)
    pull.main(["--repo", "org/scores", "--score_cache", str(tmp_path / "wrong"), "--revision", "v1"])
    assert "org/scores: 1 scores differ from those in" in caplog.text
    assert len(wrong) == 40 and (-9.0, 3, False) in [score for _, score in rows(wrong)]


def test_scores_are_sent_once(hub: Hub, recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Reference: the uploads that the Hub sees; a dry run lists what the next call sends, and sends nothing."""
    arguments = ["--config", recipe, "--scores_repo", "org/scores"]
    with pytest.raises(
        NLTError, match=r"score_cache .* has nothing to push; run `nlt score`, or leave scores_repo out"
    ):
        push.main(arguments)
    put(tmp_path / "scores", range(40))
    push.main(arguments)
    first = hub.repos["datasets/org/scores"].files
    for new, tag in ((0, "v1"), (5, "v2")):
        put(tmp_path / "scores", range(40 + new))
        hub.seen.clear()
        capsys.readouterr()
        push.main([*arguments, "--dry_run", "true"])
        listed = capsys.readouterr().out
        assert {seen.method for seen in hub.seen} <= {"GET", "HEAD"}
        push.main(arguments)
        out = capsys.readouterr().out
        assert out.startswith(listed)
        assert out.splitlines()[-1].split(", ")[0].endswith(tag)
        assert (
            len(hub.requests("PUT", "/lfs/"))
            == len([line for line in listed.splitlines() if ".parquet" in line])
            == bool(new)
        )
    files = hub.repos["datasets/org/scores"].files
    assert set(first) < set(files) and all(files[name] == first[name] for name in first)
    pull.main(["--repo", "org/scores", "--score_cache", str(tmp_path / "there")])
    assert "45 new of 45 scores" in capsys.readouterr().out


def test_scores_say_nothing_of_texts_and_of_this_machine(
    hub: Hub, recipe: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Reference: every byte that the Hub has; the scores of a model that is named by a path stay."""
    put(tmp_path / "scores", range(3))
    local = put(tmp_path / "scores", range(3), of={**SCORER, "llm": {"server_model": "/home/somebody/llm.gguf"}})
    push.main(["--config", recipe, "--scores_repo", "org/scores"])
    assert f"{local.path} is not pushed, because it names its LLM by a path of this machine" in caplog.text
    files = hub.repos["datasets/org/scores"].files
    assert [name.partition("-")[0] for name in files] == [".gitattributes", "README.md", "data/scores"]
    for name, content in files.items():
        for secret in (TOKEN, str(tmp_path.parent), "somebody"):
            assert secret.encode() not in content, (name, secret)
    assert "org/llm@abc" in files["README.md"].decode()


def test_scores_that_are_damaged_on_the_hub_are_refused(hub: Hub, recipe: str, tmp_path: Path) -> None:
    """Reference: the file's name in the message; the cache stays as it is, and a data set without scores is none."""
    put(tmp_path / "scores", range(3))
    push.main(["--config", recipe, "--scores_repo", "org/scores"])
    repo = hub.repos["datasets/org/scores"]
    (name,) = (name for name in repo.files if name.endswith(".parquet"))
    repo.commit({**repo.files, name: repo.files[name][:-8] + b"damaged."})
    there = put(tmp_path / "there", range(1))
    with pytest.raises(
        NLTError, match=rf"{name}: is damaged, because its content has another hash than its name says"
    ):
        pull.main(["--repo", "org/scores", "--score_cache", str(tmp_path / "there")])
    assert len(there) == 1
    repo.commit({"README.md": b""})
    with pytest.raises(
        NLTError, match=r"org/scores has no scores at .*; name a data set that `nlt push --scores_repo`"
    ):
        pull.main(["--repo", "org/scores", "--score_cache", str(tmp_path / "there")])


def test_what_is_pushed_and_pulled_is_named(recipe: str) -> None:
    for stage, words, message in (
        (push, [], "nothing is named that could be pushed; give one or more of repo, gains_repo, scores_repo"),
        (push, ["--gains_repo", "org/a", "--scores_repo", "org/a"], "gains_repo and scores_repo are both org/a; give"),
        (pull, [], "give either a folder to write, or with score_cache a score cache to add scores to"),
        (pull, ["--folder", "a", "--score_cache", "b"], "give either a folder to write, or with score_cache"),
    ):
        given = ["--config", recipe] if stage is push else ["--repo", "org/name"]
        with pytest.raises(NLTError, match=message):
            stage.main([*given, *words])


def test_gains_can_be_pushed_alone(hub: Hub, recipe: str) -> None:
    """Reference: the repositories of the Hub; the encoder is not even exported."""
    push.main(["--config", recipe, "--gains_repo", "org/name-gains"])
    assert list(hub.repos) == ["datasets/org/name-gains"]
