"""Every recipe and every command that a README or a recipe shows is one that works."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

from nlt_trainer.arguments.stages import (
    COLLECTION_BLOCKS,
    EVALUATION_BLOCKS,
    EXPORT_BLOCKS,
    PLAN_BLOCKS,
    PUSH_BLOCKS,
    RECIPE_BLOCKS,
)
from nlt_trainer.recipe.parsing import parse_recipe

ROOT = Path(__file__).parents[1]
RECIPES = [p for p in sorted((ROOT / "recipes").rglob("*.yaml")) if p.parent.name != "accelerate_configs"]
READMES = sorted([*ROOT.glob("README.md"), *(ROOT / "recipes").rglob("README.md")])
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))


def fenced_blocks(markdown: str) -> str:
    """Return the lines of all fenced shell blocks."""
    blocks = re.findall(r"^ *```(\w*)[^\n]*\n(.*?)^ *```", markdown, flags=re.MULTILINE | re.DOTALL)
    return "\n".join(block for language, block in blocks if language in ("", "bash", "sh", "shell", "console"))


def header(recipe: str) -> str:
    """Return the comment at the top of a recipe, without its marks."""
    match = re.match(r"(?:#.*\n)+", recipe)
    return re.sub(r"^# ?", "", match.group(), flags=re.MULTILINE) if match else ""


def commands(shell: str) -> list[list[str]]:
    """Split shell lines into the words of each command that this project provides."""
    found = []
    for line in shell.replace("\\\n", " ").splitlines():
        for part in re.split(r"&&|\|", line.strip().removeprefix("$ ")):
            if not re.match(r"(\w+=\S+ )*(\S*/)?(nlt|accelerate|python3?|make)\b", part.strip()):
                continue
            words = shlex.split(part, comments=True)
            while "=" in words[0]:
                words.pop(0)
            words[0] = Path(words[0]).name
            if words[0] in ("nlt", "make") or any(word.startswith("nlt_trainer.") for word in words):
                found.append(words)
    return found


def stage_of(words: list[str]) -> tuple[str, list[str]]:
    """Return the module that a command runs, and the arguments that reach it."""
    if words[0] == "nlt":
        return (f"nlt_trainer.scripts.{words[1].replace('-', '_')}", words[2:])
    place = next(index for index, word in enumerate(words) if word.startswith("nlt_trainer."))
    assert words[place - 1] == "-m", f"{words[place]} is run without -m"
    return words[place], words[place + 1 :]


SHOWN = [
    pytest.param(words, id=f"{path.relative_to(ROOT)}: {shlex.join(words)}")
    for path, text in [
        *((path, fenced_blocks(path.read_text(encoding="utf-8"))) for path in READMES),
        *((path, header(path.read_text(encoding="utf-8"))) for path in RECIPES),
    ]
    for words in commands(text)
]


def parse(module: str, arguments: list[str]) -> None:
    """Parse a recipe as the stage does; a recipe for GPUs parses here too, where there may be none."""
    if module == "nlt_trainer.scripts.build_collection":
        parse_recipe(COLLECTION_BLOCKS, arguments)
    else:
        own = {"evaluate": EVALUATION_BLOCKS, "export": EXPORT_BLOCKS, "plan": PLAN_BLOCKS, "push": PUSH_BLOCKS}
        blocks = own.get(module.rpartition(".")[2], RECIPE_BLOCKS)
        parse_recipe(blocks, [*arguments, "--use_cpu", "true"])


@pytest.mark.parametrize("path", RECIPES, ids=[str(path.relative_to(ROOT)) for path in RECIPES])
def test_a_recipe_parses_and_starts_with_its_command(path: Path) -> None:
    first = commands(header(path.read_text(encoding="utf-8")))[0]
    assert str(path.relative_to(ROOT)) in first
    parse(stage_of(first)[0], ["--config", str(path)])


@pytest.mark.parametrize("words", SHOWN)
def test_a_shown_command_parses(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    if words[0] == "make":
        assert set(words[1:]) <= TARGETS
        return
    module, arguments = stage_of(words)
    with pytest.raises(SystemExit) as exit_info:
        has_keys = not module.endswith((".demo", ".compare_heads", ".report"))
        importlib.import_module(module).main(["--help_all" if has_keys else "--help"])
    assert exit_info.value.code == 0
    known = set(re.findall(r"--[\w-]+", capsys.readouterr().out))
    assert {argument.split("=")[0] for argument in arguments if argument.startswith("--")} <= known
    if "--config" in arguments:
        parse(module, arguments)
    if "--config_file" in words:
        assert (ROOT / words[words.index("--config_file") + 1]).is_file()


def test_the_readme_shows_the_two_main_commands() -> None:
    shown = commands(fenced_blocks((ROOT / "README.md").read_text(encoding="utf-8")))
    assert ["make", "demo"] in shown
    assert ["make", "test"] in shown


def test_commands_are_found_in_markdown() -> None:
    markdown = (
        "nlt outside\n```bash\n$ make demo && nlt train --config a.yaml  # trains\npip install x\n"
        "HF_HOME=/x .venv/bin/accelerate launch --num_processes 2 \\\n  -m nlt_trainer.scripts.mine --key=1\n```\n"
        "```python\nnlt in python\n```\n```\npython -m nlt_trainer.scripts.score\npython -m pytest\n```\n"
    )
    found = commands(fenced_blocks(markdown))
    assert found == [
        ["make", "demo"],
        ["nlt", "train", "--config", "a.yaml"],
        ["accelerate", "launch", "--num_processes", "2", "-m", "nlt_trainer.scripts.mine", "--key=1"],
        ["python", "-m", "nlt_trainer.scripts.score"],
    ]
    assert [stage_of(words) for words in found[1:]] == [
        ("nlt_trainer.scripts.train", ["--config", "a.yaml"]),
        ("nlt_trainer.scripts.mine", ["--key=1"]),
        ("nlt_trainer.scripts.score", []),
    ]


def test_the_header_of_a_recipe_is_its_first_comment() -> None:
    assert header("# nlt train --config a.yaml\n#   --x\nmodel:\n# later\n") == "nlt train --config a.yaml\n  --x\n"
    assert header("model:\n# later\n") == ""
