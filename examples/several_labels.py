"""Scikit-learn's digits with several labels each: is it even, is it large, is it a prime?"""

import numpy as np
from sklearn.datasets import load_digits

from leaveout import Split


def data(n_train: int, n_test: int) -> Split:
    """Return images, (samples, 8, 8), and which of the three labels hold, (samples, 3)."""
    digits = load_digits()
    labels = np.stack(
        [digits.target % 2 == 0, digits.target > 4, np.isin(digits.target, [2, 3, 5, 7])], axis=1
    )
    inputs = digits.images / 8 - 1
    train, test = slice(n_train), slice(n_train, n_train + n_test)
    shown = (255 - 15 * digits.images).astype(np.uint8)
    return Split(
        (inputs[train], labels[train].astype(np.float32)),
        (inputs[test], labels[test].astype(np.float32)),
        show=(shown[train], shown[test]),
    )
