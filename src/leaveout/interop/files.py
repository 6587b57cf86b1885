"""Files of `torch.save`, read without running what may be in them.

Such a file is a pickle, and a pickle can run any code when it is read. These are read by torch's
restricted reader, which knows tensors, plain containers and, here, arrays of NumPy, and refuses
everything else.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leaveout.errors import LeaveoutError
from leaveout.store.artefacts import atomic_path

_NUMPY: list[Any] = [
    np.ndarray,
    np.dtype,
    *(type(np.dtype(code)) for code in "?bhilqBHILQefd"),
    # the module has one name in NumPy 1 and another in NumPy 2, and files have either
    *(
        (np.empty(0).__reduce__()[0], f"numpy.{core}.multiarray._reconstruct")
        for core in ("core", "_core")
    ),
]


def _load(path: Path) -> object:
    if not path.is_file():
        raise LeaveoutError(f"{path}: no such file")
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not look at the checksums
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"checksum of {damaged}")
        with torch.serialization.safe_globals(_NUMPY):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise LeaveoutError(
            f"{path}: refused: it holds more than tensors and arrays (or is damaged), and reading "
            "the rest could run any code. Where it was written, and if you trust it, load it and "
            "save the tensor, or the module's state_dict(), alone."
        ) from error
    except Exception as error:  # a file from elsewhere can be wrong in any way
        raise LeaveoutError(f"{path}: not a file of torch.save, or damaged ({error})") from error


def load_array(path: Path) -> NDArray[Any]:
    """Read one tensor, or one array of NumPy.

    Raises:
        LeaveoutError: The file is missing, damaged, or holds anything else.
    """
    value = _load(path)
    if isinstance(value, Tensor):
        value = value.detach().numpy()
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf":
        what = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
        raise LeaveoutError(f"{path}: it holds {what}, expected one tensor of numbers")
    return value


def load_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict.

    Raises:
        LeaveoutError: The file is missing, damaged, or holds anything else, such as a whole module.
    """
    value = _load(path)
    if not isinstance(value, Mapping) or not all(isinstance(v, Tensor) for v in value.values()):
        raise LeaveoutError(f"{path}: it holds {type(value).__name__}, expected a state dict")
    return dict(value)


def save(path: Path, value: object) -> None:
    """Write a file of `torch.save`, whole or not at all.

    Raises:
        LeaveoutError: The file could not be written.
    """
    with atomic_path(path) as temporary:
        write(temporary, value)


def write(path: Path, value: object) -> None:
    """Write a file of `torch.save` that has the same bytes whatever it is called."""
    with path.open("wb") as handle:  # given a name, torch writes it into the file
        torch.save(value, handle)
