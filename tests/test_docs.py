"""The pages of docs/: all in the menu, their links lead somewhere, and their blocks are run."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from leaveout.cli import program as cli
from leaveout.config import load_methods, load_setting
from leaveout.workflow.steps import STEPS, scoring, training

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
FILES = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]

# Which test runs a page's blocks of Python and of commands.
RUN = {
    "README.md": "workflow/test_readme.py",
    "banks.md": "test_docs.py",
    "artefacts.md": "explain/test_docs.py",
    "damping.md": "workflow/test_docs.py",
    "explain.md": "explain/test_docs.py",
    "methods.md": "workflow/test_docs.py",
    "metrics.md": "workflow/test_docs.py",
    "mnist60k.md": "workflow/test_docs.py",
    "mnist_lr.md": "workflow/test_docs.py",
    "mnist_mlp.md": "workflow/test_docs.py",
    "peers.md": "interop/test_docs.py",
    "settings.md": "workflow/test_docs.py",
    "tutorial.md": "workflow/test_docs.py",
    "uncertainty.md": "workflow/test_docs.py",
    "your-own.md": "doors/test_docs.py",
}
# Those that no test runs as they stand: how they begin, and why.
NOT_RUN = {
    ("banks.md", "part = int"): "a job of the reader's own on a cluster",
    ("banks.md", "sbatch"): "a job of the reader's own on a cluster",
    ("gpu.md", "python benchmarks/gpu.py"): "needs a GPU; tests/benchmarks tries it on a CPU",
    ("reuse.md", "git clone"): "tests/workflow/test_readme.py does it with a clone of this clone",
    ("reuse.md", "leaveout restore"): "tests/workflow/test_reuse.py does it with a small setting",
    (
        "reuse.md",
        "snakemake results",
    ): "tests/workflow/test_publish.py does it with a small setting",
    ("speed.md", "make speed"): "takes more than an hour; tests/benchmarks runs the parts",
    ("tutorial.md", "make setup"): "CI does (.ci/run)",
}
PLAIN = {"", "yaml", "text", "math", "{toctree}"}  # languages of blocks that say no command


def blocks(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the language and the text of each block of a page."""
    yield from re.findall(r"^```([^\n]*)\n(.*?)^```$", path.read_text("utf-8"), re.M | re.S)


def anchors(path: Path) -> set[str]:
    """Return the anchors that GitHub, and MyST, give a page's headings."""
    text = re.sub(r"^```.*?^```$", "", path.read_text("utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_link_leads_somewhere(path: Path) -> None:
    text = re.sub(
        r"`[^`\n]*`", "", re.sub(r"^```.*?^```$", "", path.read_text("utf-8"), flags=re.M | re.S)
    )
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("https:", "http:")):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_in_the_menu_once() -> None:
    menus = [body for language, body in blocks(DOCS / "index.md") if language == "{toctree}"]
    named = [line for body in menus for line in body.splitlines() if re.fullmatch(r"[\w-]+", line)]
    assert sorted([*named, "index"]) == [page.stem for page in PAGES]


@pytest.mark.parametrize("path", [*PAGES, ROOT / "README.md"], ids=lambda path: path.name)
def test_every_block_is_run_or_says_why_not(path: Path) -> None:
    """Add a new page's to a test that runs them, and the test to RUN; or say in NOT_RUN why not."""
    for language, body in blocks(path):
        if language in PLAIN:
            continue
        assert language in {"bash", "python", "python no-run"}, language
        if any(page == path.name and body.startswith(begin) for page, begin in NOT_RUN):
            continue
        assert language != "python no-run"
        test = ROOT / "tests" / RUN[path.name]
        assert path.name.replace("README.md", "README") in test.read_text("utf-8"), body


def test_what_is_not_run_is_there() -> None:
    for page, begin in NOT_RUN:
        assert any(body.startswith(begin) for _, body in blocks(DOCS / page)), (page, begin)


def test_what_a_bank_says_of_itself(
    finished: Path, monkeypatch: pytest.MonkeyPatch, run_examples: Callable[..., dict[str, Any]]
) -> None:
    monkeypatch.chdir(finished)
    run_examples("banks.md", 1)


def test_distributional_targets(
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_examples: Callable[..., dict[str, Any]],
) -> None:
    monkeypatch.chdir(finished)
    monkeypatch.setattr(cli, "CONFIG", Path("config"))
    scope = run_examples("uncertainty.md", 1)
    np.testing.assert_allclose(scope["found"].mean, scope["target"].mean(axis=1))
    (line,) = (
        body
        for language, body in blocks(DOCS / "uncertainty.md")
        if language == "bash" and body.startswith("leaveout")
    )
    names = {
        "NAME": "mnist_lr",
        "METHOD": "grad_dot",
        "variance.csv": str(tmp_path / "variance.csv"),
        "SCORES": "results/mnist_lr/scores/grad_dot/default.safetensors",
    }
    for placeholder, name in names.items():
        line = line.replace(placeholder, name)
    assert cli.main(line.split()[1:]) == 0
    assert "lds_variance" in (tmp_path / "variance.csv").read_text()


def test_the_setting_of_one_s_own_is_valid(tmp_path: Path) -> None:
    name, body = re.findall(
        r"`config/settings/(\w+\.yaml)`:\n\n```yaml\n(.*?)^```",
        (DOCS / "settings.md").read_text("utf-8"),
        re.M | re.S,
    )[0]
    (tmp_path / name).write_text(body)
    setting = load_setting(tmp_path / name)
    assert setting.dataset.n_classes == 2
    assert (
        ROOT / "config/settings" / yaml.safe_load(body.split("$schema=")[1].split()[0])
    ).exists()


def test_the_picture_shows_the_workflow_s_steps() -> None:
    picture = (DOCS / "images" / "architecture.svg").read_text()
    shown = {rule for found in re.findall(r'data-rules="(.*?)"', picture) for rule in found.split()}
    assert shown <= STEPS.keys()
    # the way from data to metrics; of the rest, as much as the picture bears
    way = {step.name for step in (*training.STEPS, *scoring.STEPS)} - {"predict"}
    assert {*way, "evaluate"} <= shown


def test_the_mathematics_has_every_method_and_its_file() -> None:
    text = (DOCS / "mathematics.md").read_text("utf-8")
    methods = load_methods(ROOT / "config" / "methods.yaml")
    assert [name for name in methods if f"`{name}`" not in text] == []
    files = {method.module.rpartition(".")[2] for method in methods.values()}
    assert [name for name in files if f"/attribution/{name}.py)" not in text] == []
