"""scikit-learn's 8x8 digits: a tiny real setting that needs no file of ours and no network."""

from __future__ import annotations

import hashlib

import numpy as np
import sklearn
from sklearn.datasets import load_digits

from leaveout.data.sources import RawDataset, check_size

N_SAMPLES = 1797


def load(n_train: int, n_test: int) -> RawDataset:
    """Load the first ``n_train`` samples to train on and the ``n_test`` that follow to test on.

    Ids, of train and test alike, are positions in ``load_digits``. Inputs are (n, 8, 8) float32,
    whole numbers from 0 to 16.

    Args:
        n_train: 1 to 1796.
        n_test: 1 to 1797 - ``n_train``.

    Raises:
        LeaveoutError: A number out of range.
    """
    remedy = "n_train and n_test together can be 1797 at most"
    check_size("scikit-learn's digits", "n_train", n_train, N_SAMPLES - 1, remedy)
    left = f"scikit-learn's digits left after n_train: {n_train}"
    check_size(left, "n_test", n_test, N_SAMPLES - n_train, remedy)
    raw = load_digits()
    inputs = raw.images.astype(np.float32)
    labels = raw.target.astype(np.int64)
    ids = np.arange(n_train + n_test, dtype=np.int64)
    train, test = ids[:n_train], ids[n_train:]
    return RawDataset(
        train_inputs=inputs[train],
        train_labels=labels[train],
        test_inputs=inputs[test],
        test_labels=labels[test],
        train_id=train,
        test_id=test,
        provenance={
            "name": "digits",
            "source": "bundled",
            "revision": f"scikit-learn {sklearn.__version__}",
            # Of the pixels, not of the file: the same however a release packs them.
            "sha256": {
                "images": hashlib.sha256(inputs.astype(np.uint8).tobytes()).hexdigest(),
                "labels": hashlib.sha256(labels.astype(np.uint8).tobytes()).hexdigest(),
            },
        },
    )
