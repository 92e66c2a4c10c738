"""Every recipe, command, link and name that a README or a recipe shows is one that works."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_layers import LEVELS

import nlt_trainer
from nlt_trainer.arguments.stages import (
    ADAPT_BLOCKS,
    APP_BLOCKS,
    COLLECTION_BLOCKS,
    CORPUS_BLOCKS,
    EVALUATION_BLOCKS,
    EXPORT_BLOCKS,
    PLAN_BLOCKS,
    PULL_BLOCKS,
    PUSH_BLOCKS,
    QUERIES_BLOCKS,
    RECIPE_BLOCKS,
    SEARCH_BLOCKS,
)
from nlt_trainer.assembly.losses import BUILDERS
from nlt_trainer.recipe.parsing import parse_recipe
from nlt_trainer.scripts.adapt import with_flags

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
FOLDERS = ("model_cards", "nlt_trainer", "recipes", "tests")
READMES = [README, *(path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("README.md")))]
OTHERS = ("accelerate_configs", "study")  # YAML files that are no recipes
RECIPES = [p for p in sorted((ROOT / "recipes").rglob("*.yaml")) if p.parent.name not in OTHERS]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
BLOCKS = {
    "adapt": ADAPT_BLOCKS,
    "app": APP_BLOCKS,
    "build_collection": COLLECTION_BLOCKS,
    "build_corpus": CORPUS_BLOCKS,
    "evaluate": EVALUATION_BLOCKS,
    "export": EXPORT_BLOCKS,
    "make_queries": QUERIES_BLOCKS,
    "plan": PLAN_BLOCKS,
    "pull": PULL_BLOCKS,
    "push": PUSH_BLOCKS,
    "search": SEARCH_BLOCKS,
}
"""Of stages that take others than a recipe's."""
WITHOUT_KEYS = (".demo", ".compare_heads", ".report")
"""Stages that take no recipe's keys."""


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def fenced(markdown: str) -> list[tuple[str, str]]:
    """Language and lines of each fenced block."""
    return re.findall(r"^ *```(\w*)[^\n]*\n(.*?)^ *```", markdown, flags=re.MULTILINE | re.DOTALL)


def shell_lines(markdown: str) -> str:
    """The lines of all fenced shell blocks."""
    shells = ("", "bash", "sh", "shell", "console")
    return "\n".join(block for language, block in fenced(markdown) if language in shells)


def prose(markdown: str) -> str:
    """What stands outside fenced blocks."""
    return re.sub(r"^ *```.*?^ *```", "", markdown, flags=re.MULTILINE | re.DOTALL)


def header(recipe: str) -> str:
    """The comment at the top of a recipe, without its marks."""
    match = re.match(r"(?:#.*\n)+", recipe)
    return re.sub(r"^# ?", "", match.group(), flags=re.MULTILINE) if match else ""


def commands(shell: str) -> list[list[str]]:
    """Split shell lines into the words of each command that this project provides."""
    found = []
    for line in shell.replace("\\\n", " ").splitlines():
        for part in re.split(r"&&|\|", line.strip().removeprefix("$ ")):
            if not re.match(r"(\w+=\S+ )*(\S*/)?(nlt|accelerate|torchrun|python3?|make)\b", part.strip()):
                continue
            words = shlex.split(part, comments=True)
            while "=" in words[0]:
                words.pop(0)
            words[0] = Path(words[0]).name
            ours = any(word.startswith("nlt_trainer.") or word.endswith(".py") for word in words)
            if words[0] in ("nlt", "make") or ours:
                found.append(words)
    return found


def stage_of(words: list[str]) -> tuple[str, list[str]]:
    """The module that a command runs, and the arguments that reach it."""
    if words[0] == "nlt":
        return (f"nlt_trainer.scripts.{words[1].replace('-', '_')}", words[2:])
    place = next(index for index, word in enumerate(words) if word.startswith("nlt_trainer."))
    assert words[place - 1] == "-m", f"{words[place]} is run without -m"
    return words[place], words[place + 1 :]


SHOWN = [
    pytest.param(words, id=f"{path.relative_to(ROOT)}: {shlex.join(words)}")
    for path, text in [
        *((path, shell_lines(read(path))) for path in READMES),
        *((path, header(read(path))) for path in RECIPES),
    ]
    for words in commands(text)
]


def parse(module: str, arguments: list[str]) -> None:
    """Parse a recipe as the stage does; a recipe for GPUs parses here too, where there may be none."""
    if module.endswith(".adapt"):
        arguments = with_flags(arguments)
    blocks = BLOCKS.get(module.rpartition(".")[2], RECIPE_BLOCKS)
    on_cpu = ["--use_cpu", "true"] if "trainer" in blocks else []
    parse_recipe(blocks, [*arguments, *on_cpu])


def check_script(words: list[str]) -> None:
    """A program outside the package is there, and its source, or that of one beside it, names each flag."""
    place = next(index for index, word in enumerate(words) if word.endswith(".py"))
    assert (ROOT / words[place]).is_file()
    sources = "".join(map(read, sorted((ROOT / words[place]).parent.glob("*.py"))))
    for word in words[place + 1 :]:
        assert not word.startswith("--") or f'"{word.split("=")[0]}"' in sources, f"{word} is not known"


@pytest.mark.parametrize("path", RECIPES, ids=[str(path.relative_to(ROOT)) for path in RECIPES])
def test_a_recipe_parses_and_starts_with_its_command(path: Path) -> None:
    first = commands(header(read(path)))[0]
    assert str(path.relative_to(ROOT)) in first
    parse(stage_of(first)[0], ["--config", str(path)])


@pytest.mark.parametrize("words", SHOWN)
def test_a_shown_command_parses(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    if words[0] == "make":
        assert {word for word in words[1:] if "=" not in word} <= TARGETS
        return
    if any(word.endswith(".py") for word in words):
        check_script(words)
        return
    module, arguments = stage_of(words)
    has_keys = not module.endswith(WITHOUT_KEYS)
    with pytest.raises(SystemExit) as exit_info:
        importlib.import_module(module).main(["--help_all" if has_keys else "--help"])
    assert exit_info.value.code == 0
    known = set(re.findall(r"--[\w-]+", capsys.readouterr().out))
    assert {argument.split("=")[0] for argument in arguments if argument.startswith("--")} <= known
    if has_keys:
        parse(module, arguments)
    if "--config_file" in words:
        assert (ROOT / words[words.index("--config_file") + 1]).is_file()


def test_the_readme_shows_the_two_main_commands() -> None:
    shown = commands(shell_lines(read(README)))
    assert ["make", "demo"] in shown
    assert ["make", "test"] in shown


def anchors(markdown: str) -> set[str]:
    """What the headings are called in a link, as GitHub makes it of them."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#+ (.+)$", prose(markdown), flags=re.MULTILINE):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        name = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        count = found[name] = found.get(name, -1) + 1
        if count:
            found[f"{name}-{count}"] = 0
    return set(found)


def links(markdown: str) -> Iterator[str]:
    """Targets of links and pictures that are not on another host."""
    text = re.sub(r"`[^`\n]*`", "", prose(markdown))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", target):
            yield target


def broken_links(path: Path, markdown: str) -> list[str]:
    """Relative links of a file whose file or heading is not there."""
    found = []
    for target in links(markdown):
        name, _, anchor = target.partition("#")
        other = (path.parent / name).resolve() if name else path
        if not other.exists() or (anchor and anchor not in anchors(markdown if other == path else read(other))):
            found.append(target)
    return found


@pytest.mark.parametrize("path", READMES, ids=[str(path.relative_to(ROOT)) for path in READMES])
def test_a_relative_link_leads_somewhere(path: Path) -> None:
    """Against the files that are there, and their headings."""
    assert broken_links(path, read(path)) == []


def test_the_readme_is_short() -> None:
    assert len(read(README).splitlines()) <= 180


@pytest.mark.parametrize(
    "block", [pytest.param(b, id=str(n)) for n, (kind, b) in enumerate(fenced(read(README))) if kind == "python"]
)
def test_python_in_the_readme_takes_public_names_alone(block: str) -> None:
    """Against the package's `__all__`; what else is imported is installed."""
    tree = ast.parse(block)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert not any(name.name.startswith("nlt_trainer.") for name in node.names)
            for name in node.names:
                importlib.import_module(name.name)
        elif isinstance(node, ast.ImportFrom):
            assert not str(node.module).startswith("nlt_trainer."), f"{node.module} is not public"
            module = importlib.import_module(str(node.module))
            public = nlt_trainer.__all__ if module is nlt_trainer else dir(module)
            assert {name.name for name in node.names} <= set(public)


def test_the_readme_names_every_objective_in_its_table() -> None:
    """Against the objectives that a recipe can name."""
    assert set(BUILDERS) <= set(re.findall(r"^\| `(\w+)`", read(README), flags=re.MULTILINE))


def test_the_readme_cites_the_version_that_is_installed() -> None:
    """Against pyproject.toml."""
    version = tomllib.loads(read(ROOT / "pyproject.toml"))["project"]["version"]
    assert f"version = {{{version}}}" in read(README)


def test_the_guide_to_the_code_has_the_folders_in_their_order() -> None:
    """Against the order that `test_layers` holds."""
    section = read(ROOT / "nlt_trainer" / "README.md").split("## The folders and their order")[1].split("\n## ")[0]
    rows = [re.findall(r"`(\w+)`", row.split("|")[1]) for row in section.splitlines() if row.startswith("| `")]
    named = [name for row in rows for name in row]
    assert sorted(named) == sorted(LEVELS)
    assert [LEVELS[name] for name in named] == sorted(LEVELS.values())


def test_commands_are_found_in_markdown() -> None:
    markdown = (
        "nlt outside\n```bash\n$ make demo && nlt train --config a.yaml  # trains\npip install x\n"
        "HF_HOME=/x .venv/bin/accelerate launch --num_processes 2 \\\n  -m nlt_trainer.scripts.mine --key=1\n```\n"
        "```python\nnlt in python\n```\n```\npython -m nlt_trainer.scripts.score\npython -m pytest\n"
        "torchrun --nproc_per_node 2 -m nlt_trainer.scripts.score\npython tests/x.py --flag\n```\n"
    )
    found = commands(shell_lines(markdown))
    assert found == [
        ["make", "demo"],
        ["nlt", "train", "--config", "a.yaml"],
        ["accelerate", "launch", "--num_processes", "2", "-m", "nlt_trainer.scripts.mine", "--key=1"],
        ["python", "-m", "nlt_trainer.scripts.score"],
        ["torchrun", "--nproc_per_node", "2", "-m", "nlt_trainer.scripts.score"],
        ["python", "tests/x.py", "--flag"],
    ]
    assert [stage_of(words) for words in found[1:5]] == [
        ("nlt_trainer.scripts.train", ["--config", "a.yaml"]),
        ("nlt_trainer.scripts.mine", ["--key=1"]),
        ("nlt_trainer.scripts.score", []),
        ("nlt_trainer.scripts.score", []),
    ]


def test_a_broken_link_is_found() -> None:
    """Reference: links of each kind, written down with what is wrong with them."""
    markdown = (
        "# The `nlt` way, in short\n## Twice\n## Twice\n[a](#the-nlt-way-in-short) [b](#twice-1) [c](#thrice)\n"
        "[d](tests/test_readme.py) ![e](tests/none.png) [f](https://example.org/x) `[g](none)`\n"
        "[h](nlt_trainer/README.md#the-code) [i](nlt_trainer/README.md#nothing)\n```\n[j](none)\n# Fenced\n```\n"
    )
    assert broken_links(README, markdown) == ["#thrice", "tests/none.png", "nlt_trainer/README.md#nothing"]


def test_a_script_with_an_unknown_flag_is_refused() -> None:
    """Reference: one flag of the file itself, one of a file beside it, one that nobody has."""
    check_script(["python", "tests/benchmarks/cache_speed.py", "--pairs", "8", "--runs", "1"])
    with pytest.raises(AssertionError, match="--nothing is not known"):
        check_script(["python", "tests/benchmarks/cache_speed.py", "--nothing"])


def test_the_header_of_a_recipe_is_its_first_comment() -> None:
    assert header("# nlt train --config a.yaml\n#   --x\nmodel:\n# later\n") == "nlt train --config a.yaml\n  --x\n"
    assert header("model:\n# later\n") == ""
