from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from leaveout.errors import LeaveoutError
from leaveout.interop import files


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize(
    "dtype", ["bool", "int8", "uint8", "int64", "float16", "float32", "float64"]
)
@pytest.mark.parametrize("tensor", [True, False])
def test_tensors_and_arrays_come_back(tmp_path: Path, dtype: str, tensor: bool) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    files.save(tmp_path / "a.pt", torch.from_numpy(array) if tensor else array)
    found = files.load_array(tmp_path / "a.pt")
    assert found.dtype == array.dtype
    assert np.array_equal(found, array)


def test_an_array_written_under_numpy_1_comes_back(tmp_path: Path) -> None:
    files.save(tmp_path / "new.pt", np.arange(3.0))
    with (
        zipfile.ZipFile(tmp_path / "new.pt") as new,
        zipfile.ZipFile(tmp_path / "old.pt", "w") as old,
    ):
        for name in new.namelist():
            contents = new.read(name)
            if name.endswith("data.pkl"):
                assert b"numpy._core.multiarray" in contents
                contents = contents.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            old.writestr(name, contents)
    assert np.array_equal(files.load_array(tmp_path / "old.pt"), np.arange(3.0))


@pytest.mark.parametrize("whole", [False, True])
def test_a_trap_is_refused_and_not_sprung(tmp_path: Path, whole: bool) -> None:
    trap = Trap(tmp_path / "sprung")
    torch.save(trap if whole else {"weight": torch.ones(2), "more": trap}, tmp_path / "t.pt")
    for load in (files.load_array, files.load_state):
        with pytest.raises(LeaveoutError, match=r"t\.pt: refused.*could run any code"):
            load(tmp_path / "t.pt")
    assert not (tmp_path / "sprung").exists()
    pickle.loads(pickle.dumps(trap))  # it would have been
    assert (tmp_path / "sprung").exists()


def test_a_module_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Identity(), tmp_path / "module.pt")
    with pytest.raises(LeaveoutError, match=r"refused.*state_dict\(\)"):
        files.load_state(tmp_path / "module.pt")


def test_an_array_of_objects_is_refused(tmp_path: Path) -> None:
    torch.save(np.array([1, "x"], dtype=object), tmp_path / "objects.pt")
    with pytest.raises(LeaveoutError, match="refused"):
        files.load_array(tmp_path / "objects.pt")


def test_what_is_something_else_is_named(tmp_path: Path) -> None:
    files.save(tmp_path / "dict.pt", {"a": 1})
    with pytest.raises(LeaveoutError, match="holds dict, expected one tensor"):
        files.load_array(tmp_path / "dict.pt")
    with pytest.raises(LeaveoutError, match="holds dict, expected a state dict"):
        files.load_state(tmp_path / "dict.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(LeaveoutError, match=r"text\.pt: not a file of torch\.save"):
        files.load_array(tmp_path / "text.pt")
    with pytest.raises(LeaveoutError, match=r"none\.pt: no such file"):
        files.load_array(tmp_path / "none.pt")


def test_damage_is_noticed(tmp_path: Path) -> None:
    files.save(tmp_path / "a.pt", torch.arange(100.0))
    contents = bytearray((tmp_path / "a.pt").read_bytes())
    place = contents.index(torch.arange(100.0).numpy().tobytes()) + 8
    contents[place] ^= 1  # torch itself would give another number
    (tmp_path / "flipped.pt").write_bytes(contents)
    (tmp_path / "short.pt").write_bytes(contents[:300])
    for name in ("flipped.pt", "short.pt"):
        with pytest.raises(LeaveoutError, match=f"{name}: not a file of torch.save, or damaged"):
            files.load_array(tmp_path / name)
