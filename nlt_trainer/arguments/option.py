"""How an option of a recipe is declared: its default, its help, and what it decides."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from nlt_trainer.choices import check_choice
from nlt_trainer.errors import NLTError
from nlt_trainer.recipe.values import is_finite

Decides = Literal["start", "llm", "training", "adaptation", "result", "nothing"]
"""What part of a run an option decides. A run that resumes from a checkpoint must share all but the last two kinds:

- `start`: the encoder that training begins with, and what it reads of a text;
- `llm`: the frozen LLM and its prompt, which matter where training reads the LLM, and to `nlt adapt_scorer`;
- `training`: the objective, the batches and the optimizer;
- `adaptation`: what `nlt adapt_scorer` fits;
- `result`: what is saved of a training, which may be decided anew when its steps are done;
- `nothing`: where files lie (their content is compared instead), speed and memory, or another stage.
"""

PathKind = Literal["file", "collection", "model", "cache", "folder"]
"""What lies at the path that an option names, which no output may replace (`check_outputs`):

- `file`: one file;
- `collection`: a BEIR folder, in which other files than its own may be written;
- `model`: a model, in whose folder nothing is written, because all of it is read;
- `cache`: a folder to which stages only add files;
- `folder`: any other folder or file.
"""


def option(
    *,
    help: str,
    decides: Decides,
    path: PathKind | None = None,
    beside: Mapping[Callable[[str], Path], PathKind] | None = None,
    default: Any = dataclasses.MISSING,
    default_factory: Callable[[], Any] | Any = dataclasses.MISSING,
) -> Any:
    """Declare an option as a dataclass field. An option without a default has to be set.

    Args:
        help: the option's documentation, of which there is no other copy.
        decides: see `Decides`.
        path: see `PathKind`; `None` where the option names no file or folder.
        beside: what a stage that writes there writes beside it: how its path follows from the option's -> what it is.
        default: its value where a recipe does not set it.
        default_factory: makes that value, if it is mutable, such as a list.
    """
    metadata = {"help": help, "decides": decides, "path": path, "beside": beside or {}}
    return field(default=default, default_factory=default_factory, metadata=metadata)


def same_as(name: str, *, of: type) -> dict[str, Any]:
    """The help, the path and the default of another dataclass's option, for an `option` that means the same."""
    (found,) = (f for f in dataclasses.fields(of) if f.name == name)
    return {"help": found.metadata["help"], "path": found.metadata["path"], "default": found.default}


def options_deciding(*what: Decides, of: type) -> list[str]:
    """The options of a dataclass that decide one of the given parts, in their order."""
    return [f.name for f in dataclasses.fields(of) if f.metadata.get("decides") in what]


def check_values(arguments: Any) -> None:
    """Refuse a word that one of the arguments' `Literal` options does not have, and a number that is not finite.

    Args:
        arguments: an instance of a dataclass of options.

    Raises:
        NLTError: names the option, the value and what is allowed.
    """
    for name, hint in get_type_hints(type(arguments)).items():
        value = getattr(arguments, name, None)
        if not is_finite(value):
            raise NLTError(f"{name} is {value}; it must be a finite number")
        for part in (hint, *get_args(hint)):
            if get_origin(part) is Literal and isinstance(value, str):
                check_choice(name, value, part)
            elif isinstance(value, list) and get_origin(part) is Literal:
                for word in value:
                    check_choice(name, word, part)
