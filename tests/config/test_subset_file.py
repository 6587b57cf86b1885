"""leaveout.config.subset_file, and what the configuration makes of a file of subsets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from job_keys import prepare_key, train_key
from leaveout.config import ConfigError, Setting, load_setting
from leaveout.data.prepare import prepare
from leaveout.metrics.evaluate import evaluate
from leaveout.retraining import items as trainings
from leaveout.retraining.lds import retrain_lds
from leaveout.retraining.subsets import subset_mask
from leaveout.retraining.truth import merge_truth
from leaveout.store import artefacts
from leaveout.store.contents import save
from leaveout.workflow import costs

Load = Callable[..., Setting]
KEPT = [[0, 5, 9], [3, 1, 2, 29], list(range(30)), [7], [4, 6, 8, 10, 12]]
BASE: dict[str, Any] = {
    "dataset": {"name": "digits", "n_train": 30, "n_test": 6},
    "model": {"name": "linear"},
    "recipe": {"learning_rate": 0.1, "epochs": 3, "batch_size": 8},
    "full": {"checkpoints": 1},
    "lds": {"subsets": "own/mine.txt", "runs": 2, "chunk": 2},
}


def text(kept: list[list[int]]) -> str:
    return "".join(" ".join(map(str, ids)) + "\n" for ids in kept)


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Return a function that loads a setting whose subsets are a file's."""

    def load(contents: str | bytes | None, **lds: Any) -> Setting:
        folder = tmp_path / "config"
        for name in ("settings", "own"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        if contents is not None:
            raw = contents if isinstance(contents, bytes) else contents.encode()
            (folder / "own" / "mine.txt").write_bytes(raw)
        values = {**BASE, "lds": {**BASE["lds"], **lds}}
        (folder / "settings" / "tiny.yaml").write_text(yaml.safe_dump(values))
        return load_setting(folder / "settings" / "tiny.yaml")

    return load


def masks(setting: Setting) -> list[list[int]]:
    return [
        np.flatnonzero(subset_mask(setting, "lds", s)).tolist() for s in range(setting.lds.count)
    ]


def keys(setting: Setting) -> dict[str, str]:
    return {name: train_key(setting, "lds", name) for name in trainings.chunks(setting, "lds")}


def test_lines_are_the_subsets(load: Load) -> None:
    written = "# mine\n0,5, 9\n 3 1\t2,29 # four\n" + text(KEPT[2:]) + "\n\n"
    setting = load(written)
    assert masks(setting) == [sorted(ids) for ids in KEPT]
    assert setting.lds.count == 5
    assert len(trainings.items(setting, "lds")) == 10
    assert masks(load(written.replace("\n", "\r\n").encode())) == masks(setting)


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        (None, r"own/mine.txt: No such file or directory; .* in the configuration folder"),
        (b"\xff\xfe1 2", r"mine.txt: not a text file"),
        ("1 2\n3 x 4\n5", r"mine.txt, line 2: 'x' is no id"),
        ("1 2\n3 1.5\n5", r"mine.txt, line 2: '1.5' is no id"),
        ("1 2\n3 -4\n5", r"mine.txt, line 2: -4 is no id"),
        ("1 2\n3 4 3\n5", r"mine.txt, line 2: the id 3 stands there twice"),
        ("1 2\n\n5 6\n7", r"mine.txt, line 2: empty"),
        ("1 2\n , ,\n5 6\n7", r"mine.txt, line 2: empty"),
        ("1 2\n3\n# no more\n2,1\n", r"mine.txt, line 4: the same subset as line 1; .*lds.runs"),
        ("# none\n1 2\n30 3\n4", r"mine.txt, line 3: the id 30 lies outside the .* 0..29"),
        ("1 2\n3 99999999999999999999\n4", r"line 2: 99999999999999999999 is no id"),
        ("1 2\n3\n", r"mine.txt: 2 subsets, three are the least"),
        ("", r"mine.txt: 0 subsets, three are the least"),
    ],
)
def test_faults_name_file_line_and_id(load: Load, contents: str | bytes, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"tiny\.yaml: lds\.subsets: .*{said}"):
        load(contents)


def test_a_ratio_has_nothing_to_say(load: Load) -> None:
    with pytest.raises(ConfigError, match=r"lds: ratio: the subsets of own/mine.txt have sizes"):
        load(text(KEPT), ratio=0.5)


def test_an_edited_line_trains_its_chunks_and_no_other(load: Load) -> None:
    before = keys(load(text(KEPT)))
    edited = keys(load(text([*KEPT[:3], [7, 8], KEPT[4]])))
    assert {name for name in before if before[name] != edited[name]} == {"0-1", "1-1"}
    # layout, comments and the order of ids within a line are nobody's business
    same = "# a comment\n" + text([ids[::-1] for ids in KEPT]).replace(" ", " ,  ")
    assert keys(load(same)) == before
    # the same ids in other lines are other subsets
    assert keys(load(text([KEPT[1], KEPT[0], *KEPT[2:]])))["0-0"] != before["0-0"]
    assert len(set(before.values())) == len(before) == 6


def test_appended_lines_and_runs_add_chunks(load: Load) -> None:
    before = keys(load(text(KEPT)))
    after = keys(load(text([*KEPT, [11], [12]]), runs=3))
    assert [name for name in before if after[name] != before[name]] == ["0-2", "1-2"]  # partial
    assert len(after) == 12


def test_keys_name_no_file_and_no_ratio(load: Load, make_setting: Callable[..., Setting]) -> None:
    own = json.loads(keys(load(text(KEPT)))["0-0"])["lds"]
    drawn = json.loads(train_key(make_setting(), "lds", "0-0"))["lds"]
    assert drawn == {"pairing": "none", "ratio": 0.5, "size": 15}
    assert own.keys() == {"pairing", "kept"}


def test_chunks_do_not_move_with_the_sizes_of_subsets(load: Load) -> None:
    small, large = (load(text([[*range(i, n)] for i in range(4)])) for n in (5, 30))
    assert trainings.chunks(small, "lds") == trainings.chunks(large, "lds")
    whole = costs.training_seconds(costs.workload(small))
    assert costs.item_seconds(costs.workload(small), "lds") == whole


def test_a_bank_of_subsets_of_all_sizes(load: Load, tmp_path: Path) -> None:
    setting, data, truth = load(text(KEPT)), tmp_path / "data", tmp_path / "truth"
    save(data, prepare(setting), {"key": prepare_key(setting)})
    paths = [tmp_path / name for name in trainings.chunks(setting, "lds")]
    for path in paths:
        save(path, retrain_lds(setting, path.name, data, "cpu"))
    save(truth, merge_truth(setting, "lds", paths), {"setting": "tiny"})
    found = artefacts.read(truth, "lds").tensors
    assert [np.flatnonzero(mask).tolist() for mask in found["mask"]] == [sorted(k) for k in KEPT]
    # a prediction that is right for every subset: each sample's score is the mean of it all
    score, csv = tmp_path / "score", tmp_path / "lds.csv"
    target = found["target"].mean(1)
    exact = np.linalg.lstsq(found["mask"].astype(float), -target, rcond=None)[0]
    artefacts.write(
        score,
        "score",
        {
            "score": exact.astype(np.float32),
            "train_id": found["train_id"],
            "test_id": found["test_id"],
        },
        {"score": ("train", "test"), "train_id": ("train",), "test_id": ("test",)},
        {"setting": "tiny", "method": "exact", "label": "default"},
    )
    arguments: dict[str, Any] = {"setting": "tiny", "method": "exact", "root_seed": 0}
    save(csv, evaluate("lds", truth, [score], [], bootstrap=10, **arguments)["csv"])
    rows = [line.split(",") for line in csv.read_text().splitlines()[1:]]
    values = {(row[4], row[5]): float(row[6]) for row in rows}
    assert values["mean", "all"] == 1
