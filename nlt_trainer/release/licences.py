"""Find the licences that models and data sets state. Only files on this machine are read, and the Hub is not asked."""

from __future__ import annotations

import importlib.metadata
import logging
from functools import lru_cache
from pathlib import Path
from typing import Any

from gguf import GGUFReader, ReaderField
from huggingface_hub import RepoCard, try_to_load_from_cache

from nlt_trainer.data.hub import CARD_ERRORS
from nlt_trainer.errors import NLTError
from nlt_trainer.locations import PACKAGE_SCHEME, is_hub_id, local_path
from nlt_trainer.text_files import read_json

logger = logging.getLogger(__name__)

CARD = "README.md"


def model_licence(name: str, *, revision: str | None = None) -> str | None:
    """The licence that a model states in its card, in the metadata of a GGUF file, or in those of its package.

    Args:
        name: as in a recipe; for a Hub id, the card in the Hub's cache is read.
        revision: of a Hub id.

    Returns:
        `None` where nothing states one.
    """
    try:
        path = local_path(name)
    except NLTError:  # trained on another machine, or moved since
        return None
    if path is None:
        return _cached_licence(name, revision=revision, repo_type="model")
    gguf = path.suffix == ".gguf"
    stated = _gguf_licence(path, path.stat().st_mtime_ns) if gguf else _card_licence(path / CARD)
    return stated or (_package_licence(name) if name.startswith(PACKAGE_SCHEME) else None)


def data_licence(collection: str | Path) -> str | None:
    """The licence that a collection states in its own card, or in the cards of the data sets that it was made from."""
    folder = Path(collection)
    if (stated := _card_licence(folder / CARD)) is not None or not (folder / "source.json").is_file():
        return stated
    commits = read_json(folder / "source.json")["commits"]
    found = {name: _cached_licence(name, revision=commit, repo_type="dataset") for name, commit in commits.items()}
    return ", ".join(f"{name}: {licence or 'not stated'}" for name, licence in found.items())


def _card_licence(path: Path) -> str | None:
    if not path.is_file():
        return None
    try:
        data: dict[str, Any] = RepoCard.load(path, ignore_metadata_errors=True).data.to_dict()
    except CARD_ERRORS as error:  # a text that begins with a rule has no metadata either
        logger.debug("%s has no metadata that can be read: %s", path, error)
        return None
    stated = data.get("license_name") or data.get("license")
    return ", ".join(map(str, stated if isinstance(stated, list) else [stated])) if stated else None


def _cached_licence(repo_id: str, *, revision: str | None, repo_type: str) -> str | None:
    if not is_hub_id(repo_id):  # the name of a folder, which may no longer exist
        return None
    path = try_to_load_from_cache(repo_id, CARD, revision=revision, repo_type=repo_type)
    return _card_licence(Path(path)) if isinstance(path, str) else None


def _package_licence(name: str) -> str | None:
    module = name.removeprefix(PACKAGE_SCHEME).partition("/")[0]
    for distribution in importlib.metadata.packages_distributions().get(module, []):
        metadata = importlib.metadata.metadata(distribution)
        if stated := metadata["License-Expression"] or metadata["License"]:
            return str(stated).splitlines()[0]
    return None


class _LicenceReader(GGUFReader):
    """Reads a GGUF file up to the licence. Converters write it before the vocabulary, which takes seconds to read."""

    FIELD = "general.license"

    class Found(Exception):
        """Raised at the licence's field, whose text it carries."""

    def _push_field(self, field: ReaderField, skip_sum: bool = False) -> int:
        if field.name == self.FIELD:
            raise self.Found(str(field.contents()))
        return int(super()._push_field(field, skip_sum))


@lru_cache
def _gguf_licence(path: Path, modified: int) -> str | None:
    """The licence in a file's metadata. A file that states none is read to the end, its whole vocabulary included."""
    try:
        _LicenceReader(path)
    except _LicenceReader.Found as found:
        return str(found)
    return None
