"""What `nlt mine` says of queries that share no word with the corpus, and of queries that are documents of it."""

from __future__ import annotations

import fcntl
import json
import os
import re
from pathlib import Path

import pytest

from nlt_trainer.data.beir import Document, Query, load_collection, write_collection
from nlt_trainer.errors import NLTError
from nlt_trainer.scripts import mine

ENGLISH = [Document(f"d{i}", "", f"the {word} of the river") for i, word in enumerate(("bank", "delta", "source"))]
RUSSIAN = Query("q1", "исток реки")


@pytest.mark.parametrize(
    ("miner", "said"),
    [
        ("bm25", "1 of 2 queries share no word with the corpus, .* in one language. Their candidates are random doc"),
        (
            "fused",
            "1 of 2 queries share no word with the corpus, .* in one language. Their candidates are the encoder",
        ),
        ("encoder", None),
    ],
)
def test_queries_that_match_nothing_are_counted(
    miner: str, said: str | None, tiny_encoder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reference: a query in another script than the corpus, and one that its words are in."""
    folder = write_collection(
        tmp_path / "c",
        corpus=ENGLISH,
        queries=[RUSSIAN, Query("q2", "the banks")],
        qrels={},
        stage="nlt build_collection",
    )
    flags = ["--collection", str(folder), "--candidates", str(tmp_path / "candidates.jsonl"), "--num_candidates", "2"]
    mine.main([*flags, "--encoder", str(tiny_encoder_folder), "--miner", miner, "--use_cpu", "true"])
    lines = capsys.readouterr().out.splitlines()
    assert f"2 queries with 2 candidates each ({miner})" in lines[0]
    assert len(lines) == 1 if said is None else re.match(said, lines[1])


def test_two_programs_do_not_share_a_folder_of_embeddings(tiny_encoder_folder: Path, tmp_path: Path) -> None:
    """Reference: a lock that another program holds; the first to end removes the folder. BM25 embeds nothing."""
    folder = write_collection(
        tmp_path / "c", corpus=ENGLISH, queries=[Query("q2", "the banks")], qrels={}, stage="nlt build_collection"
    )
    flags = ["--collection", str(folder), "--candidates", str(tmp_path / "candidates.jsonl"), "--num_candidates", "2"]
    flags += ["--encoder", str(tiny_encoder_folder), "--use_cpu", "true", "--miner"]
    embeddings = tmp_path / "candidates.jsonl.embeddings"
    embeddings.mkdir()
    other = os.open(embeddings, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(NLTError, match=r"another process is working in .*candidates.jsonl.embeddings; wait until"):
        mine.main([*flags, "fused"])
    mine.main([*flags, "bm25"])
    os.close(other)
    mine.main([*flags, "fused"])
    assert not embeddings.exists()


@pytest.mark.parametrize("miner", ["bm25", "encoder", "fused"])
def test_queries_that_are_documents_are_counted(
    miner: str, tiny_encoder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reference: of two queries one is the document with its id; the other two documents are its candidates."""
    queries = [Query("d0", ENGLISH[0].text), Query("q2", "the banks")]
    folder = write_collection(tmp_path / "c", corpus=ENGLISH, queries=queries, qrels={}, stage="nlt build_collection")
    candidates = tmp_path / "candidates.jsonl"
    flags = ["--collection", str(folder), "--candidates", str(candidates), "--num_candidates", "2"]
    mine.main([*flags, "--encoder", str(tiny_encoder_folder), "--miner", miner, "--use_cpu", "true"])
    said = (
        "1 of 2 queries have the id of a document, which is taken for the query itself and is none of its candidates"
    )
    assert capsys.readouterr().out.splitlines()[1].startswith(said)
    assert sorted(json.loads(candidates.read_text().splitlines()[0])["document_ids"]) == ["d1", "d2"]


@pytest.mark.parametrize(("grade", "num_candidates"), [("1", 3), ("0", 2)])
def test_mining_and_evaluation_take_the_same_documents_for_queries(
    grade: str, num_candidates: int, tmp_path: Path
) -> None:
    """Reference: all documents are candidates of a query that has the id of a document, if a split that mining does
    not name judges that document relevant to it, and all but this one if none does; so do evaluations on each split.
    """
    queries = [Query("d0", "another text"), Query("q2", "the banks")]
    judged = {"test": {"d0": {"d0": int(grade)}}, "dev": {"d0": {"d1": 1}}}
    folder = write_collection(
        tmp_path / "c", corpus=ENGLISH, queries=queries, qrels=judged, stage="nlt build_collection"
    )
    own = None if grade == "1" else "d0"
    for splits in ([], ["dev"], ["test"], None):
        assert load_collection(folder, splits=splits).own_document("d0") == own
    candidates = tmp_path / "candidates.jsonl"
    flags = ["--collection", str(folder), "--candidates", str(candidates), "--miner", "bm25", "--use_cpu", "true"]
    mine.main([*flags, "--num_candidates", str(num_candidates)])
    found = json.loads(candidates.read_text().splitlines()[0])["document_ids"]
    assert sorted(found) == [id for id in ("d0", "d1", "d2") if id != own]
