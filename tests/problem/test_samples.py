"""Samples and trees: rows are taken together, types are kept, what does not fit is named."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from leaveout.errors import LeaveoutError
from leaveout.problem.call import call, call_with, numbers
from leaveout.problem.objectives import CROSS_ENTROPY
from leaveout.problem.samples import Samples
from leaveout.problem.trees import floating, join, one_by_one, rows, tensors, tree_map

Pair = namedtuple("Pair", ["left", "right"])


class Own(dict[str, Any]):
    """A mapping whose items are attributes."""

    __getattr__ = dict.__getitem__


@dataclass(frozen=True)
class Output:
    logits: Tensor
    name: str = "x"


IDS = torch.arange(12).view(6, 2)
TREES: dict[str, Any] = {
    "tensor": IDS,
    "dict": {"ids": IDS, "mask": IDS > 3, "scale": torch.tensor(2.0), "kind": "x"},
    "own mapping": Own(ids=IDS),
    "ordered": OrderedDict(b=IDS, a=IDS + 1),
    "nested": (IDS, [IDS.float(), {"deep": IDS}]),
    "named tuple": Pair(IDS, IDS + 1),
    "dataclass": Output(IDS),
}


@pytest.mark.parametrize("name", TREES)
def test_rows_are_taken_everywhere_and_types_kept(name: str) -> None:
    tree = TREES[name]
    taken = rows(tree, [4, 1])
    assert type(taken) is type(tree)
    for value, part in zip(tensors(tree), tensors(taken), strict=True):
        assert torch.equal(part, value[[4, 1]])
    again = join([rows(tree, slice(0, 2)), rows(tree, slice(2, 6))])
    for value, part in zip(tensors(tree), tensors(again), strict=True):
        assert torch.equal(part, value)


def test_attributes_follow_items() -> None:
    assert torch.equal(tree_map(lambda v: v + 1, Own(ids=IDS)).ids, IDS + 1)
    assert TREES["own mapping"].ids is IDS  # the one given is left as it was


def test_only_floating_numbers_change_their_type() -> None:
    tree = floating({"x": torch.ones(2), "ids": IDS}, torch.float64)
    assert (tree["x"].dtype, tree["ids"].dtype) == (torch.float64, torch.int64)


def test_one_by_one_falls_back_to_a_loop() -> None:
    def looks(tree: dict[str, Tensor]) -> tuple[Tensor, ...]:
        return (tree["x"].sum() * 2 if float(tree["x"].sum()) > 2 else tree["x"].sum(),)

    x = torch.arange(4.0)[:, None]
    assert one_by_one(looks, {"x": x})[0].tolist() == [0, 1, 2, 6]


def test_samples_are_cut_with_their_ids() -> None:
    inputs, targets = {"ids": IDS, "scale": torch.tensor(2.0)}, torch.arange(6)
    samples = Samples(inputs, targets, CROSS_ENTROPY, np.arange(10, 16))
    part = samples[torch.tensor([5, 0])]
    assert part.ids.tolist() == [15, 10]
    assert part.targets.tolist() == [5, 0]
    assert part.inputs["scale"] == 2
    assert [len(s) for s in samples.split(4)] == [4, 2]
    assert samples.double().inputs["ids"].dtype == torch.int64
    assert Samples(IDS, targets, CROSS_ENTROPY).ids.tolist() == [*range(6)]


@pytest.mark.parametrize(
    ("inputs", "targets", "ids", "words"),
    [
        ({"x": IDS, "table": torch.ones(1, 4)}, torch.arange(6), None, r"tensor 1 .* 1 rows"),
        (IDS, torch.arange(5), None, r"tensor 1 .* 5 rows"),
        (IDS, torch.arange(6), np.arange(4), "4 ids for 6 samples"),
        ("text", 3, None, "neither inputs nor targets"),
    ],
)
def test_what_has_other_rows_is_named(inputs: Any, targets: Any, ids: Any, words: str) -> None:
    with pytest.raises(LeaveoutError, match=words):
        Samples(inputs, targets, CROSS_ENTROPY, ids)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(3.0, dtype=torch.float64))

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        return self.scale * x + (0 if shift is None else shift)


def test_models_are_called_by_name_or_in_order() -> None:
    model, x = Two(), torch.ones(2)
    assert call(model, x).tolist() == [3, 3]
    assert call(model, (x, x)).tolist() == [4, 4]
    assert call(model, {"shift": x, "x": x}).tolist() == [4, 4]
    state = {"scale": torch.tensor(5.0)}
    assert call_with(model, state, {"shift": x, "x": x}).tolist() == [6, 6]
    assert numbers(model).dtype == torch.float64
    assert numbers(model, state).dtype == torch.float32
    with pytest.raises(LeaveoutError, match="no parameters"):
        numbers(nn.ReLU())
