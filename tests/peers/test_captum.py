"""captum's TracInCP and TracInCPFast give our scores."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

import leaveout

pytestmark = [pytest.mark.peers, pytest.mark.slow]

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, peers_python: Path) -> dict[str, np.ndarray]:
    folder = tmp_path_factory.mktemp("captum")
    done = subprocess.run(
        [peers_python, HERE / "captum_side.py", folder],
        env={**os.environ, "PYTHONPATH": str(Path(leaveout.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with np.load(folder / "found.npz") as file:
        return dict(file)


def test_every_score_is_captums(found: dict[str, np.ndarray]) -> None:
    keys = [key.removesuffix("|theirs") for key in found if key.endswith("|theirs")]
    assert len(keys) == 2 * (5 * 8 + 1)
    for key in keys:
        ours, theirs = found[f"{key}|ours"], found[f"{key}|theirs"]
        assert np.ptp(theirs) > 0, key
        # float32 on both sides: 1e-6 of the largest score is some ten units in the last place
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6 * abs(theirs).max(), err_msg=key)


def test_variants_differ(found: dict[str, np.ndarray]) -> None:
    whole = found["mlp mean all|influence|ours"]
    assert abs(found["mlp mean fast|influence|ours"] - whole).max() > 0.01 * abs(whole).max()
    assert abs(found["mlp sum layers|influence|ours"] - whole).max() > 0.01 * abs(whole).max()
