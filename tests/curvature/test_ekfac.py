"""K-FAC and EK-FAC against the dense Fisher where they are exact, and against naive loops."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from leaveout import ihvp_ekfac
from leaveout.curvature import kfac as kfac_module
from leaveout.curvature.ekfac import ekfac, user_samples
from leaveout.curvature.kfac import kfac
from leaveout.errors import LeaveoutError

Model = Callable[..., Any]


def call(model: nn.Module, batch: Any) -> Tensor:
    return torch.as_tensor(model(batch[0] if isinstance(batch, tuple) else batch))


def losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def flat_gradient(model: nn.Module, value: Tensor) -> Tensor:
    found = torch.autograd.grad(value, list(model.parameters()), retain_graph=True)
    return torch.cat([g.flatten() for g in found])


def dense_fisher(model: nn.Module, x: Tensor, y: Tensor | None = None) -> Tensor:
    """E[g g'] sample by sample and class by class, by autograd."""
    size = sum(p.numel() for p in model.parameters())
    total = torch.zeros(size, size, dtype=torch.float64)
    for row in range(len(x)):
        log_p = model(x[row : row + 1])[0].log_softmax(0)
        classes = range(len(log_p)) if y is None else [int(y[row])]
        for c in classes:
            g = flat_gradient(model, log_p[c])
            total += (log_p[c].exp().detach() if y is None else 1) * torch.outer(g, g)
    return total / len(x)


def solve(matrix: Tensor, vectors: Tensor, damping: float) -> Tensor:
    return torch.linalg.solve(
        matrix + damping * torch.eye(len(matrix), dtype=matrix.dtype), vectors.T
    ).T


@pytest.fixture(autouse=True)
def _seeded(_global_randomness_untouched: None) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def data(n: int, *shape: int) -> tuple[Tensor, Tensor]:
    return torch.randn(n, *shape, dtype=torch.float64), torch.randint(3, (n,))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double().eval()


def vectors_for(model: nn.Module, count: int = 4) -> Tensor:
    return torch.randn(count, sum(p.numel() for p in model.parameters()), dtype=torch.float64)


@pytest.mark.parametrize("damping", [1.0, 1e-2, 1e-5])
@pytest.mark.parametrize("bias", [True, False])
def test_exact_where_all_samples_have_one_input(bias: bool, damping: float) -> None:
    """F = E[d d'] kron a a' then; the labels differ, so that the empirical d do."""
    model = nn.Linear(4, 3, bias=bias).double().eval()
    x, y = data(9, 4)
    x = x[:1].expand(9, 4).contiguous()
    v = vectors_for(model)
    batches = [(x[:4], y[:4]), (x[4:], y[4:])]
    for fisher, options in ((dense_fisher(model, x), {"logits": call}),
                            (dense_fisher(model, x, y), {"loss": losses})):  # fmt: skip
        expected = solve(fisher, v, damping)
        found = ihvp_ekfac(model, batches, v, **options, damping=damping)
        # condition numbers up to 1e6, in float64
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9 / damping)
        # the curvature counts: damping alone is something else
        assert (expected - v / damping).norm() > 0.01 * expected.norm()


def test_exact_for_one_sample_through_all_layers_but_between_them() -> None:
    """One sample and one label: a block is d a', of rank one."""
    model, (x, y) = mlp(), data(1, 4)
    fisher = dense_fisher(model, x, y)
    cut = 5 * 4 + 5
    block = fisher.clone()
    block[:cut, cut:] = block[cut:, :cut] = 0
    v = vectors_for(model)
    found = ihvp_ekfac(model, [(x, y)], v, loss=losses, damping=1e-3)
    torch.testing.assert_close(found, solve(block, v, 1e-3), rtol=1e-8, atol=1e-8)


def test_exact_where_inputs_and_deltas_are_independent() -> None:
    """Squared error of one output whose residuals do not depend on the inputs, by construction."""
    model = nn.Linear(4, 1, bias=False).double().eval()
    x, _ = data(10, 4)
    x = torch.cat([x, x])
    with torch.no_grad():
        y = model(x)[:, 0] + torch.cat([torch.full((10,), 0.7), torch.full((10,), -2.0)])

    def squared(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return 0.5 * (module(batch[0])[:, 0] - batch[1]).square()

    fisher = (0.7**2 + 2**2) / 2 * x.T @ x / len(x)
    v = vectors_for(model)
    for method in (kfac, ekfac):
        found = method(user_samples(model, [(x, y)], loss=squared)).solve(v, 1e-2)
        torch.testing.assert_close(found, solve(fisher, v, 1e-2), rtol=1e-6, atol=1e-8)


def test_kfac_where_inputs_and_deltas_are_independent() -> None:
    """All inputs with all deltas: E[aa'] kron E[dd'], though no two samples share either."""
    model = nn.Linear(3, 2, bias=False).double().eval()
    a, d = torch.randn(4, 3, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    x, c = a.repeat_interleave(5, dim=0), d.repeat(4, 1)

    def linear(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (module(batch[0]) * batch[1]).sum(1)

    g = torch.einsum("no,ni->noi", c, x).flatten(1)
    v = vectors_for(model)
    for method in (kfac, ekfac):
        found = method(user_samples(model, [(x, c)], loss=linear)).solve(v, 0.1)
        torch.testing.assert_close(found, solve(g.T @ g / 20, v, 0.1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("empirical", [False, True])
def test_eigenvalues_are_second_moments_in_the_basis(empirical: bool) -> None:
    """The same diagonal as the Fisher: of all matrices with these eigenvectors the closest."""
    model, (x, y) = mlp(), data(20, 4)
    options: dict[str, Any] = {"loss": losses} if empirical else {"logits": call}
    fisher = dense_fisher(model, x, y if empirical else None)
    samples = user_samples(model, [(x, y)], **options)
    corrected, plain = ekfac(samples), kfac(samples)
    start = 0
    errors = {"ekfac": 0.0, "kfac": 0.0}
    for block, other in zip(corrected.blocks, plain.blocks, strict=True):
        assert block.into is not None
        assert block.out is not None
        out, into = block.values.shape
        size = out * into
        # weight (out, in) row by row, then the bias: put the bias in the last column
        order = torch.arange(out * (into - 1)).view(out, into - 1)
        order = torch.cat([order, out * (into - 1) + torch.arange(out)[:, None]], dim=1)
        dense = fisher[start : start + size, start : start + size][order.flatten()][
            :, order.flatten()
        ]
        basis = torch.kron(block.out, block.into)
        inside = basis.T @ dense @ basis
        torch.testing.assert_close(inside.diagonal(), block.values.flatten())
        for name, values in (("ekfac", block.values), ("kfac", other.values)):
            errors[name] += float((basis @ values.flatten().diag() @ basis.T - dense).norm())
        # the factors by loops
        torch.testing.assert_close(torch.trace(dense), block.values.sum())
        start += size
    assert errors["ekfac"] < 0.99 * errors["kfac"]


def test_kfac_is_the_product_of_second_moments() -> None:
    model, (x, y) = mlp(), data(12, 4)
    blocks = kfac(user_samples(model, [(x, y)], loss=losses)).blocks
    first, second = model[0], model[2]  # type: ignore[index]
    hidden = first(x).tanh()
    p = second(hidden).softmax(1) - functional.one_hot(y, 3)
    below = (p @ second.weight) * (1 - hidden.square())
    ones = torch.ones(12, 1, dtype=torch.float64)
    for block, a, d in ((blocks[0], x, below), (blocks[1], hidden, p)):
        a = torch.cat([a, ones], dim=1)
        assert block.into is not None
        assert block.out is not None
        expected = torch.kron(d.T @ d / 12, a.T @ a / 12)
        basis = torch.kron(block.out, block.into)
        found = basis @ block.values.flatten().diag() @ basis.T
        torch.testing.assert_close(found, expected.detach())


def conv_net(kernel: int = 3) -> nn.Module:
    net = nn.Sequential(
        nn.Conv2d(2, 3, kernel, stride=2, padding=1), nn.BatchNorm2d(3), nn.ReLU(inplace=True),
        nn.Flatten(), nn.LazyLinear(3),
    )  # fmt: skip
    with torch.no_grad():
        net(torch.zeros(1, 2, 5, 5))
    nn.init.normal_(net[1].weight)
    return net.double().eval()


@pytest.mark.parametrize("method", [kfac, ekfac])
@pytest.mark.parametrize("make", [mlp, conv_net])
def test_batches_and_precision_do_not_matter(make: Any, method: Any) -> None:
    model = make()
    x, y = data(11, *((4,) if make is mlp else (2, 5, 5)))
    v = vectors_for(model)

    def products(size: int, dtype: torch.dtype = torch.float64) -> Tensor:
        batches = list(zip(x.to(dtype).split(size), y.split(size), strict=True))
        found = method(user_samples(model.to(dtype), batches, logits=call)).solve(v, 1e-2)
        return torch.as_tensor(found)

    whole = products(11)
    for size in (1, 4):
        torch.testing.assert_close(products(size), whole, rtol=1e-9, atol=1e-9)
    # float32 products, over damping of .01
    torch.testing.assert_close(products(4, torch.float32), whole, rtol=1e-3, atol=1e-3)
    assert (whole - v / 0.01).norm() > 0.1 * whole.norm()


def test_normalisations_have_their_exact_diagonal() -> None:
    model, (x, _) = conv_net(), data(6, 2, 5, 5)
    diagonal = dense_fisher(model, x).diagonal()
    v = vectors_for(model)
    found = ihvp_ekfac(model, [x], v, logits=call, damping=1e-2)
    sizes = [p.numel() for p in model.parameters()]
    here = slice(sum(sizes[:2]), sum(sizes[:4]))
    torch.testing.assert_close(found[:, here], v[:, here] / (diagonal[here] + 0.01))


def test_conv_of_one_pixel_is_a_linear_layer_on_positions() -> None:
    x, y = data(7, 2, 3, 4)
    conv = nn.Conv2d(2, 3, 1).double().eval()
    linear = nn.Linear(2, 3).double().eval()
    linear.load_state_dict({"weight": conv.weight[:, :, 0, 0], "bias": conv.bias})
    v = vectors_for(linear)

    def image(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(
            model(batch[0]).tanh().mean((2, 3)), batch[1], reduction="none"
        )

    def sequence(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(model(batch[0]).tanh().mean(1), batch[1], reduction="none")

    for method in (kfac, ekfac):
        left = method(user_samples(conv, [(x, y)], loss=image))
        right = method(user_samples(linear, [(x.flatten(2).transpose(1, 2), y)], loss=sequence))
        torch.testing.assert_close(left.solve(v, 1e-2), right.solve(v, 1e-2))
        # several positions: a sample's gradient is a sum over them
        assert right.solve(v, 1e-2).norm() < 0.99 * (v / 1e-2).norm()


def test_sequences_against_a_naive_loop() -> None:
    model = nn.Linear(3, 2).double().eval()
    x, _ = data(6, 4, 3)
    c = torch.randn(6, 4, 2, dtype=torch.float64)

    def linear(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (module(batch[0]) * batch[1]).sum((1, 2))

    (block,) = ekfac(user_samples(model, [(x, c)], loss=linear)).blocks
    assert block.into is not None
    assert block.out is not None
    expected = torch.zeros(2, 4, dtype=torch.float64)
    for n in range(6):
        g = sum(
            torch.outer(c[n, t], torch.cat([x[n, t], torch.ones(1).double()])) for t in range(4)
        )
        expected += (block.out.T @ g @ block.into).square() / 6  # type: ignore[operator]
    torch.testing.assert_close(block.values, expected)


def test_kfac_of_several_positions_has_the_scale_of_the_fisher() -> None:
    """Inputs of independent signs: E[(sum_t d a_t)^2] is positions times E[a^2] E[d^2]."""
    model = nn.Linear(1, 1, bias=False).double().eval()
    x = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 3)[:, :, None]
    samples = user_samples(model, [x], loss=lambda m, b: 2 * m(b).sum((1, 2)))
    for method in (kfac, ekfac):
        torch.testing.assert_close(
            method(samples).blocks[0].values, torch.tensor([[12.0]], dtype=torch.float64)
        )


@pytest.mark.parametrize("method", [kfac, ekfac])
def test_a_mask_drops_the_positions(method: Any) -> None:
    """Padding of any content is as if it were not there."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double().eval()
    x, _ = data(4, 5, 3)
    y = torch.randint(3, (4, 5))
    lengths = [5, 5, 3, 3]

    def each(module: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        tokens = functional.cross_entropy(
            module(batch[0]).transpose(1, 2), batch[1], reduction="none"
        )
        return (tokens * batch[2]).sum(1)

    kept = torch.stack([(torch.arange(5) < n).double() for n in lengths])
    padded = [(x, y, kept)]
    dropped = [(x[:2], y[:2], kept[:2]), (x[2:, :3], y[2:, :3], kept[2:, :3])]
    v = vectors_for(model)
    found = method(user_samples(model, padded, loss=each, mask=lambda b: b[2])).solve(v, 1e-2)
    expected = method(user_samples(model, dropped, loss=each)).solve(v, 1e-2)
    torch.testing.assert_close(found, expected)
    if method is kfac:  # whose means count positions
        wrong = method(user_samples(model, padded, loss=each)).solve(v, 1e-2)
        assert (wrong - expected).norm() > 1e-3 * expected.norm()


def test_drawn_labels_tend_to_the_expectation(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (x, _) = mlp(), data(5, 4)
    exact = ekfac(user_samples(model, [x], logits=call))
    monkeypatch.setattr(kfac_module, "MOST_CLASSES", 2)
    errors = []
    for copies in (40, 4000):
        many = x.repeat(copies, 1)
        drawn = ekfac(user_samples(model, [many], logits=call))
        vectors = torch.eye(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
        there, here = exact.multiply(vectors), drawn.multiply(vectors)
        errors.append(float((there - here).norm() / there.norm()))
    # 200 and 20,000 draws: 7% and .7%, times a few; the bases differ as well
    assert errors[0] < 0.5
    assert errors[1] < 0.05
    one, other = (ekfac(user_samples(model, x.split(s), logits=call)) for s in (1, 5))
    torch.testing.assert_close(one.blocks[0].values, other.blocks[0].values)


class Causal(nn.Module):
    """A layer below outputs that see their own position and the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.layer(x)
        return hidden + functional.pad(hidden, (0, 0, 1, 0))[:, :-1].tanh()


def test_a_label_at_every_position_is_drawn_and_padding_has_none() -> None:
    model = Causal().double().eval()
    x, _ = data(3, 5, 3)
    kept = torch.ones(3, 5)
    kept[1, 2:] = 0
    curvature = ekfac(user_samples(model, [x], logits=call, mask=lambda _: kept))
    x[1, 2:] = 100
    again = ekfac(user_samples(model, [x], logits=call, mask=lambda _: kept))
    torch.testing.assert_close(again.blocks[0].values, curvature.blocks[0].values)
    other = ekfac(user_samples(model, [x], logits=call, mask=lambda _: kept, seed=1))
    assert not torch.allclose(other.blocks[0].values, curvature.blocks[0].values)


class Tagger(nn.Module):
    """An embedding, which does not factor, below a layer that does."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(6, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.head(self.embed(x).mean(1)))


def test_other_parameters_have_the_mean_eigenvalue() -> None:
    model = Tagger().double().eval()
    x = torch.randint(6, (8, 5))
    curvature = ekfac(user_samples(model, [x], logits=call))
    assert curvature.other == ("embed.weight",)
    v = vectors_for(model)
    mean = dense_fisher(model, x)[24:, 24:].diagonal().mean()
    torch.testing.assert_close(curvature.solve(v, 0.1)[:, :24], v[:, :24] / (mean + 0.1))


def test_no_damping_is_a_tenth_of_the_mean_of_a_layer() -> None:
    model, (x, _) = mlp(), data(8, 4)
    v = vectors_for(model)
    curvature = ekfac(user_samples(model, [x], logits=call))
    first, second = (float(b.values.mean()) / 10 for b in curvature.blocks)
    found = ihvp_ekfac(model, [x], v, logits=call)
    torch.testing.assert_close(found[:, :25], curvature.solve(v, first)[:, :25])
    torch.testing.assert_close(found[:, 25:], curvature.solve(v, second)[:, 25:])
    back = curvature.solve(curvature.multiply(v) + 0.3 * v, 0.3)
    torch.testing.assert_close(back, v)


def test_vectors_by_name_come_back_by_name() -> None:
    model, (x, _) = mlp(), data(8, 4)
    v = vectors_for(model)
    sizes = [p.numel() for p in model.parameters()]
    named = {
        name: part.reshape(-1, *p.shape)
        for (name, p), part in zip(model.named_parameters(), v.split(sizes, dim=1), strict=True)
    }
    flat = ihvp_ekfac(model, [x], v, logits=call, damping=0.1)
    found = ihvp_ekfac(model, [x], named, logits=call, damping=0.1)
    assert {k: t.shape for k, t in found.items()} == {k: t.shape for k, t in named.items()}
    torch.testing.assert_close(torch.cat([t.flatten(1) for t in found.values()], dim=1), flat)
    with pytest.raises(LeaveoutError, match=r"differing: \['0\.bias'\]"):
        ihvp_ekfac(model, [x], {k: t for k, t in named.items() if k != "0.bias"}, logits=call)


def test_the_model_is_left_as_it_was() -> None:
    model, (x, y) = conv_net(), data(6, 2, 5, 5)
    before = {k: t.clone() for k, t in model.state_dict().items()}
    ihvp_ekfac(model, [(x, y)], vectors_for(model), loss=losses, damping=0.1)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())


def test_misuse_is_named() -> None:
    model, (x, y) = mlp(), data(6, 4)
    v = vectors_for(model)
    with pytest.raises(LeaveoutError, match=r"either logits.*or loss"):
        ihvp_ekfac(model, [x], v)
    with pytest.raises(LeaveoutError, match="a list or a loader, not an iterator"):
        ihvp_ekfac(model, iter([x]), v, logits=call)
    with pytest.raises(LeaveoutError, match="reduction='none'"):
        ihvp_ekfac(model, [(x, y)], v, loss=lambda m, b: functional.cross_entropy(m(b[0]), b[1]))
    with pytest.raises(LeaveoutError, match=r"got \(4, 7\)"):
        ihvp_ekfac(model, [x], v[:, :7], logits=call)
    with pytest.raises(LeaveoutError, match="expected logits"):
        ihvp_ekfac(model, [x], v, logits=lambda m, b: m(b).sum(1))
    with pytest.raises(LeaveoutError, match="raise the damping"):
        ihvp_ekfac(model, [x[:1]], v, logits=call, damping=0)
    with pytest.raises(LeaveoutError, match="no samples"):
        ihvp_ekfac(model, [], v, logits=call)
    with pytest.raises(LeaveoutError, match=r"model\.eval\(\)"):
        ihvp_ekfac(model.train(), [x], v, logits=call)


class Order(nn.Module):
    """A function of sequences; its layers see them samples first or time first."""

    def __init__(self, time_first: bool) -> None:
        super().__init__()
        self.below, self.above, self.time_first = nn.Linear(4, 5), nn.Linear(5, 3), time_first

    def forward(self, x: Tensor) -> Tensor:
        h = self.below(x.transpose(0, 1) if self.time_first else x).tanh()
        found: Tensor = self.above(h.mean(0 if self.time_first else 1))
        return found


class Again(nn.Module):
    """A weight that is used through its layer, and past it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(self.layer(x).tanh(), self.layer.weight.T)


class Own:
    """A batch of a type of one's own."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __getitem__(self, _: int) -> Tensor:
        return self.x


def batches_of(form: str, x: Tensor) -> list[Any]:
    """Give samples in batches that can not be cut, or whose first is one sample."""
    forms: dict[str, list[Any]] = {
        "shared": [(x, torch.ones(5, 5))],
        "own": [Own(x)],
        "one first": [(x[:1],), (x[1:],)],
        "each alone": [(x[i : i + 1],) for i in range(len(x))],
    }
    return forms[form]


FORMS = ["shared", "own", "one first", "each alone"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("time_first", [False, True])
@pytest.mark.parametrize("empirical", [False, True])
def test_samples_are_found_whatever_batches_are(
    form: str, time_first: bool, empirical: bool
) -> None:
    """Eigenvalues from a loop over samples, and classes, in K-FAC's basis from that loop."""
    model, x = Order(time_first).double().eval(), torch.randn(6, 5, 4, dtype=torch.float64)
    layer, n = model.below, len(x)
    each, a = [], torch.zeros(5, 5).double()
    for one in x.split(1):
        h = model(one)[0]
        p = h.softmax(0).detach()
        firsts = [-h.log_softmax(0)[c] * (1 if empirical else p[c].sqrt()) for c in range(3)]
        for value in firsts[:1] if empirical else firsts:
            found = torch.autograd.grad(value, [*layer.parameters()], retain_graph=True)
            each.append(torch.cat([found[0], found[1][:, None]], 1))
        seen = functional.pad(one[0], (0, 1), value=1.0)
        a += seen.T @ seen / (5 * n)
    ways: dict[str, Any] = (
        {"loss": lambda m, b: -m(b[0]).log_softmax(1)[:, 0]}
        if empirical
        else {"logits": lambda m, b: m(b[0])}
    )
    curvature = ekfac(user_samples(model, batches_of(form, x), **ways))
    block = next(b for b in curvature.blocks if "below.weight" in b.names)
    assert block.into is not None
    assert block.out is not None
    into, out = block.into, block.out
    right = sum((out.T @ g @ into).square() for g in each) / n
    torch.testing.assert_close(block.values, right, rtol=1e-9, atol=1e-14)
    turned = into.T @ a @ into
    torch.testing.assert_close(turned, turned.diag().diag(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_a_weight_used_past_its_layer_is_refused_whatever_batches_are(form: str) -> None:
    model, x = Again().double().eval(), torch.randn(6, 4, dtype=torch.float64)
    with pytest.raises(LeaveoutError, match="layer 'layer'"):
        ihvp_ekfac(model, batches_of(form, x), vectors_for(model), logits=call_first)
    assert all(p.requires_grad for p in model.parameters())


def call_first(model: nn.Module, batch: Any) -> Tensor:
    return torch.as_tensor(model(batch[0]))
