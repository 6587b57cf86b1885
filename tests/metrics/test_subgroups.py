from __future__ import annotations

import csv
import io

import numpy as np
import pytest

from leaveout.data.halves import split
from leaveout.errors import LeaveoutError
from leaveout.metrics import subgroups as module
from leaveout.metrics.evaluate import evaluate
from leaveout.metrics.lds import lds
from leaveout.metrics.subgroups import COLUMNS, THIRDS, groups, subgroups
from leaveout.retraining.layout import LDS_DIMS
from leaveout.store import artefacts, contents

TRAIN, TEST, SUBSETS, RUNS = 20, 24, 15, 2
TEST_ID = np.arange(50, 50 + TEST)
NAMES = {"setting": "toy", "root_seed": 3, "bootstrap": 40}


@pytest.fixture
def files(tmp_path):
    """Two methods' scores of an LDS truth, their CSVs, the data and what full models say."""
    rng = np.random.default_rng(0)
    score = rng.normal(size=(TRAIN, TEST))
    mask = (np.argsort(rng.random((SUBSETS, TRAIN)), axis=1) < TRAIN // 2).astype(np.uint8)
    target = -(mask @ score)[:, None] + rng.normal(size=(SUBSETS, RUNS, TEST))
    labels, loss = rng.integers(3, size=TEST), rng.random((RUNS, TEST)) * 3
    ids = {"train_id": np.arange(TRAIN), "test_id": TEST_ID}
    truth = tmp_path / "lds.safetensors"
    tensors = {"target": target, "mask": mask, "subset_id": np.arange(SUBSETS), **ids}
    artefacts.write(truth, "lds", tensors, LDS_DIMS, {"setting": "toy"})
    turned = slice(None, None, -1)  # test samples lie in another order here
    artefacts.write(
        tmp_path / "data.safetensors", "data",
        {"test_labels": labels[turned], "test_id": TEST_ID[turned]},
        {"test_labels": ("test",), "test_id": ("test",)}, {},
    )  # fmt: skip
    artefacts.write(
        tmp_path / "said.safetensors", "predictions",
        {"loss": loss[:, turned], "test_id": TEST_ID[turned]},
        {"loss": ("run", "test"), "test_id": ("test",)}, {},
    )  # fmt: skip
    dims = {"score": ("train", "test"), "train_id": ("train",), "test_id": ("test",)}
    scores = {}
    for method, label, noise in (("a", "p=1", 5), ("a", "p=2", 0.5), ("b", "default", 2)):
        own = score + noise * rng.normal(size=score.shape)
        path = tmp_path / f"{method}{label}.safetensors"
        meta = {"setting": "toy", "method": method, "label": label}
        artefacts.write(path, "score", {"score": own, **ids}, dims, meta)
        scores[method, label] = (path, own)
    csvs = []
    for method in "ab":
        csvs.append(tmp_path / f"{method}.csv")
        own = [path for (m, _), (path, _) in scores.items() if m == method]
        contents.save(csvs[-1], evaluate("lds", truth, own, [], method=method, **NAMES)["csv"])
    return tmp_path, truth, csvs, scores, mask, target.mean(axis=1), labels, loss


def run(files, **changes):
    folder, truth, csvs, scores, *_ = files
    paths = [path for path, _ in scores.values()]
    found = subgroups("lds", truth, folder / "data.safetensors", folder / "said.safetensors", csvs,
                      paths, methods=["a", "b"], **NAMES | changes)  # fmt: skip
    return list(csv.DictReader(io.StringIO(found)))


def test_values_are_means_over_the_members_of_the_reported_half(files, monkeypatch):
    rows = run(files)
    _, _, _, scores, mask, target, labels, loss = files
    assert tuple(rows[0]) == COLUMNS
    assert {row["params"] for row in rows if row["method"] == "a"} == {"p=2"}
    report = split(TEST_ID, "toy", 3)["report"]
    confidence = np.exp(-loss).mean(axis=0)
    ordered = sorted(np.flatnonzero(report), key=lambda j: confidence[j])
    for row in rows:
        values = lds(scores[row["method"], row["params"]][1], mask, target)
        if row["group_by"] == "class":
            members = [j for j in range(TEST) if report[j] and labels[j] == int(row["group"])]
        else:
            members = ordered[4 * THIRDS.index(row["group"]) :][:4]
            ends = [confidence[members[0]], confidence[members[-1]]]
            assert row["detail"].endswith("class {:.3f} to {:.3f}".format(*ends))
        assert int(row["n_test"]) == len(members)
        assert float(row["value"]) == pytest.approx(np.mean(values[members]), abs=1e-6)
        assert float(row["ci_low"]) <= float(row["value"]) <= float(row["ci_high"])
    for by in ("class", "confidence"):
        assert sum(int(r["n_test"]) for r in rows if r["group_by"] == by) == 2 * report.sum()
    monkeypatch.setattr(module, "_BLOCK_BYTES", 16 * SUBSETS * 5)  # five test samples at a time
    assert run(files) == rows


def test_a_subgroup_of_all_has_the_metrics_own_interval(files, monkeypatch):
    """The same draws of units, and as many test samples: as wide but for the draws of these."""
    monkeypatch.setattr(
        module, "groups",
        lambda labels, confidence, among: [module.Group("class", "all", "", among)],
    )  # fmt: skip
    own = [path for (method, _), (path, _) in files[3].items() if method == "a"]
    found = evaluate("lds", files[1], own, [], method="a", **NAMES | {"bootstrap": 1000})
    contents.save(files[2][0], found["csv"])
    first = run(files, bootstrap=1000)[0]
    (own,) = (
        row for row in csv.DictReader(io.StringIO(found["csv"]))
        if (row["params"], row["truth"], row["half"]) == ("p=2", "mean", "report")
    )  # fmt: skip
    assert first["value"] == own["value"]
    widths = [float(row["ci_high"]) - float(row["ci_low"]) for row in (first, own)]
    # ends of 1000 draws are known to about 4% of the width each
    assert widths[0] == pytest.approx(widths[1], rel=0.2)


def test_groups_that_nobody_is_in_are_left_out():
    among = np.array([True, True, False, True])
    found = groups(np.array([4, 4, 5, 4]), np.array([0.3, 0.1, 0.9, 0.2]), among)
    assert [(g.by, g.name) for g in found] == [
        ("class", "4"), *(("confidence", third) for third in THIRDS)
    ]  # fmt: skip
    assert [np.flatnonzero(g.members).tolist() for g in found] == [[0, 1, 3], [1], [3], [0]]


def test_undefined_test_samples_are_counted(files):
    path, own = files[3]["b", "default"]
    report = np.flatnonzero(split(TEST_ID, "toy", 3)["report"])
    own[2, report[0]], own[:, report[1]] = np.nan, 1.0
    read = artefacts.read(path)
    artefacts.write(path, "score", read.tensors | {"score": own}, read.dims, read.meta)
    rows = [row for row in run(files) if (row["method"], row["group_by"]) == ("b", "confidence")]
    assert sum(int(row["n_nan"]) for row in rows) == 1
    assert sum(int(row["n_constant"]) for row in rows) == 1


def test_what_does_not_fit_together_is_refused(files):
    with pytest.raises(LeaveoutError, match="its setting is not 'other'"):
        run(files, setting="other")
    del files[3]["a", "p=2"]
    with pytest.raises(LeaveoutError, match=r"a\.csv: no score file of a, p=2"):
        run(files)
