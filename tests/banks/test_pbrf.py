from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from leaveout import calculate_pbrf_ground_truth, retrain_pbrf
from leaveout.banks.layout import BankError, read_state
from leaveout.problem.randomness import preserved, seeded

Loader = DataLoader[Any]
Contents = Callable[[Path], dict[str, bytes]]


@pytest.fixture
def model() -> nn.Module:
    with seeded(0, "pbrf"):
        return nn.Sequential(nn.Linear(65, 10))


def wide_losses(model: nn.Module, dataloader: Loader) -> Tensor:
    with torch.no_grad():
        parts = [
            nn.functional.cross_entropy(model(x.double()), y, reduction="none")
            for x, y in dataloader
        ]
    return torch.cat(parts)


def test_the_optimum_of_a_linear_model_with_squared_error(tmp_path: Path) -> None:
    """The closed form, for a loader that shuffles, over a Subset: also the samples are right ones.

    With A = X'X / N and r the sample's residual the step is (A + lambda)^-1 x r eps / (1 + eps x'
    (A + lambda)^-1 x), where L = r^2 / 2 and r = y - x'w (Sherman and Morrison).
    """
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 4)), rng.normal(size=(30, 1))
    whole = TensorDataset(torch.tensor(x), torch.tensor(y))
    chosen = [17, 3, 21, 8, 29, 12, 5, 26, 11, 20]
    loader = DataLoader(Subset(whole, chosen), batch_size=3, shuffle=True)
    with seeded(0, "linear"):
        model = nn.Linear(4, 1, bias=False).double()
    retrain_pbrf(
        model, loader, tmp_path, [21, 5], damping=0.1, loss="squared_error", tolerance=1e-9
    )
    w = model.weight.detach().numpy()[0]
    curvature = x[chosen].T @ x[chosen] / 10 + 0.1 * np.eye(4)
    for sample in (21, 5):
        direction = np.linalg.solve(curvature, x[sample])
        residual = y[sample, 0] - x[sample] @ w
        step = -0.1 * direction * residual / (1 - 0.1 * x[sample] @ direction)
        found = read_state(tmp_path / f"index_{sample}" / "model_weights.pt")["weight"].numpy()[0]
        assert np.abs(step).max() > 1e-3
        # the gradient is 1e-9 of what it was, and the curvature's condition is some ten
        np.testing.assert_allclose(found - w, step, rtol=1e-7)


def test_layout(tmp_path: Path, model: nn.Module, loader: Loader) -> None:
    before = {k: v.clone() for k, v in model.state_dict().items()}
    retrain_pbrf(model.train(), loader, tmp_path, [7, 3])
    assert {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()} == {
        *(".lock", "metadata.yml", "ids.txt", "model_weights.pt"),
        *(f"index_{i}/{name}" for i in (3, 7) for name in ("model_weights.pt", "convergence.json")),
    }
    metadata = yaml.safe_load((tmp_path / "metadata.yml").read_text())
    assert metadata["mode"] == "pbrf"
    assert metadata["epsilon"] == -1 / 24
    assert metadata["map_index_dir"] == {3: "./index_3", 7: "./index_7"}
    assert model.training
    state = read_state(tmp_path / "model_weights.pt")
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
        assert torch.equal(state[name], before[name])
    record = json.loads((tmp_path / "index_7" / "convergence.json").read_text())
    assert record["converged"] is True
    assert 0 < record["gradient_norm"] <= 1e-4 * record["initial_norm"]
    assert record["steps"] >= 1
    moved = read_state(tmp_path / "index_7" / "model_weights.pt")
    assert moved["0.weight"].dtype == torch.float64
    assert not torch.equal(moved["0.weight"].float(), before["0.weight"])


def test_truth_has_the_sign_of_leaving_out(
    tmp_path: Path, digits: Any, model: nn.Module, loader: Loader
) -> None:
    """A sample's own loss rises when it is taken out."""
    retrain_pbrf(model, loader, tmp_path, [9, 2, 14], damping=0.01)
    own = DataLoader(Subset(digits[0], [2, 9, 14]), batch_size=2)
    wide = nn.Sequential(nn.Linear(65, 10, device="meta")).double().to_empty(device="cpu")
    values, indices = calculate_pbrf_ground_truth(wide_losses, tmp_path, own, model=wide)
    assert indices.tolist() == [2, 9, 14]
    assert (values.shape, values.dtype) == ((3, 3), torch.float64)
    wide.load_state_dict(model.state_dict())
    with preserved():
        assert (values.diagonal() > wide_losses(wide, own) * 1.001).all()


def test_what_is_there_is_not_solved_again(
    tmp_path: Path, model: nn.Module, loader: Loader, contents: Contents
) -> None:
    retrain_pbrf(model, loader, tmp_path, [1, 2])
    before = contents(tmp_path)
    (tmp_path / "index_2" / "convergence.json").unlink()
    times = (tmp_path / "index_1" / "model_weights.pt").stat().st_mtime_ns
    retrain_pbrf(model, loader, tmp_path, [2, 1])
    after = contents(tmp_path)
    assert (tmp_path / "index_1" / "model_weights.pt").stat().st_mtime_ns == times
    assert set(after) == set(before)
    retrain_pbrf(model, loader, tmp_path, [3])
    assert {k: v for k, v in contents(tmp_path).items() if k in after and k != "metadata.yml"} == {
        k: v for k, v in after.items() if k != "metadata.yml"
    }


def test_a_different_call_is_refused(tmp_path: Path, model: nn.Module, loader: Loader) -> None:
    retrain_pbrf(model, loader, tmp_path, [1])
    with pytest.raises(BankError, match=r"damping \(bank: 0.001, this call: 0.01\)"):
        retrain_pbrf(model, loader, tmp_path, [1], damping=0.01)
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1e-3
    with pytest.raises(BankError, match="model_sha256"):
        retrain_pbrf(model, loader, tmp_path, [1])


def test_samples_that_do_not_converge_are_named_and_left_out(
    tmp_path: Path, digits: Any, model: nn.Module, loader: Loader, test_loader: Loader
) -> None:
    with pytest.warns(UserWarning, match=r"2 of 2 samples have not converged in 1 steps .*: 4, 6"):
        retrain_pbrf(model, loader, tmp_path, [4, 6], solver="sgd", steps=1, learning_rate=1e-3)
    wide = model.double()
    with (
        pytest.warns(UserWarning, match="2 of 2 samples"),
        pytest.raises(BankError, match="no sample has converged"),
    ):
        calculate_pbrf_ground_truth(wide_losses, tmp_path, test_loader, model=wide)
    record = tmp_path / "index_6" / "convergence.json"
    record.write_text(record.read_text().replace("false", "true"))
    with pytest.warns(UserWarning, match="1 of 2 samples have not converged and are left out: 4"):
        values, indices = calculate_pbrf_ground_truth(
            wide_losses, tmp_path, test_loader, model=wide
        )
    assert indices.tolist() == [6]
    assert values.shape == (1, 7)
    record.write_text("{")
    with pytest.raises(BankError, match=r"index_6/convergence.json"):
        calculate_pbrf_ground_truth(wide_losses, tmp_path, test_loader, model=wide)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"indices": [24]}, "no ids"),
        ({"damping": 0.0}, "damping is 0.0"),
        ({"loss": "hinge"}, "loss: 'hinge' is unknown"),
        ({"solver": "lbfgs"}, "solver is 'lbfgs'"),
    ],
)
def test_bad_arguments(
    tmp_path: Path, model: nn.Module, loader: Loader, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(BankError, match=message):
        retrain_pbrf(model, loader, tmp_path / "bank", **arguments)
    assert not (tmp_path / "bank").exists()


def test_batches_that_are_no_pairs(tmp_path: Path, model: nn.Module) -> None:
    with pytest.raises(BankError, match="pairs"):
        retrain_pbrf(model, DataLoader([1.0, 2.0]), tmp_path)  # type: ignore[arg-type]
