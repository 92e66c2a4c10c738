"""The command line of a recipe's stages: a flag for each key, and the help that shows them by block."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NoReturn, get_args, get_origin

from nlt_trainer.errors import NLTError
from nlt_trainer.recipe.keys import Block, KnownKeys, default_of, field_hints
from nlt_trainer.recipe.values import Unread

METAVARS = {dict: "MAPPING", str: "TEXT", float: "NUMBER", int: "INTEGER"}
"""What the help calls a value of each type. Of several types the first in this order counts."""


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Shows descriptions as they are written, without wrapping their lines."""


class _Parser(argparse.ArgumentParser):
    """A parser that raises what argparse would print before it leaves the process."""

    def error(self, message: str) -> NoReturn:
        """Raise the message.

        Raises:
            NLTError: always.
        """
        raise NLTError(message)


def config_of(words: Sequence[str]) -> str | None:
    """The recipe that the command line names, if it names one."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE.yaml")
    config: str | None = parser.parse_known_args(words)[0].config
    return config


def make_parser(
    known: KnownKeys, recipe: Mapping[str, Any], *, description: str | None, help_all: bool
) -> argparse.ArgumentParser:
    """Make a parser with a flag for each option, grouped by block. The help shows the recipe's values as defaults."""
    parser = _Parser(
        allow_abbrev=False,
        usage="%(prog)s [--config FILE.yaml] [--key value ...]",
        formatter_class=HelpFormatter,
        description=description,
    )
    parser.add_argument("--config", metavar="FILE.yaml", help="recipe whose values replace the defaults")
    inherits = any(isinstance(block, Block) for block in known.blocks.values())
    help_of_all = "show this message with the inherited keys, and exit" if inherits else argparse.SUPPRESS
    parser.add_argument("--help_all", action="help", help=help_of_all)
    for name, own in known.own.items():
        _add_own(parser, name, own, recipe, known.hints[name])
    for name, block in known.blocks.items():
        if isinstance(block, Block):
            _add_inherited(parser, name, block, recipe, help_all=help_all)
    return parser


def _add_own(
    parser: argparse.ArgumentParser, name: str, own: type, recipe: Mapping[str, Any], hints: Mapping[str, Any]
) -> None:
    """Add this package's options, each under the heading of the dataclass that declares it."""
    groups: dict[type, argparse._ArgumentGroup] = {}
    for f in dataclasses.fields(own):
        if f.init:
            declares = next(part for part in own.__mro__ if f.name in inspect.get_annotations(part))
            if declares not in groups:
                heading = (inspect.getdoc(declares) or name).splitlines()[0].rstrip(".")
                groups[declares] = parser.add_argument_group(f"{heading} (block `{name}:`)")
            _add_flag(groups[declares], f.name, _help_of(f, recipe), hints[f.name])


def _add_inherited(
    parser: argparse.ArgumentParser, name: str, block: Block, recipe: Mapping[str, Any], *, help_all: bool
) -> None:
    """Add the library's options. Their help is shown only if it is asked for, because it imports the library."""
    fields = {f.name: f for f in dataclasses.fields(block.full_class)} if help_all else {}
    hints = field_hints(block.full_class) if help_all else {}
    note = (
        None
        if help_all
        else f"accepted too; --help_all lists them, and they are documented under\n{block.documentation}"
    )
    group = parser.add_argument_group(f"Inherited parameters (block `{name}:`)", note)
    for key in sorted(block.inherited | {*block.refused}):
        shown = help_all and key in fields and key not in block.refused
        _add_flag(group, key, _help_of(fields[key], recipe) if shown else argparse.SUPPRESS, hints.get(key))


def _add_flag(group: argparse._ArgumentGroup, key: str, text: str, hint: Any) -> None:
    """Add a flag that takes as many words as its type has. Any number is taken where the type is not known yet."""
    parts = (hint, *get_args(hint))
    lists = [part for part in parts if get_origin(part) is list]
    nargs = "*" if lists or hint is None else "?" if bool in parts else None
    metavar = "true|false" if bool in parts else _metavar(get_args(lists[0])[0] if lists else hint)
    # A switch without a word is on.
    const = "true" if nargs == "?" else None
    options: dict[str, Any] = {"metavar": metavar, "default": argparse.SUPPRESS, "help": text}
    if lists:  # a flag that stands twice adds to its list
        group.add_argument(f"--{key}", nargs=nargs, action="extend", **options)
    else:
        group.add_argument(f"--{key}", nargs=nargs, const=const, **options)


def _metavar(hint: Any) -> str:
    """What the help calls one value: the words that it is chosen from, or its kind."""
    parts = (hint, *get_args(hint))
    choices = [str(choice) for part in parts if get_origin(part) is Literal for choice in get_args(part)]
    if choices and not {str, int, float} & {*parts}:
        return f"{{{','.join(choices)}}}"
    kinds = [get_origin(part) or part for part in parts]
    kind = next((metavar for kind, metavar in METAVARS.items() if kind in kinds), "TEXT")
    return "|".join([kind, *(choices if str not in parts else ())])


def _help_of(f: dataclasses.Field[Any], recipe: Mapping[str, Any]) -> str:
    """An option's help with the value that it has without its flag."""
    found: Any = recipe.get(f.name, default_of(f))
    if f.name not in recipe and found is None:
        return f"{f.metadata.get('help', '')} (needed)".replace("%", "%%")
    value = found if f.name in recipe else found[0]
    value = value.value if isinstance(value, Unread) else value
    return f"{f.metadata.get('help', '')} (default: {_as_yaml(value)})".replace("%", "%%")


def _as_yaml(value: Any) -> str:
    """A value as a recipe has it. Only a text that is empty or begins or ends with a space needs its quotes."""
    plain = isinstance(value, str) and value != "" and value == value.strip()
    return str(value) if plain else json.dumps(value, ensure_ascii=False, default=str)


def with_underscores(word: str) -> str:
    """Turn `--learning-rate=2e-5` into `--learning_rate=2e-5`: the help shows one spelling."""
    flag, equals, value = word.partition("=")
    return f"--{flag[2:].replace('-', '_')}{equals}{value}" if flag.startswith("--") else word
