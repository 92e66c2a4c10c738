"""Releases on the Hub: what is sent, in one commit with a tag, and how it comes back."""

from __future__ import annotations

import fnmatch
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, snapshot_download
from huggingface_hub.hf_api import RepoFile

from nlt_trainer.errors import NLTError
from nlt_trainer.files import atomic_folder, check_folder
from nlt_trainer.hub_calls import explained, patiently

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
"""Files of an encoder that another form of it must not find beside its own."""
UNSAFE = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.py")
"""Files that can run code when they are loaded; they are not fetched."""


@dataclass(frozen=True)
class Release:
    """What a push has left on the Hub.

    Args:
        repo: Hub id.
        tag: of the release.
        private: whether the repository is.
        is_new: whether anything had changed.
    """

    repo: str
    tag: str
    private: bool
    is_new: bool


def folder_files(folder: Path) -> dict[str, Path | bytes]:
    """Path in the repository -> file, for all that a folder holds, without hidden files."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    named = {path.relative_to(folder).as_posix(): path for path in paths}
    return {name: path for name, path in named.items() if not any(p.startswith(".") for p in name.split("/"))}


def size(content: Path | bytes) -> int:
    """Bytes of a file that is to be sent."""
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
    """Make a repository have these files, in one commit, and tag it.

    Large files go first and are not sent again when they are there already, so that a push that was cut goes on. A
    file of an earlier release that would change how the encoder is loaded is removed; others stay.

    Args:
        api: client; its token is that of HF_TOKEN or of `hf auth login`.
        repo: Hub id; the repository is created where there is none.
        files: path in the repository -> file or content.
        tag: of the release; default the next of v1, v2, ...
        private: of a new repository; an old one stays as it is.
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
    """One attempt; the next one finds what it has done."""
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
    """The commit of a revision, and path -> bytes of its files but those that can run code.

    Raises:
        NLTError: the Hub refuses.
    """
    with explained(repo, repo_type=repo_type, revision=revision):
        commit = patiently(lambda: api.repo_info(repo, revision=revision, repo_type=repo_type).sha)
        entries = patiently(
            lambda: list(api.list_repo_tree(repo, recursive=True, revision=commit, repo_type=repo_type))
        )
    files = {entry.path: entry.size for entry in entries if isinstance(entry, RepoFile)}
    kept = {name: n for name, n in files.items() if not any(fnmatch.fnmatch(name, p) for p in UNSAFE)}
    return str(commit), kept


def pull(api: HfApi, repo: str, folder: Path, *, revision: str | None = None, repo_type: str = "model") -> str:
    """Fetch a release into a folder, which is there when it is whole; a pull that was cut goes on.

    Args:
        api: client.
        repo: Hub id.
        folder: where it goes; a folder that an earlier pull has written is replaced.
        revision: tag, branch or commit; default the newest.
        repo_type: `model` or `dataset`.

    Returns:
        The commit.

    Raises:
        NLTError: the Hub refuses, a file does not come whole, or the folder holds something else.
    """
    check_folder(folder)
    commit, files = listing(api, repo, revision=revision, repo_type=repo_type)
    partial = folder.with_name(f".{folder.name}.{commit[:12]}.partial")  # the same again after a cut
    with atomic_folder(folder) as whole:
        with explained(repo, repo_type=repo_type, revision=revision):
            patiently(
                lambda: snapshot_download(
                    repo,
                    repo_type=repo_type,
                    revision=commit,
                    local_dir=partial,
                    endpoint=api.endpoint,
                    token=api.token,
                    ignore_patterns=[*UNSAFE],
                )
            )
        missing = [name for name, n in files.items() if _size_of(partial / name) != n]
        if missing:  # the client takes a folder that it has begun for whole where the Hub does not answer
            raise NLTError(
                f"{repo}: {len(missing)} files did not come whole, e.g. {missing[0]}; run again, it goes on"
            )
        for name in files:
            (whole / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).replace(whole / name)
    shutil.rmtree(partial)
    return commit


def _size_of(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
