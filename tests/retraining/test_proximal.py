"""The verification ladder of the proximal Bregman response, and its invariances."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from leaveout.curvature.hessian import hessian
from leaveout.models import cnn, linear, mlp
from leaveout.problem.objective import Objective
from leaveout.problem.objectives import CROSS_ENTROPY, squared_error
from leaveout.problem.samples import Samples
from leaveout.retraining import proximal
from leaveout.retraining.proximal import Proximal, solve_proximal

Problem = tuple[nn.Module, Tensor, Tensor]


def untrained(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a model from a seed of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build().double().requires_grad_(False)


def fitted(build: Callable[[], nn.Module], inputs: Tensor, labels: Tensor, steps: int) -> nn.Module:
    """Train a little, by full-batch Adam; the model is in evaluation mode."""
    module = untrained(build).requires_grad_()
    optimiser = torch.optim.Adam(module.parameters(), lr=0.02)
    module.eval()
    for _ in range(steps):
        optimiser.zero_grad()
        functional.cross_entropy(module(inputs), labels).backward()
        optimiser.step()
    return module.requires_grad_(False)


def data(n: int, features: int, classes: int, noise: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, features))
    scores = np.tanh(x @ rng.standard_normal((features, 8))) @ rng.standard_normal((8, classes))
    y = (scores + noise * rng.gumbel(size=scores.shape)).argmax(1)
    return torch.from_numpy(x), torch.from_numpy(y)


@pytest.fixture(scope="module")
def softmax() -> Problem:
    x, y = data(50, 6, 4, 1.0)
    return fitted(lambda: linear.build((6,), 4), x, y, 60), x, y


@pytest.fixture(scope="module")
def network() -> Problem:
    x, y = data(300, 6, 3, 2.0)
    return fitted(lambda: mlp.build((6,), 3, [10, 7], 0.1), x, y, 100), x, y


@pytest.fixture(scope="module")
def smooth() -> Problem:
    """Return a network without kinks, for which every point has an optimum without a gradient."""
    x, y = data(200, 5, 3, 1.0)

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))

    return fitted(build, x, y, 60), x, y


def solve(
    problem: Problem,
    points: Sequence[int],
    objective: Objective = CROSS_ENTROPY,
    **options: Any,
) -> Proximal:
    module, x, y = problem
    given = {"damping": 1e-2} | options
    stacks = solve_proximal(module, Samples(x, y, objective), points, **given)
    parts = [part for _, part in stacks]
    return Proximal(
        {k: torch.cat([part.state[k] for part in parts]) for k in parts[0].state},
        *(
            torch.cat([getattr(part, name) for part in parts])
            for name in ("gradient_norm", "initial_norm", "steps", "converged")
        ),
    )


def flat(state: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten(1) for value in state.values()], dim=1)


def start(problem: Problem) -> Tensor:
    return torch.cat([p.detach().flatten() for p in problem[0].parameters()])


def objective(problem: Problem, point: int, epsilon: float, damping: float) -> Callable[..., Any]:
    """Return the objective and its gradient at flat parameters, written anew with autograd."""
    module, x, y = problem
    here = start(problem)
    named = [(name, p.shape, p.numel()) for name, p in module.named_parameters()]
    log_p = module(x).log_softmax(1)

    def value(theta: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        t = torch.from_numpy(theta.copy()).requires_grad_()
        parts = t.split([size for *_, size in named])
        params = {name: v.view(shape) for (name, shape, _), v in zip(named, parts, strict=True)}
        outputs = functional_call(module, params, (x,))
        kl = functional.kl_div(outputs.log_softmax(1), log_p, log_target=True, reduction="none")
        own = functional.cross_entropy(outputs[point], y[point])
        total = kl.sum(1).mean() + epsilon * own + damping / 2 * (t - here).square().sum()
        (gradient,) = torch.autograd.grad(total, t)
        return float(total.detach()), gradient.numpy()

    return value


def gauss_newton(problem: Problem) -> Tensor:
    """Return (1/N) sum_i J_i' B_i J_i, written out."""
    module, x, _ = problem
    named = [(name, p.shape, p.numel()) for name, p in module.named_parameters()]

    def outputs(theta: Tensor) -> Tensor:
        parts = theta.split([size for *_, size in named])
        params = {name: v.view(shape) for (name, shape, _), v in zip(named, parts, strict=True)}
        return functional_call(module, params, (x,))  # type: ignore[no-any-return]

    jacobian = torch.func.jacrev(outputs)(start(problem))
    p = module(x).softmax(1)
    curve = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return torch.einsum("nca,ncd,ndb->ab", jacobian, curve, jacobian) / len(x)  # type: ignore[no-any-return]


def gradients(problem: Problem) -> Tensor:
    module, x, y = problem
    own = {name: p.detach() for name, p in module.named_parameters()}

    def loss(params: dict[str, Tensor], a: Tensor, b: Tensor) -> Tensor:
        return functional.cross_entropy(functional_call(module, params, (a[None],)), b[None])

    return flat(torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(own, x, y))


# The ladder.


def test_1_without_a_change_of_weight_it_stays(network: Problem) -> None:
    found = solve(network, [0, 5, 9], epsilon=0.0)
    assert torch.equal(flat(found.state), start(network).expand(3, -1))
    assert found.gradient_norm.tolist() == found.initial_norm.tolist() == [0.0] * 3
    assert found.converged.all()
    assert not found.steps.any()


def test_2_the_optimum_is_that_of_an_objective_with_the_kl_in_it(softmax: Problem) -> None:
    # the divergence itself is compared in tests/curvature/test_bregman.py
    points = [0, 3, 17, 49]
    found = solve(softmax, points, tolerance=1e-9)
    assert found.converged.all()
    for row, point in enumerate(points):
        value = objective(softmax, point, -1 / 50, 1e-2)
        _, gradient = value(flat(found.state)[row].numpy())
        _, before = value(start(softmax).numpy())
        assert np.linalg.norm(gradient) <= 1e-8 * np.linalg.norm(before)
        assert found.initial_norm[row].item() == pytest.approx(np.linalg.norm(before), rel=1e-10)


def test_3_finite_differences_match_the_damped_gauss_newton_response(softmax: Problem) -> None:
    points = list(range(8))
    matrix = gauss_newton(softmax) + 1e-2 * torch.eye(28)
    exact = -torch.linalg.solve(matrix, gradients(softmax)[points].T).T
    errors = []
    for epsilon in (1e-3, 1e-4, 1e-5):
        moved = flat(solve(softmax, points, epsilon=epsilon, tolerance=1e-11).state)
        rate = (moved - start(softmax)) / epsilon
        errors.append(float((rate - exact).norm() / exact.norm()))
    assert errors[0] < 2e-2
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.1)


@pytest.mark.parametrize("epsilon", [None, -0.05, 0.02, 1.0])
def test_4_a_linear_model_under_squared_loss_has_a_closed_form(epsilon: float | None) -> None:
    x, _ = data(40, 5, 3, 1.0)
    y = torch.from_numpy(np.random.default_rng(1).standard_normal((40, 3)))
    module = untrained(lambda: linear.build((5,), 3))
    points, eps = [0, 7, 39], -1 / 40 if epsilon is None else epsilon
    found = solve(
        (module, x, y), points, squared_error(), epsilon=epsilon, damping=0.1, tolerance=1e-11
    )
    wide = torch.cat([x, torch.ones(40, 1).double()], dim=1)
    inverse = torch.linalg.inv(wide.T @ wide / 40 + 0.1 * torch.eye(6))
    for row, point in enumerate(points):
        leverage = wide[point] @ inverse @ wide[point]
        residual = module(x[point][None])[0] - y[point]
        gradient = residual[:, None] * wide[point]
        moved = -eps * gradient @ inverse / (1 + eps * leverage)
        state = {name: value[row] for name, value in found.state.items()}
        torch.testing.assert_close(
            torch.cat([state["linear.weight"], state["linear.bias"][:, None]], dim=1),
            torch.cat([module.linear.weight, module.linear.bias[:, None]], dim=1) + moved,
            rtol=1e-9,
            atol=1e-9,
        )


def test_5_it_follows_the_gauss_newton_influence_and_not_the_hessians(smooth: Problem) -> None:
    module, x, y = smooth
    points, (tx, ty) = list(range(60)), data(40, 5, 3, 1.0, seed=5)
    found = solve(smooth, points, damping=0.05, stack_size=60)
    assert found.converged.all()
    losses = torch.stack(
        [
            functional.cross_entropy(
                functional_call(module, {k: v[i] for k, v in found.state.items()}, (tx,)),
                ty,
                reduction="none",
            )
            for i in range(60)
        ]
    )
    moved = (losses - functional.cross_entropy(module(tx), ty, reduction="none")).numpy()
    train = gradients(smooth)[points]
    test = gradients((module, tx, ty))
    ridge = 0.05 * torch.eye(train.shape[1])

    def correlation(matrix: Tensor) -> float:
        predicted = (train @ torch.linalg.solve(matrix + ridge, test.T)).numpy()
        pairs = zip(predicted.T, moved.T, strict=True)
        return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in pairs]))

    near = correlation(gauss_newton(smooth))
    assert near > 0.99
    assert correlation(hessian(module, module.state_dict(), Samples(x, y, CROSS_ENTROPY))) < near


def test_6_of_a_converged_convex_model_it_tends_to_leaving_one_out() -> None:
    x, y = data(60, 3, 3, 2.0)
    wide = torch.cat([x, torch.ones(60, 1).double()], dim=1).numpy()

    def fit(weight: NDArray[np.float64], first: NDArray[np.float64]) -> NDArray[np.float64]:
        def value(theta: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            logits = wide @ theta.reshape(4, 3)
            p = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
            total = -weight @ np.log(p[np.arange(60), y.numpy()])
            p[np.arange(60), y.numpy()] -= 1
            return float(total), (wide.T @ (weight[:, None] * p)).ravel()

        options = {"gtol": 1e-12, "ftol": 0.0, "maxiter": 2000}
        return minimize(value, first, jac=True, method="L-BFGS-B", options=options).x  # type: ignore[no-any-return]

    even = np.full(60, 1 / 60)
    full = fit(even, np.zeros(12))
    module = untrained(lambda: linear.build((3,), 3))
    both = torch.from_numpy(full.reshape(4, 3))
    module.linear.weight.copy_(both[:3].T)
    module.linear.bias.copy_(both[3])
    points = [0, 11, 30]
    left = []
    for point in points:
        weight = even.copy()
        weight[point] = 0
        left.append(fit(weight, full).reshape(4, 3) @ (np.eye(3) - 1 / 3))
    moves = np.stack(left) - full.reshape(4, 3) @ (np.eye(3) - 1 / 3)
    errors = []
    for damping in (1e-2, 1e-3, 1e-4, 1e-5):
        state = solve((module, x, y), points, damping=damping, tolerance=1e-9).state
        found = torch.cat([state["linear.weight"], state["linear.bias"][:, :, None]], dim=2)
        gap = (found.mT - both).numpy() @ (np.eye(3) - 1 / 3) - moves
        errors.append(float(np.linalg.norm(gap) / np.linalg.norm(moves)))
    assert errors[3] < 2e-3
    # first order in the damping
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.2)
    assert errors[2] / errors[3] == pytest.approx(10, rel=0.2)


@pytest.mark.parametrize("solver", ["newton_cg", "sgd", "adam"])
def test_7_final_gradients_are_recorded_and_too_few_steps_flagged(
    network: Problem, solver: str
) -> None:
    points = [1, 8, 30, 77]
    few = solve(network, points, solver=solver, steps=1, tolerance=1e-6)
    assert few.steps.tolist() == [1] * 4
    assert not few.converged.any()
    for row, point in enumerate(points):
        _, gradient = objective(network, point, -1 / 300, 1e-2)(flat(few.state)[row].numpy())
        assert few.gradient_norm[row].item() == pytest.approx(np.linalg.norm(gradient), rel=1e-6)
    assert few.gradient_norm.dtype == few.initial_norm.dtype == torch.float64


# Against others, and invariances.


class Looking(nn.Module):
    """Looks at values, which torch.func can't map; otherwise the model inside."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * (0 if x.abs().max().item() > 1e9 else 1)  # type: ignore[no-any-return]


def test_a_model_that_cannot_be_mapped_ends_where_the_same_one_does(smooth: Problem) -> None:
    module, x, y = smooth
    right = solve((module, x[:40], y[:40]), [0, 3], damping=1e-1)
    found = solve((Looking(module).eval(), x[:40], y[:40]), [0, 3], damping=1e-1)
    assert found.converged.all()
    for name, value in right.state.items():
        torch.testing.assert_close(found.state[f"inner.{name}"], value, atol=1e-8, rtol=0)


def test_each_point_is_at_the_optimum_that_scipy_finds(smooth: Problem) -> None:
    points = [0, 2, 40, 90, 119]
    found = solve(smooth, points, damping=0.05, tolerance=1e-7, stack_size=5)
    assert found.converged.all()
    for row, point in enumerate(points):
        value = objective(smooth, point, -1 / 200, 0.05)
        first = start(smooth).numpy()
        options = {"gtol": 1e-9, "maxiter": 3000}
        best = minimize(value, first, jac=True, method="BFGS", options=options)
        mine = flat(found.state)[row].numpy()
        assert value(mine)[0] <= best.fun + 1e-10 * abs(best.fun)
        assert np.linalg.norm(mine - best.x) <= 1e-5 * np.linalg.norm(best.x - first)


def test_a_minimum_at_a_kink_is_reported_and_still_the_lowest_value(network: Problem) -> None:
    # own derivative jumps where a unit of the removed sample switches; found by its gradient
    point = 2
    found = solve(network, [point], damping=0.1)
    assert not found.converged[0]
    assert found.steps[0] < 30
    value = objective(network, point, -1 / 300, 0.1)
    mine, first = flat(found.state)[0].numpy(), start(network).numpy()
    options = {"gtol": 1e-12, "ftol": 1e-16, "maxiter": 3000}
    best = minimize(value, first, jac=True, method="L-BFGS-B", options=options)
    fall = value(first)[0] - best.fun
    assert value(mine)[0] <= best.fun + 1e-5 * fall


@pytest.mark.parametrize(
    "options", [{"stack_size": 1}, {"stack_size": 4}, {"by_hand": False, "stack_size": 3}]
)
def test_stack_size_order_and_path_change_nothing(
    network: Problem, options: dict[str, Any]
) -> None:
    points = [7, 2, 40, 90, 11, 64]
    one = solve(network, points, damping=0.1, tolerance=1e-8)
    other = solve(network, points[::-1], damping=0.1, tolerance=1e-8, **options)
    assert torch.equal(one.converged, other.converged.flip(0))
    at = one.converged
    assert at.sum() >= 4
    moved = (flat(one.state) - start(network))[at]
    again = (flat(other.state).flip(0) - start(network))[at]
    # both are within 1e-8 / 0.1 of their gradients' size
    torch.testing.assert_close(again, moved, rtol=0, atol=1e-6 * float(moved.norm(dim=1).max()))
    torch.testing.assert_close(other.initial_norm.flip(0), one.initial_norm)


def test_points_come_in_order_and_progress_is_told(network: Problem) -> None:
    told: list[int] = []
    samples = Samples(*network[1:], CROSS_ENTROPY)
    options = {"damping": 0.1, "stack_size": 2, "progress": told.append}
    stacks = solve_proximal(network[0], samples, [7, 2, 40], **options)  # type: ignore[arg-type]
    assert [points for points, _ in stacks] == [[7, 2], [40]]
    assert told == [2, 1]


def test_float32_reaches_the_same_optimum(network: Problem) -> None:
    module, x, y = network
    rounded = untrained(lambda: mlp.build((6,), 3, [10, 7], 0.1)).float().eval()
    rounded.load_state_dict({k: v.float() for k, v in module.state_dict().items()})
    exact = untrained(lambda: mlp.build((6,), 3, [10, 7], 0.1)).eval()
    exact.load_state_dict({k: v.double() for k, v in rounded.state_dict().items()})
    points = [7, 2, 40, 90]
    single = solve((rounded, x.float(), y), points, damping=0.1, tolerance=1e-8)
    double = solve((exact, x.float().double(), y), points, damping=0.1, tolerance=1e-8)
    assert torch.equal(single.converged, double.converged)
    assert single.converged.sum() >= 3
    assert flat(single.state).dtype == torch.float64
    moved = (flat(double.state) - start((exact, x, y)))[double.converged]
    found = (flat(single.state) - start((exact, x, y)))[double.converged]
    torch.testing.assert_close(found, moved, rtol=0, atol=1e-6 * float(moved.norm(dim=1).max()))


@pytest.mark.parametrize("solver", ["sgd", "adam"])
def test_plain_steps_reach_it_too(softmax: Problem, solver: str) -> None:
    points = [0, 3]
    rate = {"sgd": 0.5, "adam": 0.01}[solver]
    options: dict[str, Any] = {"damping": 0.1, "tolerance": 1e-6}
    slow = solve(softmax, points, solver=solver, learning_rate=rate, steps=2000, **options)
    fast = solve(softmax, points, **options)
    assert slow.converged.all()
    assert (slow.steps > 5 * fast.steps).all()
    moved = flat(fast.state) - start(softmax)
    torch.testing.assert_close(
        flat(slow.state) - start(softmax), moved, rtol=0, atol=1e-4 * float(moved.norm())
    )


def test_a_convolutional_network_with_batch_norm_works_and_is_left_alone() -> None:
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((30, 1, 6, 6)).astype(np.float32))
    y = torch.from_numpy(rng.integers(0, 3, 30))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = cnn.build((1, 6, 6), 3, [4], batch_norm=True)
        module(x)  # running statistics of their own
    module.train()
    module.conv1.weight.requires_grad_(False)
    flags = [p.requires_grad for p in module.parameters()]
    before = OrderedDict((name, value.clone()) for name, value in module.state_dict().items())
    # the network is not trained: removing a sample in full would carry it far away
    found = solve((module, x, y), [0, 13, 29], damping=0.1, epsilon=-1e-3)
    assert found.converged.sum() >= 2
    assert (found.gradient_norm <= 1e-4 * found.initial_norm)[found.converged].all()
    assert module.training
    assert [p.requires_grad for p in module.parameters()] == flags
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    for name, value in module.named_buffers():
        assert torch.equal(found.state[name], value.expand(3, *value.shape))
    assert set(found.state) == set(before)
    exact = untrained(lambda: cnn.build((1, 6, 6), 3, [4], batch_norm=True)).eval()
    exact.load_state_dict({k: v.double() for k, v in before.items()})
    for row, point in enumerate([0, 13, 29]):
        value = objective((exact, x.double(), y), point, -1e-3, 0.1)
        theta = torch.cat(
            [found.state[name][row].flatten() for name, _ in exact.named_parameters()]
        )
        _, gradient = value(theta.numpy())
        frozen = exact.conv1.weight.numel()  # it comes first, and stays where it is
        assert torch.equal(theta[:frozen], exact.conv1.weight.flatten())
        moving = np.linalg.norm(gradient[frozen:])
        assert moving == pytest.approx(found.gradient_norm[row].item(), rel=1e-4)


def test_an_impossible_request_is_an_error(softmax: Problem) -> None:
    with pytest.raises(ValueError, match="damping must be positive"):
        solve(softmax, [0], damping=0.0)
    with pytest.raises(ValueError, match=r"0 \.\. 49"):
        solve(softmax, [50])


def test_a_sample_without_a_gradient_stays_where_it_is() -> None:
    x, _ = data(20, 3, 2, 1.0)
    y = torch.from_numpy(np.random.default_rng(1).standard_normal((20, 2)))
    module = untrained(lambda: linear.build((3,), 2))
    module.linear.weight.zero_()
    y[4] = module.linear.bias
    found = solve((module, x, y), [4, 5], squared_error())
    assert found.initial_norm[0] == 0
    assert found.converged.all()
    assert found.steps[0] == 0
    assert found.steps[1] > 0


def test_too_little_memory_halves_the_points_and_changes_nothing(
    network: Problem, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = solve(network, [7, 2, 11], damping=0.1)
    newton = proximal._newton

    def small(problem: Any, points: Tensor, *rest: Any) -> Any:
        if len(points) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return newton(problem, points, *rest)

    monkeypatch.setattr(proximal, "_newton", small)
    parts = solve(network, [7, 2, 11], damping=0.1)
    assert torch.equal(parts.converged, whole.converged)
    torch.testing.assert_close(flat(parts.state), flat(whole.state), rtol=1e-5, atol=1e-8)
    assert "points solved at once: 3 do not fit" in capsys.readouterr().err
