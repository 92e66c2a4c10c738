"""The package's public names."""

from __future__ import annotations

import subprocess
import sys

import pytest

import nlt_trainer


def test_every_public_name_is_there() -> None:
    """Against the list of exports: each resolves, and lives in the package."""
    for name in nlt_trainer.__all__:
        assert getattr(nlt_trainer, name).__module__.startswith("nlt_trainer.")
    assert sorted(nlt_trainer._MODULES) == sorted(nlt_trainer.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    """Against Python's own behaviour for modules."""
    with pytest.raises(AttributeError, match="Nothing"):
        _ = nlt_trainer.Nothing


def test_importing_the_package_imports_no_model_library() -> None:
    """Against sys.modules of a fresh interpreter."""
    code = "import sys, nlt_trainer; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
