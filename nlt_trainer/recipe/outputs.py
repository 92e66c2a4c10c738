"""What a stage writes: its outputs must replace no input, and what a killed stage has left of them is removed."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from nlt_trainer.errors import NLTError
from nlt_trainer.files import CORPUS_FILE, QRELS_FOLDER, QUERIES_FILE, cache_folder, linked_place, sweep


def check_outputs(writes: Iterable[str | Path], arguments: Sequence[Any], *, config: str | None = None) -> None:
    """Refuse an output that another option or the recipe's own file names, or that lies in or around such a path.

    What a stage writes beside the path of an option, as the option declares it, is an output too. A file must also
    have a place where it can be written, and a folder one that is no file.

    Args:
        writes: names of the options that say where the stage writes. `output_dir/encoder` means a file or folder
            inside that of an option.
        arguments: instances of the dataclasses of options, whose `path` says which options name files and folders.
        config: file of the recipe.

    Raises:
        NLTError: names both options, their values and the remedy. Also where an option names no possible path, or a
            file where a folder is or where this user may not write.
    """
    paths = [*_named(arguments), *([] if config is None else [("config", config, "file")])]
    named = [(option, path, kind, _absolute(path, option)) for option, path, kind in paths]
    for option, place, output, written in _outputs(writes, arguments):
        if _absolute(place, option) == Path("/"):
            raise NLTError(f"{option}: {place} is the root of all files; name a folder or file in it for {option}")
        for other, path, kind, absolute in named:
            if other != option and _would_replace(_absolute(output, option), absolute, kind, whole=written != "cache"):
                raise NLTError(
                    f"{option}: {output} would replace {other} {path} or a part of it; name another path for {option}"
                )
        if written == "file":
            _check_file(option, output)
        else:
            _check_folder(option, place if output.is_relative_to(place) else output)


def sweep_outputs(writes: Iterable[str | Path], arguments: Sequence[Any]) -> None:
    """Remove what killed processes have left where the stage writes, and in the user's cache.

    Args:
        writes: as for `check_outputs`.
        arguments: as for `check_outputs`.
    """
    for _, place, output, _ in _outputs(writes, arguments):
        for path in {place, linked_place(place), linked_place(output)}:
            sweep(path.parent)
        sweep(place, below=True)
    sweep(cache_folder(), below=True)


def _outputs(writes: Iterable[str | Path], arguments: Sequence[Any]) -> Iterator[tuple[str, Path, Path, str]]:
    """The option of each output that is set, the path that it names, the output, and what that is."""
    for written in writes:
        option, *inside = Path(written).parts
        block = next(block for block in arguments if hasattr(block, option))
        if (value := getattr(block, option)) is not None:
            metadata = next(field.metadata for field in dataclasses.fields(block) if field.name == option)
            yield option, Path(value), Path(value, *inside), "folder" if inside else metadata.get("path") or "cache"
            for beside, kind in metadata.get("beside", {}).items():
                yield option, Path(value), beside(value), kind


def _named(arguments: Sequence[Any]) -> Iterator[tuple[str, str | Path, str]]:
    """Every path that options name, and what lies beside it: the option, the path, and what lies there."""
    for block in arguments:
        for field in dataclasses.fields(block):
            if kind := field.metadata.get("path"):
                value = getattr(block, field.name)
                for path in value if isinstance(value, list) else [value] if value else []:
                    yield field.name, path, kind
                    yield from ((field.name, beside(path), its) for beside, its in field.metadata["beside"].items())
                    if folder := path.rpartition(":")[0]:  # an entry FOLDER:SPLIT
                        yield field.name, folder, kind


def _check_folder(option: str, folder: Path) -> None:
    """Refuse a folder that is a file, or whose parent is one."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise NLTError(f"{option}: {there} is a file, and a folder is to be written there; name a folder for {option}")


def _check_file(option: str, output: Path) -> None:
    """Refuse a place where no file can be written."""
    if output.is_dir():
        raise NLTError(f"{option}: {output} is a folder, and a file is to be written there; name another for {option}")
    there = next(place for place in output.absolute().parents if place.exists())
    if not there.is_dir():
        raise NLTError(f"{option}: {there} is a file, and {output} is to be written in it; name a folder for {option}")
    if not os.access(there, os.W_OK | os.X_OK):
        raise NLTError(
            f"{option}: {output} is to be written in {there}, where you may not write; give yourself the right to it "
            "or name another place"
        )


def _absolute(path: str | Path, option: str) -> Path:
    """The path that an option names, with its links followed.

    Raises:
        NLTError: it has a zero in it, leads to the home of nobody, or is a circle of links.
    """
    try:
        return Path(path).expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise NLTError(f"{option}: {str(path)!r} cannot be a path ({error}); name another") from error


def _would_replace(output: Path, path: Path, kind: str, *, whole: bool) -> bool:
    """Whether writing `output` changes what lies at `path`. If not `whole`, files are only added to the folder."""
    if whole and path.is_relative_to(output):
        return True
    if not output.is_relative_to(path):
        return False
    if kind == "model":
        return _is_model(path)
    parts = {CORPUS_FILE, QUERIES_FILE, QRELS_FOLDER}
    return output == path or (kind == "collection" and output.relative_to(path).parts[0] in parts)


def _is_model(path: Path) -> bool:
    """Whether a folder is a model itself. The folder of a run is none: its encoder lies in a folder of its own."""
    return any((path / name).is_file() for name in ("modules.json", "config.json", "adapter_config.json"))
