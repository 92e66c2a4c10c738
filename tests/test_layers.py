"""The order of the package: a module imports only from its own folder and from what stands below it.

`ORDER` is the one place where that order is written down. It names the modules in the package's root one by one and
every folder; a module in neither is an error. A module that a string names counts as imported, except for `NAMED`.
Inside a folder modules may build on one another without a circle.
"""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "nlt_trainer"
ORDER = (
    {"errors"},
    {"choices", "files", "text_files", "file_hashes", "program", "terminal", "hub_calls"},
    {"prompts", "locations"},
    {"content", "ray_workers"},
    {"recipe"},
    {"arguments"},
    {"lm"},
    {"training_arguments"},
    {"encoder"},
    {"injection"},
    {"data"},
    {"documents"},
    {"queries"},
    {"objectives"},
    {"run"},
    {"trainer"},
    {"evaluation"},
    {"release"},
    {"report"},
    {"assembly"},
    {"plan", "adapt"},
    {"scripts"},
)
"""From the ground up: folders, and modules of the package's root."""

LEVELS = {name: level for level, names in enumerate(ORDER) for name in names}
MODULES = {
    ".".join(("nlt_trainer", *path.relative_to(PACKAGE).with_suffix("").parts)): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"
}


def level(module: str) -> int:
    """The level of a module such as `nlt_trainer.lm.scoring`.

    Raises:
        AssertionError: `ORDER` names neither its folder nor, in the package's root, the module itself.
    """
    name = module.split(".")[1]
    assert name in LEVELS, f"{module} has no level; move it into a folder, or give it one in ORDER"
    return LEVELS[name]


NAMED = {
    ("nlt_trainer.arguments.stages", "nlt_trainer.training_arguments"): (
        "the class that has the library's options too; imported when a recipe is in order, which no module below needs"
    ),
}
"""Module and a module above it that it names in a string -> why it may."""


def named_in_strings(source: str) -> set[str]:
    """Every module of the package that a string names: `nlt_trainer.x.y`, or `nlt_trainer.x.y:Name`."""
    strings = {node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)}
    return {string.partition(":")[0] for string in strings if isinstance(string, str)} & set(MODULES)


def imports(source: str) -> set[str]:
    """Every module of the package that a source file imports, also inside functions and under conditions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import on line {node.lineno}"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names & set(MODULES) or {str(node.module)}
    return {name for name in found if name.split(".")[0] == "nlt_trainer"}


def violations(module: str, source: str) -> list[str]:
    """What a module imports and must not."""
    own, found = level(module), []
    for target in sorted(imports(source)):
        if target == "nlt_trainer":
            found.append(f"{module} imports the package as a whole; name the module")
        elif level(target) > own:
            found.append(f"{module} (level {own}) imports {target} (level {level(target)})")
    for target in sorted(named_in_strings(source) - imports(source)):
        if level(target) > own and (module, target) not in NAMED:
            found.append(f"{module} (level {own}) names {target} (level {level(target)}) in a string")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_downwards(module: str) -> None:
    assert violations(module, MODULES[module].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(("module", "target"), NAMED)
def test_every_exception_is_needed(module: str, target: str) -> None:
    """Against the source itself."""
    assert target in named_in_strings(MODULES[module].read_text(encoding="utf-8"))
    assert level(target) > level(module)


def test_no_circles() -> None:
    """Among modules, and among the folders of one level."""
    graph = {module: imports(path.read_text(encoding="utf-8")) for module, path in MODULES.items()}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(MODULES)


def test_the_order_names_what_is_there_and_nothing_else() -> None:
    """Against the package's own folder."""
    there = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    there |= {path.parent.name for path in PACKAGE.glob("*/*.py")}
    assert set(LEVELS) == there
    assert sum(map(len, ORDER)) == len(LEVELS)


def test_a_module_without_a_level_is_an_error() -> None:
    with pytest.raises(AssertionError, match="has no level"):
        level("nlt_trainer.helpers")


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("nlt_trainer.errors", "from nlt_trainer.encoder.loading import load_encoder"),
        ("nlt_trainer.lm.scoring", "def f():\n    import nlt_trainer.trainer"),
        ("nlt_trainer.lm.scoring", "from nlt_trainer import NLTTrainer"),
        ("nlt_trainer.data.beir", "from nlt_trainer.objectives.dream import DREAMLoss"),
        ("nlt_trainer.trainer", "from nlt_trainer.scripts import run_main"),
        ("nlt_trainer.evaluation.tasks", "from nlt_trainer.release.card import write_card"),
        ("nlt_trainer.lm.scoring", "importlib.import_module('nlt_trainer.trainer')"),
        ("nlt_trainer.recipe.keys", "full = 'nlt_trainer.training_arguments:NLTTrainingArguments'"),
    ],
)
def test_a_forbidden_import_is_found(module: str, source: str) -> None:
    assert len(violations(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("nlt_trainer.lm.scoring", "from nlt_trainer.lm.frozen_lm import FrozenLM\nimport torch"),
        ("nlt_trainer.objectives.dream", "from nlt_trainer.data.collator import NLTCollator"),
        ("nlt_trainer.scripts.train", "from nlt_trainer.trainer import NLTTrainer"),
        ("nlt_trainer.scripts.train", "importlib.import_module('nlt_trainer.trainer')"),
        ("nlt_trainer.lm.scoring", "'see nlt_trainer.trainer'"),
    ],
)
def test_an_allowed_import_is_left_alone(module: str, source: str) -> None:
    assert violations(module, source) == []
