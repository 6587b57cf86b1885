from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

from leaveout.config import Setting
from leaveout.data.identity import data_identity

Make = Callable[..., Setting]


def test_it_is_what_is_asked_for_and_not_where_it_comes_from(make_setting: Make) -> None:
    dataset = {"name": "mnist", "n_train": 40, "n_test": 7, "mean": 0.1, "classes": (4, 2)}
    found = data_identity(make_setting(dataset=dataset))
    assert found == json.loads(json.dumps(found))
    assert (found["full_scale"], found["n_classes"]) == (255, 2)
    assert found["dataset"]["classes"] == [4, 2]
    assert "source" not in found["dataset"]
    assert found == data_identity(make_setting(dataset={**dataset, "source": "hub"}, name="other"))
    for change in ({"n_test": 8}, {"classes": (2, 4)}, {"mean": 0.2}):
        assert data_identity(make_setting(dataset={**dataset, **change})) != found


def test_the_seed_matters_where_labels_are_flipped(make_setting: Make) -> None:
    noise = {"label_noise": {"fraction": 0.1}}
    one, other = (data_identity(make_setting(dataset=noise, seed=seed)) for seed in (3, 4))
    assert (one["dataset"]["label_noise"]["seed"], one == other) == (3, False)
    assert data_identity(make_setting(seed=3)) == data_identity(make_setting(seed=4))


def test_no_heavy_module_is_needed() -> None:
    code = "import sys; import leaveout.data.identity; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
