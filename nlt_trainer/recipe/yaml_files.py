"""Read the YAML file of a recipe, in which a key must not appear twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from nlt_trainer.errors import DataError


class RecipeLoader(yaml.SafeLoader):
    """A YAML loader that refuses a key that appears twice. Other loaders silently drop the first of the two."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node.

        Raises:
            yaml.MarkedYAMLError: a key stands twice.
        """
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = key_node.value
            if key in seen and key_node.tag != "tag:yaml.org,2002:merge":
                raise yaml.MarkedYAMLError(problem=f"{key!r} stands twice; keep one", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_mapping(path: Path) -> dict[str, Any]:
    """Load a YAML file whose top is a mapping."""
    if not path.is_file():
        raise DataError(path, "recipe not found; give an existing YAML file with --config")
    try:
        content = yaml.load(path.read_bytes(), RecipeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise DataError(path, f"not valid YAML ({error.problem})", line=line) from error
    except yaml.YAMLError as error:
        raise DataError(path, f"not valid YAML ({error})") from error
    if not isinstance(content, dict):
        raise DataError(path, f"a recipe maps blocks to keys, found {type(content).__name__} at the top")
    return content
