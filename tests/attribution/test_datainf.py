from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from leaveout.attribution import datainf
from leaveout.errors import LeaveoutError

# parameters of a module, in order, of conftest's models
LAYERS = {"linear": (51,), "mlp": (136, 27), "cnn": (20, 4, 27)}


def naive(task: Any, gradients: Any, name: str, vectors: np.ndarray, damping: float) -> np.ndarray:
    """Mean of explicit inverses of g g' + damping I, layer by layer."""
    g = gradients(task, task.full[0].final, task.train)
    found, start = np.zeros_like(vectors), 0
    for size in LAYERS[name]:
        part = slice(start, start + size)
        inverse = np.mean(
            [np.linalg.inv(np.outer(row, row) + damping * np.eye(size)) for row in g[:, part]],
            axis=0,
        )
        found[:, part] = vectors[:, part] @ inverse
        start += size
    assert start == g.shape[1]
    return found


@pytest.mark.parametrize("damping", [1, 1e-3])
@pytest.mark.parametrize("name", LAYERS)
def test_it_is_the_mean_of_inverses(
    make_task: Any, gradients: Any, name: str, damping: float
) -> None:
    task = make_task(name)
    state = task.full[0].final
    g, h = (gradients(task, state, part) for part in (task.train, task.test))
    expected = naive(task, gradients, name, h, damping)
    found = datainf.inverse_products(task, torch.from_numpy(h), damping=damping).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-9 * np.abs(expected).max())
    assert np.abs(found - h / damping).max() > 1e-3 * np.abs(found).max()
    scores = torch.cat([*datainf.attribute(task, damping=damping)]).numpy()
    np.testing.assert_allclose(scores, g @ expected.T, atol=1e-9 * np.abs(g @ expected.T).max())


@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_pairs_and_formed_gradients_agree(
    make_task: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make_task(name)
    monkeypatch.setattr(datainf, "PAIR_ROWS", 5)
    found = []
    for pairs in (True, False):
        monkeypatch.setattr(datainf, "_pairs_are_cheaper", lambda *_, pairs=pairs: pairs)
        found.append(torch.cat([*datainf.attribute(task, damping=1e-2)]))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


def test_weights_of_pairs_beyond_the_memory_are_not_held(
    make_task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make_task("mlp", n_train=60)  # so many that a sample's vectors do fit
    monkeypatch.setattr(datainf, "_pairs_are_cheaper", lambda *_: True)
    plenty = torch.cat([*datainf.attribute(task, damping=1e-2)])
    monkeypatch.delattr(datainf, "_by_pairs")
    held = 2 * len(task.train.ids) * len(task.test.ids) * 8
    little = replace(task, memory=2.0 * held - 1)
    found = torch.cat([*datainf.attribute(little, damping=1e-2)])
    torch.testing.assert_close(found, plenty, rtol=1e-9, atol=1e-9)


def test_float32_stays_finite_at_small_damping(make_task: Any) -> None:
    for name in LAYERS:
        found, expected = (
            torch.cat([*datainf.attribute(make_task(name, dtype), damping=1e-4)])
            for dtype in (torch.float32, torch.float64)
        )
        assert found.dtype == torch.float32
        # g_j less its projections is divided by 1e-4: of 1e-7 there are 1e-3 left
        torch.testing.assert_close(
            found.double(), expected, rtol=0, atol=1e-3 * float(expected.abs().max())
        )


def test_no_damping_is_an_error(make_task: Any) -> None:
    with pytest.raises(LeaveoutError, match="damping = 0 is not positive"):
        torch.cat([*datainf.attribute(make_task("linear"), damping=0)])
