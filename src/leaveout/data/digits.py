"""scikit-learn's 8x8 digits: a tiny real setting that needs no file of ours and no network."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import sklearn
from sklearn.datasets import load_digits

from leaveout.data.raw import RawDataset, check_size, pick, relabel

N_SAMPLES = 1797


def load(n_train: int, n_test: int, classes: Sequence[int] | None = None) -> RawDataset:
    """Load the first ``n_train`` samples to train on and the ``n_test`` that follow to test on.

    Ids, of train and test alike, are positions in ``load_digits``. Inputs are (n, 8, 8) float32,
    whole numbers from 0 to 16.

    Args:
        n_train: 1 to 1796, less where only some classes are asked for.
        n_test: 1 to what is left.
        classes: Only samples of these; None for all.

    Raises:
        LeaveoutError: A number out of range.
    """
    raw = load_digits()
    inputs = raw.images.astype(np.float32)
    labels = raw.target.astype(np.int64)
    held = N_SAMPLES if classes is None else int(np.isin(labels, list(classes)).sum())
    where = "scikit-learn's digits" + ("" if classes is None else f" in classes {list(classes)}")
    remedy = f"n_train and n_test together can be {held} at most"
    check_size(where, "n_train", n_train, held - 1, remedy)
    check_size(f"{where} left after n_train: {n_train}", "n_test", n_test, held - n_train, remedy)
    ids = pick(labels, classes, n_train + n_test, where, "n_test", remedy)
    train, test = ids[:n_train], ids[n_train:]
    labels = relabel(labels[ids], classes)
    return RawDataset(
        train_inputs=inputs[train],
        train_labels=labels[:n_train],
        test_inputs=inputs[test],
        test_labels=labels[n_train:],
        train_id=train,
        test_id=test,
        provenance={
            "name": "digits",
            "source": "bundled",
            "revision": f"scikit-learn {sklearn.__version__}",
            # Of the pixels, not of the file: the same however a release packs them.
            "sha256": {
                "images": hashlib.sha256(inputs.astype(np.uint8).tobytes()).hexdigest(),
                "labels": hashlib.sha256(raw.target.astype(np.uint8).tobytes()).hexdigest(),
            },
        },
    )
