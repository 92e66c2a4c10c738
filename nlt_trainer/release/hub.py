"""Send a release to the Hub in one commit with a tag, list its files, and fetch it again."""

from __future__ import annotations

import fnmatch
import glob
import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, snapshot_download
from huggingface_hub.hf_api import RepoFile

from nlt_trainer.errors import NLTError
from nlt_trainer.files import alone_in, atomic_folder, check_folder, linked_place, remove_left
from nlt_trainer.hub_calls import explained, patiently
from nlt_trainer.lm.score_shards import SHARD_FILE

logger = logging.getLogger(__name__)

STALE = (
    "*.safetensors",
    "*.safetensors.index.json",
    "*config.json",
    "modules.json",
    "tokenizer*",
    "[0-9]*_*/*",
    "onnx/*",
    "openvino/*",
)
"""Files of an encoder that must not remain beside those of a later release, because they change how it is loaded."""
UNSAFE = re.compile(
    r".*\.(bin|pt|pth|ckpt|pkl|pickle|joblib|dill|h5|keras|pyc?|pyd|so|dll|dylib|exe|sh)", re.IGNORECASE
)
"""Files that can run code, or whose formats can when they are loaded; they are not fetched."""
OF_CLIENT = ".cache/huggingface/"
"""Where the Hub's client keeps its own records in a folder; files of a repository there would be lost among them."""

SHARDS = "data"
"""Folder of the shards in a data set of scores."""


@dataclass(frozen=True)
class Release:
    """A release that a push has made or found on the Hub.

    Args:
        repo: Hub id.
        tag: tag of the release.
        private: whether the repository is private.
        is_new: whether anything had changed since the last release.
    """

    repo: str
    tag: str
    private: bool
    is_new: bool


def folder_files(folder: Path) -> dict[str, Path | bytes]:
    """Path in the repository -> file, for all files of a folder except hidden ones."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    named = {path.relative_to(folder).as_posix(): path for path in paths}
    return {name: path for name, path in named.items() if not any(p.startswith(".") for p in name.split("/"))}


def size(content: Path | bytes) -> int:
    """Size of a file that will be sent, bytes."""
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def push(
    api: HfApi,
    repo: str,
    files: Mapping[str, Path | bytes],
    *,
    tag: str | None = None,
    private: bool = True,
    repo_type: str = "model",
) -> Release:
    """Put files into a repository in one commit, and tag this commit.

    Large files are sent first, and those that the Hub already has are not sent again, so an interrupted push can be
    continued. Files of an earlier release are removed if they would change how the encoder is loaded; others stay.

    Args:
        api: the Hub's client; its token is that of HF_TOKEN or of `hf auth login`.
        repo: Hub id; the repository is created if it does not exist.
        files: path in the repository -> file or content.
        tag: tag of the release; the default is the next of v1, v2, ...
        private: whether a new repository is private; an existing one stays as it is.
        repo_type: `model` or `dataset`.

    Raises:
        NLTError: the Hub refuses, or another release has the tag.
    """
    with explained(repo, repo_type=repo_type):
        patiently(api.whoami)  # a wrong token is found before anything is sent
        return patiently(lambda: _send(api, repo, files, tag=tag, private=private, repo_type=repo_type))


def _send(
    api: HfApi, repo: str, files: Mapping[str, Path | bytes], *, tag: str | None, private: bool, repo_type: str
) -> Release:
    """Make one attempt to push. A later attempt continues from what this one has done."""
    api.create_repo(repo, private=private, repo_type=repo_type, exist_ok=True)
    before = api.repo_info(repo, repo_type=repo_type)
    tags = {ref.name: ref.target_commit for ref in api.list_repo_refs(repo, repo_type=repo_type).tags}
    taken = f"{repo}: tag {tag} stands on an earlier release; name another, or leave it out"
    if tag in tags and tags[tag] != before.sha:
        raise NLTError(taken)
    present = api.list_repo_files(repo, repo_type=repo_type)
    stale = [name for name in present if name not in files and any(fnmatch.fnmatch(name, p) for p in STALE)]
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        *(CommitOperationDelete(path_in_repo=name) for name in stale),
        *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in files.items()),
    ]
    commit = api.create_commit(repo, operations, commit_message="Release of nlt_trainer", repo_type=repo_type)
    if tag in tags and tags[tag] != commit.oid:
        raise NLTError(f"{taken}: what was sent stands on main without a tag")
    known = next((name for name, target in tags.items() if target == commit.oid), None)
    name = tag or known or _next_tag(tags)
    if name not in tags:
        api.create_tag(repo, tag=name, revision=commit.oid, repo_type=repo_type)
    return Release(repo, name, bool(before.private), is_new=known is None)


def _next_tag(tags: Mapping[str, str]) -> str:
    numbers = [int(name[1:]) for name in tags if re.fullmatch(r"v\d+", name)]
    return f"v{max(numbers, default=0) + 1}"


def listing(
    api: HfApi, repo: str, *, revision: str | None = None, repo_type: str = "model"
) -> tuple[str, dict[str, int]]:
    """The commit of a revision, and path -> size in bytes of its files, without those that `pull` leaves out.

    A warning names the files that can run code.

    Raises:
        NLTError: the Hub refuses.
    """
    with explained(repo, repo_type=repo_type, revision=revision):
        commit = patiently(lambda: api.repo_info(repo, revision=revision, repo_type=repo_type).sha)
        entries = patiently(
            lambda: list(api.list_repo_tree(repo, recursive=True, revision=commit, repo_type=repo_type))
        )
    files = {e.path: e.size for e in entries if isinstance(e, RepoFile) and not e.path.startswith(OF_CLIENT)}
    if unsafe := [name for name in files if UNSAFE.fullmatch(name)]:
        logger.warning(
            "%s: files that can run code are left out (%s); where these are its only weights, ask its owner for "
            "safetensors", repo, ", ".join(sorted(unsafe)),
        )  # fmt: skip
    return str(commit), {name: n for name, n in files.items() if name not in unsafe}


def pull(api: HfApi, repo: str, folder: Path, *, revision: str | None = None, repo_type: str = "model") -> str:
    """Fetch a release into a folder, which appears when it is complete. An interrupted pull can be continued.

    Args:
        api: the Hub's client.
        repo: Hub id.
        folder: the folder to write; a folder that an earlier pull has written is replaced.
        revision: tag, branch or commit; the default is the newest.
        repo_type: `model` or `dataset`.

    Returns:
        The commit.

    Raises:
        NLTError: the Hub refuses, there is nothing to fetch, a file is incomplete, the folder holds something else, or
            another process is fetching the same release into it.
    """
    check_folder(folder, stage="nlt pull")
    folder = linked_place(folder)
    commit, files = listing(api, repo, revision=revision, repo_type=repo_type)
    if not files:
        raise NLTError(
            f"{repo} has no file at {commit} that is fetched, because files that can run code, such as .bin and .py, "
            "are not; name another repository, or a revision with safetensors"
        )
    partial = folder.with_name(f".{folder.name}.{commit[:12]}.partial")  # an interrupted pull finds it again
    for earlier in folder.parent.glob(f".{glob.escape(folder.name)}.*.partial"):  # of a release that is not wanted now
        if re.fullmatch(r"[0-9a-f]{12}", earlier.name.split(".")[-2]) and earlier != partial:
            remove_left(earlier, final=folder)
    with alone_in(partial):
        with atomic_folder(folder, stage="nlt pull") as whole:
            _fetch(api, repo, files, commit=commit, repo_type=repo_type, into=partial)
            for name in files:
                (whole / name).parent.mkdir(parents=True, exist_ok=True)
                (partial / name).replace(whole / name)
        shutil.rmtree(partial)
    return commit


def fetch_shards(api: HfApi, repo: str, *, revision: str | None = None) -> tuple[str, list[Path]]:
    """Fetch the shards of a data set of scores into the Hub's cache, which keeps them for the next call.

    Args:
        api: the Hub's client.
        repo: Hub id of the data set.
        revision: tag, branch or commit; the default is the newest.

    Returns:
        The commit and the files.

    Raises:
        NLTError: the Hub refuses, or a file is incomplete.
    """
    commit, files = listing(api, repo, revision=revision, repo_type="dataset")
    shards = {name: n for name, n in files.items() if fnmatch.fnmatch(name, f"{SHARDS}/{SHARD_FILE.format('*')}")}
    folder = _fetch(api, repo, shards, commit=commit, repo_type="dataset") if shards else Path()
    return commit, [folder / name for name in shards]


def _fetch(
    api: HfApi, repo: str, files: Mapping[str, int], *, commit: str, repo_type: str, into: Path | None = None
) -> Path:
    """Fetch files of a commit, path -> size, into a folder or the Hub's cache; returns the folder.

    Raises:
        NLTError: the Hub refuses, or a file is incomplete.
    """
    with explained(repo, repo_type=repo_type):
        folder = patiently(
            lambda: snapshot_download(
                repo,
                repo_type=repo_type,
                revision=commit,
                local_dir=into,
                endpoint=api.endpoint,
                token=api.token,
                allow_patterns=[glob.escape(name) for name in files],
            )
        )
    missing = [name for name, n in files.items() if _size_of(Path(folder, name)) != n]
    if missing:  # if the Hub does not answer, the client takes an incomplete folder for complete
        raise NLTError(f"{repo}: {len(missing)} files did not come whole, e.g. {missing[0]}; run again, it goes on")
    return Path(folder)


def _size_of(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
