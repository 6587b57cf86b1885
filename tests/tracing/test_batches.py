"""Batches with what all samples share, texts and masks; models that return losses or mappings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from leaveout import TracInCP, TracInCPFast
from leaveout.errors import LeaveoutError
from leaveout.tracing.batches import as_batches, per_sample

N, M = 9, 3


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seeded(make: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return make().double().eval()


X = drawn(N, 4, 6)
Y = torch.randint(3, (N,), generator=torch.Generator().manual_seed(1))
PADDED = torch.zeros(N, 4, dtype=torch.bool)
PADDED[::2, 3] = True
PADDED[1, 1:] = True


def by_autograd(model: nn.Module, call: Any) -> Tensor:
    rows = []
    for k in range(N):
        loss = functional.cross_entropy(call(slice(k, k + 1)), Y[k : k + 1])
        found = torch.autograd.grad(loss, [*model.parameters()])
        rows.append(torch.cat([g.flatten() for g in found]))
    gradients = torch.stack(rows)
    return gradients[:M] @ gradients.T


class Pooled(nn.Module):
    """A transformer encoder with padding, and a table of positions that all samples share."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(6, 2, 16, dropout=0.0, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 1), nn.Linear(6, 3)

    def forward(self, x: Tensor, padded: Tensor, table: Tensor | None = None) -> Tensor:
        hidden = self.encoder(x if table is None else x + table, src_key_padding_mask=padded)
        return self.head(hidden.masked_fill(padded[..., None], 0).sum(1))  # type: ignore[no-any-return]


def test_an_encoder_with_padding_is_as_without_nested_tensors() -> None:
    model = seeded(Pooled)
    tracer = TracInCP(
        model, TensorDataset(X, PADDED, Y), [model.state_dict()], loss_fn=nn.CrossEntropyLoss()
    )
    enabled = torch.backends.mha.get_fastpath_enabled()
    found = tracer.influence((X[:M], PADDED[:M], Y[:M]))
    assert torch.backends.mha.get_fastpath_enabled() == enabled
    plain = seeded(Pooled)
    plain.encoder.enable_nested_tensor = False
    expected = by_autograd(plain, lambda k: plain(X[k], PADDED[k]))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(tracer.self_influence()[:M], expected.diagonal())


class WithTable(Dataset[Any]):
    """Samples that a collate function joins with a table of positions."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, k: int) -> Any:
        return X[k], PADDED[k], Y[k]


TABLE = drawn(1, 4, 6, seed=7)


def with_table(items: Any) -> Any:
    x, padded, y = (torch.stack(column) for column in zip(*items, strict=True))
    return x, padded, TABLE, y


def test_arguments_that_all_samples_share_are_named() -> None:
    model = seeded(Pooled)
    loader, states = DataLoader(WithTable(), 4, collate_fn=with_table), [model.state_dict()]
    loss = nn.CrossEntropyLoss()
    tracer = TracInCP(model, loader, states, loss_fn=loss, shared=[2])
    test = X[:M], PADDED[:M], TABLE, Y[:M]
    expected = by_autograd(model, lambda k: model(X[k], PADDED[k], TABLE))
    torch.testing.assert_close(tracer.influence(test), expected, rtol=1e-9, atol=1e-11)
    last = TracInCPFast(model, "head", loader, states, loss_fn=loss, shared=[2])
    assert last.influence(test).shape == (M, N)
    unnamed = TracInCP(model, loader, states, loss_fn=loss)
    with pytest.raises(LeaveoutError, match=r"item 2 of a batch, an argument, has shape \(1, 4, 6"):
        unnamed.influence(test)
    wrong = TracInCP(model, loader, states, loss_fn=loss, shared=[3])
    with pytest.raises(LeaveoutError, match=r"shared: \[3\] are no positions"):
        wrong.influence(test)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((X.transpose(0, 1), PADDED, Y), r"item 0 .*\(4, 9, 6\), 4 rows; other items have 9"),
        ((X, PADDED[:5], Y), r"item 1 .*shared=\[1\]"),
        ((X, ["text"] * N, Y), "item 1 .* list of texts"),
        (({"x": X, "words": ["a"] * N}, Y), "item 0 .* list of texts"),
    ],
)
def test_items_with_other_rows_are_named(batch: Any, message: str) -> None:
    model = seeded(Pooled)
    data = TensorDataset(X, PADDED, Y)
    tracer = TracInCP(model, data, [model.state_dict()], loss_fn=nn.CrossEntropyLoss())
    with pytest.raises(LeaveoutError, match=message):
        tracer.influence(batch)


class Returning(nn.Module):
    """A model that returns its loss."""

    def __init__(self, reduction: str) -> None:
        super().__init__()
        self.layer, self.reduction = nn.Linear(6, 3), reduction

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(self.layer(x), y, reduction=self.reduction)


def test_a_model_that_returns_its_loss() -> None:
    x = X[:, 0]
    model = seeded(lambda: Returning("none"))
    data, test = TensorDataset(x, Y, Y), (x[:M], Y[:M], Y[:M])
    found = TracInCP(model, data, [model.state_dict()]).influence(test)
    expected = by_autograd(model, lambda k: model.layer(x[k]))
    torch.testing.assert_close(found, expected)
    model = seeded(lambda: Returning("mean"))
    with pytest.raises(LeaveoutError, match=r"return one number a sample.*no mean over a batch"):
        TracInCP(model, data, [model.state_dict()]).influence(test)


def test_means_over_other_numbers_can_t_be_compared() -> None:
    losses = per_sample(nn.CrossEntropyLoss(), "loss_fn")
    outputs, targets = drawn(2, 3, 5), torch.zeros(2, 5, dtype=torch.int64)
    each = functional.cross_entropy(outputs, targets, reduction="none")
    torch.testing.assert_close(losses(outputs, targets), each.mean(1))
    with pytest.raises(LeaveoutError, match="reduction='sum'"):
        losses(outputs[..., :4], targets[:, :4])


class Reversing(torch.utils.data.Sampler[int]):
    """A sampler with a generator of its own."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(3)

    def __iter__(self) -> Any:
        return iter(torch.randperm(N, generator=self.generator).tolist())

    def __len__(self) -> int:
        return N


class Shuffling(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(X[torch.randperm(N)])


def test_orders_are_compared_without_drawing_from_anyone_s_generator() -> None:
    own = Reversing()
    states = own.generator.get_state(), torch.get_rng_state()
    for loader in (
        DataLoader(TensorDataset(X), 2, sampler=own),
        DataLoader(TensorDataset(X), batch_sampler=torch.utils.data.BatchSampler(own, 2, True)),
        DataLoader(Shuffling(), 2),
        Shuffling(),
    ):
        with pytest.raises(LeaveoutError, match="data: the DataLoader gives its samples in ano"):
            as_batches(loader, 2, "data")
    assert torch.equal(own.generator.get_state(), states[0])
    assert torch.equal(torch.get_rng_state(), states[1])


class Gated(nn.Module):
    """A weight is used past its layer, too, but this adds nothing where the gate is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.gate = nn.Linear(6, 3), nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        return h + self.gate * functional.linear(h, self.layer.weight @ self.layer.weight.T)  # type: ignore[no-any-return]


def test_what_one_checkpoint_shows_is_not_taken_for_all() -> None:
    model, x = seeded(Gated), X[:, 0]
    closed = {name: value.clone() for name, value in model.state_dict().items()}
    opened = {**closed, "gate": torch.tensor(0.7, dtype=torch.float64)}
    tracer = TracInCP(
        model, TensorDataset(x, Y), [closed, opened], loss_fn=nn.CrossEntropyLoss(), batch_size=4
    )
    expected = torch.zeros(M, N, dtype=torch.float64)
    for state in (closed, opened):
        model.load_state_dict(state)
        expected += by_autograd(model, lambda k: model(x[k]))
    torch.testing.assert_close(tracer.influence((x[:M], Y[:M])), expected)
    inner = tracer.embeddings((x[:M], Y[:M])) @ tracer.embeddings().T
    torch.testing.assert_close(inner, expected)
