"""What lies where in a bank, and reading and writing it.

::

    metadata.yml              what the bank is to hold, and the call that makes it
    ids.txt                   ids of all samples of the loader, one a line
    index_7/model_weights.pt  trained without sample 7; for PBRF moved to where it counts no more
    index_7/convergence.json  PBRF: how near to the optimum
    model_weights.pt          PBRF: where it started
    3/indices.txt             ids of the samples of subset 3, one a line
    3/model_weights_0.pt      trained on subset 3 alone, run 0

Checkpoints are state dicts, on the CPU. Everything is written whole or not at all, and the metadata
say from the start what is to be there, so that a bank can be made in any order, by many processes.
"""

from __future__ import annotations

import contextlib
import copy
import fcntl
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from torch import Tensor

from leaveout.errors import LeaveoutError
from leaveout.interop import files
from leaveout.store.artefacts import atomic_path

METADATA = "metadata.yml"
IDS = "ids.txt"
_PLANS = {
    "loo": ("indices",),
    "pbrf": ("indices",),
    "lds": ("num_subsets", "num_runs_per_subset"),
}
State = dict[str, Tensor]
Metadata = dict[str, Any]

# libyaml's are some ten times as fast, which a bank of many thousand ids is long enough to need
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class BankError(LeaveoutError, ValueError):
    """A call that does not fit its bank, or a bank that is not whole.

    A ``ValueError`` too, which the field documents for arguments out of range.
    """


def loo_file(folder: Path, index: int) -> Path:
    """Return the checkpoint of the model trained without a sample."""
    return folder / f"index_{index}" / "model_weights.pt"


def lds_file(folder: Path, subset: int, run: int) -> Path:
    """Return the checkpoint of a run of a subset."""
    return folder / str(subset) / f"model_weights_{run}.pt"


def full_file(folder: Path) -> Path:
    """Return the checkpoint of the model that PBRF starts from."""
    return folder / "model_weights.pt"


def convergence_file(folder: Path, index: int) -> Path:
    """Return the record of how near a sample's PBRF came to its optimum."""
    return folder / f"index_{index}" / "convergence.json"


def indices_file(folder: Path, subset: int) -> Path:
    """Return the list of a subset's ids."""
    return folder / str(subset) / "indices.txt"


def write_ids(path: Path, ids: Iterable[int]) -> None:
    """Write ids, one a line."""
    with atomic_path(path) as temporary:
        temporary.write_text("".join(f"{int(i)}\n" for i in ids), encoding="utf-8")


def read_ids(path: Path) -> NDArray[np.int64]:
    """Read ids, one a line.

    Raises:
        BankError: The file is missing, holds something else, or an id twice.
    """
    try:
        ids = [int(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise BankError(f"{path}: not a list of ids, one a line ({error})") from error
    if len(set(ids)) != len(ids):
        raise BankError(f"{path}: it lists an id twice, so it has been altered")
    return np.array(ids, dtype=np.int64)


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write a state dict, its tensors on the CPU.

    Raises:
        BankError: It holds something that only a pickle with code could bring back.
        LeaveoutError: The file could not be written.
    """
    on_cpu = copy.copy(state)  # with what torch notes beside the entries, the modules' versions
    on_cpu.update({k: v.detach().cpu() for k, v in state.items() if isinstance(v, Tensor)})
    with atomic_path(path) as temporary:
        files.write(temporary, on_cpu)
        try:
            read_state(temporary)
        except BankError as error:
            raise BankError(
                f"{path}: the model's state dict could not be read back without running code from "
                f"it; keep plain tensors in it ({error})"
            ) from error


def read_state(path: Path) -> State:
    """Read a checkpoint, on the CPU. No code in it is run, and damage is noticed.

    Raises:
        BankError: The file is missing, damaged, or holds more than a state dict.
    """
    try:
        return files.load_state(path)
    except LeaveoutError as error:
        raise BankError(str(error)) from error


def is_whole(path: Path) -> bool:
    """Return whether a checkpoint is there and can be read; say so where one is damaged."""
    if not path.exists():
        return False
    try:
        read_state(path)
    except BankError as error:
        warnings.warn(f"{error}; it is trained anew", stacklevel=3)
        return False
    return True


def read_metadata(folder: Path, mode: str | None = None) -> Metadata:
    """Read what a bank is to hold.

    Args:
        folder: The bank.
        mode: If given, ``loo``, ``lds`` or ``pbrf``, which it must be.

    Raises:
        BankError: There is no bank, its metadata can't be read, or it is of another mode.
    """
    path = folder / METADATA
    try:
        metadata = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError as error:
        raise BankError(f"{path}: no such file, so {folder} is no bank of checkpoints") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise BankError(f"{path}: it cannot be read ({error})") from error
    if not isinstance(metadata, dict) or "mode" not in metadata:
        raise BankError(f"{path}: not the metadata of a bank: it has no `mode`")
    if mode is not None and metadata["mode"] != mode:
        raise BankError(f"{path}: the bank is of mode {metadata['mode']!r}, not {mode!r}")
    lacking = [name for name in _PLANS.get(metadata["mode"], ()) if name not in metadata]
    if lacking:
        raise BankError(
            f"{path}: it does not say what the bank is to hold: {lacking[0]} is missing"
        )
    return metadata


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a lock on a bank's metadata; the kernel releases it however the process ends."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            warnings.warn(
                f"{folder}: this file system has no locks ({error.strerror}); start the first call "
                "alone, and the others when there is a metadata.yml",
                stacklevel=4,
            )
        yield
    finally:
        os.close(descriptor)


def _text(value: object) -> str:
    """Return a value as one line, to be compared and shown."""
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=10**6)
    return text.removesuffix("...\n").strip()


def _check_ids(folder: Path, ids: NDArray[np.int64]) -> None:
    there = read_ids(folder / IDS)
    new, gone = np.setdiff1d(ids, there), np.setdiff1d(there, ids)
    if len(new) or len(gone):
        examples = ", ".join(
            f"{len(some)} {what} (e.g. {some[0]})"
            for some, what in ((new, "are only in this one"), (gone, "only in the bank"))
            if len(some)
        )
        raise BankError(
            f"{folder}: the bank was made of {len(there)} samples, this call's loader draws "
            f"{len(ids)}: {examples}. Give the same loader, or another folder"
        )


def open_bank(
    folder: Path,
    call: Metadata,
    ids: NDArray[np.int64],
    grow: Callable[[Metadata, Metadata | None], Metadata],
) -> Metadata:
    """Begin a bank, or check that a call belongs to the one that is there and extend its plan.

    Args:
        folder: The bank.
        call: What every call into this bank must agree on. A value of None for ``seed`` is the
            bank's own.
        ids: The samples of the call's loader, which must be the bank's too.
        grow: Given the metadata of the call and of the bank (None where there is none yet), returns
            the metadata with the parts that may grow. Asked under the bank's lock.

    Returns:
        The bank's metadata.

    Raises:
        BankError: The call differs from the one the bank was made with; the error says in what.
    """
    with _locked(folder):
        there = read_metadata(folder) if (folder / METADATA).exists() else None
        if there is None:
            strays = sorted(folder.glob("*/model_weights*.pt"))
            if strays:
                raise BankError(
                    f"{folder}: there are checkpoints (e.g. {strays[0].relative_to(folder)}) but "
                    f"no {METADATA} that says how they were made; give another folder"
                )
            if call.get("seed", 0) is None:
                call = {**call, "seed": int.from_bytes(os.urandom(8), "little")}
        else:
            if call.get("seed", 0) is None:
                call = {**call, "seed": there.get("seed")}
            differing = [
                f"{name} (bank: {_text(there.get(name))}, this call: {_text(value)})"
                for name, value in call.items()
                if name != "data_length" and _text(there.get(name)) != _text(value)
            ]
            if differing:
                raise BankError(
                    f"{folder}: the bank there was made by a different call: "
                    f"{'; '.join(differing)}. Give the same arguments, or another folder"
                )
            _check_ids(folder, ids)
        metadata = grow(call, there)
        if there is None:
            write_ids(folder / IDS, ids)
        if metadata != there:
            with atomic_path(folder / METADATA) as temporary:
                text = yaml.dump(metadata, Dumper=_Dumper, sort_keys=False)
                temporary.write_text(text, encoding="utf-8")
    return metadata
