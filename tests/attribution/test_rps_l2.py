from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from leaveout.attribution.rps_l2 import attribute, fit, representers, self_influence
from leaveout.errors import LeaveoutError
from leaveout.gradients.features import penultimate_features


def problem(n: int = 40, soft: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(1)
    features = torch.from_numpy(rng.standard_normal((n, 6)))
    features /= features.norm(dim=1, keepdim=True)
    logits = torch.from_numpy(rng.standard_normal((n, 4)) * 2)
    hard = torch.nn.functional.one_hot(logits.argmax(1), 4).double()
    return features, logits.softmax(1) if soft else hard


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("l2", [1.0, 1e-2, 1e-4, 1e-6])
def test_the_representer_theorem_holds(l2: float, soft: bool) -> None:
    features, targets = problem(soft=soft)
    weights = fit(features, targets, l2)
    alpha = representers(features, targets, weights, l2)
    fresh = torch.from_numpy(np.random.default_rng(2).standard_normal((9, 6)))
    direct = fresh @ weights.T
    # W is within 1e-9 of its representation, relative to its norm; the inputs' norms are about 2.5
    torch.testing.assert_close(
        (fresh @ features.T) @ alpha, direct, rtol=0, atol=1e-8 * float(weights.norm())
    )
    assert direct.std() > 0


@pytest.mark.parametrize("l2", [1.0, 1e-3])
def test_the_fit_is_the_minimum_that_scipy_finds(l2: float) -> None:
    features, targets = (part.numpy() for part in problem())

    def objective(flat: np.ndarray) -> float:
        logits = features @ flat.reshape(4, 6).T
        top = logits.max(1, keepdims=True)
        log_p = logits - top - np.log(np.exp(logits - top).sum(1, keepdims=True))
        return float(-(targets * log_p).sum(1).mean() + l2 * (flat**2).sum())

    found = minimize(objective, np.zeros(24), method="BFGS", options={"gtol": 1e-7})
    weights = fit(torch.from_numpy(features), torch.from_numpy(targets), l2)
    # SciPy differentiates numerically, to about 1e-8, over a curvature of at least 2 l2
    np.testing.assert_allclose(weights.numpy().ravel(), found.x, atol=1e-7 / l2)
    assert objective(weights.numpy().ravel()) <= found.fun + 1e-12


@pytest.mark.parametrize("targets", ["labels", "model"])
def test_scores_of_a_label_add_up_to_its_output(task: Any, targets: str) -> None:
    found = torch.cat([*attribute(task, l2=1e-2, targets=targets)])
    state = task.full[0].final
    f, h = (
        torch.nn.functional.normalize(penultimate_features(task.module, state, s))
        for s in (task.train, task.test)
    )
    goal = torch.nn.functional.one_hot(task.train.targets, 3).double()
    if targets == "model":
        goal = torch.func.functional_call(task.module, state, (task.train.inputs,)).softmax(1)
    outputs = h @ fit(f, goal, 1e-2).T
    expected = outputs.gather(1, task.test.targets[:, None])[:, 0]
    torch.testing.assert_close(found.sum(0), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("targets", ["labels", "model"])
def test_self_influence_is_the_score_on_itself(task: Any, targets: str) -> None:
    whole = torch.cat([*attribute(replace(task, test=task.train), l2=1e-2, targets=targets)])
    found = self_influence(task, l2=1e-2, targets=targets)
    torch.testing.assert_close(found, whole.diagonal(), rtol=0, atol=1e-10)
    assert targets == "model" or (found > 0).all()  # a sample speaks for its own label


def test_wrong_hyper_parameters_say_what_to_do(make_task: Any) -> None:
    task = make_task("linear")
    with pytest.raises(LeaveoutError, match="not one of labels, model"):
        next(attribute(task, l2=1.0, targets="label"))
    with pytest.raises(LeaveoutError, match="is not positive"):
        next(attribute(task, l2=0.0))
    with pytest.raises(LeaveoutError, match=r"did not become stationary.*raise l2"):
        fit(*problem(), 1e-300)
