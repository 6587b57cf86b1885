from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from leaveout.config import CrossEntropy, OwnModel, OwnObjective
from leaveout.config.problem import NamedObjective
from leaveout.errors import LeaveoutError
from leaveout.models.build import initialise
from leaveout.problem.objectives import OBJECTIVES
from leaveout.problem.user import make_objective

Write = Callable[[str], None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Give a function that writes the module `own_problem` in the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def written(text: str) -> None:
        sys.modules.pop("own_problem", None)
        Path("own_problem.py").write_text(text)

    yield written
    sys.modules.pop("own_problem", None)


@pytest.mark.parametrize("section", NamedObjective.__args__)
def test_a_section_has_the_keys_of_its_function(section: Any) -> None:
    (name,) = section.model_fields["name"].annotation.__args__
    takes = inspect.signature(OBJECTIVES[name]).parameters
    fields = {k: v for k, v in section.model_fields.items() if k != "name"}
    assert {k: v.default for k, v in fields.items()} == {k: p.default for k, p in takes.items()}


def test_every_objective_can_stand_in_a_setting() -> None:
    named = {s.model_fields["name"].annotation.__args__[0] for s in NamedObjective.__args__}
    assert named == {*OBJECTIVES}


def test_keys_reach_the_objective() -> None:
    h, t = torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]]), torch.tensor([2, 0])
    weight = (1.0, 2.0, 5.0)
    found = make_objective(CrossEntropy(weight=weight, label_smoothing=0.1, measure="logit"))
    expected = functional.cross_entropy(h, t, torch.tensor(weight), label_smoothing=0.1)
    torch.testing.assert_close(found.batch_loss(h, t), expected)
    assert found.measured().losses(h, t).tolist() == [-0.5, 0.0]
    assert make_objective(CrossEntropy()).plain


OWN = {
    "loss": "def loss(outputs, targets, power: float = 2.0):\n"
    "    return (outputs[:, 0] - targets).abs() ** power\n",
    "function": "def objective(power=2.0):\n"
    "    return lambda outputs, targets: (outputs[:, 0] - targets).abs() ** power\n",
    "objective": "from leaveout.problem.objective import Objective\n"
    "def objective(power=2.0):\n"
    "    losses = lambda o, t: (o[:, 0] - t).abs() ** power\n"
    "    return Objective('abs', losses, margin=lambda o, t: t)\n",
}


@pytest.mark.parametrize("kind", OWN)
def test_an_objective_of_ones_own(write: Write, kind: str) -> None:
    write(OWN[kind])
    found = make_objective(OwnObjective.model_validate({"module": "own_problem", "power": 3.0}))
    h, t = torch.tensor([[1.0], [2.0], [-1.0]]), torch.tensor([0.0, 4.0, 1.0])
    assert found.losses(h, t).tolist() == [1.0, 8.0, 8.0]
    assert found.batch_loss(h, t).item() == pytest.approx(17 / 3)
    assert found.likelihood is None
    assert (found.margin is None) == (kind != "objective")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def loss(o, t):\n    return (o - t).mean()", r"losses of shape \(\); expected one loss"),
        (
            "def loss(o, t):\n    return (o - t) ** 2",
            r"losses of shape \(3, 1\); .*reduction='none'",
        ),
        ("def loss(o, t):\n    return 0.5", r"losses of shape \(\)"),
        (
            "def objective():\n    return 3",
            "own_problem.objective returned int; expected a leaveout",
        ),
        (
            "import no_such_package\ndef loss(o, t): ...",
            "needs no_such_package, which is not found",
        ),
        ("loss = 3", "loss of own_problem is int, and no function"),
    ],
)
def test_what_is_no_objective(write: Write, text: str, expected: str) -> None:
    write(text)
    section = OwnObjective.model_validate({"module": "own_problem"})
    with pytest.raises(LeaveoutError, match=expected):
        make_objective(section).losses(torch.ones(3, 1), torch.zeros(3, 1))


def test_a_model_of_ones_own_is_drawn_from_the_seed(write: Write) -> None:
    write(
        "import torch\n"
        "def model(width, input_shape, n_outputs, bias=True):\n"
        "    return torch.nn.Linear(input_shape['x'][0] * width, n_outputs, bias=bias)\n"
    )
    section = OwnModel.model_validate({"module": "own_problem", "width": 2, "bias": False})
    before = torch.random.get_rng_state().clone()
    first, again, other = (initialise(section, {"x": (3,)}, 4, seed) for seed in (5, 5, 6))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (first.weight.shape, first.bias) == ((4, 6), None)
    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(first.weight, other.weight)


def test_what_is_no_model(write: Write) -> None:
    write("def model():\n    return [3]\n")
    with pytest.raises(LeaveoutError, match=r"own_problem.model returned list; expected a torch"):
        initialise(OwnModel.model_validate({"module": "own_problem"}), (3,), 2, 0)


def test_a_keyword_of_the_setting_goes_before_what_is_given(write: Write) -> None:
    write("import torch\ndef model(n_outputs):\n    return torch.nn.Linear(2, n_outputs)\n")
    section = OwnModel.model_validate({"module": "own_problem", "n_outputs": 7})
    assert initialise(section, (2,), 3, 0).out_features == 7
