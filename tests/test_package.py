"""The package's public names."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import nlt_trainer


def test_every_public_name_is_there() -> None:
    """Against the list of exports: each resolves, and lives in the package."""
    for name in nlt_trainer.__all__:
        assert getattr(nlt_trainer, name).__module__.startswith("nlt_trainer.")


def test_type_checkers_see_what_is_exported() -> None:
    """Reference: the table of exports; the imports are read from the source, because they never run."""
    tree = ast.parse(Path(nlt_trainer.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    assert {alias.name: node.module for node in imports for alias in node.names} == nlt_trainer._MODULES
    assert all(alias.name == alias.asname for node in imports for alias in node.names)


def test_an_unknown_name_is_an_attribute_error() -> None:
    """Against Python's own behaviour for modules."""
    with pytest.raises(AttributeError, match="Nothing"):
        _ = nlt_trainer.Nothing


def test_importing_the_package_imports_no_model_library() -> None:
    """Against sys.modules of a fresh interpreter."""
    code = "import sys, nlt_trainer; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
