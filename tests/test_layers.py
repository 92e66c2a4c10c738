"""The floors of the package: a module imports only from floors below it, and siblings leave each other alone.

0 ground · 1 models · 2 method (objectives and data, apart from each other) · 3 assembly · 4 scripts. Models may
build on one another, assembly modules too, as long as there is no cycle. Package `__init__` files only re-export
and are exempt.
"""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GROUND = {"errors", "files", "prompts", "distributed"}
FLOOR_OF_PACKAGE = {"models": 1, "objectives": 2, "data": 2, "scripts": 4}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in sorted((ROOT / "nlt_trainer").rglob("*.py"))
    if path.name != "__init__.py"
}


def floor(module: str) -> int:
    """Return the floor of a module such as `nlt_trainer.models.encoder`."""
    parts = module.split(".")
    if len(parts) > 2 or parts[1] in FLOOR_OF_PACKAGE:
        return FLOOR_OF_PACKAGE[parts[1]]
    if parts[1] == "retrieval_metric":
        return 2
    return 0 if parts[1] in GROUND else 3


def imports(source: str) -> set[str]:
    """Return every module of the package that a source file imports, also inside functions and under conditions."""
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
    """Return what a module imports and must not."""
    found = []
    for target in sorted(imports(source)):
        if target == "nlt_trainer":
            found.append(f"{module} imports the package as a whole; name the module")
        elif floor(target) > floor(module):
            found.append(f"{module} (floor {floor(module)}) imports {target} (floor {floor(target)})")
        elif floor(module) == floor(target) == 2 and not _both_data(module, target):
            found.append(f"{module} imports its sibling {target}")
    return found


def _both_data(module: str, target: str) -> bool:
    return all(name.startswith("nlt_trainer.data.") for name in (module, target))


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_downwards(module: str) -> None:
    assert violations(module, MODULES[module].read_text(encoding="utf-8")) == []


def test_no_cycles() -> None:
    graph = {module: imports(path.read_text(encoding="utf-8")) for module, path in MODULES.items()}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(MODULES)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("nlt_trainer.errors", "from nlt_trainer.models.encoder import load_encoder"),
        ("nlt_trainer.models.scoring", "def f():\n    import nlt_trainer.trainer"),
        ("nlt_trainer.models.scoring", "from nlt_trainer import NLTTrainer"),
        ("nlt_trainer.objectives.dream", "from nlt_trainer.data.beir import read_collection"),
        ("nlt_trainer.objectives.dream", "from nlt_trainer.objectives.infonce import InfoNCELoss"),
        ("nlt_trainer.data.mining", "from nlt_trainer.objectives.infonce import InfoNCELoss"),
        ("nlt_trainer.trainer", "from nlt_trainer.scripts import run_main"),
    ],
)
def test_a_forbidden_import_is_found(module: str, source: str) -> None:
    assert len(violations(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("nlt_trainer.models.scoring", "from nlt_trainer.models.frozen_lm import FrozenLM\nimport torch"),
        ("nlt_trainer.objectives.dream", "from nlt_trainer.errors import NLTError"),
        ("nlt_trainer.data.mining", "from nlt_trainer.data.beir import read_collection"),
        ("nlt_trainer.scripts.train", "from nlt_trainer.trainer import NLTTrainer"),
    ],
)
def test_an_allowed_import_is_left_alone(module: str, source: str) -> None:
    assert violations(module, source) == []
