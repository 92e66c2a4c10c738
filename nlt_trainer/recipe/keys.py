"""The keys that a recipe can have: this package's own options, and options of a library that a block takes too."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_type_hints


@dataclass(frozen=True)
class Block:
    """A block of a recipe whose dataclass adds options to those of a library's class.

    Args:
        own: dataclass of this package's options; its docstring's first line is their heading in the help.
        full: `module:class` of the dataclass that has all options of the block; imported when a recipe is in order.
        inherited: names of the library's options that the block takes.
        refused: names of those that it does not take -> what to do instead.
        documentation: address of a page on the library's options.
    """

    own: type
    full: str
    inherited: frozenset[str]
    refused: Mapping[str, str] = field(default_factory=dict)
    documentation: str = ""

    @property
    def full_class(self) -> Any:
        """The class that `full` names."""
        module, _, name = self.full.partition(":")
        return getattr(importlib.import_module(module), name)


Blocks = Mapping[str, type | Block]
"""Name of each block of a recipe -> its dataclass."""


class KnownKeys:
    """The keys of a recipe's blocks: which block each belongs to, and what type it has.

    Args:
        blocks: dataclass of each block.
    """

    def __init__(self, blocks: Blocks) -> None:
        self.blocks = blocks
        self.own = {name: block.own if isinstance(block, Block) else block for name, block in blocks.items()}
        self.hints = {name: field_hints(own) for name, own in self.own.items()}
        inherited = {name: block for name, block in blocks.items() if isinstance(block, Block)}
        self.refused = {key: why for block in inherited.values() for key, why in block.refused.items()}
        self.keys = {
            name: [
                *hints,
                *sorted(inherited[name].inherited | {*inherited[name].refused} if name in inherited else ()),
            ]
            for name, hints in self.hints.items()
        }
        self.block_of = {key: name for name, keys in self.keys.items() for key in keys}

    def own_hint(self, key: str) -> Any:
        """Type of one of this package's options; `None` for a library's option."""
        return self.hints[self.block_of[key]].get(key)

    def of_block(self, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values that belong to a block."""
        return {key: value for key, value in values.items() if self.block_of[key] == name}


def default_of(field_: dataclasses.Field[Any]) -> tuple[Any] | None:
    """A field's default in a tuple; `None` where it has none."""
    if field_.default is not dataclasses.MISSING:
        return (field_.default,)
    return None if field_.default_factory is dataclasses.MISSING else (field_.default_factory(),)


def field_hints(argument_class: Any) -> dict[str, Any]:
    """Return the resolved type of each field that the constructor takes."""
    hints = get_type_hints(argument_class)
    return {f.name: hints[f.name] for f in dataclasses.fields(argument_class) if f.init}
