"""Convert the values of a recipe, from YAML or from the command line, to the types of their options."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from nlt_trainer.recipe.yaml_files import load_yaml

NULL = "null"
"""The word that unsets a key, in YAML and on the command line."""


@dataclass(frozen=True)
class Unread:
    """A value of a library's option. Its type is not known before the library's class is imported.

    Args:
        value: as YAML has it, or as text from the command line.
        place: what an error message calls it.
        is_text: whether it comes from the command line.
    """

    value: Any
    place: str
    is_text: bool


def read(unread: Unread, hint: Any) -> Any:
    try:
        return from_text(unread.value, hint) if unread.is_text else coerce(unread.value, hint)
    except ValueError as error:
        raise ValueError(f"{unread.place} {error}") from error


def coerce(value: Any, hint: Any) -> Any:
    """Convert a YAML value to an option's type. YAML itself reads `2e-5` as a string and `no` as a boolean.

    Raises:
        ValueError: the value does not fit, or a number is not finite; the message names the value and the type.
    """
    adapter: TypeAdapter[Any] = TypeAdapter(hint, config=_config_for(hint))
    try:
        found = adapter.validate_python(value, strict=True if isinstance(value, bool) else None)
    except ValidationError as error:
        remedy = "; put a word such as no, off or yes in quotes" if isinstance(value, bool) else ""
        shown = repr(value)
        if value is None:
            shown, remedy = NULL, "; this key cannot be unset, leave it out for its default"
        raise ValueError(f"is {shown}, expected {_type_name(hint)}{remedy}") from error
    if not is_finite(found):
        raise ValueError(f"is {value!r}, expected a finite number")
    return found


def is_finite(value: Any) -> bool:
    """Whether a value is or holds no number that is infinite or NaN."""
    if isinstance(value, dict):
        return all(map(is_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _config_for(hint: Any) -> ConfigDict | None:
    """A configuration that checks foreign classes by `isinstance`. Pydantic refuses one for a dataclass."""
    return None if dataclasses.is_dataclass(hint) else ConfigDict(arbitrary_types_allowed=True)


def from_text(text: Any, hint: Any) -> Any:
    """Convert a value from the command line: `null` unsets, and a mapping is written in YAML or JSON.

    Raises:
        ValueError: the value does not fit the type.
    """
    if text == NULL:
        return coerce(None, hint)
    if isinstance(text, str) and any(
        kind is dict for part in (hint, *get_args(hint)) for kind in (part, get_origin(part))
    ):
        try:
            text = load_yaml(text)
        except yaml.YAMLError as error:
            message = f'{text!r} is not a mapping of type {_type_name(hint)}, such as \'{{"query": "query: "}}\''
            raise ValueError(message) from error
    return coerce(text, hint)


def _type_name(hint: Any) -> str:
    """A type as people say it: `int`, `one of mean, last`, `list[int] or null`."""
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    if get_origin(hint) in (Union, UnionType):
        parts = [_type_name(part) for part in get_args(hint) if part is not type(None)]
        return " or ".join(parts + [NULL] * (type(None) in get_args(hint)))
    if get_origin(hint) is list:
        return f"list[{_type_name(get_args(hint)[0])}]"
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint).replace("typing.", "")


def expand_home(value: Any) -> Any:
    """Replace a leading `~` of a path, also in a list of paths."""
    if isinstance(value, list):
        return [expand_home(item) for item in value]
    if isinstance(value, str | Path) and (str(value) == "~" or str(value).startswith("~/")):
        return type(value)(Path(value).expanduser())
    return value
