from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import leaveout


def test_every_public_name_is_where_it_is_said_to_be() -> None:
    for name in leaveout.__all__:
        assert callable(getattr(leaveout, name))
        assert getattr(leaveout, name).__doc__
        assert name in dir(leaveout)
    assert sorted(leaveout._HOMES) == sorted(leaveout.__all__)


def test_importing_leaveout_loads_no_torch() -> None:
    code = "import sys, leaveout; leaveout.flip_label; print('torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "False\n"


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="'leaveout' has no attribute 'retrain_all'"):
        _ = leaveout.retrain_all
    with pytest.raises(ImportError, match="retrain_all"):
        from leaveout import retrain_all  # noqa: F401


def test_flip_label() -> None:
    labels = np.arange(50) % 5
    flipped, where = leaveout.flip_label(labels, p=0.2, seed=3)
    assert np.flatnonzero(flipped != labels).tolist() == sorted(where)
    assert len(where) == 10
