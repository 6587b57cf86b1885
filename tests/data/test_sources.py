from __future__ import annotations

import subprocess
import sys

import pytest

from leaveout.data import sources
from leaveout.errors import LeaveoutError


@pytest.mark.parametrize(
    ("name", "classes"), [("mnist", None), ("fashion_mnist", (2, 4)), ("digits", None)]
)
def test_load_by_name(name, classes):
    raw = sources.load(name, "bundled", 30, 10, classes=classes)
    assert len(raw.train_inputs) == len(raw.train_labels) == len(raw.train_id) == 30
    assert len(raw.test_inputs) == len(raw.test_labels) == len(raw.test_id) == 10
    assert raw.provenance.keys() == {"name", "source", "revision", "sha256"}
    assert (raw.provenance["name"], raw.provenance["source"]) == (name, "bundled")


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("mnits", "bundled", "unknown data set 'mnits': did you mean 'mnist'"),
        ("MNIST", "bundled", "did you mean 'mnist'"),
        ("cifar10", "hub", "choose one of digits, fashion_mnist, mnist"),
        ("fashion_mnist", "hub", "choose one of bundled, idx"),
        ("mnist", "hubb", "unknown source 'hubb' for data set 'mnist': did you mean 'hub'"),
        ("digits", "hub", "choose one of bundled"),
        ("mnist", "ixd", "did you mean 'idx'"),
    ],
)
def test_unknown_names_are_answered_with_the_known(name, source, message):
    with pytest.raises(LeaveoutError, match=message):
        sources.load(name, source, 5, 5)


@pytest.mark.parametrize(
    ("n_train", "n_test", "message"),
    [
        (5001, 1, "n_train: 5001 is more than the 5000 .*source: hub"),
        (1, 501, "n_test: 501 is more than the 500 .*source: hub or idx"),
        (0, 1, "n_train: 0 is not positive"),
        (1, -3, "n_test: -3 is not positive"),
    ],
)
def test_sizes_out_of_range(n_train, n_test, message):
    with pytest.raises(LeaveoutError, match=message):
        sources.load("mnist", "bundled", n_train, n_test)


def test_bundled_mnist_needs_neither_torch_nor_a_client():
    code = (
        "import sys; from leaveout.data import sources; sources.load('mnist', 'bundled', 1, 1); "
        "print({'torch', 'huggingface_hub', 'pyarrow', 'sklearn'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
