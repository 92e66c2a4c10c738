"""What stands around the package: workflows, templates, pins, the guide for contributors, and the wheel."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
FORMS = [GITHUB / "ISSUE_TEMPLATE" / f"{name}.yml" for name in ("bug", "feature")]
CONFIGURATIONS = [*sorted(GITHUB.rglob("*.yml")), ROOT / ".pre-commit-config.yaml"]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINS = {
    canonicalize_name(name): version
    for name, version in re.findall(
        r"^([\w.-]+)==(\S+)$", (GITHUB / "constraints.txt").read_text(), flags=re.MULTILINE
    )
}
PINNED_USE = re.compile(r"[\w-]+/[\w./-]+@([0-9a-f]{40}) # v\d+\.\d+\.\d+")


def read_yaml(path: Path) -> dict[Any, Any]:
    """A YAML file's content; PyYAML reads a workflow's key `on` as `True`."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(content, dict), path
    return content


def uses(workflow: str) -> list[str]:
    """Each action that a workflow names, with the comment behind it."""
    return re.findall(r"^ *(?:- )?uses: *(.*?) *$", workflow, flags=re.MULTILINE)


def is_pinned(use: str) -> bool:
    """Whether an action is named by the whole hash of a commit, and its version by a comment."""
    return PINNED_USE.fullmatch(use) is not None


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=[str(path.relative_to(ROOT)) for path in CONFIGURATIONS])
def test_every_configuration_is_yaml(path: Path) -> None:
    """Against PyYAML's safe loader, whose content is not empty."""
    assert read_yaml(path)


@pytest.mark.parametrize("path", WORKFLOWS, ids=[path.name for path in WORKFLOWS])
def test_a_workflow_may_only_read_and_ends(path: Path) -> None:
    """Against GitHub's defaults: a token that may write, and six hours."""
    workflow = read_yaml(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]["group"]
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"] <= 60, name
        assert job.get("permissions", {}) in ({}, {"id-token": "write"}), name


def test_only_the_job_that_publishes_may_ask_for_a_token() -> None:
    """Against the jobs of all workflows: it waits for `build`, has an environment, and runs no command."""
    jobs = {(path.name, name): job for path in WORKFLOWS for name, job in read_yaml(path)["jobs"].items()}
    assert [key for key, job in jobs.items() if "permissions" in job] == [("publish.yml", "publish")]
    publish = jobs["publish.yml", "publish"]
    assert (publish["needs"], publish["environment"]) == ("build", "pypi")
    assert not any("run" in step for step in publish["steps"])


@pytest.mark.parametrize("path", WORKFLOWS, ids=[path.name for path in WORKFLOWS])
def test_every_action_is_pinned_by_a_hash(path: Path) -> None:
    """Against the parsed steps, so that no use escapes the pattern."""
    text = path.read_text(encoding="utf-8")
    steps = [step["uses"] for job in read_yaml(path)["jobs"].values() for step in job["steps"] if "uses" in step]
    assert [use.split(" ")[0] for use in uses(text)] == steps
    assert [use for use in uses(text) if not is_pinned(use)] == []


def test_an_action_has_one_version() -> None:
    """Against all uses in all workflows."""
    versions = defaultdict(set)
    for path in WORKFLOWS:
        for use in uses(path.read_text(encoding="utf-8")):
            versions[use.split("@")[0]].add(use)
    assert {name: sorted(found) for name, found in versions.items() if len(found) > 1} == {}


@pytest.mark.parametrize(
    ("use", "pinned"),
    [
        (f"actions/checkout@{'0a' * 20} # v5.0.0", True),
        (f"actions/checkout@{'0a' * 20}", False),  # which version?
        (f"actions/checkout@{'0a' * 20} # v5", False),  # a tag that moves
        ("actions/checkout@v5.0.0", False),
        ("actions/checkout@0a0a0a0 # v5.0.0", False),
        ("./.github/actions/own", False),
    ],
)
def test_what_counts_as_pinned(use: str, pinned: bool) -> None:
    assert uses(f"    steps:\n      - uses: {use}\n") == [use]
    assert is_pinned(use) is pinned


@pytest.mark.parametrize("path", FORMS, ids=[path.name for path in FORMS])
def test_an_issue_form_has_what_github_asks_for(path: Path) -> None:
    """Against GitHub's syntax for issue forms: name, description, and fields with labels and ids of their own."""
    form = read_yaml(path)
    assert form["name"]
    assert form["description"]
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert all(field["attributes"]["label"] for field in fields)
    assert len({field["id"] for field in fields}) == len(fields) > 0


def test_every_requirement_has_a_pin_within_its_range() -> None:
    """Against the dependencies and all extras in pyproject.toml."""
    groups = {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
    requirements = [Requirement(text) for group in groups.values() for text in group]
    others = [requirement for requirement in requirements if requirement.name != PROJECT["name"]]
    assert {requirement.name for requirement in others} >= {"torch", "pytest", "pytest-xdist", "ruff", "mypy"}
    for requirement in others:
        pin = PINS.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement.name} has no pin in .github/constraints.txt"
        assert requirement.specifier.contains(pin, prereleases=True), f"{requirement} does not allow the pin {pin}"


def test_the_python_versions_are_those_that_are_tested() -> None:
    """Against the interpreters that the jobs of ci.yml set up."""
    found = [re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", text) for text in PROJECT["classifiers"]]
    classified = {match.group(1) for match in found if match}
    jobs = read_yaml(GITHUB / "workflows" / "ci.yml")["jobs"].values()
    steps = [step for job in jobs for step in job["steps"] if "setup-python" in step.get("uses", "")]
    tested = {step["with"]["python-version"] for step in steps} - {"${{ matrix.python }}"}
    tested |= {version for job in jobs for version in job.get("strategy", {}).get("matrix", {}).get("python", [])}
    assert classified == tested
    oldest = min(classified, key=lambda version: int(version.split(".")[1]))
    assert PROJECT["requires-python"] == f">={oldest}"


def test_both_ends_of_the_ranges_are_tested_and_the_pins_are_audited() -> None:
    """Against the commands of ci.yml, none of which may fail unnoticed."""
    workflow = read_yaml(GITHUB / "workflows" / "ci.yml")
    jobs = workflow["jobs"]
    commands = {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()}
    for name, end in (("lowest-versions", "lowest-direct"), ("highest-versions", "highest")):
        assert [f"--resolution {end} " in command for command in commands[name]].count(True) == 1
        assert commands[name][-1] == "python -m pytest"
    assert "schedule" in workflow[True]  # the key `on`
    assert commands["audit"][-1].startswith("pip-audit --strict ")
    assert commands["audit"][-1].endswith(" .github/constraints.txt")
    for job in jobs.values():
        assert not [step for step in (job, *job["steps"]) if "continue-on-error" in step]
    assert not [c for found in commands.values() for c in found if "||" in c or "set +e" in c]


def test_hooks_run_what_is_pinned() -> None:
    """Against constraints.txt; the hooks of another repository are named by a whole version tag."""
    hooks = {repo["repo"]: repo for repo in read_yaml(ROOT / ".pre-commit-config.yaml")["repos"]}
    for hook in hooks.pop("local")["hooks"]:
        folder, _, tool = hook["entry"].split(" ")[0].rpartition("/")
        assert folder == ".venv/bin"
        assert tool in PINS
    assert all(re.fullmatch(r"v\d+\.\d+\.\d+", repo["rev"]) for repo in hooks.values())


def test_the_guide_names_what_is_there() -> None:
    """Against the Makefile's targets and the files of the repository."""
    guide = (GITHUB / "CONTRIBUTING.md").read_text(encoding="utf-8")
    security = (GITHUB / "SECURITY.md").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", guide, flags=re.MULTILINE))
    assert {"install", "test", "lint"} <= named <= targets
    paths = set(re.findall(r"\b(?:tests|nlt_trainer|recipes)/[\w./]*", guide + security))
    assert len(paths) > 5
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("tag", ["v{version}", "v{version}.1", "{version}"])
def test_a_tag_that_is_not_the_version_publishes_nothing(tag: str) -> None:
    """Against the version in pyproject.toml, by the step of publish.yml itself."""
    steps = read_yaml(GITHUB / "workflows" / "publish.yml")["jobs"]["build"]["steps"]
    command = next(step["run"] for step in steps if step.get("name") == "The tag is the version")
    environment = os.environ | {
        "TAG": tag.format(version=PROJECT["version"]),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(["bash", "-e", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode == 0) is (tag == "v{version}")
    assert done.stderr == "" or f"tag v{PROJECT['version']}, or change it" in done.stderr


def test_the_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    """Against the files of `nlt_trainer/`: py.typed, templates and cards are in it, tests are not."""
    pytest.importorskip("setuptools", minversion="77")
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "nlt_trainer", tmp_path / "nlt_trainer", ignore=ignore)
    shutil.copytree(ROOT / "tests", tmp_path / "tests", ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    there = {path.relative_to(tmp_path).as_posix() for path in (tmp_path / "nlt_trainer").rglob("*") if path.is_file()}
    build = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    metadata = {name for name in names if name.startswith(f"nlt_trainer-{PROJECT['version']}.dist-info/")}
    assert names - metadata == there - {"nlt_trainer/README.md"}  # a guide to the code, for readers of the repository
    assert {"nlt_trainer/py.typed", "nlt_trainer/report/templates/report.html"} <= there
