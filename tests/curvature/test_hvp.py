from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from leaveout.curvature import hvp
from leaveout.curvature.ggn import gauss_newton_map
from leaveout.curvature.hvp import hessian_map, hessian_products, split
from leaveout.problem.objectives import CROSS_ENTROPY
from leaveout.problem.samples import Samples


def vectors(problem: Any, count: int = 7) -> Tensor:
    size = sum(p.numel() for p in problem.module.parameters())
    return torch.randn(count, size, generator=torch.Generator().manual_seed(3)).double()


@pytest.mark.parametrize("by_hand", [True, False])
@pytest.mark.parametrize(("samples", "count"), [(23, 7), (10, 2), (1, 7), (22, 1)])
def test_products_with_the_explicit_hessian_however_they_are_cut(
    problem: Any, monkeypatch: pytest.MonkeyPatch, by_hand: bool, samples: int, count: int
) -> None:
    for name in ("at_once", "stacked_at_once"):
        monkeypatch.setattr(hvp, name, lambda *_: (samples, count))
    v = vectors(problem)
    arguments = (problem.module, problem.state, problem.samples)
    found = hessian_products(*arguments, v) if by_hand else hessian_map(*arguments)(v)
    torch.testing.assert_close(found, v @ problem.explicit(), atol=1e-10, rtol=0)


@pytest.mark.parametrize("bound", [64 << 20, 50_000, 1])
def test_the_memory_bound_changes_nothing(
    problem: Any, monkeypatch: pytest.MonkeyPatch, bound: int
) -> None:
    monkeypatch.setattr(hvp, "CHUNK_BYTES", bound)
    v = vectors(problem)
    found = hessian_products(problem.module, problem.state, problem.samples, v)
    torch.testing.assert_close(found, v @ problem.explicit(), atol=1e-10, rtol=0)


def test_flat_vectors_follow_the_order_of_the_parameters(problem: Any) -> None:
    v = vectors(problem)
    parts = split(problem.module, v)
    named = dict(problem.module.named_parameters())
    assert list(parts) == list(named)
    assert all(parts[name].shape == (7, *p.shape) for name, p in named.items())
    assert torch.equal(torch.cat([part.flatten(1) for part in parts.values()], 1), v)


def test_module_state_and_vectors_are_left_as_they_were(problem: Any) -> None:
    v = vectors(problem)
    before = [v.clone(), *(value.clone() for value in problem.state.values())]
    own = [value.clone() for value in problem.module.state_dict().values()]
    hessian_products(problem.module, problem.state, problem.samples, v)
    assert all(map(torch.equal, [v, *problem.state.values()], before))
    assert all(map(torch.equal, problem.module.state_dict().values(), own))
    assert not any(p.requires_grad for p in problem.module.parameters())


def test_too_little_memory_halves_the_vectors_and_changes_nothing(
    problem: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    products = hvp._some

    def small(module: Any, product: Any, vectors: Tensor, rows: slice) -> Any:
        if rows.stop - rows.start > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return products(module, product, vectors, rows)

    monkeypatch.setattr(hvp, "_some", small)
    v = vectors(problem)
    found = hessian_products(problem.module, problem.state, problem.samples, v)
    torch.testing.assert_close(found, v @ problem.explicit(), atol=1e-10, rtol=0)
    assert "vectors multiplied at once: 7 do not fit" in capsys.readouterr().err


def test_features_that_never_change_and_units_that_are_off_lose_nothing(problem: Any) -> None:
    problem.inputs[:, 0, 1:3] = torch.tensor([0.0, -0.4, 1.0, 2.5]).double()
    v = vectors(problem)
    found = hessian_products(problem.module, problem.state, problem.samples, v)
    torch.testing.assert_close(found, v @ problem.explicit(), atol=1e-10, rtol=0)
    problem.inputs[:] = 0.3  # the same sample again and again
    found = hessian_products(problem.module, problem.state, problem.samples, v)
    torch.testing.assert_close(found, v @ problem.explicit(), atol=1e-10, rtol=0)


class Padded(nn.Module):
    """Has a padding row, which is never trained, and a parameter of no dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(5, 3, padding_idx=0)
        self.last, self.scale = nn.Linear(3, 2), nn.Parameter(torch.tensor(1.3))

    def forward(self, ids: Tensor) -> Tensor:
        return self.last((self.tokens(ids).sum(1) * self.scale).tanh())  # type: ignore[no-any-return]


def test_padding_rows_and_scalars_have_the_curvature_autograd_gives() -> None:
    """By double backward, whose padding row and column are 0; the row's values do count."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Padded().double().eval()
        module.tokens.weight.data[0] = 0.7
    drawn = torch.Generator().manual_seed(1)
    ids, targets = (torch.randint(n, s, generator=drawn) for n, s in ((5, (9, 4)), (2, (9,))))
    assert (ids == 0).any()
    params = [*module.parameters()]

    def flat(value: Tensor) -> Tensor:
        found = torch.autograd.grad(value, params, create_graph=True, materialize_grads=True)
        return torch.cat([part.flatten() for part in found])

    outputs = module(ids)
    slopes = flat(nn.functional.cross_entropy(outputs, targets))
    expected = torch.stack([flat(slope) for slope in slopes]).detach()
    torch.testing.assert_close(expected, expected.T, atol=1e-12, rtol=0)
    eye = torch.eye(len(slopes), dtype=torch.float64)
    samples = Samples(ids, targets, CROSS_ENTROPY)
    state = {name: p.detach() for name, p in module.named_parameters()}
    found = hessian_map(module, state, samples)(eye)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)

    jacobian = torch.stack([flat(value) for value in outputs.flatten()]).detach().view(9, 2, -1)
    p = outputs.detach().softmax(1)
    curve = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    right = torch.einsum("nca,ncd,ndb->ab", jacobian, curve, jacobian) / 9
    products = gauss_newton_map(module, state, samples)(eye)
    torch.testing.assert_close(products, right, atol=1e-12, rtol=0)
