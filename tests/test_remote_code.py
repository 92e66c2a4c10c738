"""Code that comes with a model does not run, whatever somebody answers at a terminal."""

from __future__ import annotations

import ast
import builtins
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nlt_trainer.encoder.loading import encoder_from_token_embeddings, load_encoder
from nlt_trainer.errors import NLTError
from nlt_trainer.lm.frozen_lm import FrozenLM

PACKAGE = Path(__file__).parents[1] / "nlt_trainer"


@pytest.fixture
def model_with_code(tmp_path: Path) -> Path:
    """A folder whose configuration names classes in a Python file of its own, which leaves a file when it runs."""
    classes = {"AutoConfig": "own.Own", "AutoModel": "own.Own", "AutoModelForCausalLM": "own.Own"}
    config = {"model_type": "own", "auto_map": classes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    return tmp_path


@pytest.mark.parametrize(
    "load",
    [
        FrozenLM.from_pretrained,
        load_encoder,
        lambda name: load_encoder(name, pooling="mean"),
        encoder_from_token_embeddings,
    ],
    ids=["LLM", "encoder", "encoder with pooling", "token embeddings"],
)
def test_a_models_own_code_is_refused_without_a_question(
    load: Callable[[str], object], model_with_code: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: transformers' question, which is answered with yes where it is asked, and what the code leaves."""
    asked: list[str] = []

    def answer(prompt: str = "") -> str:
        asked.append(prompt)
        return "y"

    monkeypatch.setattr(builtins, "input", answer)
    with pytest.raises(NLTError, match="contains custom code"):
        load(str(model_with_code))
    assert asked == []
    assert not (model_with_code / "ran").exists()


def test_every_auto_class_is_told_so() -> None:
    """Reference: the calls of `Auto....from_pretrained` in the package's own source."""
    calls = [
        (path.name, node.lineno, ast.unparse(node))
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).startswith("Auto")
        and "from_pretrained" in ast.unparse(node.func)
    ]
    assert len(calls) >= 5
    assert [call for call in calls if "trust_remote_code=False" not in call[2]] == []
