"""What all tests share."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from leaveout.config import CNN, MLP, Linear, Model, Recipe, Setting

if TYPE_CHECKING:  # torch is slow to import, and many tests need none
    import torch
    from torch import Tensor

    from leaveout.attribution.task import Task, Trajectory
    from leaveout.problem.samples import Samples

# Side by side, files are handed out in this order, the rest after them: what takes minutes comes
# first, or one core waits for the last file of the other. The first waits for Slurm most of its
# time, and makes the run that other workflow tests copy; the next two compute meanwhile.
LONG = (
    "workflow/slurm/test_faults.py",
    "attribution/test_invariances.py",
    "attribution/test_astra.py",
    "workflow/slurm/",
    "workflow/test_reliability.py",
    "workflow/test_resume.py",
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
    from leaveout.cli import program as cli
    from leaveout.workflow.steps import load_plan

    root = tmp_path_factory.mktemp("finished")
    (root / "config" / "settings").mkdir(parents=True)
    (root / "config" / "settings" / "mnist_lr.yaml").write_text(HANDED_OVER)
    (root / "config" / "methods.yaml").write_text("grad_dot:\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(cli, "CONFIG", Path("config"))
        plan = load_plan({"settings": ["mnist_lr"], "metrics": ["lds", "loo"]}, "config")
        wanted = {"prepare", "train", "retrain_lds", "retrain_loo", "merge_truth", "attribute"}
        for job in plan.jobs:
            if job.step.name in wanted:
                assert cli.main(job.command()[1:]) == 0, job.line
    return root


@pytest.fixture(scope="session")
def run_examples() -> Callable[[str, int], dict[str, Any]]:
    """Return a function that runs a page's so many blocks of Python, and gives their names."""

    from leaveout.problem.randomness import preserved  # and torch with it

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


SHAPE, CLASSES, N_TRAIN, N_TEST, RUNS = (1, 4, 4), 3, 24, 7, 3
MODELS: dict[str, Model] = {
    "linear": Linear(name="linear"),
    "mlp": MLP(name="mlp", hidden=(8,), dropout=0.3),
    "cnn": CNN(name="cnn", channels=(2,), batch_norm=True),
}
RECIPE = Recipe(learning_rate=0.2, epochs=6, batch_size=6)
EPOCHS = {"full": (2, 4, 6), "half": (6,)}
RATES = {"full": (0.1, 0.2, 0.4), "half": (0.2,)}


def _samples(n: int, seed: int, dtype: torch.dtype) -> Samples:
    """Three overlapping clouds."""
    import torch

    from leaveout.problem.objectives import CROSS_ENTROPY
    from leaveout.problem.samples import Samples

    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((CLASSES, *SHAPE))
    labels = rng.integers(CLASSES, size=n)
    inputs = 0.5 * centres[labels] + rng.standard_normal((n, *SHAPE))
    ids = np.arange(n, dtype=np.int64)
    return Samples(torch.from_numpy(inputs).to(dtype), torch.from_numpy(labels), CROSS_ENTROPY, ids)


@pytest.fixture(scope="session")
def make_task() -> Callable[..., Task]:
    """Return a function that trains full and half models and wraps them in a task.

    It trains once: methods leave a task as it was.
    """
    import torch

    from leaveout.attribution.task import Task, Trajectory
    from leaveout.models.build import initialise
    from leaveout.problem.objectives import CROSS_ENTROPY
    from leaveout.training.engine import train
    from leaveout.training.trials import Trial

    @cache
    def make(
        name: str = "linear", dtype: torch.dtype = torch.float64, n_train: int = N_TRAIN
    ) -> Task:
        train_set, test_set = _samples(n_train, 0, dtype), _samples(N_TEST, 1, dtype)

        def build(seed: int) -> torch.nn.Module:
            return initialise(MODELS[name], SHAPE, CLASSES, seed).to(dtype)

        def trained(kind: str, run: int, kept: np.ndarray | None) -> Trajectory:
            trial = Trial(0, ("t", kind, run), kept=kept)
            (found,) = train(build, [trial], train_set, RECIPE, EPOCHS[kind])
            seen = torch.ones(n_train, dtype=torch.bool)
            if kept is not None:
                seen = torch.zeros_like(seen).index_fill_(0, torch.from_numpy(kept), True)
            return Trajectory(
                trial=trial,
                states=[{k: v[0].detach() for k, v in s.items()} for s in found.snapshots],
                epochs=EPOCHS[kind],
                learning_rates=RATES[kind],
                trained_on=seen,
            )

        halves = [
            np.sort(np.random.default_rng(run).permutation(n_train)[: n_train // 2])
            for run in range(RUNS)
        ]
        full = [trained("full", run, None) for run in range(RUNS)]
        half = [trained("half", run, kept) for run, kept in enumerate(halves)]
        module = build(0).eval().requires_grad_(False)
        return Task("t", 0, module, train_set, test_set, CROSS_ENTROPY, full, half, build, RECIPE)

    return make


@pytest.fixture(params=MODELS)
def task(request: pytest.FixtureRequest, make_task: Callable[..., Task]) -> Task:
    return make_task(request.param)


@pytest.fixture(scope="session")
def gradients() -> Callable[..., np.ndarray]:
    """Return a function that differentiates each sample's loss by itself: (samples, parameters)."""
    import torch
    from torch.nn import functional

    def one_by_one(task: Task, state: dict[str, Tensor], part: Samples) -> np.ndarray:
        rows = []
        for x, y in zip(part.inputs, part.targets, strict=True):
            named: dict[str, Any] = {
                n: state[n].clone().requires_grad_() for n, _ in task.module.named_parameters()
            }
            outputs = torch.func.functional_call(task.module, {**state, **named}, (x[None],))
            loss = functional.cross_entropy(outputs, y[None])
            found = torch.autograd.grad(loss, list(named.values()))
            rows.append(np.concatenate([g.numpy().ravel() for g in found]))
        return np.stack(rows)

    return one_by_one
