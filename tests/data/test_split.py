from __future__ import annotations

import json
import random
import sys
from collections import UserDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from leaveout.config import Setting
from leaveout.data.prepare import prepare
from leaveout.data.split import Split, samples_of
from leaveout.errors import LeaveoutError
from leaveout.problem.objectives import CROSS_ENTROPY, multi_label, squared_error
from leaveout.store.artefacts import Artefact, read
from leaveout.store.contents import save

Make = Callable[..., Setting]
Prepared = Callable[..., Artefact]

X = torch.linspace(-1, 1, 40 * 3, dtype=torch.float64).reshape(40, 3)
Y = torch.arange(40) * 7 % 3


@pytest.fixture
def prepared(
    make_setting: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Prepared]:
    """Give a function that prepares what a module's `data` returns, and reads it back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("own_data.py").write_text("def data(**keywords):\n    return RETURNED(**keywords)\n")

    def made(returned: Any, seed: int = 0, **changes: Any) -> Artefact:
        monkeypatch.delitem(sys.modules, "own_data", raising=False)
        dataset = {"module": "own_data", "n_train": 20, "n_test": 5, **changes}
        base = make_setting(loo={"ids": "all"}, pbrf={"ids": "all"}, seed=seed)
        values = {**base.model_dump(exclude={"dataset"}), "dataset": dataset}
        setting = Setting.model_validate(values)
        import own_data

        own_data.RETURNED = returned if callable(returned) else lambda: returned
        save(Path("data.safetensors"), prepare(setting))
        return read(Path("data.safetensors"), "data")

    yield made
    sys.modules.pop("own_data", None)


def test_the_first_rows_in_order_with_ids(prepared: Prepared) -> None:
    found = prepared(Split((X[:30], Y[:30]), (X[30:], Y[30:])))
    train, test = samples_of(found, CROSS_ENTROPY)
    torch.testing.assert_close(train.inputs, X[:20].float(), rtol=0, atol=0)
    torch.testing.assert_close(test.inputs, X[30:35].float(), rtol=0, atol=0)
    assert train.targets.tolist() == Y[:20].tolist()
    assert (train.ids.tolist(), test.ids.tolist()) == ([*range(20)], [*range(5)])
    assert train.inputs.dtype == torch.float32
    assert (train.targets.dtype, found.meta["n_classes"]) == (torch.int64, 3)
    assert (train.objective, test.objective.likelihood) == (CROSS_ENTROPY, None)


class Pairs(Dataset[Any]):
    """Samples one by one, as a dictionary and a number."""

    def __len__(self) -> int:
        return 25

    def __getitem__(self, k: int) -> Any:
        return {"x": np.float64(k) * np.ones(2), "ids": (k, torch.tensor([k, 1]))}, k / 2


def test_a_dataset_is_put_together(prepared: Prepared) -> None:
    train, _ = samples_of(prepared(Split(Pairs(), Pairs())), squared_error())
    assert train.inputs["x"][:, 1].tolist() == [*range(20)]
    first, second = train.inputs["ids"]
    assert (first.tolist(), second[:, 0].tolist()) == ([*range(20)], [*range(20)])
    assert train.targets.tolist() == [k / 2 for k in range(20)]
    assert train.targets.dtype == train.inputs["x"].dtype == torch.float32


def test_trees_keep_their_form_and_types(prepared: Prepared) -> None:
    ids, mask = Y.to(torch.int32), Y > 0
    batch = UserDict({"ids": ids, "deep": {"mask": mask.numpy(), "half": X.half()}})
    tree = (batch, [X.numpy(), 2.5, None], {"table": torch.tensor(3.0)})
    targets = {"span": (ids, ids + 1)}
    train, test = samples_of(prepared(Split((tree, targets), (tree, targets))), squared_error())
    (batch, (x, scale, nothing), table), span = train.inputs, train.targets["span"]
    assert type(batch) is dict
    assert batch["ids"].dtype == torch.int32  # token ids can be of any kind of integer
    assert (batch["deep"]["mask"].dtype, batch["deep"]["half"].dtype) == (torch.bool, torch.float16)
    assert (x.dtype, scale, nothing) == (torch.float32, 2.5, None)
    assert table["table"] == 3.0
    assert span[1].dtype == torch.int64  # a loss takes these
    assert span[1].tolist() == (Y[:20] + 1).tolist()
    assert len(train) == 20
    assert len(test) == 5


def test_flipped_labels_of_ones_own(prepared: Prepared) -> None:
    split = Split((X[:30], Y[:30]), (X[30:], Y[30:]))
    found = prepared(split, label_noise={"fraction": 0.2})
    labels, flipped = found.tensors["train_labels"], found.tensors["flipped_id"]
    assert np.flatnonzero(labels != Y[:20].numpy()).tolist() == flipped.tolist()
    assert len(flipped) == 4
    assert found.tensors["original_labels"].tolist() == Y[flipped].tolist()
    assert labels.max() < 3
    assert prepared(split, label_noise={"fraction": 0.2}, seed=1).tensors[
        "flipped_id"
    ].tolist() != (flipped.tolist())


def test_what_is_shown(prepared: Prepared) -> None:
    pictures = np.arange(40 * 2 * 2 * 3, dtype=np.uint8).reshape(40, 2, 2, 3)
    texts = [f"text {k}" for k in range(40)]
    found = prepared(Split((X, Y), (X, Y), show=(pictures, texts)))
    np.testing.assert_array_equal(found.tensors["train_show"], pictures[:20])
    assert found.meta["show"] == {"test": texts[:5]}


def split(train: Any, test: Any = None, show: Any = None) -> Split:
    return Split(train, train if test is None else test, show)


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        ((X, Y), "own_data.data returned tuple of 2; expected leaveout.Split(train, test)"),
        (split(X), "train is Tensor; expected (inputs, targets)"),
        (split((X, Y, Y)), "train is tuple of 3; expected (inputs, targets)"),
        (
            split((X[:19], Y[:19])),
            "dataset.n_train: 20 samples are asked for, own_data.data gives 19",
        ),
        (
            split((X, Y), (X[:4], Y[:4])),
            "dataset.n_test: 5 samples are asked for, own_data.data giv",
        ),
        (split((X, Y[:30])), "train's targets has 30 rows, inputs has 40"),
        (split(({"a": X, "b": Y[:3]}, Y)), "train's inputs.b has 3 rows, inputs.a has 40"),
        (split((X, Y), ({"x": X}, Y)), "test has another form than train"),
        (split((["a"] * 40, Y), None), ""),
        (split((object(), Y)), "inputs is object; expected tensors or NumPy arrays"),
        (split((np.array(["a"] * 40), Y)), "inputs holds <U1; expected numbers or truth values"),
        (split((X.to(torch.complex64), Y)), "inputs holds torch.complex64"),
        (split((X, Y), show=(X[:3], X)), "show has 3 of 20 train samples"),
        (split((X, Y), show=(X, X)), "show has the shape (20, 3)"),
        (
            split(
                (
                    {
                        "a": X,
                        "a.b": X,
                    },
                    {"a": 1},
                )
            ),
            "",
        ),
        (split(({"a": {"b": X}, "a.b": X}, Y)), "two entries are called inputs.a.b"),
        (split((3.0, None)), "train holds no array with a row a sample"),
        (split(TensorDataset(X)), "train is list of 1; expected (inputs, targets)"),
        (split(TensorDataset(X[:0], Y[:0])), "a Dataset without a length, or without samples"),
    ],
)
def test_what_is_no_split(prepared: Prepared, returned: Any, expected: str) -> None:
    if not expected:
        assert prepared(returned).kind == "data"
        return
    with pytest.raises(LeaveoutError) as caught:
        prepared(returned)
    assert expected in str(caught.value)


class Ragged(Dataset[Any]):
    """Sequences of different lengths."""

    def __len__(self) -> int:
        return 25

    def __getitem__(self, k: int) -> Any:
        return torch.zeros(k + 1), 0


def test_sequences_that_differ_in_length(prepared: Prepared) -> None:
    with pytest.raises(LeaveoutError, match=r"can't be put together .* \(padding\)"):
        prepared(Split(Ragged(), Ragged()))


def test_flipping_what_are_no_labels(prepared: Prepared) -> None:
    with pytest.raises(
        LeaveoutError, match=r"label_noise: the targets of own_data are not one cla"
    ):
        prepared(Split((X, X), (X, X)), label_noise={"fraction": 0.5})


def test_targets_that_do_not_fit_the_objective(prepared: Prepared) -> None:
    found = prepared(Split((X, X[:, 0]), (X, X[:, 0])))
    with pytest.raises(LeaveoutError, match=r"the targets are torch.float32, not classes"):
        samples_of(found, CROSS_ENTROPY)
    assert len(samples_of(found, squared_error())[0]) == 20
    negative = prepared(Split((X, Y - 1), (X, Y - 1)))
    with pytest.raises(LeaveoutError, match="targets are negative"):
        samples_of(negative, CROSS_ENTROPY)
    with pytest.raises(LeaveoutError, match=r"multi_label: .* between 0 and 1"):
        samples_of(prepared(Split((X, 3 * X), (X, X))), multi_label())


def test_the_function_is_told_how_many(prepared: Prepared) -> None:
    seen = {}

    def returned(**keywords: Any) -> Split:
        seen.update(keywords)
        return Split((X, Y), (X, Y))

    prepared(returned, side=3)
    assert seen == {"side": 3}  # it takes any keyword, and names none
    Path("own_data.py").write_text(
        "def data(n_train, n_test, side=1):\n    return RETURNED(a=n_train, b=n_test, side=side)\n"
    )
    prepared(returned, side=4)
    assert seen == {"a": 20, "b": 5, "side": 4}


def test_the_header_says_how_arrays_belong_together(prepared: Prepared) -> None:
    found = prepared(Split(({"a": X, "b": (Y,)}, Y), ({"a": X, "b": (Y,)}, Y)))
    form = found.meta["form"]
    assert form == json.loads(json.dumps(form))
    assert form["inputs"] == {
        "mapping": {"a": {"array": "inputs.a"}, "b": {"tuple": [{"array": "inputs.b.0"}]}}
    }
    assert found.meta["source"]["name"] == "own_data"


def test_what_a_function_draws_is_the_same_each_time(prepared: Prepared) -> None:
    def drawn() -> Split:
        x = torch.rand(20, 1) + torch.from_numpy(np.random.rand(20, 1)) + random.random()
        return Split((x, Y[:20]), (x, Y[:20]))

    states = torch.random.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    first, again = (prepared(drawn).tensors["train_inputs"] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert len(np.unique(first)) == 20
    assert torch.equal(states[0], torch.random.get_rng_state())
    assert (states[1], states[2]) == (np.random.get_state()[1].tolist(), random.getstate())
