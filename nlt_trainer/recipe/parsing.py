"""Recipes: a YAML file gives the defaults, the command line overrides them, and an unknown key is an error.

A recipe has one block for each argument dataclass, under the name that the caller gives it:

```yaml
model:
  encoder: ~/encoders/start
data:
  collection: ~/collections/python
trainer:
  learning_rate: 2e-5
```

Reading a recipe imports neither torch nor transformers, so the help appears at once, and so do the errors for a
misspelt key and a missing file. A block may add its options to those of a library's class. It names this class, which
is imported only when everything else is in order.
"""

from __future__ import annotations

import dataclasses
import difflib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nlt_trainer.errors import DataError, NLTError
from nlt_trainer.recipe.command_line import config_of, make_parser, with_underscores
from nlt_trainer.recipe.keys import Block, Blocks, KnownKeys, default_of, field_hints
from nlt_trainer.recipe.outputs import check_outputs, sweep_outputs
from nlt_trainer.recipe.values import NULL, Unread, coerce, expand_home, from_text, read
from nlt_trainer.recipe.yaml_files import read_mapping

Build = Callable[[KnownKeys, Mapping[str, Any]], tuple[Any, ...]]
"""Makes the instances of the blocks from the values of their keys."""


def parse_recipe(
    blocks: Blocks,
    argv: Sequence[str] | None = None,
    *,
    description: str | None = None,
    check: Callable[..., None] | None = None,
    writes: Sequence[str | Path] = (),
) -> Any:
    """Build one instance of each argument dataclass from `--config FILE.yaml` and the rest of the command line.

    Args:
        blocks: dataclass of each block, for example `{"model": ModelArguments, "data": DataArguments}`.
        argv: the command line without the program's name; `None` reads `sys.argv`.
        description: what the help says before the keys.
        check: refuses what the stage cannot work on, such as a missing file, by an `NLTError`. It gets an instance of
            each block's own dataclass, in the order of `blocks`, before the class of any library is imported.
        writes: names of the options that say where the stage writes; see `check_outputs` and `sweep_outputs`.

    Returns:
        The instances, in the order of `blocks`.

    Raises:
        DataError: the recipe is missing or malformed, or holds an unknown block, an unknown key or a wrong value.
        NLTError: an unknown flag, a value of a wrong type, a required key that is missing, or values that a
            dataclass refuses; says whether they stand in the recipe or on the command line. Also an output that would
            replace what another option or `--config` names.

    Example:
        ```python
        model, data, trainer = parse_recipe(RECIPE_BLOCKS, ["--config", "recipes/demo/dream.yaml", "--seed", "1"])
        ```
    """
    words = [with_underscores(word) for word in (sys.argv[1:] if argv is None else argv)]
    known = KnownKeys(blocks)
    config = config_of(words)
    recipe = {} if config is None else read_recipe(config, known)
    parser = make_parser(known, recipe, description=description, help_all="--help_all" in words)
    namespace, rest = parser.parse_known_args(words)
    if rest:
        raise NLTError(_unknown_flag_message(rest, known))
    flags = {key: value for key, value in vars(namespace).items() if key in known.block_of}
    for key in flags.keys() & known.refused.keys():
        raise NLTError(f"argument --{key}: {known.refused[key]}")
    flags = {key: _from_words(key, value, known) for key, value in flags.items()}
    own = _placed(_own, known, recipe, flags, config=config)
    if check is not None:
        check(*own)
    arguments = _placed(_whole, known, recipe, flags, config=config)
    check_outputs(writes, arguments, config=config)
    sweep_outputs(writes, arguments)
    return arguments


def _placed(
    build: Build, known: KnownKeys, recipe: Mapping[str, Any], flags: Mapping[str, Any], *, config: str | None
) -> tuple[Any, ...]:
    """Make the instances with `build`.

    Raises:
        NLTError: as `build`, and says whether the values stand in the recipe or on the command line.
    """
    try:
        return build(known, {**recipe, **flags})
    except ValueError as error:
        named = config is None or str(error).startswith("argument --")
        place = "" if named else f"{_origin(build, known, recipe, str(config), error)}: "
        raise NLTError(f"{place}{error}") from error


def _own(known: KnownKeys, values: Mapping[str, Any]) -> tuple[Any, ...]:
    """Make an instance of each dataclass of this package, which needs no library.

    Raises:
        ValueError: a required key is missing, or a dataclass refuses its values.
    """
    values = {key: expand_home(value) for key, value in values.items()}
    return tuple(_instance(own, known, name, values) for name, own in known.own.items())


def _whole(known: KnownKeys, values: Mapping[str, Any]) -> tuple[Any, ...]:
    """Make the instances, with the library's options where a block has such.

    Raises:
        ValueError: a required key is missing, or a dataclass refuses its values.
    """
    values = {key: expand_home(value) for key, value in values.items()}
    built = dict(zip(known.own, _own(known, values), strict=True))
    for name, block in known.blocks.items():
        if isinstance(block, Block):
            full = block.full_class
            hints, own = field_hints(full), known.of_block(name, values)
            given = {
                key: read(value, hints[key]) if isinstance(value, Unread) else value for key, value in own.items()
            }
            built[name] = full(**{key: expand_home(value) for key, value in given.items()})
    return tuple(built.values())


def _instance(own: type, known: KnownKeys, name: str, values: Mapping[str, Any]) -> Any:
    given = {key: value for key, value in known.of_block(name, values).items() if key in known.hints[name]}
    if missing := [
        f.name for f in dataclasses.fields(own) if f.init and default_of(f) is None and f.name not in given
    ]:
        raise ValueError(f"{missing[0]} is not set and has no default; give --{missing[0]} or set it in the recipe")
    return own(**given)


def _origin(build: Build, known: KnownKeys, recipe: Mapping[str, Any], config: str, error: ValueError) -> str:
    """Where refused values come from: the recipe, if it alone raises the same error, else the command line."""
    try:
        build(known, recipe)
    except ValueError as alone:
        if str(alone) == str(error):
            return config
    return "command line"


def read_recipe(path: str | Path, known: KnownKeys) -> dict[str, Any]:
    """Read the values that a recipe sets: `{key: value of the option's type}`, or `Unread` for a library's option.

    Raises:
        DataError: the file is missing, is no YAML mapping of mappings, or has an unknown block, an unknown key or a
            value of a wrong type; names the file, the key and the nearest known one.
    """
    path = Path(expand_home(path))
    values: dict[str, Any] = {}
    for block, content in read_mapping(path).items():
        if block not in known.keys:
            raise DataError(path, _unknown_block_message(block, known))
        if not isinstance(content, dict | None):
            raise DataError(path, f"block `{block}:` must map keys to values, found {type(content).__name__}")
        for key, value in (content or {}).items():
            place = f"`{key}` in block `{block}:`"
            if key not in known.keys[block]:
                raise DataError(path, _unknown_key_message(key, block, known))
            if key in known.refused:
                raise DataError(path, f"{place}: {known.refused[key]}")
            hint = known.own_hint(key)
            try:
                values[key] = Unread(value, place, is_text=False) if hint is None else coerce(value, hint)
            except ValueError as error:
                raise DataError(path, f"{place} {error}") from error
    return values


def _from_words(key: str, words: str | list[str], known: KnownKeys) -> Any:
    """The value of an option from the word or the list of words after its flag.

    Raises:
        NLTError: the words do not fit the option's type; names the flag.
    """
    hint = known.own_hint(key)
    if hint is None:  # only the library's class knows whether it is a switch, a text or several texts
        text = words[0] if len(words) == 1 else words or "true"
        return Unread(text, f"argument --{key}:", is_text=True)
    try:
        return from_text(NULL if words == [NULL] else words, hint)
    except ValueError as error:
        raise NLTError(f"argument --{key}: {error}") from error


def _nearest(key: object, known: Sequence[str]) -> str:
    """Return the hint `, did you mean ...` for the nearest known name, or nothing."""
    matches = difflib.get_close_matches(str(key).replace("-", "_"), known, n=1)
    return f", did you mean `{matches[0]}`?" if matches else ""


def _unknown_block_message(block: object, known: KnownKeys) -> str:
    where = f"; `{block}` is a key of block `{known.block_of[str(block)]}:`" if block in known.block_of else ""
    names = ", ".join(f"`{name}:`" for name in known.keys)
    return f"unknown block `{block}`{where}{_nearest(block, list(known.keys))}; a recipe has the blocks {names}"


def _unknown_key_message(key: object, block: str, known: KnownKeys) -> str:
    """Say which key is meant, or in which block a key belongs."""
    if key in known.block_of:
        return f"`{key}` stands in block `{block}:` but belongs to block `{known.block_of[str(key)]}:`"
    nearest = _nearest(key, known.keys[block])
    if nearest:
        return f"unknown key `{key}` in block `{block}:`{nearest}"
    elsewhere = difflib.get_close_matches(str(key), list(known.block_of), n=1)
    remedy = "; --help lists the known ones"
    if elsewhere:
        remedy = f", did you mean `{elsewhere[0]}` in block `{known.block_of[elsewhere[0]]}:`?"
    return f"unknown key `{key}` in block `{block}:`{remedy}"


def _unknown_flag_message(unknown: Sequence[str], known: KnownKeys) -> str:
    """Say which flag is meant by the first argument that nothing takes."""
    flags = [argument for argument in unknown if argument.startswith("-")]
    if not flags:
        return f"unexpected argument {unknown[0]!r}; give values as --key value, and put several words in quotes"
    key = flags[0].split("=")[0].lstrip("-")
    nearest = difflib.get_close_matches(key, ["config", "help", "help_all", *known.block_of], n=1)
    remedy = f", did you mean --{nearest[0]}?" if nearest else "; --help lists the known ones"
    return f"unknown flag --{key}{remedy}"
