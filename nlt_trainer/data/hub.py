"""Fetch data sets from the Hub as files and read their rows. No code of a data set ever runs.

A data set is named by its Hub id and revision, or by a local folder with the same layout. The entry `configs` in its
README.md says which files belong to which configuration and split, as on the Hub. Without this entry, file names
decide.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import load_dataset
from huggingface_hub import DatasetCard, snapshot_download
from yaml import YAMLError

from nlt_trainer.errors import DataError, NLTError
from nlt_trainer.hub_calls import explain, raise_of_disk
from nlt_trainer.locations import is_hub_id
from nlt_trainer.text_files import check_header, read_jsonl, read_lines

CARD = "README.md"
CARD_ERRORS = (YAMLError, LookupError, TypeError, ValueError, RecursionError)
"""What the Hub's client and PyYAML raise where the metadata of a card is damaged."""


@dataclass(frozen=True)
class HubDataset:
    """A data set whose files lie on this machine.

    Args:
        name: Hub id or folder, as in the recipe.
        commit: the Hub's commit; `None` for a local folder.
        folder: where the files are.
        configs: configuration -> split -> patterns of its files, from README.md; empty if README.md names none.
    """

    name: str
    commit: str | None
    folder: Path
    configs: dict[str, dict[str, list[str]]]

    def part_files(self, name: str, splits: Iterable[str]) -> list[Path]:
        """The files of `corpus` or `queries`: those of the given splits if any of these exist, else all.

        Raises:
            DataError: there are none.
        """
        divided = self._of_config(name) if name in self.configs else {"": self._called(name, self.folder)}
        chosen = [divided[split] for split in splits if split in divided] or list(divided.values())
        if not (files := [path for paths in chosen for path in paths]):
            raise DataError(
                self.folder,
                f"has no {name}: no configuration {name!r} in {CARD}, no {name}.jsonl or {name}/*.parquet",
            )
        return files

    def split_files(self, split: str, *, configs: Sequence[str], inside: str = "") -> list[Path]:
        """The files of a split of judgements or questions.

        Args:
            split: its name in the data set.
            configs: names that the configuration may have.
            inside: folder to look into if no configuration has such a name; the whole data set if it does not exist.

        Raises:
            DataError: there are none.
        """
        config = next((config for config in configs if config in self.configs), None)
        top = self.folder / inside
        divided = self._of_config(config) if config else {}
        files = divided.get(split, []) if config else self._called(split, top if top.is_dir() else self.folder)
        if not files:
            there = f"configuration {config!r} has {', '.join(divided)}" if config else f"no file {split}.* in {top}"
            known = f"; {CARD} names the configurations {', '.join(self.configs)}" if self.configs else ""
            raise DataError(self.folder, f"has no split {split!r} ({there}{known})")
        return files

    def _of_config(self, config: str) -> dict[str, list[Path]]:
        """The files of each split of a configuration."""
        return {
            split: sorted({path for pattern in patterns for path in self._matching(pattern)})
            for split, patterns in self.configs[config].items()
        }

    def _matching(self, pattern: str) -> list[Path]:
        """The files of the data set that a pattern of its README.md names.

        Raises:
            DataError: it is no pattern, or names files outside of the data set.
        """
        try:
            if ".." in Path(pattern).parts:
                raise ValueError("it leads out of the data set")
            return [path for path in self.folder.glob(pattern) if path.is_file()]
        except (ValueError, NotImplementedError) as error:  # an absolute pattern is not implemented
            raise DataError(self.folder / CARD, f"pattern {pattern!r}: {error}; correct its configs") from error

    def _called(self, name: str, top: Path) -> list[Path]:
        """Data files under `top` such as `name.jsonl`, `name-00000-of-00002.parquet` or `name/any.parquet`.

        Where there are none, those whose names go on otherwise, such as `name-v2.jsonl`, which may be another split's.
        """
        files = [path for path in sorted(top.rglob("*")) if path.is_file() and format_of(path)]
        exact, longer = (re.compile(rf"{re.escape(name)}{more}") for more in (r"(-\d[\w-]*)?\.[a-z]+(\.gz)?$", "[-.]"))
        named = [path for path in files if exact.match(path.name) or path.parent.name == name]
        return named or [path for path in files if longer.match(path.name)]


def fetch_dataset(name: str, *, revision: str | None = None, configs: Sequence[str] = ()) -> HubDataset:
    """Fetch a data set into the Hub's cache on this machine; files that are there already are not fetched again.

    Args:
        name: Hub id, or a local folder with the same layout.
        revision: commit, branch or tag of a Hub id; only a commit makes a result repeatable.
        configs: fetch only the files of these configurations, if README.md names any of them.

    Raises:
        NLTError: the data set cannot be fetched; the message says what to place where.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return HubDataset(name, None, folder, _read_card(folder))
    if not is_hub_id(name):
        raise NLTError(f"data set {name!r} is neither a folder nor a Hub id (org/name); correct it")
    try:
        folder = Path(snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=[CARD]))
        known = _read_card(folder)
        patterns = [p for config in configs for split in known.get(config, {}).values() for p in split]
        folder = Path(
            snapshot_download(
                name, repo_type="dataset", revision=folder.name, allow_patterns=[CARD, *patterns] if patterns else None
            )
        )
    except OSError as error:  # all errors of the Hub and of the network
        raise_of_disk(error)
        reason = explain(error, name, repo_type="dataset", revision=revision)
        raise NLTError(f"data set {name!r} cannot be fetched: {reason}") from error
    return HubDataset(name, folder.name, folder, known)


def _read_card(folder: Path) -> dict[str, dict[str, list[str]]]:
    """Configuration -> split -> patterns of files, from `configs` in README.md."""
    if not (folder / CARD).is_file():
        return {}
    try:
        entries = DatasetCard.load(folder / CARD, ignore_metadata_errors=True).data.to_dict().get("configs") or []
        return {entry["config_name"]: _patterns(entry["data_files"]) for entry in entries if "data_files" in entry}
    except CARD_ERRORS as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(
            folder / CARD, f"its metadata cannot be read ({reason}); correct it or remove the file"
        ) from error


def _patterns(data_files: Any) -> dict[str, list[str]]:
    """Read the forms that the Hub accepts: a pattern, a list of patterns, or a list of `{split, path}`."""
    if isinstance(data_files, list) and data_files and isinstance(data_files[0], dict):
        return {str(entry["split"]): _as_list(entry["path"]) for entry in data_files}
    return {"train": _as_list(data_files)}


def _as_list(patterns: Any) -> list[str]:
    return [str(pattern) for pattern in (patterns if isinstance(patterns, list) else [patterns])]


def format_of(path: Path) -> str | None:
    """`jsonl`, `parquet` or `tsv`, with or without gzip; `None` for any other format."""
    suffix = Path(path.name.removesuffix(".gz")).suffix.removeprefix(".")
    return suffix if suffix in {"jsonl", "parquet", "tsv"} else None


def read_rows(files: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Yield the rows of data files one by one; memory holds at most a batch of them.

    Raises:
        DataError: a file is malformed, or in a format other than JSON lines, Parquet and tab-separated values.
    """
    for path in files:
        kind = format_of(path)
        if kind == "jsonl":
            yield from (row for _, row in read_jsonl(path))
        elif kind == "parquet":
            try:
                yield from load_dataset("parquet", data_files=str(path), split="train", streaming=True)
            except (ValueError, OSError) as error:  # pyarrow raises an OSError too where a file is damaged
                reason = " ".join(str(error).split())
                raise DataError(path, f"cannot be read as Parquet ({reason}); fetch the data set again") from error
        elif kind == "tsv":
            yield from _read_tsv(path)
        else:
            raise DataError(path, "is neither .jsonl nor .parquet nor .tsv; convert it, or choose another revision")


def _read_tsv(path: Path) -> Iterator[dict[str, str]]:
    """Yield the rows under a header line; every value stays text, so that an id such as 007 keeps its zeros."""
    lines = read_lines(path)
    header = next(lines, (1, ""))[1].split("\t")
    check_header(path, header)
    for number, line in lines:
        fields = line.split("\t")
        if len(fields) != len(header):
            raise DataError(path, f"has {len(fields)} fields under a header of {len(header)}", line=number)
        yield dict(zip(header, fields, strict=True))
