"""What all tests share."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from leaveout.config import Setting

# Side by side, files are handed out in this order, the rest after them: what takes minutes comes
# first, or one core waits for the last file of the other. The first waits for Slurm most of its
# time, and makes the run that other workflow tests copy; the next two compute meanwhile.
LONG = (
    "workflow/slurm/test_faults.py",
    "attribution/test_invariances.py",
    "attribution/test_astra.py",
    "workflow/slurm/",
    "workflow/test_reliability.py",
    "workflow/test_reuse.py",
    "workflow/test_run.py",
    "workflow/",
    "peers/",
    "attribution/",
    "reporting/",
    "benchmarks/",
    "metrics/",
    "test_digest.py",
)


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config.option, "loadscopereorder"):  # else files with the most tests come first
        config.option.loadscopereorder = False
    # torch warns of itself: its forward-mode derivatives still script a few functions on first use
    config.addinivalue_line(
        "filterwarnings", "ignore:`torch.jit.script` is deprecated:DeprecationWarning"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        name = item.nodeid.removeprefix("tests/")
        return next((i for i, start in enumerate(LONG) if name.startswith(start)), len(LONG))

    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=place)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Keep torch, where a test has imported it, to one thread: these problems are tiny."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(autouse=True)
def _global_randomness_untouched() -> Iterator[None]:
    """Hold every test, and so all code under test, to drawing nothing from torch's generator."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    before = torch.random.get_rng_state().clone()
    yield
    assert torch.equal(torch.random.get_rng_state(), before)


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merge(base[key], value) if both else value
    return merged


@pytest.fixture(scope="session")
def make_setting() -> Callable[..., Setting]:
    """Return a function that makes a tiny setting on digits, changed section by section."""
    base: dict[str, Any] = {
        "name": "tiny",
        "seed": 3,
        "dataset": {"name": "digits", "n_train": 30, "n_test": 6},
        "model": {"name": "linear"},
        "recipe": {"learning_rate": 0.1, "epochs": 3, "batch_size": 8},
        "full": {"runs": 3, "checkpoints": 2, "chunk": 2},
        "half": {"runs": 3, "chunk": 2},
        "lds": {"subsets": 5, "runs": 2, "chunk": 2},
        "loo": {"ids": (1, 4, 7, 20, 29), "replicate": 2, "chunk": 2},
        "pbrf": {"ids": (1, 4, 7, 20, 29), "replicate": 2, "chunk": 2, "damping": 0.1},
    }

    def make(**changes: Any) -> Setting:
        return Setting.model_validate(_merge(base, changes))

    return make


HANDED_OVER = """
seed: 4
dataset: {name: mnist, n_train: 60, n_test: 7, mean: 0.1307, std: 0.3081}
model: {name: linear}
recipe: {learning_rate: 0.05, momentum: 0.5, epochs: 3, batch_size: 8}
full: {runs: 3, checkpoints: 2, chunk: 2}
half: {runs: 2}
lds: {subsets: 12, runs: 2, chunk: 5}
loo: {ids: [50, 3, 17, 4, 21, 30, 8, 44], replicate: 3, chunk: 4}
"""


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with config and all artefacts of a tiny `mnist_lr`, and Grad-Dot's scores."""
    from leaveout import cli, plan
    from leaveout.config import load_setting

    root = tmp_path_factory.mktemp("finished")
    (root / "config" / "settings").mkdir(parents=True)
    (root / "config" / "settings" / "mnist_lr.yaml").write_text(HANDED_OVER)
    (root / "config" / "methods.yaml").write_text("grad_dot:\n")
    setting = load_setting(root / "config" / "settings" / "mnist_lr.yaml")

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(cli, "CONFIG", Path("config"))

        def run(line: str) -> None:
            assert cli.main(line.split()) == 0, line

        data, folder = "results/mnist_lr/data.safetensors", "results/mnist_lr"
        run(f"prepare --setting mnist_lr --out {data}")
        common = f"--setting mnist_lr --data {data}"
        for layer in ("full", "half", "lds", "loo"):
            paths = []
            for chunk in plan.chunks(setting, layer):
                models = layer in ("full", "half")
                paths.append(
                    f"{folder}/{'models' if models else 'retrain'}/{layer}/{chunk}.safetensors"
                )
                step = f"train --kind {layer}" if models else f"retrain-{layer}"
                run(f"{step} {common} --chunk {chunk} --out {paths[-1]}")
            if not models:
                run(
                    f"merge-truth --setting mnist_lr --kind {layer} "
                    f"--out {folder}/truth/{layer}.safetensors {' '.join(paths)}"
                )
        scores = f"{folder}/scores/grad_dot/default"
        run(
            f"attribute {common} --method grad_dot --full {folder}/models/full/0.safetensors "
            f"--out {scores}.safetensors --cost {scores}.cost.json"
        )
    return root


@pytest.fixture(scope="session")
def run_examples() -> Callable[[str, int], dict[str, Any]]:
    """Return a function that runs a page's so many blocks of Python, and gives their names."""

    from leaveout.banks.randomness import preserved  # and torch with it

    def run(page: str, count: int) -> dict[str, Any]:
        text = (Path(__file__).parents[1] / "docs" / page).read_text(encoding="utf-8")
        blocks = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
        assert len(blocks) == count
        scope: dict[str, Any] = {}
        with preserved():
            for block in blocks:
                exec(compile(block, f"docs/{page}", "exec"), scope)
        return scope

    return run
