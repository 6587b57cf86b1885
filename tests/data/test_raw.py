from __future__ import annotations

import numpy as np

from leaveout.data.raw import pick, relabel


def test_relabel_and_pick_against_loops():
    labels = np.random.default_rng(0).integers(0, 10, 300)
    for classes in ((2, 4), (4, 2), (9, 0, 3, 5)):
        kept = pick(labels, classes, 40, "it", "n_train", "")
        naive = [i for i in range(300) if labels[i] in classes][:40]
        assert kept.tolist() == naive
        found = relabel(labels[kept], classes)
        assert found.tolist() == [classes.index(labels[i]) for i in naive]
        assert found.dtype == np.int64
    assert pick(labels, None, 3, "it", "n_train", "").tolist() == [0, 1, 2]
    assert relabel(labels, None).tolist() == labels.tolist()
