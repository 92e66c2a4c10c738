"""`nlt adapt` with tiny models: what it leaves, that a second call repeats nothing, and how wrong input is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from sentence_transformers import SentenceTransformer

from nlt_trainer.adapt import collection, decision, pipeline
from nlt_trainer.adapt.length import Length
from nlt_trainer.adapt.pipeline import NO_GAIN
from nlt_trainer.assembly.training import forget_results
from nlt_trainer.data.beir import load_collection
from nlt_trainer.errors import NLTError
from nlt_trainer.report.query_changes import KEPT
from nlt_trainer.run.folder import Run
from nlt_trainer.scripts import adapt, evaluate, mine, score, train
from nlt_trainer.text_files import write_json

WORDS = "cat dog moon sea bee honey paris france run jump"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Sixty documents of four sentences, in files of two kinds, of which two are equal."""
    documents = tmp_path / "documents"
    documents.mkdir()
    words = WORDS.split()
    for i in range(60):
        sentences = [
            f"The {words[(i + k) % 10]} and the {words[(i * k + 3) % 10]} number {i} go {words[k]} together."
            for k in range(4)
        ]
        (documents / f"{i:02d}.{'md' if i % 2 else 'txt'}").write_text(" ".join(sentences))
    (documents / "copy.txt").write_text((documents / "00.txt").read_text())
    return documents


@pytest.fixture
def flags(tiny_llm_folder: Path, tiny_encoder_folder: Path, tmp_path: Path) -> list[str]:
    return [
        f"--encoder={tiny_encoder_folder}", f"--llm={tiny_llm_folder}", f"--output={tmp_path / 'out'}",
        "--num_candidates=3", "--max_document_tokens=8", "--train_max_length=8", "--use_cpu=true",
        "--disable_tqdm=true", "--per_device_train_batch_size=4",
    ]  # fmt: skip


def killed(*blocks: Any, **options: Any) -> None:
    raise KeyboardInterrupt


def embedding(encoder: Path | str) -> torch.Tensor:
    return SentenceTransformer(str(encoder)).encode("the cat", convert_to_tensor=True)


def test_documents_become_an_encoder_and_a_second_call_repeats_nothing(
    folder: Path, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tiny random models learn nothing, so the start is kept: against its own weights."""
    code = adapt.main([str(folder), *flags])
    out, printed = tmp_path / "out", capsys.readouterr().out
    decision = json.loads((out / "decision.json").read_text())
    rows = json.loads((out / "results.json").read_text())
    assert [row["name"] for row in rows if "rrf" not in row["name"]] == [
        "bm25", "start", "adapted", "start+bm25", "adapted+bm25",
    ]  # fmt: skip
    assert decision["sentence"] in printed
    assert decision["sentence"] in (out / "encoder" / "README.md").read_text()
    assert decision["sentence"] in (report := (out / "report.html").read_text())
    assert (KEPT in report) == (decision["kept"] == "start")
    assert code == {"start": NO_GAIN, "adapted": 0}[decision["kept"]]
    recipe = (out / "recipe.yaml").read_text()
    start = embedding(flags[0].partition("=")[2])
    assert torch.equal(start, embedding(out / "encoder")) == (decision["kept"] == "start")

    assert adapt.main([str(folder), *flags]) == code
    again = capsys.readouterr().out
    assert (printed.count("done before"), again.count("done before")) == (0, 8)
    assert (out / "recipe.yaml").read_text() == recipe
    adapt.main([str(folder), *flags, "--learning_rate=0.001"])
    assert capsys.readouterr().out.count("done before") == 5, "documents, queries, candidates, gains and length"
    mine.main(["--config", str(out / "recipe.yaml")])
    assert f"{out / 'candidates.jsonl'}: " in capsys.readouterr().out


def test_the_verdict_holds_for_the_encoder_in_the_folder(
    folder: Path,
    flags: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Against the start's weights, after single stages, a kill, and changed settings."""
    out, start = tmp_path / "out", embedding(flags[0].partition("=")[2])

    def again(*more: str) -> tuple[bool, int, list[str]]:
        """Whether the start is kept; how many stages and documents were done before; the rows of the table."""
        capsys.readouterr()
        assert adapt.main([str(folder), *flags, *more]) == NO_GAIN
        printed = capsys.readouterr().out
        table = [line for line in printed.splitlines() if line.startswith("| ")]
        return torch.equal(start, embedding(out / "encoder")), printed.count("done before"), table

    kept, _, table = again()
    assert kept
    evaluate.main(["--config", str(out / "recipe.yaml")])
    assert [row.name for row in Run(out).results] == ["bm25", "start"], "the encoder is the start"
    assert again() == (True, 8, table)

    Run(out).decision_file.unlink()
    assert again() == (True, 7, table), "and the steps: the trained encoder is compared, not the start in its place"

    train.main(["--config", str(out / "recipe.yaml")])
    assert "decision.json was about another encoder and is removed" in capsys.readouterr().out
    assert not torch.equal(start, embedding(out / "encoder"))
    assert again() == (True, 6, table)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pipeline, "train", killed)
        again("--learning_rate=0.001")
    assert again()[:2] == (True, 5)

    assert again("--batch_tokens=512", "--encoder_micro_batch_size=2", "--logging_steps=5")[:2] == (True, 8)
    (checkpoint,) = Run(out).checkpoints().values()
    trained = (checkpoint / "trainer_state.json").stat().st_mtime_ns
    assert again("--average_with_start=0.5")[:2] == (True, 5)
    assert (checkpoint / "trainer_state.json").stat().st_mtime_ns == trained, "the steps are not done again"
    assert json.loads((out / "training.json").read_text())["average"]["share"] == 0.5

    best = ["--eval_strategy=steps", "--save_strategy=steps", "--eval_steps=2", "--save_steps=2"]
    monkeypatch.setattr(collection, "LEAST_HELD_OUT", 10)  # half of the held-out queries choose, the others decide
    again("--load_best_model_at_end=true", *best)
    assert json.loads((out / "training.json").read_text())["best_step"] % 2 == 0
    recipe = yaml.safe_load((out / "recipe.yaml").read_text())["trainer"]
    assert recipe.items() >= {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2}.items()


def test_an_encoder_reads_as_much_of_a_passage_as_was_chosen(
    folder: Path,
    flags: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the saved encoder, the recipe and the table, whichever encoder is kept; unless the command says how much.

    Single stages, which read the recipe, go on with the same candidates as the command.
    """
    monkeypatch.setattr(pipeline, "best_length", lambda tried: Length(6, 0.5, 0.01))
    own = SentenceTransformer(flags[0].partition("=")[2]).max_seq_length
    out = tmp_path / "out"
    for enough in (2.0, -2.0):
        monkeypatch.setattr(decision, "ENOUGH", enough)
        monkeypatch.setattr(decision, "SURE", 1.0)
        monkeypatch.setattr(pipeline, "ENOUGH", enough)
        assert adapt.main([str(folder), *flags]) == (NO_GAIN if enough > 0 else 0)
        assert SentenceTransformer(str(out / "encoder")).max_seq_length == 6
    assert yaml.safe_load((out / "recipe.yaml").read_text())["model"]["max_seq_length"] == 6
    assert [row["name"] for row in json.loads((out / "results.json").read_text())][:4] == [
        "bm25", f"start ({own} tokens)", "start", "adapted",
    ]  # fmt: skip
    printed = capsys.readouterr().out
    assert "reads 6 tokens; --max_seq_length" in printed
    as_it_was = json.loads((out / "results.json").read_text())[1]["ndcg_at_10"]
    assert f"both read 6 tokens of a passage, and with its own {own} the start has {as_it_was:.3f}" in printed
    adapt.main([str(folder), *flags])
    assert capsys.readouterr().out.count("done before") == 8
    assert yaml.safe_load((out / "recipe.yaml").read_text())["model"]["max_seq_length"] == 6
    candidates = (out / "candidates.jsonl").read_bytes()
    for stage in (mine, score, train):
        stage.main(["--config", str(out / "recipe.yaml")])
    assert (out / "candidates.jsonl").read_bytes() == candidates
    adapt.main([str(folder), *flags, "--learning_rate=0.001"])
    capsys.readouterr()
    (out / "length.json").write_text("{")
    adapt.main([str(folder), *flags, "--learning_rate=0.001"])
    assert capsys.readouterr().out.count("done before") == 3, "documents, queries; and the steps"
    assert (out / "candidates.jsonl").read_bytes() == candidates
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pipeline, "mine", killed)
        adapt.main([str(folder), *flags, "--encoder_prompts={query: a}"])
    assert "max_seq_length" not in yaml.safe_load((out / "recipe.yaml").read_text())["model"], "that of another start"
    adapt.main([str(folder), *flags, f"--max_seq_length={own}"])
    assert SentenceTransformer(str(out / "encoder")).max_seq_length == own


def test_a_table_of_embeddings_is_adapted_with_the_defaults(
    folder: Path,
    flags: list[str],
    tmp_path: Path,
    tiny_static_encoder: SentenceTransformer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Against the recipe: training does not cut the texts, although the defaults of the command name a length."""
    tiny_static_encoder.save_pretrained(str(tmp_path / "table"))
    given = [flag for flag in flags if not flag.startswith("--train_max_length")]
    assert adapt.main([str(folder), *given, f"--encoder={tmp_path / 'table'}"]) in (0, NO_GAIN)
    assert "reads whole texts in training" in capsys.readouterr().out
    recipe = yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())
    assert not {"train_max_length", "max_seq_length"} & recipe["model"].keys()


def test_queries_of_people_are_judged_by_the_llm(
    folder: Path, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Against the file: every query is in one of two splits, and each held-out judgement names a passage.

    The file lies among the documents and gives no passage.
    """
    queries, words, collection = folder / "queries.txt", WORDS.split(), tmp_path / "out" / "collection"
    queries.write_text("\n".join(f"{a} {b} {c}" for a in words for b in words for c in words if a < b < c) + "\n\n")
    command = [str(folder), *flags, f"--queries={queries}"]
    with pytest.raises(NLTError, match=r"the LLM can judge \d+ of 20 held-out queries"):
        adapt.main([*command, "--held_out=20"])
    assert not Run(tmp_path / "out").settings_file.is_file(), "refused before training"
    assert f"left out: {queries}, which has the queries" in capsys.readouterr().out
    adapt.main([*command, "--held_out=40"])
    found = load_collection(collection)
    held_out, train = found.qrels["held_out"], found.qrels["train"]
    assert not [id for id in found.corpus if id.startswith("queries")]
    assert (len(found.queries), len(held_out)) == (120, 30)
    assert held_out.keys() == found.queries.keys() - train.keys()
    grades = [[*row.values()] for row in held_out.values()]
    assert [1] in grades, "a gain above 0"
    assert all(row in ([0], [1]) for row in grades)
    shutil.rmtree(collection)
    adapt.main([*command, "--held_out=40"])
    assert load_collection(collection).qrels == found.qrels, "judged again"


def test_nothing_is_left_of_an_adapter_that_was_not_kept(
    folder: Path,
    flags: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Against the folder: an adapter beside the start would be exported as if it belonged to it."""
    lora = "--lora={r: 2, target_modules: all-linear}"
    for enough, left in ((-2.0, True), (2.0, False)):
        for module in (decision, pipeline):
            monkeypatch.setattr(module, "ENOUGH", enough)
            monkeypatch.setattr(module, "SURE", 1.0)
        rate = 1e-3 if left else 2e-3
        assert adapt.main([str(folder), *flags, lora, f"--learning_rate={rate}"]) == (0 if left else NO_GAIN)
        assert Run(tmp_path / "out").adapter.exists() == left
    assert "is removed" not in capsys.readouterr().out, "the decision is made again by the same command"


def test_what_makes_the_queries_depends_on_the_documents(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: documents of both kinds, and the option; a sentence that is cut out of code is code."""
    asked = []
    monkeypatch.setattr(pipeline, "make_queries", lambda *given, held_out: asked.append((given[-1].kind, held_out)))
    monkeypatch.setattr(pipeline, "check_made", killed)
    code, prose = tmp_path / "code", tmp_path / "prose"
    for folder, text in (
        (code, "def area{}(a, b):\n    c = a * b\n    return c"),
        (prose, "Owls hunt {} mice at night."),
    ):
        folder.mkdir()
        for i in range(30):
            (folder / f"{i}.txt").write_text(text.format(i))

    def made(folder: Path, *more: str) -> tuple[str, int]:
        with pytest.raises(KeyboardInterrupt):
            adapt.main([str(folder), *flags, f"--output={tmp_path / 'out' / folder.name}", *more])
        return asked[-1]

    assert made(prose) == ("crop", 240)
    assert "Queries are cut out of passages" in capsys.readouterr().out
    assert made(code) == ("llm", 120)
    assert "Most passages are source code, so the LLM writes the queries" in capsys.readouterr().out
    assert made(code, "--queries=crop", "--held_out=50") == ("crop", 50)
    assert made(prose, "--queries=llm", "--num_queries=200") == ("llm", 50)
    assert "passages are" not in capsys.readouterr().out


def test_an_encoder_of_other_documents_is_not_replaced(folder: Path, flags: list[str], tmp_path: Path) -> None:
    """The documents are those that the last line's search reads, and they stay as they were."""
    adapt.main([str(folder), *flags])
    other, corpus = tmp_path / "other", (tmp_path / "out" / "documents" / "corpus.jsonl").read_bytes()
    shutil.copytree(folder, other)
    with pytest.raises(NLTError, match=r"out holds what was made of .*documents, and documents is .*other; name anot"):
        adapt.main([str(other), *flags])
    assert (tmp_path / "out" / "documents" / "corpus.jsonl").read_bytes() == corpus


def test_a_decision_is_forgotten_with_the_encoder_that_it_was_about(tmp_path: Path) -> None:
    """Against the file, which a card would quote for another encoder."""
    run = Run(tmp_path)
    run.encoder.mkdir()
    write_json(run.decision_file, {"sentence": "WIN"})
    forget_results(run)
    assert run.decision is None


def test_wrong_input_is_named(folder: Path, flags: list[str], tmp_path: Path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    for number in range(5):
        shutil.copy(folder / f"{number:02d}.{'md' if number % 2 else 'txt'}", few)
    cases = {
        "queries is 'none.txt', and there is no such file": [str(folder), *flags, "--queries=none.txt"],
        "lies in .*, where it would be read": [str(folder), *flags, f"--output={folder / 'out'}"],
        "num_queries is 0; give at least 1": [str(folder), *flags, "--num_queries=0"],
        "held_out is 0; give at least 1": [str(folder), *flags, "--held_out=0"],
        "holds no query": [str(folder), *flags, f"--queries={empty}"],
        "held_out is 3": [str(folder), *flags, "--held_out=3"],
        "collection is set": [str(folder), *flags, "--collection=c"],
        "19 made queries could be held out": [str(folder), *flags, "--num_queries=39", "--held_out=30"],
        "1 passage, .* longer texts are cut into several": [str(folder / "00.txt"), *flags],
        r"5 queries could be made.* let the LLM write queries as well \(both\)": [str(few), *flags],
        "documents is not set": flags,
        "nowhere": [str(tmp_path / "nowhere"), *flags],
        "max_seq_length is 999": [str(folder), *flags, "--max_seq_length=999"],
        "llm_lora: objective 'likelihood_gain' trains no LLM": [str(folder), *flags, "--llm_lora={r: 2}"],
    }
    for message, words in cases.items():
        with pytest.raises(NLTError, match=message):
            adapt.main(words)
    assert not list(tmp_path.rglob("gains.jsonl"))
