"""Publish a run's encoder on the Hub, with card, recipe and results, in one commit with a tag.

```bash
nlt push --config recipes/demo/likelihood_gain.yaml --repo ORG/NAME --dry_run true
nlt push --config recipes/demo/likelihood_gain.yaml --repo ORG/NAME
```

Nothing is sent unless the export passes its check (`nlt export`). The token is that of HF_TOKEN or of `hf auth
login`. A new repository is private; its owner makes it public on its page.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import HfApi

from nlt_trainer.arguments import RECIPE_BLOCKS, DataArguments
from nlt_trainer.card_rendering import render_card
from nlt_trainer.cards import CARD_FILE, adapter_base_of, gains_card, read_release, shareable
from nlt_trainer.errors import NLTError
from nlt_trainer.evaluation_report import file_name
from nlt_trainer.files import read_json
from nlt_trainer.models.locations import is_hub_id
from nlt_trainer.publishing import Release, folder_files, push, size
from nlt_trainer.recipe import parse_recipe
from nlt_trainer.scripts import run_main, shown
from nlt_trainer.scripts.common import processes
from nlt_trainer.scripts.export import ExportArguments, export_run
from nlt_trainer.scripts.score import audit_file


@dataclass
class PushArguments:
    """Parameters that control what is published and where."""

    repo: str = field(metadata={"help": "Hub id of the encoder, ORG/NAME; created where there is none."})
    gains_repo: str | None = field(
        default=None,
        metadata={
            "help": "Hub id of a data set for gains and candidates; these hold the texts of the training queries."
        },
    )
    tag: str | None = field(default=None, metadata={"help": "Tag of the release; unset: the next of v1, v2, ..."})
    private: bool = field(default=True, metadata={"help": "Whether a new repository is private."})
    dry_run: bool = field(default=False, metadata={"help": "List files and sizes, and send nothing."})

    def __post_init__(self) -> None:
        if self.tag is not None and not re.fullmatch(r"[A-Za-z0-9](\.?[\w+-])*", self.tag):
            raise NLTError(f"tag {self.tag!r} is none; use letters, digits, '.', '-', '_' and '+', e.g. v1.2")


PUSH_BLOCKS = {**RECIPE_BLOCKS, "export": ExportArguments, "push": PushArguments}


def main(argv: list[str] | None = None) -> None:
    """Check, then send; prints where it is."""
    _, data, args, export, to = parse_recipe(PUSH_BLOCKS, argv, description=shown(__doc__))
    if not processes(args).is_main_process:
        return
    folder, equal = export_run(Path(args.output_dir), export.form)
    print(f"{folder}: equal to the trained encoder within 1e-5: {', '.join(equal)}")
    files = encoder_files(folder, to.repo) | mteb_files(Path(args.output_dir))
    parts = [(to.repo, "model", files)]
    if to.gains_repo is not None:
        parts.append((to.gains_repo, "dataset", gains_files(data)))
    api = HfApi(library_name="nlt_trainer")
    for repo, repo_type, files in parts:
        print(f"{repo} ({repo_type}): {len(files)} files, {sum(map(size, files.values())):,} bytes")
        for name, content in files.items():
            print(f"  {size(content):>15,}  {name}")
        if not to.dry_run:
            print(said(push(api, repo, files, tag=to.tag, private=to.private, repo_type=repo_type)))


def said(release: Release) -> str:
    """What a push has done, in words."""
    news = "new release" if release.is_new else "nothing has changed since release"
    return f"{release.repo}: {news} {release.tag}, {'private' if release.private else 'public'}"


def encoder_files(folder: Path, repo: str) -> dict[str, Path | bytes]:
    """What the encoder's repository gets; its card loads the encoder from there.

    Raises:
        NLTError: an adapter names a base that only this machine has.
    """
    base = adapter_base_of(folder)
    if base is not None and not is_hub_id(base):
        raise NLTError(f"{folder} is an adapter on {base}, which only this machine has; push --form merged")
    card = render_card(*read_release(folder), load_as=repo)
    return {**folder_files(folder), CARD_FILE: card.encode()}


def mteb_files(run: Path) -> dict[str, Path | bytes]:
    """mteb's own results of the run's encoder, where `nlt evaluate` has left some."""
    system = file_name(read_json(run / "training.json", stage="nlt train")["objective"])
    results = sorted((run / "evaluation" / "mteb" / system).glob("*.json"))
    return {f"mteb/{path.name}": path for path in results}


def gains_files(data: DataArguments) -> dict[str, Path | bytes]:
    """What the gains' repository gets.

    Raises:
        NLTError: a file is missing.
    """
    files = {"gains.jsonl": Path(data.gains), "candidates.jsonl": Path(data.candidates)}
    for path in files.values():
        if not path.is_file():
            raise NLTError(f"{path} is missing; run `nlt mine` and `nlt score`, or leave gains_repo out")
    audit = read_json(audit_file(data.gains), stage="nlt score")
    return {
        **files,
        "audit.json": json.dumps(shareable(audit), indent=2).encode(),
        CARD_FILE: gains_card(data, audit).encode(),
    }


if __name__ == "__main__":
    run_main(main)
