"""Patches of scikit-learn's two photographs, in colour: which of them is a patch from?"""

import numpy as np
from sklearn.datasets import load_sample_images

from leaveout import Split


def data(n_train: int, n_test: int, side: int = 8) -> Split:
    """Return random patches, (samples, 3, side, side), and the photograph that each is from."""
    rng, photographs = np.random.default_rng(0), load_sample_images().images
    labels = rng.integers(2, size=n_train + n_test)
    height, width, _ = photographs[0].shape
    ys = rng.integers(height - side, size=len(labels))
    xs = rng.integers(width - side, size=len(labels))
    patches = np.stack(
        [photographs[k][y : y + side, x : x + side] for k, y, x in zip(labels, ys, xs, strict=True)]
    )
    inputs = patches.transpose(0, 3, 1, 2) / 127.5 - 1
    train, test = slice(n_train), slice(n_train, None)
    return Split(
        (inputs[train], labels[train]),
        (inputs[test], labels[test]),
        show=(patches[train], patches[test]),
    )
