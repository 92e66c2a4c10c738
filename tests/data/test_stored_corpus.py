"""A corpus on disk against the dict of the same file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from nlt_trainer.data import beir, stored_corpus
from nlt_trainer.data.beir import Document, load_corpus
from nlt_trainer.data.stored_corpus import StoredCorpus
from nlt_trainer.errors import DataError
from nlt_trainer.files import cache_folder

ROWS: list[Mapping[str, str | None]] = [
    {"_id": "d3", "title": "Größe", "text": "größer\nals"},
    {"_id": "1", "title": " ", "text": "a\u2028b \U0001f600"},
    {"_id": "é", "text": None, "title": "Four"},
    {"_id": "e", "text": " "},
    *({"_id": f"n{i}", "text": f"text {i}"} for i in range(20)),
]


@pytest.fixture(params=["hashes that differ", "hashes that are often the same"])
def on_disk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every corpus on disk, in batches of seven documents."""
    monkeypatch.setattr(stored_corpus, "BATCH", 7)
    if "same" in request.param:
        monkeypatch.setattr(stored_corpus, "id_hash", lambda document_id: len(document_id) % 4 << 62)
    monkeypatch.setattr(beir, "STORED_FROM", 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a corpus of `ROWS`, in which there is a blank line, too."""
    write(tmp_path, ROWS)
    return tmp_path


def write(folder: Path, rows: Sequence[Mapping[str, str | None]]) -> None:
    (folder / "corpus.jsonl").write_text("\n" + "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def both(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """What reading gives in memory and then on disk: the corpus or the text of the error."""
    for limit in (1 << 30, 0):
        monkeypatch.setattr(beir, "STORED_FROM", limit)
        try:
            yield load_corpus(folder)
        except DataError as error:
            yield str(error)


def test_the_mapping_is_that_of_the_dict(
    on_disk: None, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Reference: the dict: order, documents, ids, rows, what is missing, and the warning of an empty document."""
    expected, found = both(folder, monkeypatch)
    assert isinstance(expected, dict)
    assert isinstance(found, StoredCorpus)
    assert found == expected
    assert list(found) == list(expected)
    assert list(found.items()) == list(expected.items())
    assert list(found.values()) == list(found.values()) == list(expected.values())
    assert [found.rows[key] for key in expected] == list(range(len(expected)))
    assert found.rows.ids[3:9] == list(expected)[3:9]
    assert found.rows.ids[-1] == "n19"
    assert "n0" in found
    assert "n20" not in found
    assert {"n1", "gone"} - found.keys() == {"gone"}
    for missing in ("", "D3", "n20"):
        with pytest.raises(KeyError, match=f"'{missing}'"):
            found[missing]
    assert len(caplog.messages) == 2
    assert caplog.messages[0] == caplog.messages[1]


@pytest.mark.parametrize(
    "row",
    [
        {"_id": "n7", "text": "again"},
        {"_id": "", "text": "x"},
        {"_id": "d9", "title": "x"},
    ],
)
def test_errors_are_those_of_the_dict(
    row: Mapping[str, str | None], on_disk: None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: the error of a corpus in memory with file and line; nothing is kept of a corpus with an error."""
    write(folder, [*ROWS, row, {"_id": "n3", "text": "again, later"}])
    expected, found = both(folder, monkeypatch)
    assert isinstance(expected, str)
    assert "corpus.jsonl:26: " in expected
    assert found == expected
    assert [path for path in (cache_folder() / "corpora").iterdir() if path.is_dir()] == []


def test_a_corpus_without_a_document_or_text_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: the errors of a corpus in memory."""
    none: list[Mapping[str, str | None]] = []
    for rows in (none, [{"_id": "a", "text": ""}]):
        write(folder, rows)
        expected, found = both(folder, monkeypatch)
        assert isinstance(expected, str)
        assert found == expected


def test_a_corpus_is_read_once(on_disk: None, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: the lines are not parsed again; a changed file is another corpus."""
    first = load_corpus(folder)
    with monkeypatch.context() as patched:
        patched.setattr(beir, "_new_id", None)
        assert load_corpus(folder) == first
    write(folder, [*ROWS, {"_id": "new", "text": "x"}])
    assert load_corpus(folder)["new"] == Document("new", "", "x")
    assert "new" not in first


@pytest.mark.parametrize("name", [stored_corpus.DOCUMENTS, stored_corpus.HASHES, "record.json"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_file_is_made_again(
    name: str, damage: str, on_disk: None, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Reference: the corpus before the damage, and the folder in the warning."""
    expected = dict(load_corpus(folder))
    (path,) = (cache_folder() / "corpora").glob(f"*/{name}")
    content = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(content[:-9] if damage == "cut" else content[:70] + b"~" + content[71:])
    assert load_corpus(folder) == expected
    assert f"{path.parent} is damaged, and is made again" in caplog.text
    assert path.read_bytes() == content
