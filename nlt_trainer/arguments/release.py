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

    repo: str = option(
        decides="nothing",
        help="Hub id of the encoder, ORG/NAME; it is created if it does not exist.",
    )
    gains_repo: str | None = option(
        default=None,
        decides="nothing",
        help="Hub id of a data set for gains and candidates, which contain the texts of the training queries.",
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
        check_repo("repo", self.repo)
        if self.gains_repo is not None:
            check_repo("gains_repo", self.gains_repo)
        if self.tag is not None and not re.fullmatch(r"[A-Za-z0-9](\.?[\w+-])*", self.tag):
            raise NLTError(f"tag {self.tag!r} cannot be used; give letters, digits, '.', '-', '_' and '+', e.g. v1.2")


@dataclass
class PullArguments:
    """Parameters that control what is fetched."""

    repo: str = option(
        decides="nothing",
        help="Hub id of what to fetch, ORG/NAME.",
    )
    folder: str = option(
        decides="nothing",
        path="folder",
        help="Folder to write; one that an earlier pull has written is replaced.",
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
