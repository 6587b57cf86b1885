from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from leaveout.workflow import digest, lock
from leaveout.workflow.steps import STEPS

SOURCE = Path(digest.__file__).parents[1]

Edit = Callable[[str, Callable[[str], str]], None]


@pytest.fixture
def edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Edit]:
    """Give a function that edits a file of a copy of the package, which is the one digested."""
    copy = tmp_path / "leaveout"
    shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("*.xz", "__pycache__"))
    monkeypatch.setattr(digest, "__file__", str(copy / "workflow" / "digest.py"))
    lock.look_again()

    def change(file: str, how: Callable[[str], str]) -> None:
        path = copy / file
        old = path.read_text()
        new = how(old)
        assert new != old
        path.write_text(new)
        lock.look_again()

    yield change
    lock.look_again()


def digests() -> dict[str, str]:
    return {name: lock.step_entry(step)["code"] for name, step in STEPS.items()}


def changed(before: dict[str, str]) -> set[str]:
    after = digests()
    return {step for step in before if before[step] != after[step]}


RETRAININGS = {"retrain_lds", "retrain_loo", "retrain_pbrf", "retrain_brittleness"}
TRAININGS = {"train", *RETRAININGS, "predict"}
SCORINGS = ("attribute", "self_influence", "damping")


def test_comments_docstrings_and_layout_do_not_count(edit: Edit) -> None:
    before = digests()
    edit("training/stack.py", lambda t: "# a comment\n\n" + t + "\n\n# the end\n")
    edit("training/stack.py", lambda t: t.replace('"""', '"""Reworded: ', 1))
    edit("training/stack.py", lambda t: t.replace('    """One step of all models.', '    """Do'))
    edit(
        "seeds.py", lambda t: t.replace("    return np.random.Gen", "\n\n    return np.random.Gen")
    )
    edit("problem/objectives.py", lambda t: t.replace('reduction="none"', "reduction='none'"))
    assert changed(before) == set()


@pytest.mark.parametrize(
    ("file", "old", "new", "steps"),
    [
        ("training/losses.py", "dim=2", "dim=1", {*TRAININGS, *SCORINGS}),
        ("retraining/brittleness.py", "margin > 0", "margin > 1", {"retrain_brittleness"}),
        ("retraining/lds.py", "kept=np", "kept=0 * np", {"retrain_lds"}),
        ("retraining/loo.py", "removed=position", "removed=0", {"retrain_loo"}),
        ("retraining/pbrf.py", "float64", "float32", {"retrain_pbrf"}),
        ("retraining/truth.py", "1e-2", "1e-3", {"merge_truth"}),
        ("retraining/subsets.py", "mask[rng", "mask[0 * rng", {"train", "retrain_lds"}),
        ("data/digits.py", "1797", "1796", {"prepare"}),
        ("models/cnn.py", "padding=1", "padding=2", {*TRAININGS, *SCORINGS}),
    ],
)
def test_an_edit_counts_for_the_steps_that_run_it(
    edit: Edit, file: str, old: str, new: str, steps: set[str]
) -> None:
    before = digests()
    edit(file, lambda t: t.replace(old, new, 1))
    assert changed(before) == steps


def test_a_helper_of_methods_counts_for_those_that_import_it(edit: Edit) -> None:
    names = ("random", "grad_dot", "tracin", "if_explicit", "if_cg")

    def all_of() -> dict[str, str]:
        return {name: digest.code_digest(f"leaveout.attribution.{name}") for name in names}

    before = all_of()
    edit("curvature/cg.py", lambda t: t.replace("1e-7", "1e-8"))
    after = all_of()
    assert {n for n in names if before[n] != after[n]} == {"if_cg"}
    before = after
    edit("gradients/factors.py", lambda t: t.replace("products += 1", "products += 2"))
    after = all_of()
    assert {n for n in names if before[n] != after[n]} == {*names} - {"random"}


def test_an_edit_of_a_metric_counts_for_no_training(edit: Edit) -> None:
    before = digests()
    edit("metrics/correlation.py", lambda t: t + "\nx = 1\n")
    assert "evaluate" in changed(before)
    assert not changed(before) & {*TRAININGS, "prepare", "merge_truth", "attribute"}


def test_seeds_count_for_all_that_draw(edit: Edit) -> None:
    before = digests()
    edit("seeds.py", lambda t: t.replace("Philox", "PCG64"))
    assert changed(before) >= {*TRAININGS, *SCORINGS, "evaluate"}


def test_what_decides_no_number_does_not_count(edit: Edit) -> None:
    before = digests()
    for file in (
        "cli/program.py", "errors.py", "config/setting.py", "workflow/plan.py", "store/stamps.py",
        "workflow/provenance.py", "workflow/costs/scoring.py", "__init__.py",
    ):  # fmt: skip
        edit(file, lambda t: t + "\nx = 1\n")
    assert changed(before) == set()


@pytest.mark.parametrize(
    ("file", "steps"),
    [
        ("workflow/run.py", {*STEPS}),
        ("workflow/steps/training.py", {name for name, step in STEPS.items()
                                        if step.call.__module__.endswith(".training")}),
    ],
)  # fmt: skip
def test_what_calls_a_step_s_function_counts(edit: Edit, file: str, steps: set[str]) -> None:
    before = digests()
    edit(file, lambda t: t + "\nx = 1\n")
    assert steps <= changed(before)


def test_a_new_module_counts_once_it_is_imported(edit: Edit, tmp_path: Path) -> None:
    before = digests()
    (tmp_path / "leaveout" / "training" / "extra.py").write_text("x = 1\n")
    lock.look_again()
    assert changed(before) == set()
    edit(
        "training/losses.py", lambda t: t + "\ndef f():\n    from leaveout.training import extra\n"
    )
    between = digests()
    edit("training/extra.py", lambda t: t + "y = 2\n")
    assert changed(between) == {*TRAININGS, *SCORINGS}


def test_a_method_of_ones_own_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "own_digested.py"
    found = []
    for text in ("x = 1\n", "x = 1  # one\n", "x = 2\n"):
        path.write_text(f"from leaveout.seeds import generator\n{text}")
        lock.look_again()
        found.append(digest.code_digest("own_digested"))
    lock.look_again()
    assert found[0] == found[1] != found[2]
    assert "leaveout.seeds" in digest.modules_behind("own_digested")


IMPORTED = """
import importlib, sys
for name in sys.argv[1:]:
    for old in [m for m in sys.modules if m.split(".")[0] == "leaveout"]:
        del sys.modules[old]
    importlib.import_module(name)
    print(*[m for m in sys.modules if m.split(".")[0] == "leaveout"])
"""


def test_modules_behind_are_what_is_really_imported() -> None:
    """Against the interpreter: whatever a step's module loads of the package must be digested."""
    steps = sorted({step.compute.partition(":")[0] for step in STEPS.values()})
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED, *steps], capture_output=True, text=True, check=True
    )
    for module, line in zip(steps, done.stdout.splitlines(), strict=True):
        loaded = {name for name in line.split() if not digest.left_out(name)}
        assert module in loaded
        empty = {m for m in loaded if (path := digest.path_of(m)) and path.name == "__init__.py"}
        assert loaded - empty <= set(digest.modules_behind(module)), module
        for package in empty:  # not followed: nothing may stand in them
            path = digest.path_of(package)
            assert path is not None
            assert re.fullmatch(r'\s*(""".*?""")?\s*', path.read_text(), re.DOTALL), package


def test_a_users_own_helpers_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    package = tmp_path / "users_own"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "method.py").write_text("from .helper import scale\n")
    (package / "helper.py").write_text("scale = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    lock.look_again()
    request.addfinalizer(lock.look_again)
    before = digest.code_digest("users_own.method")
    assert "users_own.helper" in digest.modules_behind("users_own.method")
    (package / "helper.py").write_text("scale = 2\n")
    lock.look_again()
    assert digest.code_digest("users_own.method") != before


def test_versions_of_python_agree(edit: Edit, monkeypatch: pytest.MonkeyPatch) -> None:
    before = digests()
    fields = ast.iter_fields

    def with_new_fields(node: ast.AST) -> Iterator[tuple[str, object]]:
        """What a later grammar adds is empty in older code, e.g. the type parameters of 3.12."""
        yield from fields(node)
        yield from (("type_params", []), ("something", None))

    monkeypatch.setattr(ast, "iter_fields", with_new_fields)
    lock.look_again()
    assert changed(before) == set()


def test_other_pythons_read_the_same(tmp_path: Path) -> None:
    """Run the module alone, as other installed Pythons have none of the packages."""
    modules = sorted({step.compute.partition(":")[0] for step in STEPS.values()})
    code = (
        "import sys, types\n"
        f"package = types.ModuleType('leaveout'); package.__path__ = [{str(SOURCE)!r}]\n"
        "sys.modules['leaveout'] = package\n"
        "from leaveout.workflow.digest import code_digest\n"
        f"print([code_digest(m) for m in {modules}])\n"
    )
    said = set()
    for minor in (11, 12, 13, 14):
        if python := shutil.which(f"python3.{minor}"):
            done = subprocess.run(
                [python, "-c", code], capture_output=True, text=True, cwd=tmp_path
            )
            if done.returncode == 0:  # a stub of a version manager may stand there
                said.add(done.stdout)
    if not said:
        pytest.skip("no python3.11 or newer by name on the path")
    assert said == {f"{[digest.code_digest(module) for module in modules]}\n"}
