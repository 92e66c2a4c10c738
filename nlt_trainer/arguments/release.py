"""The options of `nlt export`, `nlt push` and `nlt pull`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import get_args

from nlt_trainer.arguments.option import check_values, option
from nlt_trainer.choices import ExportForm, RepoType
from nlt_trainer.errors import NLTError


@dataclass
class ExportArguments:
    """Parameters that control the export."""

    form: ExportForm = option(
        default="merged",
        decides="nothing",
        help=(
            f"What to export ({', '.join(get_args(ExportForm))}): the whole encoder, its adapter alone, or the "
            "encoder in the format of a runtime that Sentence-Transformers exports to."
        ),
    )


@dataclass
class PushArguments:
    """Parameters that control what is published and where."""

    repo: str | None = option(
        default=None,
        decides="nothing",
        help="Hub id of the encoder, ORG/NAME, created if it does not exist, as the two that follow; unset: it stays.",
    )
    gains_repo: str | None = option(
        default=None,
        decides="nothing",
        help="Hub id of a data set for gains and candidates, which contain the texts of the training queries.",
    )
    scores_repo: str | None = option(
        default=None,
        decides="nothing",
        help=(
            "Hub id of a data set for the caches in score_cache, which contain hashes of the texts that were scored: "
            "whoever guesses a query can check the guess."
        ),
    )
    tag: str | None = option(
        default=None,
        decides="nothing",
        help="Tag of the release; unset: the next of v1, v2, ...",
    )
    private: bool = option(
        default=True,
        decides="nothing",
        help="Whether a new repository is private.",
    )
    dry_run: bool = option(
        default=False,
        decides="nothing",
        help="List files and sizes, and send nothing.",
    )

    def __post_init__(self) -> None:
        repos = {name: getattr(self, name) for name in ("repo", "gains_repo", "scores_repo")}
        given = {name: repo for name, repo in repos.items() if repo is not None}
        if not given:
            raise NLTError(f"nothing is named that could be pushed; give one or more of {', '.join(repos)}")
        for name, repo in given.items():
            check_repo(name, repo)
        if self.gains_repo is not None and self.gains_repo == self.scores_repo:
            raise NLTError(f"gains_repo and scores_repo are both {self.gains_repo}; give each a data set of its own")
        if self.tag is not None and not re.fullmatch(r"[A-Za-z0-9](\.?[\w+-])*", self.tag):
            raise NLTError(f"tag {self.tag!r} cannot be used; give letters, digits, '.', '-', '_' and '+', e.g. v1.2")


@dataclass
class PullArguments:
    """Parameters that control what is fetched."""

    repo: str = option(
        decides="nothing",
        help="Hub id of what to fetch, ORG/NAME.",
    )
    folder: str | None = option(
        default=None,
        decides="nothing",
        path="folder",
        help="Folder to write; one that an earlier pull has written is replaced.",
    )
    score_cache: str | None = option(
        default=None,
        decides="nothing",
        path="cache",
        help="Score cache to which the scores of a data set are added, in place of a folder to write.",
    )
    revision: str | None = option(
        default=None,
        decides="nothing",
        help="Tag, branch or commit; unset: the newest.",
    )
    repo_type: RepoType = option(
        default="model",
        decides="nothing",
        help="Type of the repository: model, or dataset for published gains.",
    )
    dry_run: bool = option(
        default=False,
        decides="nothing",
        help="List files and sizes, and fetch nothing.",
    )

    def __post_init__(self) -> None:
        check_values(self)
        check_repo("repo", self.repo)
        if (self.folder is None) == (self.score_cache is None):
            raise NLTError("give either a folder to write, or with score_cache a score cache to add scores to")
        if self.score_cache is not None:
            self.repo_type = "dataset"  # scores are nowhere else


def check_repo(name: str, repo: str) -> None:
    """Raise `NLTError` for what is no Hub id, such as a path."""
    from huggingface_hub.errors import HFValidationError  # not for the help, which appears at once
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise NLTError(
            f"{name} {repo!r} is no Hub id; write ORG/NAME with letters, digits, '-', '_' and '.'"
        ) from error
