"""The rooms of the package: no circle, no import upward, no long file."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "leaveout"
ROOMS = (
    ("errors",),
    ("seeds", "devices"),
    ("store",),
    ("config",),
    ("problem",),
    ("data", "models"),
    ("training",),
    ("gradients",),
    ("curvature",),
    ("retraining",),
    ("attribution",),
    ("scoring",),
    ("metrics",),
    ("reporting",),
    ("workflow",),
    ("explain", "interop"),
    ("banks", "tracing"),
    ("doors",),
    ("cli",),
)
"""From the ground up: a room imports those below it, and none beside or above it."""
LONGEST, LOOSE = 500, 6

Graph = Mapping[str, set[str]]


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


FILES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(module: str, path: Path, known: Mapping[str, object]) -> set[str]:
    """Return all that a module's text imports, with names in full, for typing alone or not."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= {name if name in known else base for name in names}
    return found


IMPORTS = {module: imported(module, path, FILES) for module, path in FILES.items()}
GRAPH: Graph = {module: (names & FILES.keys()) - {module} for module, names in IMPORTS.items()}


def reached(graph: Graph, start: str) -> set[str]:
    """Return the modules that one leads to."""
    found: set[str] = set()
    waiting = [*graph[start]]
    while waiting:
        if (module := waiting.pop()) not in found:
            found.add(module)
            waiting.extend(graph[module])
    return found


def circles(graph: Graph) -> Iterator[set[str]]:
    """Yield the groups of modules that lead to each other."""
    leads = {module: reached(graph, module) for module in graph}
    seen: set[str] = set()
    for module, after in leads.items():
        if module in after and module not in seen:
            group = {module, *(other for other in after if module in leads[other])}
            seen |= group
            yield group


def test_no_modules_import_each_other() -> None:
    assert [*circles(GRAPH)] == []


def test_a_circle_is_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"d", "a"}}
    assert [*circles(graph)] == [{"b", "c"}, {"d"}]


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_every_room_has_its_place() -> None:
    rooms = {room(module) for module in FILES} - {"", "__main__"}
    assert rooms == {name for floor in ROOMS for name in floor}


@pytest.mark.parametrize("name", [name for floor in ROOMS for name in floor])
def test_no_room_knows_one_above_it(name: str) -> None:
    floors = {room: k for k, floor in enumerate(ROOMS) for room in floor}
    upward = {
        f"{module} imports {other}"
        for module in FILES
        if room(module) == name
        for other in IMPORTS[module] & FILES.keys()
        if room(other) not in ("", name) and floors[room(other)] >= floors[name]
    }
    assert upward == set()


def test_no_file_is_long() -> None:
    lengths = {module: len(path.read_text().splitlines()) for module, path in FILES.items()}
    assert {module: n for module, n in lengths.items() if n > LONGEST} == {}


def test_few_files_lie_loose() -> None:
    loose = {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py", "__main__.py"}
    assert len(loose) <= LOOSE


def test_nothing_needs_the_workflow_engine_or_the_store_of_results() -> None:
    tops = {name.split(".")[0] for names in IMPORTS.values() for name in names}
    assert not {name for name in tops if name.startswith(("snakemake", "dvc"))}
