from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from leaveout.attribution import if_cg, if_explicit
from leaveout.attribution.relatif import BASES, attribute
from leaveout.curvature.hessian import hessian
from leaveout.errors import LeaveoutError, NotComputableError
from leaveout.gradients import per_sample


def scores(task: Any, **given: Any) -> torch.Tensor:
    return torch.cat([*attribute(task, **given)])


@pytest.mark.parametrize("norm", ["theta", "l"])
@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
def test_against_the_definition(task: Any, gradients: Any, norm: str, curvature: str) -> None:
    state = task.full[0].final
    g, h = (gradients(task, state, part) for part in (task.train, task.test))
    matrix = hessian(task.module, state, task.train, curvature).numpy()
    solved = np.linalg.solve(matrix + np.eye(len(matrix)), g.T).T
    scale = [
        np.sqrt(x @ x) if norm == "theta" else np.sqrt(a @ x)
        for a, x in zip(g, solved, strict=True)
    ]
    expected = solved @ h.T / np.array(scale)[:, None]
    found = scores(task, base="if_explicit", norm=norm, damping=1.0, curvature=curvature)
    np.testing.assert_allclose(found, expected, atol=1e-9 * np.abs(expected).max())


def test_theta_of_a_sample_for_itself_is_at_most_the_length_of_its_gradient(
    make_task: Any, gradients: Any
) -> None:
    """Cauchy-Schwarz, and equality where the inverse is a multiple of the identity."""
    task = make_task("mlp")
    h = gradients(task, task.full[0].final, task.test)
    found = scores(task, base="if_explicit", norm="theta", damping=1.0)
    assert (found.abs() <= torch.from_numpy(np.linalg.norm(h, axis=1)) * (1 + 1e-9)).all()
    g = gradients(task, task.full[0].final, task.train)
    cosine = g @ h.T / np.linalg.norm(g, axis=1)[:, None]
    heavy = scores(task, base="if_cg", norm="theta", damping=1e9, iterations=3)
    np.testing.assert_allclose(heavy, cosine, atol=1e-7)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("norm", ["theta", "l"])
def test_every_base_gives_a_multiple_of_its_own_rows(make_task: Any, base: str, norm: str) -> None:
    task = make_task("mlp")
    given: dict[str, Any] = {"damping": 1.0}
    given |= {} if base.endswith("fac") else {"curvature": "gauss_newton"}
    given |= {"if_cg": {"iterations": 8}, "if_arnoldi": {"iterations": 20}}.get(base, {})
    plain = torch.cat([*BASES[base].attribute(task, **given)])
    found = scores(task, base=base, norm=norm, **given)
    ratio = found / plain
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-6, atol=0)
    assert (ratio > 0).all()
    assert ratio.std() > 0.1 * ratio.mean()


def test_chunks_change_nothing(make_task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_task("cnn")
    given = {"base": "if_cg", "norm": "l", "damping": 0.5, "iterations": 5}
    whole = scores(task, **given)
    monkeypatch.setattr(per_sample, "CHUNK_BYTES", 1)
    torch.testing.assert_close(scores(task, **given), whole)


def test_the_length_of_a_training_gradient_does_not_matter(make_task: Any) -> None:
    """A sample that is fitted to the last digit, whose gradient's square underflows in float32."""
    task = make_task("linear", torch.float32)
    train = task.train
    inputs = train.inputs.clone()  # tasks are shared between tests
    inputs[3] *= 1e-24
    (state,) = task.full[0].states[-1:]
    state = {**state, "linear.bias": 60 * torch.eye(3)[train.targets[3]]}
    model = replace(task.full[0], states=[state])
    task = replace(task, train=replace(train, inputs=inputs), full=[model])
    gradient = per_sample.per_sample_gradients(task.module, state, task.train[3:4])
    assert gradient.any()
    assert not gradient.square().any()
    for base, more in (("if_cg", {"iterations": 10}), ("if_explicit", {})):
        found = scores(task, base=base, norm="l", damping=0.1, **more)
        assert found.isfinite().all()
        assert (found[3] != 0).any()


def test_an_indefinite_curvature_is_undefined(make_task: Any) -> None:
    task = make_task("mlp")
    matrix = hessian(task.module, task.full[0].final, task.train)
    damping = -0.999 * float(torch.linalg.eigvalsh(matrix)[0])
    assert damping > 0.01
    given = {"base": "if_explicit", "norm": "l", "damping": damping}
    with pytest.raises(NotComputableError, match=r"not positive for .* training samples") as error:
        scores(task, **given)
    assert error.value.reason == "undefined"
    assert scores(task, **given, curvature="gauss_newton").isfinite().all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"base": "if_gc"}, "relatif.base: 'if_gc' is unknown; did you mean 'if_cg'"),
        ({"norm": "teta"}, "relatif.norm: 'teta' is unknown; did you mean 'theta'"),
        ({"iterations": 3}, "relatif: if_explicit takes no iterations"),
        ({"base": "if_cg"}, "relatif: if_cg needs iterations"),
        ({"curvature": "hesian"}, "'hesian' is unknown; did you mean 'hessian'"),
    ],
)
def test_what_a_base_does_not_take_is_an_error(
    make_task: Any, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(LeaveoutError, match=message):
        scores(make_task("linear"), **{"base": "if_explicit", "norm": "l", "damping": 1.0, **given})


def test_both_solve_the_same_system(make_task: Any) -> None:
    task = make_task("linear")
    v = torch.randn(3, 51, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        if_cg.inverse(task, damping=0.5, iterations=60)(v),
        if_explicit.inverse(task, damping=0.5)(v),
        # residuals of 1e-7 |v|, over the damping
        atol=2e-6,
        rtol=0,
    )
