"""The command line of a recipe's stages: a flag for each key, and the help that shows them by block."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn, get_args, get_origin

from nlt_trainer.errors import NLTError
from nlt_trainer.recipe.keys import Block, KnownKeys, default_of
from nlt_trainer.recipe.values import Unread


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
    parser.add_argument("--help_all", action="help", help="show this message with the inherited keys, and exit")
    for name, own in known.own.items():
        heading = (inspect.getdoc(own) or name).splitlines()[0].rstrip(".")
        group = parser.add_argument_group(f"{heading} (block `{name}:`)")
        for f in dataclasses.fields(own):
            if f.init:
                _add_flag(group, f.name, _help_of(f, recipe), known.hints[name][f.name])
    for name, block in known.blocks.items():
        if isinstance(block, Block):
            _add_inherited(parser, name, block, recipe, help_all=help_all)
    return parser


def _add_inherited(
    parser: argparse.ArgumentParser, name: str, block: Block, recipe: Mapping[str, Any], *, help_all: bool
) -> None:
    """Add the library's options. Their help is shown only if it is asked for, because it imports the library."""
    fields = {f.name: f for f in dataclasses.fields(block.full_class)} if help_all else {}
    note = (
        None
        if help_all
        else f"accepted too; --help_all lists them, and they are documented under\n{block.documentation}"
    )
    group = parser.add_argument_group(f"Inherited parameters (block `{name}:`)", note)
    for key in sorted(block.inherited | {*block.refused}):
        shown = help_all and key in fields and key not in block.refused
        _add_flag(group, key, _help_of(fields[key], recipe) if shown else argparse.SUPPRESS, None)


def _add_flag(group: argparse._ArgumentGroup, key: str, text: str, hint: Any) -> None:
    choices = [str(choice) for part in (hint, *get_args(hint)) for choice in _choices(part)]
    metavar = f"{{{','.join(choices)}}}" if choices else key.upper()
    group.add_argument(f"--{key}", nargs="*", metavar=metavar, default=argparse.SUPPRESS, help=text)


def _choices(hint: Any) -> Iterator[Any]:
    """The words of a `Literal`."""
    if str(get_origin(hint)) == "typing.Literal":
        yield from get_args(hint)


def _help_of(f: dataclasses.Field[Any], recipe: Mapping[str, Any]) -> str:
    """An option's help with the value that it has without its flag."""
    found: Any = recipe.get(f.name, default_of(f))
    if f.name not in recipe and found is None:
        return f"{f.metadata.get('help', '')} (needed)".replace("%", "%%")
    value = found if f.name in recipe else found[0]
    value = value.value if isinstance(value, Unread) else value
    return f"{f.metadata.get('help', '')} (default: {value})".replace("%", "%%")


def with_underscores(word: str) -> str:
    """Turn `--learning-rate=2e-5` into `--learning_rate=2e-5`: the help shows one spelling."""
    flag, equals, value = word.partition("=")
    return f"--{flag[2:].replace('-', '_')}{equals}{value}" if flag.startswith("--") else word
