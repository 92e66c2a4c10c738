"""Read the YAML file of a recipe, in which a key must not appear twice."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import yaml

from nlt_trainer.errors import DataError

MOST_BYTES = 2**16
"""The size of the largest file that is read as a recipe: YAML of a megabyte takes seconds."""
MOST_VALUES = 10_000
"""The most values of a recipe, where one that stands behind an anchor counts as often as it is used."""


MOST_LEVELS = 32
NUMBERS = {
    "tag:yaml.org,2002:int": re.compile(r"[+-]?(0|[1-9][0-9_]*)"),
    "tag:yaml.org,2002:float": re.compile(r"[^:]*"),  # 1:30.5 would be 90.5
}
"""YAML's kinds of numbers -> their decimal form. Other forms, in base 8 or 60, are rarely meant."""


class RecipeLoader(yaml.SafeLoader):
    """A YAML loader that refuses a key that appears twice, of which others drop the first, and deep nesting."""

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:  # the name in PyYAML
        self._check_level(self.flow_level)
        super().fetch_flow_collection_start(TokenClass)

    def add_indent(self, column: int) -> bool:
        self._check_level(len(self.indents))
        return super().add_indent(column)

    def _check_level(self, level: int) -> None:
        if level >= MOST_LEVELS:
            problem = f"more than {MOST_LEVELS} levels, and a recipe has few"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=self.get_mark())

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value of a node.

        Raises:
            yaml.MarkedYAMLError: a word looks like a number or a date and is none, such as `0x_` or `2001-99-99`. For
                these PyYAML raises Python's own errors, of many kinds.
        """
        kind = NUMBERS.get(node.tag)
        if kind and not kind.fullmatch(node.value):  # such as 010, which would be 8
            problem = f"{node.value[:40]!r} is no decimal number; write it in decimal, or in quotes"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            problem = f"{str(node.value)[:40]!r} has no value of its kind, {node.tag}; put it in quotes"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node.

        Raises:
            yaml.MarkedYAMLError: a key stands twice, or is a list or a mapping.
        """
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                problem = "a list or a mapping stands where a key belongs; write a word"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
            key = key_node.value
            if key in seen and key_node.tag != "tag:yaml.org,2002:merge":
                raise yaml.MarkedYAMLError(problem=f"{key!r} stands twice; keep one", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_mapping(path: Path) -> dict[str, Any]:
    """Load a YAML file whose top is a mapping.

    Raises:
        DataError: the file is missing, is no YAML, has another top, or is larger or deeper than any recipe.
    """
    if not path.is_file():
        raise DataError(path, "recipe not found; give an existing YAML file with --config")
    if (size := path.stat().st_size) > MOST_BYTES:
        raise DataError(path, f"is no recipe: it has {size:,} bytes, and a recipe at most {MOST_BYTES:,}")
    try:
        content = load_yaml(path.read_bytes())
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise DataError(path, f"not valid YAML ({error.problem})", line=line) from error
    except yaml.YAMLError as error:
        raise DataError(path, f"not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise DataError(path, f"a recipe maps blocks to keys, found {type(content).__name__} at the top")
    return content


def load_yaml(text: bytes | str) -> Any:
    """The value of a YAML text.

    Raises:
        yaml.YAMLError: it is no YAML, or its anchors make a value that contains itself or `MOST_VALUES` values.
    """
    loader = RecipeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if number_of_values(node) > MOST_VALUES:
            raise yaml.YAMLError(f"its anchors make more than {MOST_VALUES:,} values")
        return loader.construct_document(node)
    except RecursionError as error:
        raise yaml.YAMLError("a value contains itself") from error


def number_of_values(node: yaml.Node) -> int:
    """Values in a node, counted as often as anchors repeat them.

    Raises:
        RecursionError: the node contains itself.
    """
    known: dict[int, int] = {}

    def count(node: yaml.Node) -> int:
        if isinstance(node, yaml.ScalarNode):
            return 1
        if id(node) not in known:
            inner = node.value if isinstance(node, yaml.SequenceNode) else itertools.chain(*node.value)
            known[id(node)] = 1 + sum(map(count, inner))
        return known[id(node)]

    return count(node)
