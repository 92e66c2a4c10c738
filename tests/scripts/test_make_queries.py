"""`nlt make_queries` from a corpus to a collection that later stages read, and bad input."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from nlt_trainer.data.beir import Document, load_collection, load_corpus, write_corpus
from nlt_trainer.errors import DataError, NLTError
from nlt_trainer.queries.prompts import KINDS
from nlt_trainer.queries.sources import document_of
from nlt_trainer.queries.writer import Job, QueryWriter
from nlt_trainer.scripts import build_corpus, make_encoder, make_queries, mine

COLOURS = ("red", "green", "blue", "yellow", "white", "black", "brown", "grey")
BIRDS = ("heron", "falcon", "robin", "magpie", "sparrow")


@pytest.fixture
def project(tmp_path: Path, tiny_llm_folder: Path, tiny_encoder_folder: Path) -> list[str]:
    """A corpus of 20 documents with two passages each, and the arguments that every call needs."""
    pairs = [(colour, bird) for colour in COLOURS[:4] for bird in BIRDS]
    (tmp_path / "passages").mkdir()
    write_corpus(
        tmp_path / "passages",
        (
            Document(
                f"{colour}-{bird}.md#{n}",
                "",
                f"The {colour} {bird} builds its nest number {n} here. Every {colour} {bird} hunts near water {n}. "
                "So it is.",
            )
            for colour, bird in pairs
            for n in range(2)
        ),
    )
    options = {
        "corpus": tmp_path / "passages",
        "collection": tmp_path / "made",
        "llm": tiny_llm_folder,
        "encoder": tiny_encoder_folder,
        "score_cache": tmp_path / "scores",
        "output_dir": tmp_path / "run",
        "use_cpu": "true",
        "held_out_share": "0.3",
        "num_queries": "30",
    }
    return [word for key, value in options.items() for word in (f"--{key}", str(value))]


def test_the_collection_is_replaced_by_no_other_stage(
    project: list[str], tmp_path: Path, tiny_llm_folder: Path
) -> None:
    """Reference: the files that make_queries has left, after stages whose output names the same folder."""
    make_queries.main(project)
    made = tmp_path / "made"
    before = {path: path.read_bytes() for path in made.rglob("*") if path.is_file()}
    with pytest.raises(
        NLTError, match="was written by nlt make_queries, not by nlt build_corpus; name another folder"
    ):
        build_corpus.main([f"--documents={tmp_path / 'passages'}", f"--corpus={made}"])
    with pytest.raises(
        NLTError, match="was written by nlt make_queries, not by nlt make_encoder; name another folder"
    ):
        make_encoder.main([f"--llm={tiny_llm_folder}", f"--encoder={made}", "--use_cpu=true"])
    assert {path: path.read_bytes() for path in made.rglob("*") if path.is_file()} == before
    make_queries.main(project)


def test_cut_queries_make_a_collection_that_mine_reads(
    project: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reference: the corpus that was given, and the files that each stage promises."""
    make_queries.main(project)
    made, given = load_collection(tmp_path / "made"), load_corpus(tmp_path / "passages")
    assert list(made.corpus) == list(given)
    assert {split: len(judged) for split, judged in made.qrels.items()} == {"train": 15, "held_out": 15}
    sides = [{document_of(i) for grades in judged.values() for i in grades} for judged in made.qrels.values()]
    assert sides[0].isdisjoint(sides[1])
    for query in made.queries.values():
        assert not any(query.text in document.text for document in made.corpus.values())
    assert "made: 40 passages, 30 queries (sentence 30); " in capsys.readouterr().out
    candidates = tmp_path / "candidates.jsonl"
    mine.main(["--collection", str(tmp_path / "made"), "--train_split", "train", "--candidates", str(candidates)])
    assert len(candidates.read_text().splitlines()) == 15


def scripted(self: QueryWriter, jobs: Sequence[Job]) -> list[str]:
    """Questions on what the passage is about, as a good LLM would write them."""
    return [f" {job.kind} about {' '.join(job.passage.text.split()[1:3])} {job.passage.id[-1]}\n" for job in jobs]


@pytest.mark.parametrize("miner", ["bm25", "fused"])
def test_written_queries_lead_back(
    project: list[str],
    tmp_path: Path,
    miner: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Reference: the corpus, which stays as it was; the counts that are told."""
    monkeypatch.setattr(QueryWriter, "write", scripted)
    monkeypatch.setattr("nlt_trainer.assembly.queries.returns", lambda candidates, *_, **__: [True] * len(candidates))
    make_queries.main([*project, "--kind", "llm", "--miner", miner])
    made = load_collection(tmp_path / "made")
    assert made.corpus == load_corpus(tmp_path / "passages")
    assert {query_id.partition(":")[0] for query_id in made.queries} == set(KINDS)
    assert len(made.queries) == 30
    assert "question: " in capsys.readouterr().out
    assert not (tmp_path / "made.embeddings").exists()


def test_a_tiny_llm_writes_nothing_that_is_of_use_and_both_still_has_what_is_cut(
    project: list[str], tiny_llm_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: half of the queries are cut; the LLM is really read, and its texts are on the disk."""
    monkeypatch.setattr("nlt_trainer.lm.frozen_lm.context_length", lambda config, name: 4096)
    make_queries.main([*project, "--kind", "both", "--num_queries", "40", "--writing_batch", "64"])
    made = load_collection(tmp_path / "made")
    assert sum(query_id.startswith("sentence:") for query_id in made.queries) == 20
    assert len((tmp_path / "made.written.jsonl").read_text().splitlines()) == 160
    with pytest.raises(NLTError, match=r"queries could be made"):
        make_queries.main([*project, "--kind", "llm"])


def test_a_written_title_stands_beside_a_cut_heading(
    project: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: the number that is wanted; some passages give a query of each."""
    monkeypatch.setattr(QueryWriter, "write", scripted)
    monkeypatch.setattr("nlt_trainer.assembly.queries.returns", lambda candidates, *_, **__: [True] * len(candidates))
    write_corpus(
        tmp_path / "passages",
        (
            Document(f"{c}-{b}", f"Nests of {c} {b} birds", f"Its {c} {b} nest is high.")
            for c in COLOURS
            for b in BIRDS
        ),
    )
    make_queries.main([*project, "--kind", "both", "--miner", "bm25", "--num_queries", "40"])
    made = load_collection(tmp_path / "made").queries
    cut = {query_id.partition(":")[2] for query_id in made if query_id.startswith("heading:")}
    assert (len(made), len(cut)) == (40, 20)
    assert [query_id for query_id in made if query_id.startswith("title:") and query_id.partition(":")[2] in cut]


def test_titles_are_left_alone_where_that_is_wanted(project: list[str], tmp_path: Path) -> None:
    """Reference: passages with a title of their own and one sentence; without titles nothing can be cut."""
    write_corpus(
        tmp_path / "passages",
        (Document(f"{c}-{b}", f"Nests of {c} {b} birds", "They are high.") for c in COLOURS for b in BIRDS),
    )
    make_queries.main(project)
    assert all(query_id.startswith("heading:") for query_id in load_collection(tmp_path / "made").queries)
    with pytest.raises(NLTError, match=r"^0 queries could be made, of 0 usable passages.*let the LLM write .*both"):
        make_queries.main([*project, "--crop_titles", "false"])


def test_bad_input(project: list[str], tmp_path: Path) -> None:
    """Reference: place, value and remedy in the message; what is there stays."""
    corpus = str(tmp_path / "passages")
    for out in (corpus, str(tmp_path)):
        with pytest.raises(NLTError, match=r"would replace .*name another path for collection"):
            make_queries.main([*project, "--collection", out])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(NLTError, match="full is there already"):
        make_queries.main([*project, "--collection", str(tmp_path / "full")])
    for flag, value in (("num_queries", "0"), ("writing_batch", "0"), ("held_out_share", "1"), ("kind", "crops")):
        with pytest.raises(NLTError, match=f"{flag}:? is "):
            make_queries.main([*project, f"--{flag}", value])
    write_corpus(tmp_path / "passages", [Document("only", "", "One passage. It is short. So it is.")])
    with pytest.raises(DataError, match=r"corpus.jsonl: has one passage"):
        make_queries.main(project)
    with pytest.raises(DataError, match=r"none/corpus.jsonl: file not found"):
        make_queries.main([*project, "--corpus", str(tmp_path / "none")])
    assert not (tmp_path / "made").exists()
