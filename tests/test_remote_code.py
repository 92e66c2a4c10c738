"""Code that comes with a model does not run, whatever somebody answers at a terminal."""

from __future__ import annotations

import ast
import builtins
import json
import re
import shutil
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
    with pytest.raises(NLTError, match="contains custom code, which never runs here") as info:
        load(str(model_with_code))
    assert "trust_remote_code" not in str(info.value)
    assert asked == []
    assert not (model_with_code / "ran").exists()


@pytest.mark.parametrize("module", ["own.Own", "subprocess.Popen"])
def test_a_module_of_an_encoder_is_sentence_transformers_own(
    module: str, model_with_code: Path, tiny_encoder_folder: Path
) -> None:
    """Reference: a folder that is an encoder but for the class of its last module, beside it or of another package."""
    shutil.copytree(tiny_encoder_folder, model_with_code, dirs_exist_ok=True)
    modules = json.loads((model_with_code / "modules.json").read_text())
    modules[-1]["type"] = module
    (model_with_code / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(NLTError, match="contains custom code, which never runs here") as info:
        load_encoder(str(model_with_code))
    assert "trust_remote_code" not in str(info.value)
    assert not (model_with_code / "ran").exists()


def test_nobody_is_told_to_let_it_run() -> None:
    """Reference: the texts in the package and in all guides; code names it only to switch it off or to explain."""
    texts = [*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.md"), *(PACKAGE.parent / "recipes").rglob("*.*")]
    lines = [line for path in texts if path.suffix in (".py", ".md", ".yaml", ".html") for line in path.open()]
    named = [line for line in lines if "trust_remote_code" in line]
    assert len(named) > 5
    assert [line for line in named if re.search(r"trust_remote_code\W{0,3}true", line, re.IGNORECASE)] == []


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
