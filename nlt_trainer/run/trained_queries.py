"""Find the queries that an encoder was trained on, as far as its folder or its run knows them."""

from __future__ import annotations

from typing import get_args

from nlt_trainer.choices import ExportForm
from nlt_trainer.data.known_queries import read_query_keys
from nlt_trainer.errors import NLTError
from nlt_trainer.files import TRAINED_QUERIES_FILE
from nlt_trainer.locations import local_path
from nlt_trainer.run.folder import Run


def trained_queries_of(encoder: str) -> frozenset[int] | None:
    """Keys of the queries that an encoder was trained on, see `query_keys`.

    They lie in the folder of an encoder that was trained or exported. Those of a checkpoint, and of an encoder that an
    earlier version has saved, lie in the folder of the run around it.

    Args:
        encoder: the encoder's name, as `resolve_model` takes it.

    Returns:
        The keys; `None` where nothing says what it was trained on, as for a model on the Hub.

    Raises:
        NLTError: there is no such model on this machine.
        DataError: the file of the keys is malformed.
    """
    path = local_path(encoder)
    if path is None:
        return None
    folder = path.resolve()
    if (folder / TRAINED_QUERIES_FILE).is_file():
        return read_query_keys(folder / TRAINED_QUERIES_FILE)
    run = Run(folder.parent)
    if folder in run.checkpoints().values():
        return run.trained_queries or None
    if folder not in (run.encoder, *(run.exported(form) for form in get_args(ExportForm))):
        return None
    return _of_start(run) if run.keeps_start else run.trained_queries or None


def _of_start(run: Run) -> frozenset[int] | None:
    """The keys of the start of a run; `None` also where the start is not there any more."""
    try:
        return trained_queries_of(run.settings["model"]["encoder"])
    except NLTError:
        return None
