from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from leaveout.errors import LeaveoutError
from leaveout.gradients import per_sample, projection
from leaveout.gradients.per_sample import n_parameters, per_sample_gradients
from leaveout.gradients.projection import (
    Projection,
    draw,
    project,
    projected_gradients,
    sign_blocks,
)

CPU = torch.device("cpu")
# sums of a few hundred products of numbers near 1, in float64
CLOSE: dict[str, Any] = {"atol": 1e-12, "rtol": 0}


def made(kind: str, size: int, dim: int, *identity: str | int) -> Projection:
    return draw(kind, size, dim, 0, ("test", *identity), CPU)


def matrix(of: Projection) -> Tensor:
    """The whole map, (dim, size)."""
    return project(of, torch.eye(of.size, dtype=torch.float64)).T


KINDS = ["rademacher", "sparse"]


@pytest.mark.parametrize("kind", KINDS)
def test_inner_products_on_average_with_the_known_variance(kind: str) -> None:
    size, dim, draws = 30, 10, 2000
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((2, size))
    pair = torch.from_numpy(np.stack([x, y]))
    found = []
    for number in range(draws):
        p, q = project(made(kind, size, dim, number), pair).numpy()
        found.append(p @ q)
    variance = (x @ x * (y @ y) + (x @ y) ** 2 - 2 * (x**2 * y**2).sum()) / dim
    # four standard errors of the mean; of the variance, which has heavier tails, 20%
    assert np.mean(found) == pytest.approx(x @ y, abs=4 * np.sqrt(variance / draws))
    assert np.var(found) == pytest.approx(variance, rel=0.2)
    assert variance > 1


def test_rademacher_is_signs_that_differ_from_block_to_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(projection, "ROWS", 40)
    found = matrix(made("rademacher", 100, 13))
    assert torch.equal(found.abs(), torch.full((13, 100), 13**-0.5, dtype=torch.float64))
    assert not torch.equal(found[:, :40], found[:, 40:80])
    # 1300 fair signs: four standard deviations
    assert abs(float(found.sign().mean())) < 4 / 1300**0.5
    assert len({tuple(row.tolist()) for row in found.sign()}) == 13


def test_blocks_are_never_the_whole_matrix() -> None:
    of = made("rademacher", 10_000, 16)
    parts = [part for part, _ in sign_blocks(of, torch.float32, CPU)]  # type: ignore[arg-type]
    assert [part.start for part in parts] == [0, 4096, 8192]
    assert parts[-1].stop == 10_000


def test_sparse_has_one_sign_a_parameter_anywhere() -> None:
    found = matrix(made("sparse", 50, 10))
    assert (found != 0).sum(0).tolist() == [1] * 50
    # so every coordinate keeps its length exactly
    torch.testing.assert_close(found.square().sum(0), torch.ones(50).double(), **CLOSE)
    assert 0.2 < float((found > 0).sum() / (found != 0).sum()) < 0.8
    assert (found != 0).any(1).all()


@pytest.mark.parametrize("kind", [*KINDS, "identity"])
def test_gradients_are_projected_as_if_formed(kind: str, problem: Any) -> None:
    of = made(kind, n_parameters(problem.module), 7)
    gradients = per_sample_gradients(problem.module, problem.state, problem.left)
    found = projected_gradients(of, problem.module, problem.state, problem.left)
    torch.testing.assert_close(found, gradients @ matrix(of).T, **CLOSE)
    assert found.norm(dim=1).min() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_lanes_and_neighbours_do_not_matter(
    kind: str, problem: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ROWS", "PIECE"):  # blocks that end inside layers
        monkeypatch.setattr(projection, name, 20)
    of = made(kind, n_parameters(problem.module), 7)
    arguments = (problem.module, problem.state)
    whole = projected_gradients(of, *arguments, problem.left)
    samples = problem.left
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0))
    shuffled = projected_gradients(of, *arguments, samples[order])
    torch.testing.assert_close(shuffled, whole[order], **CLOSE)
    monkeypatch.setattr(per_sample, "CHUNK_BYTES", 1)
    torch.testing.assert_close(projected_gradients(of, *arguments, problem.left), whole, **CLOSE)
    monkeypatch.setattr(projection, "LANES", 3)
    torch.testing.assert_close(projected_gradients(of, *arguments, problem.left), whole, **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_draw_is_a_function_of_its_identity(kind: str) -> None:
    first = matrix(made(kind, 40, 8, "one"))
    assert torch.equal(matrix(made(kind, 40, 8, "one")), first)
    assert not torch.equal(matrix(made(kind, 40, 8, "two")), first)
    single = project(made(kind, 40, 8, "one"), torch.eye(40))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.T.double(), first, atol=1e-7, rtol=0)


def test_what_cannot_be_drawn() -> None:
    with pytest.raises(LeaveoutError, match=r"'gauss'. Valid: rademacher, sparse, identity"):
        made("gauss", 10, 5)
    with pytest.raises(LeaveoutError, match="0 numbers were asked for"):
        made("sparse", 10, 0)
