from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from job_keys import prepare_key
from leaveout.attribution import if_explicit
from leaveout.attribution import task as task_module
from leaveout.config import Method, Recipe, Setting, label
from leaveout.config.damping import COLUMNS, damped
from leaveout.curvature.hessian import hessian
from leaveout.data.prepare import prepare
from leaveout.errors import LeaveoutError, NotComputableError
from leaveout.retraining.common import load_data
from leaveout.retraining.models import train_models
from leaveout.scoring.damping import (
    Metric,
    choose_damping,
    correlations,
    effective_damping,
    subset_damping,
    training_damping,
)
from leaveout.scoring.run import load_task, run_method
from leaveout.store import artefacts
from leaveout.store.contents import save

GRID = ({"damping": 3.0}, {"damping": 0.3}, {"damping": 1e-3})
IF = Method(name="if_explicit", module="leaveout.attribution.if_explicit", grid=GRID)
CG = Method(
    name="if_cg",
    module="leaveout.attribution.if_cg",
    grid=tuple({"damping": d, "iterations": k} for d in (3.0, 0.3) for k in (2, 20)),
)


@dataclass(frozen=True)
class Files:
    setting: Setting
    folder: Path

    @classmethod
    def make(cls, setting: Setting, folder: Path) -> Files:
        found = cls(setting, folder)
        save(found.data, prepare(setting), {"key": prepare_key(setting)})
        save(found.full[0], train_models(setting, "full", "0", found.data, "cpu"))
        return found

    @property
    def data(self) -> Path:
        return self.folder / "data.safetensors"

    @property
    def full(self) -> list[Path]:
        return [self.folder / "full.safetensors"]

    def scores(self, method: Method) -> list[Path]:
        paths = []
        for point in method.grid:
            paths.append(self.folder / f"{method.name}-{label(point)}.safetensors")
            if not paths[-1].exists():
                made = run_method(self.setting, method, point, self.data, self.full, [], "cpu")
                save(paths[-1], made["score"], {"setting": self.setting.name})
        return paths

    def text(self, method: Method, metric: Metric, setting: Setting | None = None) -> str:
        return choose_damping(
            setting or self.setting, metric, method, self.data, self.full, [],
            self.scores(method), "cpu",
        )  # fmt: skip

    def choose(
        self, method: Method, metric: Metric, setting: Setting | None = None
    ) -> list[dict[str, str]]:
        reader = csv.DictReader(self.text(method, metric, setting).splitlines())
        rows = list(reader)
        assert tuple(reader.fieldnames or ()) == COLUMNS
        return rows


@pytest.fixture(scope="module")
def files(make_setting: Any, tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files.make(make_setting(full={"chunk": 3}), tmp_path_factory.mktemp("files"))


def test_a_damping_goes_with_the_steps_and_what_they_move() -> None:
    recipe = Recipe(learning_rate=0.1, epochs=5, batch_size=8)
    assert training_damping(recipe, 20) == pytest.approx(1 / (5 * 3 * 0.1))
    more = recipe.model_copy(update={"momentum": 0.75, "weight_decay": 0.01})
    assert training_damping(more, 20) == pytest.approx(0.25 / 1.5 + 0.01)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_gradient_descent_moves_as_far_as_that_damping_lets_it(momentum: float) -> None:
    """Where curvature is far below the damping, a stopped descent is a ridge solution."""
    recipe = Recipe(learning_rate=0.05, momentum=momentum, epochs=400, batch_size=8)
    curvature, place, velocity = 1e-6, 0.0, 0.0
    for _ in range(recipe.epochs):
        velocity = momentum * velocity + curvature * place - 1.0
        place -= recipe.learning_rate * velocity
    ridge = 1 / (curvature + training_damping(recipe, 8))
    # momentum takes about 10 of the 400 steps to come up to speed
    assert place == pytest.approx(ridge, rel=0.03)


def spectrum(a: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    values = torch.from_numpy(np.linalg.eigvalsh(a))
    return values, torch.ones_like(values)


def gaussian(n: int, size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, size)) * np.logspace(0.5, -1, size)


@pytest.mark.parametrize("damping", [0.003, 0.05])
def test_subsets_are_on_average_all_samples_with_more_damping(damping: float) -> None:
    n, size, subset = 400, 100, 150
    x = gaussian(n, size, 0)
    rng = np.random.default_rng(1)
    mean = np.zeros((size, size))
    for _ in range(100):
        kept = x[rng.permutation(n)[:subset]]
        mean += damping * np.linalg.inv(kept.T @ kept / subset + damping * np.eye(size)) / 100
    full = x.T @ x / n

    def error(m: float) -> float:
        values, vectors = np.linalg.eigh(full)
        # along its eigenvectors, where the noise of a hundred subsets is least
        along = np.einsum("ik,ij,jk->k", vectors, mean, vectors)
        return float(np.linalg.norm(along - m / (values + m)) / np.linalg.norm(along))

    found = subset_damping(damping, *spectrum(full), subset, n)
    # two percent: the equality holds for large subsets
    assert error(found) < 0.02
    assert error(found) < error(0.8 * found)
    assert error(found) < error(1.25 * found)
    assert error(damping) > 0.1


def test_all_samples_are_a_subset_that_needs_no_more() -> None:
    x = gaussian(50, 80, 0)
    found = subset_damping(0.02, *spectrum(x.T @ x / 50), 50, 50)
    assert found == pytest.approx(0.02)
    fewer = [subset_damping(0.02, *spectrum(x.T @ x / 50), a, 50) for a in (40, 25, 10)]
    assert 0.02 < fewer[0] < fewer[1] < fewer[2]


def test_it_finds_the_best_damping_of_linear_regressions_retrained() -> None:
    """Real linear datamodeling scores, of least squares by gradient flow on random halves."""
    n, size, subset, subsets, time = 120, 90, 60, 800, 30.0
    rng = np.random.default_rng(0)
    truth = rng.standard_normal(size)
    x, new = gaussian(n, size, 1), gaussian(8, size, 2)
    y, new_y = x @ truth + rng.standard_normal(n), new @ truth + rng.standard_normal(8)

    def fit(rows: np.ndarray) -> np.ndarray:
        """Follow the gradient for ``time`` from the origin, in closed form."""
        a = x[rows]
        values, vectors = np.linalg.eigh(a.T @ a / len(rows))
        values = values.clip(1e-12)
        moved = -np.expm1(-values * time) / values
        return vectors @ (moved * (vectors.T @ (a.T @ y[rows] / len(rows))))

    kept = [rng.permutation(n)[:subset] for _ in range(subsets)]
    masks = np.zeros((subsets, n))
    for row, rows in zip(masks, kept, strict=True):
        row[rows] = 1
    outcomes = -np.stack([(new @ fit(rows) - new_y) ** 2 / 2 for rows in kept])
    theta = fit(np.arange(n))
    gradients = (x @ theta - y)[:, None] * x
    wanted = (new @ theta - new_y)[:, None] * new
    curvature = x.T @ x / n

    def score(damping: float) -> float:
        scores = gradients @ np.linalg.solve(curvature + damping * np.eye(size), wanted.T)
        sums = masks @ scores
        rho = [np.corrcoef(sums[:, j], outcomes[:, j])[0, 1] for j in range(len(new))]
        return float(np.mean(rho))

    grid = np.logspace(-4, 2, 25)
    curve = [score(damping) for damping in grid]
    chosen = score(subset_damping(1 / time, *spectrum(curvature), subset, n))
    assert chosen > 0.99 * max(curve)
    assert max(curve[0], curve[-1]) < 0.9 * chosen  # a constant damping would not do


@pytest.mark.parametrize("metric", ["lds", "loo", "pbrf"])
def test_the_indicator_is_the_naive_correlation(files: Files, metric: Metric) -> None:
    rows = files.choose(IF, metric)
    models = [artefacts.read(path, "models") for path in files.full]
    task = load_task(files.setting, load_data(files.setting, files.data, "cpu"), models, [])
    own, effective = effective_damping(files.setting, metric, task)
    steps = {"lds": 3 * 2, "loo": 3 * 4}
    assert own == pytest.approx(0.1 if metric == "pbrf" else 1 / (steps[metric] * 0.1))
    assert (effective > own) == (metric == "lds")
    reference = np.concatenate([b.numpy() for b in if_explicit.attribute(task, damping=effective)])
    for row, point, path in zip(rows, GRID, files.scores(IF), strict=True):
        scores = artefacts.read(path).tensors["score"].astype(np.float64)
        rho = [np.corrcoef(reference[:, j], scores[:, j])[0, 1] for j in range(6)]
        assert float(row["indicator"]) == pytest.approx(np.mean(rho), abs=1e-6)  # six decimals
        assert float(row["damping"]) == point["damping"]
        assert float(row["effective_damping"]) == pytest.approx(effective, rel=1e-5)
        assert (row["metric"], row["n_test"]) == (metric, "6")
    indicators = [float(row["indicator"]) for row in rows]
    assert [row["chosen"] for row in rows] == [
        "yes" if k == np.argmax(indicators) else "no" for k in range(3)
    ]


def test_the_effective_dimension_is_the_hessians(files: Files) -> None:
    models = [artefacts.read(path, "models") for path in files.full]
    task = load_task(files.setting, load_data(files.setting, files.data, "cpu"), models, [])
    exact = hessian(task.module, task.full[0].final, task.train)
    own, effective = effective_damping(files.setting, "lds", task)
    # half of 30 samples; eight random probes of 650 directions are good for some percent
    assert effective == pytest.approx(
        subset_damping(own, *spectrum(exact.numpy()), 15, 30), rel=0.1
    )


def test_blocks_do_not_change_the_file(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = files.text(IF, "lds")
    monkeypatch.setattr(task_module, "BLOCK_BYTES", 7 * 6 * 4)
    assert files.text(IF, "lds") == whole


def test_other_hyper_parameters_are_compared_with_their_own(files: Files) -> None:
    setting = files.setting.model_copy(
        update={"pbrf": files.setting.pbrf.model_copy(update={"damping": 0.3})}
    )
    rows = {row["params"]: row for row in files.choose(CG, "pbrf", setting)}
    # at the damping asked for, a method's scores are its own, whatever its iterations
    for iterations in (2, 20):
        assert rows[f"damping=0.3+iterations={iterations}"]["indicator"] == "1.000000"
        assert float(rows[f"damping=3+iterations={iterations}"]["indicator"]) < 1
    assert [name for name, row in rows.items() if row["chosen"] == "yes"] == [
        "damping=0.3+iterations=2"
    ]


def test_what_can_not_be_computed_is_not_chosen(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.scores(IF)

    def attribute(task: Any, *, damping: float) -> torch.Tensor:
        raise NotComputableError("memory", "too much")

    monkeypatch.setattr("leaveout.attribution.if_explicit.attribute", attribute)
    rows = files.choose(IF, "lds")
    assert {(row["indicator"], row["n_test"], row["chosen"]) for row in rows} == {
        ("nan", "0", "no")
    }


@pytest.mark.parametrize(("rate", "epochs"), [(1e30, 3), (1e25, 1)], ids=["weights", "outputs"])
def test_of_models_that_diverged_nothing_is_chosen(
    make_setting: Any, tmp_path: Path, rate: float, epochs: int
) -> None:
    setting = make_setting(
        full={"chunk": 3, "checkpoints": 1},
        model={"name": "mlp", "hidden": [6]},
        recipe={"learning_rate": rate, "epochs": epochs, "batch_size": 30},
    )
    broken = Files.make(setting, tmp_path)
    for metric in ("lds", "loo"):
        rows = broken.choose(IF, metric)  # type: ignore[arg-type]
        assert {(row["indicator"], row["n_test"], row["chosen"]) for row in rows} == {
            ("nan", "0", "no")
        }
        assert {row["effective_damping"] == "nan" for row in rows} == {metric == "lds"}
        assert all(float(row["training_damping"]) > 0 for row in rows)


def test_scores_of_another_method_are_refused(files: Files) -> None:
    with pytest.raises(LeaveoutError, match="its method is 'if_explicit', expected 'if_cg'"):
        choose_damping(
            files.setting, "lds", CG, files.data, files.full, [], files.scores(IF), "cpu"
        )


def test_a_constant_column_has_no_correlation(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scores = (1e4 + rng.standard_normal((50, 3))).astype(np.float32)  # a mean far from zero
    other = rng.standard_normal((50, 3)).astype(np.float32)
    other[:, 1] = 7
    path = tmp_path / "s.safetensors"
    artefacts.write(path, "score", {"score": scores}, {"score": ("train", "test")}, {})
    rows = artefacts.read(path, leave=["score"]).rows["score"]
    found = correlations(iter([other[:20], other[20:]]), [rows])
    assert found.shape == (1, 3)
    assert np.isnan(found[0, 1])
    for j in (0, 2):
        exact = np.corrcoef(scores[:, j].astype(float), other[:, j].astype(float))[0, 1]
        assert found[0, j] == pytest.approx(exact, abs=1e-9)


def test_which_methods_have_a_damping_to_choose() -> None:
    assert damped(IF)
    assert damped(CG)
    assert not damped(IF.model_copy(update={"grid": GRID[:1]}))
    assert not damped(Method(name="grad_dot", module="m", grid=({},)))
