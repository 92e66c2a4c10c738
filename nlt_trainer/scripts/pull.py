"""Fetch a release from the Hub into a folder.

```bash
nlt pull --repo ORG/NAME --revision v1 --folder encoders/name
```

The folder is there when all of it has come; a pull that was cut goes on. Files that can run code are left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import HfApi

from nlt_trainer.errors import NLTError
from nlt_trainer.publishing import listing, pull
from nlt_trainer.recipe import parse_recipe
from nlt_trainer.scripts import run_main, shown

REPO_TYPES = ("model", "dataset")


@dataclass
class PullArguments:
    """Parameters that control what is fetched."""

    repo: str = field(metadata={"help": "Hub id, ORG/NAME."})
    folder: str = field(metadata={"help": "Folder to write; one that an earlier pull has written is replaced."})
    revision: str | None = field(default=None, metadata={"help": "Tag, branch or commit; unset: the newest."})
    repo_type: str = field(default="model", metadata={"help": "model, or dataset for published gains."})
    dry_run: bool = field(default=False, metadata={"help": "List files and sizes, and fetch nothing."})

    def __post_init__(self) -> None:
        if self.repo_type not in REPO_TYPES:
            raise NLTError(f"repo_type {self.repo_type!r} is unknown; choose one of {', '.join(REPO_TYPES)}")


PULL_BLOCKS: dict[str, type] = {"pull": PullArguments}


def main(argv: list[str] | None = None) -> None:
    """Fetch; prints where it is."""
    (of,) = parse_recipe(PULL_BLOCKS, argv, description=shown(__doc__))
    api, at = HfApi(library_name="nlt_trainer"), {"revision": of.revision, "repo_type": of.repo_type}
    if of.dry_run:
        commit, files = listing(api, of.repo, **at)
        print(f"{of.repo} at {commit}: {len(files)} files, {sum(files.values()):,} bytes")
        for name, n in files.items():
            print(f"  {n:>15,}  {name}")
        return
    commit = pull(api, of.repo, Path(of.folder), **at)
    print(f"{of.folder}: {of.repo} at {commit}")


if __name__ == "__main__":
    run_main(main)
