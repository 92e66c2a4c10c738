"""Releases, against a Hub on the loopback that the real client talks to."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import TOKEN, Fault, Hub, Repo, running_hub
from huggingface_hub import HfApi, constants

from nlt_trainer.errors import NLTError
from nlt_trainer.files import atomic_folder
from nlt_trainer.release.hub import Release, folder_files, listing, pull, push, size

LARGE = bytes(range(256)) * 4096
"""A megabyte."""
FILES: dict[str, Path | bytes] = {
    "README.md": b"---\ntags: [a]\n---\n# card\n",
    "config.json": b"{}",
    "1_Pooling/config.json": b'{"a": 1}',
    "model.safetensors": LARGE,
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub that the client of this process may talk to, without xet, which this Hub has not."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with running_hub() as running:
        yield running


@pytest.fixture
def api(hub: Hub) -> HfApi:
    return HfApi(endpoint=hub.url, token=TOKEN)


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds of waiting, which nobody waits."""
    asked: list[float] = []
    monkeypatch.setattr(time, "sleep", asked.append)
    return asked


def test_a_release_is_one_private_tagged_commit_and_comes_back(hub: Hub, api: HfApi, tmp_path: Path) -> None:
    """Reference: the files that were sent, byte by byte, and the Hub's own state."""
    release = push(api, "org/name", FILES)
    assert release == Release("org/name", "v1", private=True, is_new=True)
    repo = hub.repos["models/org/name"]
    assert (repo.private, len(repo.commits), repo.tags) == (True, 2, {"v1": repo.head})
    assert {k: v for k, v in repo.files.items() if k != ".gitattributes"} == FILES
    commit, files = listing(api, "org/name", revision="v1")
    assert commit == repo.head
    assert files == {name: len(content) for name, content in repo.files.items()}
    assert pull(api, "org/name", tmp_path / "pulled", revision="v1") == commit
    assert {name: (tmp_path / "pulled" / name).read_bytes() for name in folder_files(tmp_path / "pulled")} == FILES
    assert [path.name for path in tmp_path.iterdir()] == ["pulled"]


def test_a_release_without_news_changes_nothing(hub: Hub, api: HfApi) -> None:
    """Reference: the commits, the tags and the uploads of the first time."""
    push(api, "org/name", FILES)
    uploads = len(hub.requests("PUT", "/lfs/"))
    assert push(api, "org/name", FILES) == Release("org/name", "v1", private=True, is_new=False)
    repo = hub.repos["models/org/name"]
    assert (len(repo.commits), list(repo.tags), len(hub.requests("PUT", "/lfs/"))) == (2, ["v1"], uploads)


def test_an_update_gets_the_next_tag_and_leaves_nothing_that_misleads(hub: Hub, api: HfApi, tmp_path: Path) -> None:
    """Reference: an encoder in which an adapter stood: its files go, the owner's own stay, the old release stays."""
    adapter = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"a", "README.md": b"old", "logo.png": b"p"}
    push(api, "org/name", adapter, tag="v3")
    assert push(api, "org/name", FILES, private=False).tag == "v4"
    repo = hub.repos["models/org/name"]
    assert repo.private
    assert set(repo.files) == {*FILES, ".gitattributes", "logo.png"}
    pull(api, "org/name", tmp_path / "old", revision="v3")
    assert (tmp_path / "old" / "README.md").read_bytes() == b"old"
    assert not (tmp_path / "old" / "model.safetensors").exists()


def test_a_tag_is_not_moved(hub: Hub, api: HfApi) -> None:
    """Reference: the commit that the tag named first."""
    push(api, "org/name", FILES, tag="paper")
    first = dict(hub.repos["models/org/name"].tags)
    assert push(api, "org/name", FILES, tag="paper").is_new is False
    with pytest.raises(NLTError, match="org/name: tag paper stands on an earlier release; name another"):
        push(api, "org/name", {**FILES, "config.json": b"[]"}, tag="paper")
    sent = len(hub.requests("POST", "/commit/"))
    with pytest.raises(NLTError, match="org/name: tag paper stands on an earlier release; name another"):
        push(api, "org/name", {**FILES, "config.json": b"[1]"}, tag="paper")
    assert hub.repos["models/org/name"].tags == first
    assert len(hub.requests("POST", "/commit/")) == sent


def test_a_data_set_has_a_repository_of_its_kind(hub: Hub, api: HfApi, tmp_path: Path) -> None:
    """Reference: the Hub keeps data sets apart from models."""
    push(api, "org/name-gains", {"gains.jsonl": b"{}\n"}, repo_type="dataset")
    assert list(hub.repos) == ["datasets/org/name-gains"]
    pull(api, "org/name-gains", tmp_path / "gains", repo_type="dataset")
    assert (tmp_path / "gains" / "gains.jsonl").read_bytes() == b"{}\n"


def test_an_upload_that_was_cut_goes_on(hub: Hub, api: HfApi, naps: list[float]) -> None:
    """Reference: the Hub's store; of two large files the one that had arrived is not sent again."""
    files: dict[str, Path | bytes] = {**FILES, "other.safetensors": LARGE[::-1]}
    hub.faults.append(Fault("POST", "/commit/", 0))
    release = push(api, "org/name", files)
    assert (release.tag, release.is_new) == ("v1", True)
    assert len(hub.requests("PUT", "/lfs/")) == 2
    assert hub.repos["models/org/name"].files["other.safetensors"] == LARGE[::-1]

    hub.faults.append(Fault("PUT", "/lfs/", 0, times=1))
    push(api, "org/name", {**files, "third.safetensors": LARGE * 3})
    halves = [seen.received for seen in hub.requests("PUT", "/lfs/")[2:]]
    assert halves == [len(LARGE) * 3 // 2, len(LARGE) * 3]
    assert hub.repos["models/org/name"].files["third.safetensors"] == LARGE * 3


def test_a_push_that_was_killed_after_the_upload_sends_no_byte_of_it_again(hub: Hub, api: HfApi) -> None:
    """Reference: bytes that the Hub's store has received in the second call."""
    hub.faults.append(Fault("POST", "/commit/", 403))
    with pytest.raises(NLTError, match="403"):
        push(api, "org/name", FILES)
    hub.seen.clear()
    push(api, "org/name", FILES)
    assert hub.requests("PUT", "/lfs/") == []


def test_a_download_that_was_cut_goes_on_where_it_stopped(
    hub: Hub, api: HfApi, tmp_path: Path, naps: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: the byte from which the client asks, and the bytes that it has in the end."""
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)  # what has come of a piece of 10 MiB is lost
    push(api, "org/name", FILES)
    hub.faults.append(Fault("GET", "model.safetensors", 0))
    pull(api, "org/name", tmp_path / "a")
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == LARGE
    assert [seen.start for seen in hub.requests("GET", "model.safetensors")] == [0, len(LARGE) // 2]


@pytest.mark.parametrize("files", [{}, {"pytorch_model.bin": b"a", "modeling.py": b"b"}], ids=["empty", "code"])
def test_a_pull_of_nothing_is_refused(hub: Hub, api: HfApi, tmp_path: Path, files: dict[str, bytes]) -> None:
    """Reference: a repository without a file that can be fetched; no folder appears."""
    hub.repos["models/org/name"] = Repo()
    commit = hub.repos["models/org/name"].commit(files)
    with pytest.raises(NLTError, match=f"org/name has no file at {commit} that is fetched, .*; name another"):
        pull(api, "org/name", tmp_path / "pulled")
    assert not list(tmp_path.iterdir())


def test_records_of_the_client_that_somebody_has_published_are_left_out(hub: Hub, api: HfApi, tmp_path: Path) -> None:
    """Reference: the other files; the client would write a record of its own in the place of the published one."""
    hub.repos["models/org/name"] = Repo()
    hub.repos["models/org/name"].commit({"a.json": b"{}", ".cache/huggingface/download/a.json.metadata": b"old"})
    pull(api, "org/name", tmp_path / "pulled")
    found = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(found) == ["pulled/.nlt_trainer", "pulled/a.json"]


def test_a_pull_that_failed_keeps_what_has_come(hub: Hub, api: HfApi, tmp_path: Path, naps: list[float]) -> None:
    """Reference: no folder before it is whole; the second call fetches the one file that is missing."""
    push(api, "org/name", FILES)
    hub.faults.append(Fault("GET", "model.safetensors", 503, times=20))
    with pytest.raises(NLTError, match=r"org/name: the Hub fails \(503\)"):
        pull(api, "org/name", tmp_path / "a")
    assert not (tmp_path / "a").exists()
    hub.faults.clear()
    hub.seen.clear()
    pull(api, "org/name", tmp_path / "a")
    assert [seen.path.rpartition("/")[2] for seen in hub.requests("GET", "/resolve/")] == ["model.safetensors"]


def test_a_pull_writes_where_a_link_leads(hub: Hub, api: HfApi, tmp_path: Path, naps: list[float]) -> None:
    """Reference: the files there; beside the link, which may be on another disk, is nothing even while they come."""
    push(api, "org/name", FILES)
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "a")
    hub.faults.append(Fault("GET", "model.safetensors", 503, times=20))
    with pytest.raises(NLTError, match=r"org/name: the Hub fails \(503\)"):
        pull(api, "org/name", tmp_path / "link")
    hub.faults.clear()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link"]
    pull(api, "org/name", tmp_path / "link")
    assert set(folder_files(tmp_path / "disk" / "a")) == set(FILES)
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["a"]
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize(("method", "path"), [("GET", "/api/whoami"), ("POST", "/tag/"), ("POST", "/commit/")])
@pytest.mark.parametrize(
    ("status", "headers", "seconds"),
    [
        (429, {"Retry_After": "7"}, 7),
        (429, {"RateLimit": '"api";r=0;t=55'}, 56),
        (503, {}, 1),
        (500, {}, 1),
    ],
)
def test_a_busy_hub_is_called_again_when_it_says(
    hub: Hub, api: HfApi, naps: list[float], method: str, path: str, status: int, headers: dict[str, str], seconds: int
) -> None:
    """Reference: the seconds in the Hub's headers; the release is one commit all the same."""
    hub.faults.append(Fault(method, path, status, headers=headers))
    assert push(api, "org/name", FILES).tag == "v1"
    assert naps == [seconds]
    repo = hub.repos["models/org/name"]
    assert (len(repo.commits), repo.tags) == (2, {"v1": repo.head})


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            Fault("GET", "/api/whoami", 401),
            r"does not accept the token \(401\); log in with `hf auth login`, or correct",
        ),
        (
            Fault("POST", "/create", 403),
            r"the token does not permit this \(403\); take one that may read or",
        ),
        (
            Fault("POST", "/tag/", 409),
            r"another program has changed it meanwhile \(409\); run again, what has arrived",
        ),
        (Fault("POST", "/commit/", 412), r"another program has changed it meanwhile \(412\); run again"),
        (Fault("POST", "/commit/", 429, times=99), r"takes no more calls for now \(429\); run again later"),
        (
            Fault("POST", "/commit/", 502, times=99),
            r"the Hub fails \(502\); run again later, what has arrived is",
        ),
        (Fault("PUT", "/lfs/", 500, times=99), r"the Hub fails \(500\); run again later"),
        (Fault("POST", "/commit/", 0, times=99), r"the Hub cannot be reached \(.+\); check the network and run again"),
    ],
)
def test_a_refusal_is_one_line_with_the_remedy(
    hub: Hub, api: HfApi, naps: list[float], fault: Fault, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Reference: the message; the token is in none of it."""
    hub.faults.append(fault)
    with pytest.raises(NLTError, match=f"org/name: .*{message}") as info:
        push(api, "org/name", FILES)
    assert "\n" not in str(info.value)
    assert TOKEN not in str(info.value) + caplog.text
    assert hub.repos.get("models/org/name", Repo()).tags == {}


def test_a_card_that_the_hub_refuses_is_one_line(hub: Hub, api: HfApi) -> None:
    """Reference: the Hub's own reason; nothing was committed."""
    with pytest.raises(
        NLTError, match=r"^org/name: Invalid metadata in README.md. - \"license\" must be one of"
    ) as info:
        push(api, "org/name", {**FILES, "README.md": b"---\nlicense: none-such\n---\n"})
    assert "\n" not in str(info.value)
    assert len(hub.repos["models/org/name"].commits) == 1


@pytest.mark.parametrize(
    ("repo", "revision", "token", "message"),
    [
        ("org/none", None, TOKEN, "it is not on the Hub, or private and not yours to see"),
        ("org/name", None, False, "it is not on the Hub, or private and not yours to see"),
        ("org/name", "v9", TOKEN, "it has no revision 'v9'; .*/org/name/commits/main lists them"),
        ("org/gated", None, TOKEN, "it is gated; accept its terms on https://huggingface.co/org/gated"),
        ("org//name", None, TOKEN, "it is no Hub id; write ORG/NAME"),
    ],
)
def test_what_cannot_be_pulled_is_named(
    hub: Hub, tmp_path: Path, repo: str, revision: str | None, token: Any, message: str
) -> None:
    """Reference: the message; no folder is left."""
    hub.repos |= {"models/org/name": Repo(private=True), "models/org/gated": Repo(gated=True)}
    with pytest.raises(NLTError, match=f"{repo}: {message}"):
        pull(HfApi(endpoint=hub.url, token=token), repo, tmp_path / "a", revision=revision)
    assert list(tmp_path.iterdir()) == []


def test_without_a_token_or_a_network_nothing_is_tried(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, naps: list[float]
) -> None:
    """Reference: the messages; the Hub has seen nothing."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "none")
    with pytest.raises(
        NLTError, match="the Hub wants to know who you are; log in with `hf auth login`, or set HF_TOKEN"
    ):
        push(HfApi(endpoint=hub.url), "org/name", FILES)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(NLTError, match="HF_HUB_OFFLINE=1 forbids every call; unset it"):
        push(HfApi(endpoint=hub.url, token=TOKEN), "org/name", FILES)
    with pytest.raises(NLTError, match="HF_HUB_OFFLINE=1 forbids every call; unset it"):
        listing(HfApi(endpoint=hub.url, token=TOKEN), "org/name")
    assert hub.seen == []
    assert naps == []


def test_a_pull_leaves_out_what_can_run_code_and_replaces_only_its_own(
    hub: Hub, api: HfApi, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Reference: the files of the repository but pickles and Python; a folder of somebody else stays as it is."""
    push(api, "org/name", {**FILES, "pytorch_model.BIN": b"p", "modeling.py": b"exit()", "a.PKL": b"p", "b.so": b"p"})
    pull(api, "org/name", tmp_path / "a")
    assert set(folder_files(tmp_path / "a")) == set(FILES)
    assert "left out (a.PKL, b.so, modeling.py, pytorch_model.BIN); where these are its only weights" in caplog.text
    pull(api, "org/name", tmp_path / "a")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("text")
    with atomic_folder(tmp_path / "trained", stage="nlt train") as trained:
        (trained / "model.safetensors").write_text("days of work")
    hub.seen.clear()
    with pytest.raises(NLTError, match="trained is there already and was written by nlt train, not by nlt pull"):
        pull(api, "org/name", tmp_path / "trained")
    assert (tmp_path / "trained" / "model.safetensors").read_text() == "days of work"
    with pytest.raises(NLTError, match="mine is there already and was not written by nlt"):
        pull(api, "org/name", tmp_path / "mine")
    with pytest.raises(
        NLTError, match=r"^\. is no name for a folder that is to be written; give it one, e.g. encoder"
    ):
        pull(api, "org/name", Path())
    assert hub.seen == []
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "text"


@pytest.mark.parametrize("name", ["../../evil.json", "/evil.json", "a/../../../evil.json"])
def test_a_file_is_written_nowhere_else(hub: Hub, api: HfApi, tmp_path: Path, name: str) -> None:
    """Reference: the files below the folder's parents; a Hub can be asked for whatever a release calls its files."""
    repo = hub.repos["models/org/name"] = Repo()
    repo.files.update({name: b"{}", "config.json": b"{}"})
    with pytest.raises(NLTError, match=r"^org/name: Invalid filename"):
        pull(api, "org/name", tmp_path / "x" / "y" / "encoder")
    found = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert found
    assert "evil.json" not in {path.name for path in found}
    assert not Path("/evil.json").exists()


def test_what_is_left_of_a_pull_of_another_release_goes(
    hub: Hub, api: HfApi, tmp_path: Path, naps: list[float]
) -> None:
    """Reference: the names in the parent; a folder of somebody else whose name is similar stays."""
    push(api, "org/name", FILES)
    hub.faults.append(Fault("GET", "model.safetensors", 503, times=20))
    with pytest.raises(NLTError):
        pull(api, "org/name", tmp_path / "a")
    (left,) = [path.name for path in tmp_path.iterdir()]
    assert left == f".a.{hub.repos['models/org/name'].head[:12]}.partial"
    hub.faults.clear()
    (tmp_path / ".a.b.partial").mkdir()
    push(api, "org/name", {**FILES, "config.json": b"[]"})
    pull(api, "org/name", tmp_path / "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.b.partial", "a"]


def test_a_pull_leaves_what_another_process_fetches_alone(hub: Hub, api: HfApi, tmp_path: Path) -> None:
    """Reference: the files under the other's lock: the same release is refused, and another one comes beside it."""
    for release in (FILES, {**FILES, "config.json": b"[]"}):
        push(api, "org/name", release)
    first, second = (hub.repos["models/org/name"].tags[tag] for tag in ("v1", "v2"))
    fetched = tmp_path / f".a.{first[:12]}.partial" / "config.json"
    fetched.parent.mkdir()
    fetched.write_bytes(b"{}")
    other = os.open(fetched.parent, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(NLTError, match=r"^another process is working in .*\.a\.[0-9a-f]{12}\.partial; wait until"):
        pull(api, "org/name", tmp_path / "a", revision="v1")
    assert pull(api, "org/name", tmp_path / "a", revision="v2") == second
    assert fetched.read_bytes() == b"{}"
    os.close(other)
    assert pull(api, "org/name", tmp_path / "a", revision="v1") == first
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_sizes_are_those_of_files_and_contents(tmp_path: Path) -> None:
    """Reference: the bytes; hidden files are no part of a folder that is sent."""
    (tmp_path / ".nlt_trainer").write_bytes(b"1")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.txt").write_bytes(b"123")
    assert {name: size(content) for name, content in folder_files(tmp_path).items()} == {"a/b.txt": 3}
    assert size(b"12345") == 5
