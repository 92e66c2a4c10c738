"""Data sets of the Hub: which files are fetched, which belong to a split, and what is said where there are none."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from hub_layouts import hotpotqa, mteb_lines, mteb_parquet, write_card, write_lines
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import httpx

from nlt_trainer.data import hub
from nlt_trainer.data.hub import HubDataset, fetch_dataset, format_of, read_rows
from nlt_trainer.errors import DataError, NLTError


def test_a_local_folder_stands_in_for_an_id(tmp_path: Path) -> None:
    """Reference: the configurations that README.md names."""
    found = fetch_dataset(str(hotpotqa(tmp_path / "hotpot")))
    assert (found.commit, found.folder) == (None, tmp_path / "hotpot")
    assert found.configs["distractor"] == {
        "train": ["distractor/train-*"],
        "validation": ["distractor/validation-*"],
    }


@pytest.mark.parametrize(
    ("data_files", "expected"),
    [
        ("a.jsonl", {"train": ["a.jsonl"]}),
        ("[a.jsonl, b/*]", {"train": ["a.jsonl", "b/*"]}),
        ("[{split: test, path: [x, y]}, {split: dev, path: z}]", {"test": ["x", "y"], "dev": ["z"]}),
    ],
)
def test_the_forms_of_data_files(tmp_path: Path, data_files: str, expected: dict[str, list[str]]) -> None:
    """Reference: the forms in the Hub's documentation of `configs`."""
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n- config_name: c\n  data_files: {data_files}\n---\n")
    assert fetch_dataset(str(tmp_path)).configs == {"c": expected}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["test.tsv", "test-hard.tsv", "test.old.tsv"], ["test.tsv"]),
        (["test-00000-of-00002.parquet", "test-00001-of-00002-1a2b.parquet", "test-hard.parquet"], [0, 1]),
        (["test/0.parquet", "test-hard.parquet"], ["test/0.parquet"]),
        (["test.jsonl.gz", "test-hard.jsonl.gz"], ["test.jsonl.gz"]),
        (["test-v2.jsonl", "dev.jsonl"], ["test-v2.jsonl"]),
    ],
)
def test_the_files_of_a_split_are_no_other_splits(tmp_path: Path, files: list[str], expected: list[Any]) -> None:
    """Reference: the names by hand; a longer name is taken only where no file has the split's own."""
    for name in files:
        (tmp_path / "qrels" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "qrels" / name).touch()
    found = fetch_dataset(str(tmp_path)).split_files("test", configs=("qrels",), inside="qrels")
    names = [path.relative_to(tmp_path / "qrels").as_posix() for path in found]
    assert names == [name if isinstance(name, str) else files[name] for name in expected]


class FakeHub:
    """Stands in for `snapshot_download`: copies nothing, keeps what it was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, list[dict[str, Any]]()

    def __call__(self, name: str, **options: Any) -> str:
        self.calls.append({"name": name, **options})
        return str(self.folder)


def test_only_the_files_of_the_configuration_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: the patterns of README.md; the second call asks for the commit that the first one found."""
    fake = FakeHub(hotpotqa(tmp_path / "abc123"))
    monkeypatch.setattr(hub, "snapshot_download", fake)
    found = fetch_dataset("hotpotqa/hotpot_qa", revision="main", configs=["distractor"])
    assert found.commit == "abc123"
    assert [call["revision"] for call in fake.calls] == ["main", "abc123"]
    assert [call["allow_patterns"] for call in fake.calls] == [
        ["README.md"],
        ["README.md", "distractor/train-*", "distractor/validation-*"],
    ]
    assert all(call["repo_type"] == "dataset" for call in fake.calls)
    fetch_dataset("hotpotqa/hotpot_qa")
    assert fake.calls[-1]["allow_patterns"] is None


def test_offline_says_what_to_place_where() -> None:
    """Reference: the remedy; the tests run with HF_HUB_OFFLINE=1, so this is the library's own error."""
    message = re.escape(
        "data set 'org/none' cannot be fetched: it is not in the Hub's cache, or not whole, and the Hub cannot be "
        "reached (HF_HUB_OFFLINE=1, or no network). Run `hf download org/none --repo-type dataset --revision abc "
        "--local-dir DIR` where there is a network, and give DIR in place of the id"
    )
    with pytest.raises(NLTError, match=message):
        fetch_dataset("org/none", revision="abc")
    with pytest.raises(NLTError, match=r"data set 'a/b/c' is neither a folder nor a Hub id \(org/name\); correct it"):
        fetch_dataset("a/b/c")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (GatedRepoError, "it is gated; accept its terms on https://huggingface.co/datasets/org/set, log in"),
        (RepositoryNotFoundError, "it is not on the Hub, or private and not yours to see; correct the id, or log in"),
        (RevisionNotFoundError, "has no revision 'abc'; https://huggingface.co/datasets/org/set/commits/main lists"),
        (OSError, "cannot be fetched: no space left"),
    ],
)
def test_refusals_of_the_hub_name_the_remedy(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception], message: str
) -> None:
    """Reference: the remedy in each message."""

    def refuse(*_: Any, **__: Any) -> str:
        if error is OSError:
            raise OSError("no space left")
        response = httpx.Response(404, request=httpx.Request("GET", "https://huggingface.co"))
        raise error("refused", response=response)  # type: ignore[call-arg]

    monkeypatch.setattr(hub, "snapshot_download", refuse)
    with pytest.raises(NLTError, match=re.escape(message)):
        fetch_dataset("org/set", revision="abc")


def test_files_of_a_part_and_of_a_split(tmp_path: Path) -> None:
    """Reference: the files that were written; a corpus that is divided into splits gives those that are wanted."""
    lines, parquet = fetch_dataset(str(mteb_lines(tmp_path / "a"))), fetch_dataset(str(mteb_parquet(tmp_path / "b")))
    assert [p.name for p in lines.part_files("corpus", ["test"])] == ["corpus.jsonl"]
    assert [p.name for p in parquet.part_files("corpus", ["test"])] == [
        "test-00000-of-00002.parquet",
        "test-00001-of-00002.parquet",
    ]
    configs = ("default", "qrels")
    assert [p.name for p in lines.split_files("train", configs=configs)] == ["train.jsonl"]
    with pytest.raises(DataError, match=r"no split 'dev' \(configuration 'default' has train, test; README.md names"):
        lines.split_files("dev", configs=configs)
    with pytest.raises(DataError, match=r"has no queries: no configuration 'queries' in README.md, no queries.jsonl"):
        HubDataset("x", None, tmp_path / "a" / "qrels", {}).part_files("queries", [])
    with pytest.raises(DataError, match=r"has no split 'train' \(no file train.\* in .*empty\)"):
        HubDataset("x", None, tmp_path / "empty", {}).split_files("train", configs=["default"])


def test_without_a_card_names_of_files_and_folders_decide(tmp_path: Path) -> None:
    """Reference: the files that were written; `trainer.jsonl` is no file of split train."""
    for name in (
        "data/train-00000-of-00001.jsonl",
        "train/0000.jsonl",
        "trainer.jsonl",
        "train.txt",
        "train.jsonl.gz",
    ):
        write_lines(tmp_path / name, [{"a": 1}])
    found = HubDataset("x", None, tmp_path, {}).split_files("train", configs=["default"])
    assert [str(p.relative_to(tmp_path)) for p in found] == [
        "data/train-00000-of-00001.jsonl",
        "train/0000.jsonl",
        "train.jsonl.gz",
    ]


def test_rows_of_each_format(tmp_path: Path) -> None:
    """Reference: the rows that were written; ids in tab-separated values stay text."""
    write_lines(tmp_path / "a.jsonl.gz", [{"_id": "007"}, {"_id": "8"}])
    lines = b"query-id\tcorpus-id\tscore\r\n007\t08\t1\r\n"
    (tmp_path / "b.tsv").write_bytes(lines)
    (tmp_path / "c.tsv.gz").write_bytes(gzip.compress(lines))
    judgement = {"query-id": "007", "corpus-id": "08", "score": "1"}
    rows = list(read_rows([tmp_path / name for name in ("a.jsonl.gz", "b.tsv", "c.tsv.gz")]))
    assert rows == [{"_id": "007"}, {"_id": "8"}, judgement, judgement]
    parquet = mteb_parquet(tmp_path / "p") / "queries" / "test-00000-of-00001.parquet"
    assert next(read_rows([parquet])) == {"id": "q1", "text": "which animal is the largest of all"}
    assert [format_of(Path(n)) for n in ("a.jsonl", "a.parquet", "a.csv", "README.md")] == [
        "jsonl",
        "parquet",
        None,
        None,
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"{}\n{", r"a.jsonl:2: not valid JSON"),
        ("a.parquet", b"PAR1 no", r"a.parquet: cannot be read as Parquet"),
        ("a.tsv", b"a\tb\n\xff\t1\n", r"a.tsv:2: not UTF-8"),
        (
            "a.tsv.gz",
            gzip.compress(b"a\tb\n1\t2\n", mtime=0)[:-9],
            r"a.tsv.gz: cannot be unpacked .*; fetch or pack it again",
        ),
        ("a.jsonl.gz", b"{}\n", r"a.jsonl.gz: cannot be unpacked \(Not a gzipped file"),
        ("a.tsv", b"a\tb\n1\n", r"a.tsv:2: has 1 fields under a header of 2"),
        ("a.tsv", b"a\tb\ta\n1\t2\t3\n", r"a.tsv:1: column 'a' stands twice in the first line; rename or remove one"),
        ("a.csv", b"a,b\n", r"a.csv: is neither .jsonl nor .parquet nor .tsv; convert it"),
    ],
)
def test_malformed_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    """Reference: place and remedy in each message."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_rows([tmp_path / name]))


def test_a_card_may_name_no_files(tmp_path: Path) -> None:
    write_card(tmp_path, {})
    assert fetch_dataset(str(tmp_path)).configs == {}


def test_a_damaged_page_of_a_parquet_file_is_named(tmp_path: Path) -> None:
    """Reference: the file in the message; its footer is whole, so that reading begins."""
    path = tmp_path / "a.parquet"
    Dataset.from_list([{"_id": f"d{i}", "text": f"text {i}"} for i in range(9)]).to_parquet(path)
    content = path.read_bytes()
    path.write_bytes(content[:4] + bytes(40) + content[44:])
    with pytest.raises(DataError, match=r"a.parquet: cannot be read as Parquet \(.*; fetch the data set again"):
        list(read_rows([path]))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("configs: [{data_files: a.jsonl}]", "KeyError: 'config_name'"),
        ("configs: [{config_name: c, data_files: [{path: x}]}]", "KeyError: 'split'"),
        ("configs: [3]", "TypeError"),
        ("configs: 3", "TypeError"),
        ("configs: " + "[" * 3000, "RecursionError"),
        ("configs: c: d", "ScannerError: mapping values are not allowed here"),
    ],
)
def test_a_damaged_card_is_named(tmp_path: Path, metadata: str, message: str) -> None:
    """Reference: file, reason and remedy in one line."""
    (tmp_path / "README.md").write_text(f"---\n{metadata}\n---\n")
    with pytest.raises(DataError, match=rf"README.md: its metadata cannot be read \({message}.*; corr") as caught:
        fetch_dataset(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pattern", ["../*", "a/../../b.jsonl", "/etc/*", "a**b"])
def test_a_card_names_no_files_outside_of_its_data_set(tmp_path: Path, pattern: str) -> None:
    """Reference: a file beside the data set, which must not be read."""
    (tmp_path / "b.jsonl").write_text("{}\n")
    (tmp_path / "set" / "a").mkdir(parents=True)
    write_card(tmp_path / "set", {"corpus": {"train": pattern}})
    with pytest.raises(DataError, match=r"README.md: pattern '.*'.*; correct its configs"):
        fetch_dataset(str(tmp_path / "set")).part_files("corpus", [])
