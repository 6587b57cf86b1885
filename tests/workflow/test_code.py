"""What an edit of code makes due, in a clone that pulled every layer.

The clone's own copy of the package plans, in a process of its own. Until an edit is confirmed
(``leaveout confirm``), everything behind it counts as another result.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path

import pytest

Planned = Callable[..., set[str]]
Below = Callable[..., set[str]]
Edit = Callable[[Path, str, str], None]

MODELS = {"results/tiny/models/full/0.safetensors"}
LDS, LOO, PBRF = (
    {f"results/tiny/retrain/{layer}/{i}-0.safetensors" for i in (0, 1)}
    for layer in ("lds", "loo", "pbrf")
)
METRICS = ("lds", "loo", "pbrf")
TRAINED = MODELS | LDS | LOO | PBRF
GRAD_DOT = {"results/tiny/scores/grad_dot/default.safetensors"}
EXPLICIT = {f"results/tiny/scores/if_explicit/damping={d}.safetensors" for d in ("1", "0.01")}
DAMPINGS = {"results/tiny/damping/lds/if_explicit.csv"}
TRUTH_OF_PBRF = {"results/tiny/truth/pbrf.safetensors"}


@pytest.fixture
def package(pulled: Path) -> Path:
    """The package of a clone."""
    return pulled / "src" / "leaveout"


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(f"\n{text}\n")


def test_words_change_nothing(pulled: Path, package: Path, planned_by_its_code: Planned) -> None:
    for path in package.rglob("*.py"):
        text = path.read_text()
        tree = ast.parse(text)
        if ast.get_docstring(tree):
            text = text.replace('"""', '"""New words. ', 1)
        path.write_text(text + "\n\n# a comment\n")
    assert planned_by_its_code(pulled) == set()


@pytest.mark.parametrize("module", ["cli/program.py", "workflow/forecast.py", "errors.py"])
def test_code_that_decides_no_number_changes_nothing(
    pulled: Path, package: Path, planned_by_its_code: Planned, module: str
) -> None:
    append(package / module, "SOMETHING = 1")
    assert planned_by_its_code(pulled) == set()


def test_code_of_one_method_scores_that_method(
    pulled: Path, package: Path, planned_by_its_code: Planned, below_truth: Below
) -> None:
    append(package / "attribution" / "if_explicit.py", "SOMETHING = 1")
    assert planned_by_its_code(pulled) == (
        EXPLICIT | DAMPINGS | below_truth(*METRICS, methods=("if_explicit",))
    )


def test_code_of_a_metric_scores_and_trains_nothing(
    pulled: Path, package: Path, planned_by_its_code: Planned, below_truth: Below
) -> None:
    append(package / "metrics" / "evaluate.py", "SOMETHING = 1")
    made = planned_by_its_code(pulled)
    assert {path for path in below_truth(*METRICS) if "/metrics/" in path} <= made
    assert made <= below_truth(*METRICS) | DAMPINGS


def test_code_of_the_solver_computes_pbrf_alone(
    pulled: Path, package: Path, planned_by_its_code: Planned, below_truth: Below
) -> None:
    append(package / "retraining" / "proximal.py", "SOMETHING = 1")
    assert planned_by_its_code(pulled) == PBRF | TRUTH_OF_PBRF | below_truth("pbrf")


def test_code_of_the_engine_trains_all(
    pulled: Path, package: Path, planned_by_its_code: Planned
) -> None:
    append(package / "training" / "stack.py", "SOMETHING = 1")
    made = planned_by_its_code(pulled)
    assert "results/tiny/data.safetensors" not in made
    assert made >= TRAINED


def renamed(package: Path) -> None:
    """Rename a function that all methods use."""
    pattern, count = re.compile(r"\bload_data\b"), 0
    for path in package.rglob("*.py"):
        text, found = pattern.subn("load_all_data", path.read_text())
        path.write_text(text)
        count += found
    assert count > 3


def moved(package: Path) -> None:
    """Move a function that all models are trained with to a module of its own."""
    source, new = (package / "training" / f"{name}.py" for name in ("losses", "moved"))
    text = source.read_text()
    functions = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
    body = ast.get_source_segment(text, functions[0])
    assert body
    new.write_text(text[: text.index(body)] + body + "\n")
    source.write_text(
        text.replace(body, f"from leaveout.training.moved import {functions[0].name}")
    )


def reworded(package: Path) -> None:
    """Reword an error."""
    path = package / "store" / "artefacts.py"
    text = path.read_text()
    assert "truncated while it was read" in text
    path.write_text(text.replace("truncated while it was read", "cut off while it was read"))


def unused(package: Path) -> None:
    """Add a function that nobody calls."""
    append(package / "training" / "losses.py", "def nobody_calls_it() -> int:\n    return 3")


@pytest.mark.parametrize("edit", [renamed, moved, reworded, unused])
def test_an_edit_that_changes_no_number_is_stale_until_it_is_confirmed(
    pulled: Path, package: Path, planned_by_its_code: Planned, edit: Callable[[Path], None]
) -> None:
    edit(package)
    assert planned_by_its_code(pulled) >= GRAD_DOT | EXPLICIT | MODELS


def test_what_calls_a_step_s_function_counts(
    pulled: Path, package: Path, planned_by_its_code: Planned
) -> None:
    append(package / "workflow" / "run.py", "SOMETHING = 1")
    assert "results/tiny/data.safetensors" in planned_by_its_code(pulled)


def test_a_helper_of_ones_own_method_counts(
    clone: Path, edit: Edit, planned_by_its_code: Planned, snakemake: Callable[..., tuple[int, str]]
) -> None:
    """A user's module, found beside the package, and what it imports."""
    (clone / "src" / "lab.py").write_text(
        "import lab_helper\nfrom leaveout.attribution.grad_dot import attribute as plain\n"
        "def attribute(task):\n"
        "    return (lab_helper.FACTOR * block for block in plain(task))\n"
    )
    (clone / "src" / "lab_helper.py").write_text("FACTOR = 2\n")
    append(clone / "config" / "methods.yaml", "mine: {module: lab}")
    edit(clone / "config" / "config.yaml", "if_explicit]", "if_explicit, mine]")
    score = "results/tiny/scores/mine/default.safetensors"
    assert score in planned_by_its_code(clone)
    status, output = snakemake(clone, score)
    assert status == 0, output
    assert planned_by_its_code(clone, score) == set()
    (clone / "src" / "lab_helper.py").write_text("FACTOR = 3\n")
    assert planned_by_its_code(clone, score) == {score}
