"""pyproject.toml, constraints.txt, environment.yml and the peers' requirements say the same."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import leaveout

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DIRECT = [
    Requirement(line) for line in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]
]


def lines(path: Path) -> list[str]:
    """Return the lines of a requirements file that are not comments."""
    return [line for line in path.read_text().splitlines() if line and not line.startswith("#")]


def pins(path: Path) -> dict[str, Version]:
    """Return the version of each package, failing on any line that is not a plain pin."""
    pinned: dict[str, Version] = {}
    for line in lines(path):
        match = re.fullmatch(r"([\w.-]+)==([\w.]+)", line)
        assert match, f"{path.name}: not NAME==VERSION: {line}"
        name = canonicalize_name(match[1])
        assert name not in pinned, f"{path.name}: {name} stands there twice"
        pinned[name] = Version(match[2])
    return pinned


CONSTRAINTS = pins(ROOT / "constraints.txt")


@pytest.mark.parametrize("requirement", DIRECT, ids=lambda requirement: requirement.name)
def test_each_dependency_is_pinned_within_its_range(requirement: Requirement) -> None:
    assert requirement.specifier.contains(CONSTRAINTS[canonicalize_name(requirement.name)])


def test_what_the_dependencies_need_is_pinned_too() -> None:
    todo = [(canonicalize_name(r.name), tuple(sorted(r.extras))) for r in DIRECT]
    seen = set(todo)
    while todo:
        name, extras = todo.pop()
        # Where torch comes with CUDA it brings packages that it pins itself.
        needs = [] if name == "torch" else importlib.metadata.requires(name) or []
        for requirement in map(Requirement, needs):
            marker = requirement.marker
            if marker and not any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                continue
            need = (canonicalize_name(requirement.name), tuple(sorted(requirement.extras)))
            assert requirement.specifier.contains(CONSTRAINTS[need[0]], prereleases=True), need
            if need not in seen:
                seen.add(need)
                todo.append(need)
    assert len(seen) > 2 * len(DIRECT)  # the walk did go down


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_each_pin_runs_on_the_oldest_python(name: str) -> None:
    try:
        found = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{name} is not installed")
    oldest = PROJECT["requires-python"].removeprefix(">=") + ".0"
    assert SpecifierSet(found.get("Requires-Python", "")).contains(oldest)


def test_conda_gives_the_same_environment() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, last = environment["dependencies"]
    name, version = python.split("=")
    assert name == "python"
    assert SpecifierSet(PROJECT["requires-python"]).contains(version)
    assert pip == "pip"
    # conda hands these lines to pip as a requirements file beside environment.yml
    assert last == {"pip": ["-c constraints.txt", "-e .[dev]"]}


def test_the_rules_name_the_same_environment() -> None:
    environment = yaml.safe_load((ROOT / "workflow" / "envs" / "leaveout.yaml").read_text())
    named = dict(line.split("==") for line in environment["dependencies"][-1]["pip"])
    needed = [Requirement(line).name for line in PROJECT["dependencies"]]
    assert set(named) == {name for name in needed if not name.startswith("snakemake")}
    assert all(CONSTRAINTS[canonicalize_name(n)] == Version(v) for n, v in named.items())


def test_other_libraries_are_timed_on_the_same_torch() -> None:
    peers = pins(ROOT / "benchmarks" / "peers" / "requirements.txt")
    shared = peers.keys() & CONSTRAINTS.keys()
    assert {"torch", "numpy"} <= shared
    assert {name: peers[name] for name in shared} == {name: CONSTRAINTS[name] for name in shared}


def test_the_versions_agree() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == leaveout.__version__
    assert citation["license"] == PROJECT["license"]
