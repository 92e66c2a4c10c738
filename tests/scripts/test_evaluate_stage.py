"""`nlt evaluate` with tasks, checkpoints and run files: rows, files, comparisons, going on after a kill, processes."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from trec_runs import write_run

from nlt_trainer.arguments.model import ModelArguments
from nlt_trainer.assembly import evaluation
from nlt_trainer.assembly.evaluation import checkpoints_of
from nlt_trainer.data.beir import Document, Query, write_collection
from nlt_trainer.errors import NLTError
from nlt_trainer.evaluation.evaluator import evaluate_bm25, evaluate_encoder
from nlt_trainer.evaluation.systems import Checkpoint
from nlt_trainer.run.folder import REPORT_KEYS, Run
from nlt_trainer.scripts import evaluate
from nlt_trainer.text_files import read_json, read_jsonl, write_json

WORDS = "amber birch cedar dune ember fjord grove heath islet jetty knoll larch marsh notch oasis plain".split()
ALL = ("--fused", "true", "--truncate_dims", "16", "--quantisations", "int8", "binary")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """60 documents of random words, 12 queries for dev and 12 for test."""
    rng = np.random.default_rng(0)
    corpus = [Document(f"d{i}", "", " ".join(rng.choice(WORDS, size=6))) for i in range(60)]
    queries = [Query(f"q{i}", " ".join(rng.choice(WORDS, size=3, replace=False))) for i in range(24)]
    grades = [{q.id: {f"d{d}": 1 for d in rng.choice(60, 6, replace=False)} for q in queries[i::2]} for i in (0, 1)]
    qrels = {"dev": grades[0], "test": grades[1]}
    return write_collection(
        tmp_path / "random", corpus=corpus, queries=queries, qrels=qrels, stage="nlt build_collection"
    )


@pytest.fixture
def other(tiny_encoder_folder: Path, tmp_path: Path) -> Path:
    """An encoder with other weights than `tiny_encoder_folder`."""
    encoder = SentenceTransformer(str(tiny_encoder_folder), device="cpu")
    torch.manual_seed(1)
    with torch.no_grad():
        for weights in encoder.parameters():
            weights.add_(torch.randn_like(weights) * weights.std())
    encoder.save_pretrained(str(tmp_path / "other"))
    return tmp_path / "other"


@pytest.fixture
def run(folder: Path, tiny_encoder_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """Call the stage; returns its output folder."""

    def call(*arguments: str, output: str = "out", tasks: tuple[str, ...] = ("test",)) -> Path:
        named = [f"{folder}:{split}" for split in tasks]
        fixed = ["--output_dir", str(tmp_path / output), "--evaluation_cache", str(tmp_path / "cache")]
        base = ["--checkpoints", str(tiny_encoder_folder), *arguments]
        evaluate.main(["--use_cpu", "true", "--disable_tqdm", "true", *fixed, "--tasks", *named, *base])
        return tmp_path / output

    return call


def rows(output: Path) -> list[dict[str, Any]]:
    return json.loads((output / "results.json").read_text())


def test_rows_of_several_checkpoints_and_tasks(
    run: Callable[..., Path], folder: Path, tiny_encoder_folder: Path, other: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reference: `evaluate_bm25` and `evaluate_encoder` on each split; files by their documentation."""
    output = run(str(other), "--fused", "true", tasks=("dev", "test"))
    first, second = str(tiny_encoder_folder), str(other)
    names = ["bm25", first, f"{first} + bm25", second, f"{second} + bm25"]
    found = rows(output)
    assert [(row["split"], row["name"]) for row in found] == [(s, name) for s in ("dev", "test") for name in names]
    for row in found:
        if row["name"] in (first, second):
            expected = evaluate_encoder(SentenceTransformer(row["name"], device="cpu"), folder, split=row["split"])
        elif row["name"] == "bm25":
            expected = evaluate_bm25(folder, split=row["split"])
        else:
            continue
        assert {name: row[name] for name in expected} == pytest.approx(expected, abs=1e-5)
        assert row["ndcg_at_10_low"] < row["ndcg_at_10"] < row["ndcg_at_10_high"]
    printed = capsys.readouterr().out
    assert f"[10/10] random test: {second} + bm25 is done\n" in printed
    table = (output / "evaluation" / "table.md").read_text().strip()
    assert table in printed
    assert "nDCG@10" not in printed[: printed.index(table)]
    last = printed.splitlines()[-2:]
    for line, split in zip(last, ("dev", "test"), strict=True):
        assert line.startswith(f"{second}: On random {split} its nDCG@10 is ")
        assert f" {first}, " in line
    assert len(list((output / "evaluation" / "mteb").rglob("*.json"))) == 10


def test_comparisons_and_values_of_every_query(run: Callable[..., Path], other: Path) -> None:
    """Reference: differences of the exported values themselves."""
    output = run(str(other), "--against", "bm25") / "evaluation"
    queries = [row for _, row in read_jsonl(output / "queries.jsonl")]
    assert len({row["query_id"] for row in queries}) == len(queries) == 12
    comparisons = read_json(output / "comparisons.json", kind=list)
    assert [c["against"] for c in comparisons] == ["bm25"] * 2
    for comparison in comparisons:
        name = comparison["system"]
        differences = [row["difference"][name] for row in queries]
        expected = [row["systems"][name]["ndcg_at_10"] - row["systems"]["bm25"]["ndcg_at_10"] for row in queries]
        assert differences == pytest.approx(expected)
        assert comparison["difference"] == pytest.approx(np.mean(differences))
        assert comparison["better"] == sum(d > 0 for d in differences)
        assert comparison["worse"] == sum(d < 0 for d in differences)
        assert comparison["low"] <= comparison["difference"] <= comparison["high"]
        assert 0 < comparison["p"] <= 1


def test_smaller_embeddings_are_rows_and_cost_no_second_embedding(
    run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: every size in every precision; texts of the corpus and the queries are embedded once."""
    seen: list[str] = []
    encode = SentenceTransformer.encode

    def record(self: SentenceTransformer, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        seen.extend(inputs)
        return encode(self, inputs, *args, **kwargs)

    monkeypatch.setattr(SentenceTransformer, "encode", record)
    found = {row["name"]: row["ndcg_at_10"] for row in rows(run(*ALL))}
    assert len(found) == 1 + 1 + 1 + 5
    assert len(seen) - seen.count("a") == 60 + 12, "a short text finds out how many tokens the encoder can read"
    name = next(key for key in found if key.endswith(", int8") and "dimensions" not in key).removesuffix(", int8")
    assert found[f"{name}, int8"] == pytest.approx(found[name], abs=0.05)
    assert {f"{name}, binary", f"{name}, 16 dimensions", f"{name}, 16 dimensions, binary"} <= set(found)


def test_a_killed_evaluation_goes_on(
    run: Callable[..., Path],
    other: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Reference: the table of a run that was not stopped; finished cells are not scored again; changed weights are."""
    expected = rows(run(str(other), "--fused", "true", "--evaluation_cache", str(tmp_path / "elsewhere")))
    scored: list[str] = []
    score = evaluation.score

    def killed(entry: Any, rankings: Any) -> Any:
        scored.append(entry.title)
        if len(scored) == 3:
            raise KeyboardInterrupt
        return score(entry, rankings)

    monkeypatch.setattr(evaluation, "score", killed)
    with pytest.raises(KeyboardInterrupt):
        run(str(other), "--fused", "true")
    assert rows(run(str(other), "--fused", "true")) == expected
    assert len(scored) == 3 + 3
    assert rows(run(str(other), "--fused", "true")) == expected
    assert len(scored) == 6
    assert capsys.readouterr().out.count(", kept") == 2 + 5
    weights = next(other.rglob("model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    run(str(other), "--fused", "true")
    assert len(scored) == 8


def test_a_run_file_is_a_row(run: Callable[..., Path], tmp_path: Path, folder: Path) -> None:
    """Reference: all relevant documents first is 1; a run needs one task."""
    qrels = [line.split("\t") for line in (folder / "qrels" / "test.tsv").read_text().splitlines()[1:]]
    perfect: dict[str, dict[str, float]] = {}
    for query_id, document_id, _ in qrels:
        perfect.setdefault(query_id, {})[document_id] = 1.0
    write_run(tmp_path / "perfect.run", perfect, tag="x")
    found = rows(run("--run_files", str(tmp_path / "perfect.run")))
    assert [(row["name"], row["ndcg_at_10"]) for row in found][2] == (str(tmp_path / "perfect.run"), 1)
    with pytest.raises(NLTError, match="run_files belong to one task, and there are 2"):
        run("--run_files", str(tmp_path / "perfect.run"), tasks=("dev", "test"))


def test_results_of_an_earlier_evaluation_do_not_stand_beside_those_of_the_last(run: Callable[..., Path]) -> None:
    """Reference: a file of mteb for each row and task of the last call."""
    run(tasks=("dev", "test"))
    files = [path.name for path in (run(tasks=("dev",)) / "evaluation" / "mteb").rglob("*.json")]
    assert files == ["random_dev.json"] * 2


def test_two_programs_do_not_evaluate_into_one_folder(run: Callable[..., Path], tmp_path: Path) -> None:
    """Reference: a lock that another program holds; its results would be mixed with these."""
    (tmp_path / "out").mkdir()
    other = os.open(tmp_path / "out", os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(NLTError, match=r"another process is working in .*out; wait until it has ended, or name"):
        run()
    os.close(other)
    assert (run() / "results.json").is_file()


def test_embeddings_can_be_bounded(run: Callable[..., Path], tmp_path: Path) -> None:
    """Reference: the files that are left."""
    run()
    assert list((tmp_path / "cache" / "embeddings").rglob("*.npy"))
    run("--embedding_cache_gib", "0")
    assert not list((tmp_path / "cache" / "embeddings").rglob("*.npy"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--quantisations", "int4"), r"--quantisations: is \['int4'\], expected list\[one of int8, binary\]"),
        (("--truncate_dims", "64"), r"truncate_dims has 64, and the embeddings have 32 dimensions"),
        (("--truncate_dims", "0"), r"truncate_dims has 0; it must be at least 1"),
        (("--bm25_weights", "0.5", "1.5"), r"bm25_weights has 1.5; it must be between 0 .* and 1"),
        (("--encode_batch_size", "0"), r"encode_batch_size is 0; it must be at least 1"),
        (("half",), r"half has no finished encoder; run `nlt train` to its end, or name one of its checkpoints"),
        (("a/bm25", "a_bm25"), r"rows 'a/bm25' and 'a_bm25' would be one file"),
        (("--against", "bm52"), r"against is 'bm52'; did you mean 'bm25'\?"),
        (("bm25",), r"two rows would be called 'bm25'"),
        (("./nothing",), r"model './nothing': nothing does not exist"),
    ],
)
def test_wrong_input_is_refused(
    arguments: tuple[str, ...], message: str, run: Callable[..., Path], tiny_encoder_folder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Reference: value and remedy in each message."""
    monkeypatch.chdir(tmp_path)
    for name in ("bm25", "a/bm25", "a_bm25"):
        shutil.copytree(tiny_encoder_folder, tmp_path / name)
    write_json(tmp_path / "half" / "settings.json", {})
    with pytest.raises(NLTError, match=message):
        run(*arguments)


def test_a_corpus_of_one_document_is_evaluated(tmp_path: Path, tiny_encoder_folder: Path) -> None:
    """Reference: it is found, whatever size its embedding has, in a text of any length and script."""
    document = Document("d\u00fc \u6570", "", "Gr\u00f6\u00dfe \u6570\u636e \U0001f989 " * 5_000)
    qrels = {"test": {"q": {document.id: 1}}}
    folder = write_collection(
        tmp_path / "one", corpus=[document], queries=[Query("q", "\u6570")], qrels=qrels, stage="nlt build_collection"
    )
    base = ["--tasks", f"{folder}:test", "--checkpoints", str(tiny_encoder_folder), "--use_cpu", "true"]
    places = ["--output_dir", str(tmp_path / "out"), "--evaluation_cache", str(tmp_path / "cache")]
    evaluate.main([*base, *places, *ALL])
    assert [row["ndcg_at_10"] for row in rows(tmp_path / "out")][1:] == [1.0] * 7
    assert rows(tmp_path / "out")[1]["ndcg_at_10_low"] is None  # nothing to draw from


def test_the_start_is_that_of_the_run(tmp_path: Path) -> None:
    """Reference: the settings of the run; where the start was kept, it is the only encoder and has cost nothing."""
    run = Run(tmp_path / "run")
    model = vars(ModelArguments(encoder="org/start", max_seq_length=7))
    write_json(run.settings_file, {"model": model, "data": {}, "trainer": {}})
    write_json(run.training_file, dict.fromkeys(REPORT_KEYS, 3) | {"objective": "dream"})
    start, trained = checkpoints_of(run)
    assert (start.name, start.location, start.loading["max_seq_length"]) == ("start", "org/start", 7)
    assert (trained.name, trained.location, trained.cost["seed"]) == ("dream", str(run.encoder), 3)
    for kept, number, seed in (("adapted", 2, 3), ("start", 1, None)):
        write_json(run.decision_file, {"kept": kept})
        assert [found.name for found in checkpoints_of(Run(run.folder))] == ["start", "dream"][:number]
        assert Checkpoint.of_run("a", Run(run.folder)).cost.get("seed") == seed


def test_nothing_to_evaluate_is_refused(folder: Path, tmp_path: Path) -> None:
    """Reference: the remedy; neither a run nor a checkpoint."""
    with pytest.raises(NLTError, match=r"none has no finished encoder; run `nlt train` .* or name --checkpoints"):
        evaluate.main(["--tasks", f"{folder}:test", "--output_dir", str(tmp_path / "none"), "--use_cpu", "true"])


def test_two_processes_share_the_work(
    run: Callable[..., Path], folder: Path, tiny_encoder_folder: Path, tmp_path: Path
) -> None:
    """Reference: the rows of one process; each process embeds, one writes."""
    expected = rows(run(*ALL))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)),
        *("-m", "nlt_trainer.scripts.evaluate", "--use_cpu", "true", "--tasks", f"{folder}:test", *ALL),
        *("--checkpoints", str(tiny_encoder_folder), "--output_dir", str(tmp_path / "two")),
        *("--evaluation_cache", str(tmp_path / "shared")),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    for found, row in zip(rows(tmp_path / "two"), expected, strict=True):
        assert found == pytest.approx(row, abs=1e-6)
    assert done.stdout.count("[8/8]") == 1
