"""Recipes: a YAML file gives the defaults, the command line overrides them, and an unknown key is an error.

A recipe has one block for each argument dataclass, under the name that the caller gives it:

```yaml
model:
  model_name_or_path: ~/encoders/start
data:
  collection: ~/collections/python
trainer:
  learning_rate: 2e-5
```
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import inspect
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from transformers import HfArgumentParser

from nlt_trainer.errors import DataError, NLTError

INHERITED_HELP = (
    "accepted too; --help_all lists them, and they are documented under\n"
    "https://sbert.net/docs/package_reference/sentence_transformer/training_args.html"
)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Descriptions as they are written, the default after each option."""


class RecipeParser(HfArgumentParser):
    """A parser of one flag per dataclass field, grouped by block, that raises instead of leaving the process.

    Args:
        argument_classes: dataclass of each block. The first line of a dataclass's docstring is the heading of its
            own fields in the help; inherited fields stand under a heading of their own.
        help_all: whether the help lists inherited fields, or says where they are documented.
        **kwargs: passed to `argparse.ArgumentParser`.
    """

    def __init__(self, argument_classes: Mapping[str, Any], *, help_all: bool = False, **kwargs: Any):
        self.help_all = help_all
        self.hints = {block: _field_hints(argument_class) for block, argument_class in argument_classes.items()}
        self.blocks = {key: block for block, hints in self.hints.items() for key in hints}
        self._classes = argument_classes
        self._titled_groups: dict[str, argparse._ArgumentGroup] = {}
        self._field_actions: dict[str, list[argparse.Action]] = {key: [] for key in self.blocks}
        usage = "%(prog)s [--config FILE.yaml] [--key value ...]"
        kwargs = {"allow_abbrev": False, "usage": usage, "formatter_class": HelpFormatter, **kwargs}
        super().__init__(list(argument_classes.values()), **kwargs)
        self.add_argument(
            "--config", metavar="FILE.yaml", default=argparse.SUPPRESS, help="recipe whose values replace the defaults"
        )
        if self.add_help:
            self.add_argument("--help_all", action="help", help="show this message with the inherited keys, and exit")

    def add_argument(self, *flags: Any, **kwargs: Any) -> argparse.Action:
        """Add one argument to the group of its block; mappings are read from the command line as YAML or JSON."""
        key = kwargs.get("dest", str(flags[0]).removeprefix("--"))
        if key not in self.blocks:
            return super().add_argument(*flags, **kwargs)
        hint = self.hints[self.blocks[key]][key]
        if get_origin(kwargs.get("type")) is dict or kwargs.get("type") is dict:
            kwargs["type"] = lambda text: _mapping_from_text(text, hint)
        flags = tuple(flag for flag in flags if "-" not in flag.removeprefix("--"))  # see `parse_known_args`
        if flags[0].startswith("--no_"):
            kwargs |= {"help": f"Short for --{key} false.", "default": argparse.SUPPRESS}
        is_own = key in inspect.get_annotations(self._classes[self.blocks[key]])
        if not is_own and not self.help_all:
            kwargs["help"] = argparse.SUPPRESS
        action = self._group_of(key, is_own=is_own).add_argument(*flags, **kwargs)
        self._field_actions[key].append(action)
        return action

    def _group_of(self, key: str, *, is_own: bool) -> argparse._ArgumentGroup:
        """Return the group under whose heading the help lists a field: of its block, or of what the block inherits."""
        block = self.blocks[key]
        argument_class = self._classes[block]
        heading = (inspect.getdoc(argument_class) or block).splitlines()[0].rstrip(".")
        titles: dict[str, str | None] = {f"{heading} (block `{block}:`)": None}
        if not is_own:
            base = argument_class.__mro__[1].__name__
            titles[f"Parameters of {base} (block `{block}:`)"] = None if self.help_all else INHERITED_HELP
        for title, description in titles.items():  # a block's own group stands first, whichever field comes first
            if title not in self._titled_groups:
                self._titled_groups[title] = self.add_argument_group(title, description)
        return self._titled_groups[title]

    def set_field_defaults(self, values: Mapping[str, Any]) -> None:
        """Replace the defaults of fields; a field that has a value is no longer required."""
        self.set_defaults(**values)
        for key in values:
            for action in self._field_actions[key]:
                action.required = False
                if action.const is False:  # --no_KEY, which has no default of its own to show
                    action.default = argparse.SUPPRESS

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does, with hyphens in a flag read as underscores: the help shows one spelling."""
        arguments = [_with_underscores(word) for word in (sys.argv[1:] if args is None else args)]
        return super().parse_known_args(arguments, namespace)

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print.

        Raises:
            NLTError: always.
        """
        raise NLTError(message)


def parse_recipe(
    argument_classes: Mapping[str, type], argv: Sequence[str] | None = None, *, description: str | None = None
) -> tuple[Any, ...]:
    """Build one instance of each argument dataclass from `--config FILE.yaml` and the rest of the command line.

    Args:
        argument_classes: dataclass of each block, for example `{"model": ModelArguments, "data": DataArguments}`.
        argv: the command line without the program's name; `None` reads `sys.argv`.
        description: what the help says before the keys.

    Returns:
        The instances, in the order of `argument_classes`.

    Raises:
        DataError: the recipe is missing or malformed, or holds an unknown block, an unknown key or a wrong value.
        NLTError: an unknown flag, a value of a wrong type, a required flag that is missing, or values that a
            dataclass refuses; says whether they stand in the recipe or on the command line.

    Example:
        ```python
        model, data, trainer = parse_recipe(
            {"model": ModelArguments, "data": DataArguments, "trainer": NLTTrainingArguments},
            ["--config", "recipes/demo/dream.yaml", "--learning_rate", "1e-4"],
        )
        ```
    """
    arguments = sys.argv[1:] if argv is None else argv
    parser = RecipeParser(argument_classes, help_all="--help_all" in arguments, description=description)
    config = vars(RecipeParser({}, add_help=False).parse_known_args(arguments)[0]).get("config")
    if config is not None:
        parser.set_field_defaults(read_recipe(config, parser))
    namespace, unknown = parser.parse_known_args(arguments)
    if unknown:
        raise NLTError(_unknown_flag_message(unknown, list(parser.blocks)))
    try:
        return _build(parser, namespace)
    except ValueError as error:
        place = "" if config is None else f"{_origin(parser, config, error)}: "
        raise NLTError(f"{place}{error}") from error


def _build(parser: RecipeParser, namespace: argparse.Namespace) -> tuple[Any, ...]:
    """The instances; a dataclass that refuses its values raises `ValueError`."""
    given = {key: value for key, value in vars(namespace).items() if key in parser.blocks}
    return parser.parse_dict({key: _expand_home(value) for key, value in given.items()})


def _origin(parser: RecipeParser, config: str, error: ValueError) -> str:
    """Where refused values come from: the recipe if it is refused alike without the command line, else that."""
    try:
        _build(parser, parser.parse_args([]))
    except ValueError as alone:
        if str(alone) == str(error):
            return config
    return "command line"


def read_recipe(path: str | Path, parser: RecipeParser) -> dict[str, Any]:
    """Read the values that a recipe sets, as `{key: value of the field's type}`.

    Raises:
        DataError: the file is missing, is no YAML mapping of mappings, or has an unknown block, an unknown key or a
            value of a wrong type; names the file, the key and the nearest known one.
    """
    path = Path(path).expanduser()
    values: dict[str, Any] = {}
    for block, content in _read_mapping(path).items():
        if block not in parser.hints:
            where = f"; `{block}` is a key of block `{parser.blocks[block]}:`" if block in parser.blocks else ""
            known = ", ".join(f"`{name}:`" for name in parser.hints)
            nearest = _nearest(block, list(parser.hints))
            raise DataError(path, f"unknown block `{block}`{where}{nearest}; a recipe has the blocks {known}")
        if not isinstance(content, dict | None):
            raise DataError(path, f"block `{block}:` must map keys to values, found {type(content).__name__}")
        for key, value in (content or {}).items():
            if key not in parser.hints[block]:
                raise DataError(path, _unknown_key_message(key, block, parser))
            try:
                values[key] = _coerce(value, parser.hints[block][key])
            except ValueError as error:
                raise DataError(path, f"`{key}` in block `{block}:` {error}") from error
    return values


def _field_hints(argument_class: Any) -> dict[str, Any]:
    """Return the resolved type of each field that the constructor takes."""
    hints = get_type_hints(argument_class)
    return {field.name: hints[field.name] for field in dataclasses.fields(argument_class) if field.init}


def _read_mapping(path: Path) -> dict[str, Any]:
    """Load a YAML file whose top is a mapping."""
    if not path.is_file():
        raise DataError(path, "recipe not found; give an existing YAML file with --config")
    try:
        content = yaml.safe_load(path.read_bytes())
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise DataError(path, f"not valid YAML ({error.problem})", line=line) from error
    except yaml.YAMLError as error:
        raise DataError(path, f"not valid YAML ({error})") from error
    if not isinstance(content, dict):
        raise DataError(path, f"a recipe maps blocks to keys, found {type(content).__name__} at the top")
    return content


def _coerce(value: Any, hint: Any) -> Any:
    """Turn a YAML value into a field's type: YAML reads `2e-5` as a string and `no` as a boolean.

    Raises:
        ValueError: the value does not fit; the message names the value and the type.
    """
    adapter: TypeAdapter[Any] = TypeAdapter(hint, config=_config_for(hint))
    try:
        return adapter.validate_python(value, strict=True if isinstance(value, bool) else None)
    except ValidationError as error:
        remedy = "; put a word such as no, off or yes in quotes" if isinstance(value, bool) else ""
        raise ValueError(f"is {value!r}, expected {_type_name(hint)}{remedy}") from error


def _config_for(hint: Any) -> ConfigDict | None:
    """Let pydantic check foreign classes by `isinstance`; it refuses a config beside a dataclass of its own."""
    return None if dataclasses.is_dataclass(hint) else ConfigDict(arbitrary_types_allowed=True)


def _with_underscores(word: str) -> str:
    """Turn `--learning-rate=2e-5` into `--learning_rate=2e-5`."""
    flag, equals, value = word.partition("=")
    return f"--{flag[2:].replace('-', '_')}{equals}{value}" if flag.startswith("--") else word


def _mapping_from_text(text: str, hint: Any) -> Any:
    """Read a mapping from one command-line value such as `'{query: "query: "}'`."""
    try:
        return _coerce(yaml.safe_load(text), hint)
    except (yaml.YAMLError, ValueError) as error:
        message = f'{text!r} is not a mapping of type {_type_name(hint)}, such as \'{{"query": "query: "}}\''
        raise argparse.ArgumentTypeError(message) from error


def _type_name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint).replace("typing.", "")


def _expand_home(value: Any) -> Any:
    """Replace a leading `~` of a path, also in a list of paths."""
    if isinstance(value, list):
        return [_expand_home(item) for item in value]
    if isinstance(value, str | Path) and (str(value) == "~" or str(value).startswith("~/")):
        return type(value)(Path(value).expanduser())
    return value


def _nearest(key: object, known: Sequence[str]) -> str:
    """Return the hint `, did you mean ...` for the nearest known name, or nothing."""
    matches = difflib.get_close_matches(str(key).replace("-", "_"), known, n=1)
    return f", did you mean `{matches[0]}`?" if matches else ""


def _unknown_key_message(key: object, block: str, parser: RecipeParser) -> str:
    """Say which key is meant, or in which block a key belongs."""
    if key in parser.blocks:
        return f"`{key}` stands in block `{block}:` but belongs to block `{parser.blocks[str(key)]}:`"
    nearest = _nearest(key, list(parser.hints[block]))
    if nearest:
        return f"unknown key `{key}` in block `{block}:`{nearest}"
    elsewhere = difflib.get_close_matches(str(key), list(parser.blocks), n=1)
    remedy = "; --help lists the known ones"
    if elsewhere:
        remedy = f", did you mean `{elsewhere[0]}` in block `{parser.blocks[elsewhere[0]]}:`?"
    return f"unknown key `{key}` in block `{block}:`{remedy}"


def _unknown_flag_message(unknown: Sequence[str], known: Sequence[str]) -> str:
    """Say which flag is meant by the first argument that nothing takes."""
    flags = [argument for argument in unknown if argument.startswith("-")]
    if not flags:
        return f"unexpected argument {unknown[0]!r}; give values as --key value"
    key = flags[0].split("=")[0].lstrip("-")
    nearest = difflib.get_close_matches(key.replace("-", "_"), known, n=1)
    remedy = f", did you mean --{nearest[0]}?" if nearest else "; --help lists the known ones"
    return f"unknown flag --{key}{remedy}"
