from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from leaveout import digest, plan

SOURCE = Path(digest.__file__).parent

Edit = Callable[[str, Callable[[str], str]], None]


def forget() -> None:
    for cached in (digest._path, digest._read, digest.code_digest):
        cached.cache_clear()


@pytest.fixture
def edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Edit]:
    """Give a function that edits a file of a copy of the package, which is the one digested."""
    copy = tmp_path / "leaveout"
    shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("*.xz", "__pycache__"))
    monkeypatch.setattr(digest, "__file__", str(copy / "digest.py"))
    forget()

    def change(file: str, how: Callable[[str], str]) -> None:
        path = copy / file
        old = path.read_text()
        new = how(old)
        assert new != old
        path.write_text(new)
        forget()

    yield change
    forget()


def digests() -> dict[str, str]:
    return {step: digest.code_digest(module) for step, module in plan.CODE.items()}


def changed(before: dict[str, str]) -> set[str]:
    after = digests()
    return {step for step in before if before[step] != after[step]}


TRAININGS = {"full", "half", "lds", "loo", "pbrf", "brittleness", "predict"}
SCORINGS = ("attribute", "self_influence", "damping")


def test_comments_docstrings_and_layout_do_not_count(edit: Edit) -> None:
    before = digests()
    edit("training/stack.py", lambda t: "# a comment\n\n" + t + "\n\n# the end\n")
    edit("training/stack.py", lambda t: t.replace('"""', '"""Reworded: ', 1))
    edit("training/stack.py", lambda t: t.replace('    """Train many models at once.', '    """Do'))
    edit(
        "seeds.py", lambda t: t.replace("    return np.random.Gen", "\n\n    return np.random.Gen")
    )
    edit("training/losses.py", lambda t: t.replace('reduction="none"', "reduction='none'"))
    assert changed(before) == set()


@pytest.mark.parametrize(
    ("file", "old", "new", "steps"),
    [
        ("training/losses.py", 'reduction="none"', 'reduction="sum"', {*TRAININGS, *SCORINGS}),
        ("retraining/brittleness.py", "margin > 0", "margin > 1", {"brittleness"}),
        ("retraining/lds.py", "kept=np", "kept=0 * np", {"lds"}),
        ("retraining/loo.py", "removed=position", "removed=0", {"loo"}),
        ("retraining/pbrf.py", "float64", "float32", {"pbrf"}),
        ("retraining/truth.py", "1e-2", "1e-3", {"truth"}),
        ("retraining/subsets.py", "* ratio", "* ratio * 1", {"full", "half", "lds"}),
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
    assert not changed(before) & {*TRAININGS, "prepare", "truth", "attribute"}


def test_seeds_count_for_all_that_draw(edit: Edit) -> None:
    before = digests()
    edit("seeds.py", lambda t: t.replace("Philox", "PCG64"))
    assert changed(before) >= {*TRAININGS, *SCORINGS, "evaluate"}


def test_what_decides_no_number_does_not_count(edit: Edit) -> None:
    before = digests()
    for file in ("cli.py", "provenance.py", "errors.py", "plan.py", "config.py", "__init__.py"):
        edit(file, lambda t: t + "\nx = 1\n")
    assert changed(before) == set()


def test_a_new_module_counts_once_it_is_imported(edit: Edit, tmp_path: Path) -> None:
    before = digests()
    (tmp_path / "leaveout" / "training" / "extra.py").write_text("x = 1\n")
    forget()
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
        forget()
        found.append(digest.code_digest("own_digested"))
    forget()
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
    steps = sorted(set(plan.CODE.values()))
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED, *steps], capture_output=True, text=True, check=True
    )
    for module, line in zip(steps, done.stdout.splitlines(), strict=True):
        loaded = set(line.split()) - digest.LEFT_OUT
        assert module in loaded
        empty = {m for m in loaded if (path := digest._path(m)) and path.name == "__init__.py"}
        assert loaded - empty <= set(digest.modules_behind(module)), module
        for package in empty:  # not followed: nothing may stand in them
            path = digest._path(package)
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
    for cached in (digest._path, digest._read, digest.code_digest):
        cached.cache_clear()
        request.addfinalizer(cached.cache_clear)
    before = digest.code_digest("users_own.method")
    assert "users_own.helper" in digest.modules_behind("users_own.method")
    (package / "helper.py").write_text("scale = 2\n")
    for cached in (digest._read, digest.code_digest):
        cached.cache_clear()
    assert digest.code_digest("users_own.method") != before


def test_versions_of_python_agree(edit: Edit, monkeypatch: pytest.MonkeyPatch) -> None:
    before = digests()
    fields = ast.iter_fields

    def with_new_fields(node: ast.AST) -> Iterator[tuple[str, object]]:
        """What a later grammar adds is empty in older code, e.g. the type parameters of 3.12."""
        yield from fields(node)
        yield from (("type_params", []), ("something", None))

    monkeypatch.setattr(ast, "iter_fields", with_new_fields)
    forget()
    assert changed(before) == set()


def test_other_pythons_read_the_same(tmp_path: Path) -> None:
    """Run the module alone, as other installed Pythons have none of the packages."""
    code = (
        "import sys, types\n"
        f"package = types.ModuleType('leaveout'); package.__path__ = [{str(SOURCE)!r}]\n"
        "sys.modules['leaveout'] = package\n"
        "from leaveout.digest import code_digest\n"
        f"print([code_digest(m) for m in {list(plan.CODE.values())}])\n"
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
    assert said == {f"{list(digests().values())}\n"}
