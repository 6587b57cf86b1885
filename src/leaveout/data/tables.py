"""The tables that ship with scikit-learn: features, and a number or a class to tell from them.

diabetes (442 people, 10 features, progression of the disease a year later), breast_cancer (569
tumours, 30 features, 0 malignant, 1 benign), wine (178 bottles, 13 features, three growers). They
have no official split, and lie in their files in an order (wine by class). So samples are put in an
order drawn once from the data set's name: the first ones train, the last ones test, whatever a
setting's seed. Ids are rows of scikit-learn's table.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import sklearn
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine

from leaveout.config import Dataset
from leaveout.data.raw import check_size, pick, relabel
from leaveout.seeds import generator
from leaveout.store.contents import Arrays

_LOADERS = {"diabetes": load_diabetes, "breast_cancer": load_breast_cancer, "wine": load_wine}


def prepared(dataset: Dataset) -> Arrays:
    """Return the ``data`` artefact of a table.

    Every feature, and a target that is a number, is standardised by its mean and deviation over the
    training samples.

    Args:
        dataset: Which table, and how many of its rows.

    Raises:
        LeaveoutError: A number out of range.
    """
    table = _LOADERS[dataset.name]()
    inputs, targets = np.asarray(table.data, np.float64), np.asarray(table.target)
    order = generator(0, dataset.name, "split").permutation(len(targets))
    numbers = dataset.n_classes is None
    classes = dataset.classes
    held = len(order) if classes is None else int(np.isin(targets, list(classes)).sum())
    where = f"scikit-learn's {dataset.name}"
    remedy = f"n_train and n_test together can be {held} at most"
    check_size(where, "n_train", dataset.n_train, held - 1, remedy)
    left = f"{where} left after n_train: {dataset.n_train}"
    check_size(left, "n_test", dataset.n_test, held - dataset.n_train, remedy)
    drawn = order[pick(targets[order], classes, held, where, "n_train", remedy)]
    ids = {"train": np.sort(drawn[: dataset.n_train]), "test": np.sort(drawn[-dataset.n_test :])}
    name = "targets" if numbers else "labels"
    arrays: dict[str, NDArray[Any]] = {}
    for part, own in ids.items():
        arrays[f"{part}_inputs"] = _standardised(inputs, own, ids["train"])
        arrays[f"{part}_{name}"] = (
            _standardised(targets.astype(np.float64), own, ids["train"])
            if numbers
            else relabel(targets[own], classes)
        )
        arrays[f"{part}_id"] = own.astype(np.int64)
    return Arrays(
        "data",
        arrays,
        {key: (key.split("_")[0], "feature")[: value.ndim] for key, value in arrays.items()},
        {
            "form": {"inputs": {"array": "inputs"}, "targets": {"array": name}},
            "n_classes": dataset.n_classes,
            "source": {
                "name": dataset.name,
                "source": "bundled",
                "revision": f"scikit-learn {sklearn.__version__}",
                "sha256": {
                    "data": hashlib.sha256(np.ascontiguousarray(inputs).tobytes()).hexdigest(),
                    "target": hashlib.sha256(
                        np.ascontiguousarray(targets.astype(np.float64)).tobytes()
                    ).hexdigest(),
                },
            },
        },
    )


def _standardised(
    values: NDArray[np.float64], rows: NDArray[Any], train: NDArray[Any]
) -> NDArray[np.float32]:
    """Return some rows less the mean of the training rows, divided by their deviation."""
    known = values[train]
    deviation = known.std(0)
    # a column that is constant in training tells nothing; 0 is kept
    scaled = (values[rows] - known.mean(0)) / np.where(deviation > 0, deviation, 1.0)
    return np.asarray(scaled, np.float32)
