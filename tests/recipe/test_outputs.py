"""No stage replaces what an option names as its input: every stage by its `main`, with outputs that would."""

from __future__ import annotations

import dataclasses
import importlib
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from nlt_trainer.arguments import stages
from nlt_trainer.arguments.data import DataArguments
from nlt_trainer.arguments.evaluation import EvaluationArguments
from nlt_trainer.arguments.release import PushArguments
from nlt_trainer.errors import NLTError
from nlt_trainer.files import FOLDER_MARK, cache_folder
from nlt_trainer.recipe import parsing
from nlt_trainer.recipe.keys import KnownKeys
from nlt_trainer.recipe.outputs import check_outputs
from nlt_trainer.scripts import adapt, build_corpus, export, pull


@pytest.fixture
def inputs(
    tiny_collection_folder: Path, tiny_encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[Path, bytes]:
    """A working directory with inputs of every kind, of which nlt seems to have written the folders; their content."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_encoder_folder, "run/encoder")
    shutil.copytree(tiny_encoder_folder, "llm")
    for folder in ("collection", "run/encoder", "llm"):
        Path(folder, FOLDER_MARK).touch()
    Path("texts").mkdir()
    Path("out/collection").mkdir(parents=True)
    for file in ("texts/one.txt", "out/collection/corpus.jsonl", "queries.txt", "heads.json", "gains.jsonl"):
        Path(file).write_text("what people wrote")
    Path("model.gguf").touch()
    shutil.copy("heads.json", "candidates.jsonl")
    recipe = {
        "model": {"encoder": "run/encoder", "llm": "llm"},
        "data": {"collection": "collection", "candidates": "candidates.jsonl", "gains": "gains.jsonl"},
        "trainer": {"output_dir": "runs", "use_cpu": True},
    }
    Path("my.yaml").write_text(yaml.safe_dump(recipe))
    Path("link.jsonl").symlink_to("collection/corpus.jsonl")
    return content(tmp_path)


def content(folder: Path) -> dict[Path, bytes]:
    """Every file below a folder with its bytes."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


RECIPE = ["--config", "my.yaml"]


@pytest.mark.parametrize(
    ("stage", "words", "message"),
    [
        ("mine", [*RECIPE, "--candidates", "collection/corpus.jsonl"], "candidates: .* replace collection collection"),
        ("mine", [*RECIPE, "--candidates", "link.jsonl"], "candidates: link.jsonl would replace collection"),
        ("mine", [*RECIPE, "--candidates", "collection/qrels/new.tsv"], "candidates: .* replace collection"),
        ("mine", [*RECIPE, "--candidates", "./my.yaml"], "candidates: my.yaml would replace config my.yaml"),
        ("mine", [*RECIPE, "--candidates", "run/encoder/config.json"], "candidates: .* replace encoder"),
        ("mine", [*RECIPE, "--llm", "model.gguf", "--candidates", "model.gguf"], "candidates: .* replace llm"),
        ("mine", [*RECIPE, "--candidates", "gains.jsonl"], "candidates: .* replace gains gains.jsonl"),
        (
            "mine",
            [*RECIPE, "--eval_collections", "other:dev", "--candidates", "other/queries.jsonl"],
            "candidates: .* replace eval_collections other or a part",
        ),
        ("score", [*RECIPE, "--gains", "candidates.jsonl"], "gains: .* replace candidates candidates.jsonl"),
        ("score", [*RECIPE, "--heads", "gains.audit.json"], "gains: gains.audit.json would replace heads gains.audit"),
        ("detect_heads", [*RECIPE, "--heads", "gains.audit.json"], "heads: .* replace gains gains.audit.json"),
        (
            "mine",
            [*RECIPE, "--score_cache", "candidates.jsonl.embeddings"],
            "candidates: candidates.jsonl.embeddings would replace score_cache",
        ),
        (
            "make_queries",
            ["--corpus", "collection", "--collection", "made", "--gains", "made.written.jsonl"],
            "collection: made.written.jsonl would replace gains",
        ),
        ("score", [*RECIPE, "--score_cache", "collection"], "score_cache: collection would replace collection"),
        ("detect_heads", [*RECIPE, "--head_scores", "heads.json"], "heads: .* replace head_scores heads.json"),
        ("train", [*RECIPE, "--output_dir", "run"], "output_dir: run/encoder would replace encoder run/encoder"),
        ("train", [*RECIPE, "--output_dir", "collection"], "output_dir: collection would replace collection"),
        ("train", [*RECIPE, "--output_dir", "llm/run"], "output_dir: llm/run would replace llm llm"),
        ("adapt_scorer", [*RECIPE, "--adapter", "runs/adapter"], "output_dir: .* replace adapter runs/adapter"),
        ("evaluate", [*RECIPE, "--evaluation_cache", "llm"], "evaluation_cache: llm would replace llm"),
        ("evaluate", [*RECIPE, "--tasks", "runs:test"], "output_dir: runs would replace tasks runs"),
        ("export", [*RECIPE, "--encoder", "runs/merged"], "output_dir: runs/merged would replace encoder"),
        ("push", [*RECIPE, "--encoder", "runs/onnx", "--repo", "a/b"], "output_dir: runs/onnx would replace encoder"),
        ("plan", [*RECIPE, "--plan_file", "my.yaml"], "plan_file: my.yaml would replace config"),
        ("make_encoder", [*RECIPE, "--encoder", "llm"], "encoder: llm would replace llm"),
        ("build_stdlib", ["--collection", "llm", "--llm", "llm"], "collection: llm would replace llm"),
        ("build_collection", ["--folder", "collection", "--beir", "collection"], "folder: .* replace beir collection"),
        ("build_corpus", ["--documents", "collection", "--corpus", "collection"], "corpus: .* replace documents"),
        ("make_queries", ["--corpus", "collection", "--collection", "./collection"], "collection: .* replace corpus"),
        ("adapt", ["out/collection", "--output", "out"], "collection: out/collection would replace documents"),
        (
            "adapt",
            ["texts", "--output", "run", "--encoder", "run/encoder"],
            "output: run/encoder would replace encoder",
        ),
        ("adapt", ["texts", "--output", ".", "--queries", "candidates.jsonl"], "candidates: .* replace queries"),
        (
            "search",
            ["--encoder", "run/encoder", "--corpus", "collection", "--embeddings", "collection"],
            "embeddings: collection would replace corpus",
        ),
    ],
)
def test_no_output_replaces_an_input(
    stage: str, words: list[str], message: str, inputs: dict[Path, bytes], tmp_path: Path
) -> None:
    """Reference: the files as they were, and both options in the message."""
    with pytest.raises(NLTError, match=message):
        importlib.import_module(f"nlt_trainer.scripts.{stage}").main(words)
    assert content(tmp_path) == inputs


@pytest.mark.parametrize(
    ("stage", "words", "message"),
    [
        ("mine", ["--candidates", "texts"], "candidates: texts is a folder, and a file is to be written there; name"),
        (
            "mine",
            ["--candidates", "queries.txt/a"],
            "candidates: .*/queries.txt is a file, and queries.txt/a is to be",
        ),
        (
            "score",
            ["--gains", "other.jsonl"],
            "gains: other.audit.json is a folder, and a file is to be written there",
        ),
        (
            "score",
            ["--gains", "locked/new/gains.jsonl"],
            "gains: .* written in .*/locked, where you may not write; give",
        ),
        ("plan", ["--plan_file", "locked/plan.json"], "plan_file: .* written in .*/locked, where you may not write"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_the_work(
    stage: str, words: list[str], message: str, inputs: dict[Path, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: the place and the remedy; the operating system refuses one folder, as it would not to every user."""
    for folder in ("other.audit.json", "locked"):
        Path(folder).mkdir()
    monkeypatch.setattr("os.access", lambda path, *_, **__: Path(path).name != "locked")
    with pytest.raises(NLTError, match=message):
        importlib.import_module(f"nlt_trainer.scripts.{stage}").main([*RECIPE, *words])


@pytest.mark.parametrize("place", ["queries.txt", "queries.txt/a"])
@pytest.mark.parametrize(
    ("stage", "option", "words"),
    [
        ("evaluate", "evaluation_cache", RECIPE),
        ("train", "output_dir", RECIPE),
        ("score", "score_cache", RECIPE),
        ("search", "embeddings", ["--encoder", "run/encoder", "--corpus", "collection"]),
        ("pull", "folder", ["--repo", "org/name"]),
    ],
)
def test_a_folder_that_is_a_file_is_refused_before_the_work(
    stage: str, option: str, words: list[str], place: str, inputs: dict[Path, bytes], tmp_path: Path
) -> None:
    """Reference: the option and the file in the message, and the files as they were."""
    with pytest.raises(NLTError, match=rf"^{option}: .*/queries.txt is a file, and a folder is to be written there; "):
        importlib.import_module(f"nlt_trainer.scripts.{stage}").main([*words, f"--{option}", place])
    assert content(tmp_path) == inputs


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        (pull, ["--repo=org/name", "--folder=/"]),
        (adapt, ["/usr/share/doc", "--encoder=org/name", "--output=/"]),
        (export, ["--output_dir=/"]),
        (export, ["--output_dir=/usr/.."]),
        (build_corpus, ["--documents=/usr/share/doc", "--corpus=//"]),
    ],
)
def test_the_root_is_no_output(stage: Any, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: the option in the message; nothing is swept, which would look at every folder of the machine."""
    monkeypatch.setattr(parsing, "sweep_outputs", lambda *_: pytest.fail("swept"))
    with pytest.raises(NLTError, match=r"^(folder|output|output_dir|corpus): .* is the root of all files; name a"):
        stage.main(words)


@pytest.mark.parametrize("repo", ["../x", "/etc", "a/b/c", "a//b", "-x/y", ""])
def test_a_path_is_no_hub_id(repo: str) -> None:
    """Reference: the Hub's rules for ids, before anything is fetched or sent."""
    with pytest.raises(NLTError, match=f"repo {re.escape(repr(repo))} is no Hub id; write ORG/NAME"):
        pull.main([f"--repo={repo}", "--folder=encoder"])
    for option in ("repo", "gains_repo"):
        given: dict[str, Any] = {"repo": "org/name", option: repo}
        with pytest.raises(NLTError, match=f"{option} {re.escape(repr(repo))} is no Hub id; write ORG/NAME"):
            PushArguments(**given)


def test_files_beside_those_of_a_collection_are_allowed(inputs: dict[Path, bytes]) -> None:
    """Reference: the file, in the collection's folder but under a name that no collection has; and a second call."""
    mine = importlib.import_module("nlt_trainer.scripts.mine")
    for _ in range(2):
        mine.main([*RECIPE, "--num_candidates", "3", "--candidates", "collection/candidates.jsonl"])
    assert Path("collection/candidates.jsonl").is_file()


def test_a_run_may_keep_the_embeddings_of_its_evaluation(inputs: dict[Path, bytes]) -> None:
    """Reference: the folder of a run has its encoder in a folder of its own, which is refused."""
    check_outputs(["evaluation_cache"], [EvaluationArguments(checkpoints=["run"], evaluation_cache="run")])
    with pytest.raises(NLTError, match="evaluation_cache: run/encoder would replace checkpoints run/encoder"):
        check_outputs(
            ["evaluation_cache"], [EvaluationArguments(checkpoints=["run/encoder"], evaluation_cache="run/encoder")]
        )


def test_every_option_that_names_a_file_or_folder_says_so() -> None:
    """Reference: the options whose help speaks of a file or a folder."""
    speaks, declared = set(), set()
    for name, blocks in vars(stages).items():
        for own in KnownKeys(blocks).own.values() if name.endswith("_BLOCKS") else ():
            for field in dataclasses.fields(own):
                words = set(field.metadata["help"].lower().replace(",", " ").replace(":", " ").split())
                speaks |= {field.name} if words & {"file", "folder", "folders", "package"} else set()
                declared |= {field.name} if field.metadata["path"] else set()
    assert speaks - declared == {"merge_lora", "embedding_cache_gib"}


def test_a_stage_begins_with_sweeping_what_killed_ones_have_left(inputs: dict[Path, bytes], tmp_path: Path) -> None:
    """Reference: names of files that a killed stage leaves beside its outputs, in its folders and in the cache."""
    left = [
        Path(".candidates.jsonl.01234567.partial"),
        cache_folder() / "models" / ".tiny.01234567.partial" / "weights",
        Path("runs/.encoder.01234567.previous/config.json"),
        Path("disk/.mined.01234567.partial"),
    ]
    Path("mined.jsonl").symlink_to("disk/mined")
    for file in left:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    Path("runs/encoder").mkdir()
    importlib.import_module("nlt_trainer.scripts.mine").main([*RECIPE, "--num_candidates", "3"])
    assert [file.exists() for file in left] == [False, False, True, True]
    importlib.import_module("nlt_trainer.scripts.mine").main([*RECIPE, "--candidates", "mined.jsonl"])
    assert [file.exists() for file in left] == [False, False, True, False]
    assert Path("disk/mined").is_file()
    with pytest.raises(NLTError, match=r"gains.jsonl"):
        importlib.import_module("nlt_trainer.scripts.train").main([*RECIPE, "--num_candidates", "3"])
    assert not left[2].exists()
    assert Path("runs/encoder").is_dir()


@pytest.mark.parametrize("path", ["a\0b", "~no_such_user/x", "\ud800", "loop/x"])
@pytest.mark.parametrize("option", ["collection", "eval_collections", "output_dir"])
def test_a_path_that_cannot_be_is_refused(option: str, path: str, inputs: dict[Path, bytes]) -> None:
    """Reference: the option in the message."""
    Path("loop").symlink_to("loop")
    with pytest.raises(NLTError, match=rf"^{option}: .* cannot be a path \(.*\); name another$"):
        values: dict[str, Any] = {option: [path] if option == "eval_collections" else path}
        check_outputs(["output_dir"], [_Options(**values)])


@dataclasses.dataclass
class _Options(DataArguments):
    """Options of a block that has an output of its own."""

    output_dir: str = "new"
