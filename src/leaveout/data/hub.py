"""MNIST from the Hugging Face hub, at a pinned revision, verified by sha256.

huggingface_hub compares only the size of what it downloads, so that a flipped byte would pass: the
digests are checked here, on every load, cached files included. ``HF_ENDPOINT`` (a mirror),
``HF_HUB_OFFLINE``, ``HF_HOME`` and ``HF_HUB_DOWNLOAD_TIMEOUT`` work as the hub documents them.
"""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from huggingface_hub import errors as hub_errors
from huggingface_hub import hf_hub_download
from PIL import Image

from leaveout.data import mnist
from leaveout.data.official import Part, first_of
from leaveout.data.raw import RawDataset, check_size
from leaveout.data.slices import read_slice
from leaveout.errors import LeaveoutError

log = logging.getLogger(__name__)
_BUNDLED = "set source: bundled, which needs no network"


@dataclass(frozen=True)
class HubFile:
    """One pinned file: its path in the repository, its sha256 and its number of rows."""

    path: str
    sha256: str
    rows: int


@dataclass(frozen=True)
class HubDataset:
    """A data set repository at a pinned commit."""

    repo: str
    revision: str
    train: HubFile
    test: HubFile


MNIST = HubDataset(
    repo="ylecun/mnist",
    revision="77f3279092a1c1579b2250db8eafed0ad422088c",
    train=HubFile(
        "mnist/train-00000-of-00001.parquet",
        "f2c01285a9f89399335b00ee4e8d499dc4e46db5e39c74903ce5618d895eb3bf",
        60_000,
    ),
    test=HubFile(
        "mnist/test-00000-of-00001.parquet",
        "d49fcf556ce25b002b302e318ce4a11098bbfe5d4499c3f35d7c72297c52374b",
        10_000,
    ),
)


def load(
    n_train: int,
    n_test: int,
    cache_dir: Path | None = None,
    pinned: HubDataset = MNIST,
    classes: Sequence[int] | None = None,
) -> RawDataset:
    """Load the first samples of MNIST from the hub.

    As far as it reaches, the bundled slice is compared with what the hub gave, bit for bit.

    Args:
        n_train: 1 to 60000, less where only some classes are asked for.
        n_test: 1 to 10000, likewise.
        cache_dir: Where downloads are kept; by default the Hugging Face cache.
        pinned: What to fetch.
        classes: Only samples of these; None for all.

    Raises:
        LeaveoutError: A number out of range, no network, no such repository, revision or file, a
            download that stayed incomplete, or contents other than the pinned ones.
    """
    of, remedy = mnist.MNIST, "ask for fewer"
    where = (f"{of.title}'s training set", f"{of.title}'s test set")
    files, sizes = (pinned.train, pinned.test), (n_train, n_test)
    for file, n, place, key in zip(files, sizes, where, ("n_train", "n_test"), strict=True):
        check_size(place, key, n, file.rows, remedy)  # before anything is downloaded
    train, test = (
        _decode(fetch(pinned, file, cache_dir), n, classes)
        for file, n in zip(files, sizes, strict=True)
    )
    revision = f"{pinned.repo}@{pinned.revision}"
    for ours, official, place in zip((train, test), read_slice(of), where, strict=True):
        both = ours.ids < len(official.ids)
        ids = ours.ids[both]
        for name in ("images", "labels"):
            if not np.array_equal(getattr(ours, name)[both], getattr(official, name)[ids]):
                raise LeaveoutError(
                    f"{revision}: {place}: {name} differ from the official files; {_BUNDLED}."
                )
    sha256 = {file.path: file.sha256 for file in files}
    return first_of(of, "hub", (train, test), sizes, where, remedy, classes, sha256, revision)


def fetch(pinned: HubDataset, file: HubFile, cache_dir: Path | None = None) -> Path:
    """Give the local path of a pinned file, downloaded unless cached, with its sha256 verified.

    A file with another sha256 is removed from the cache and fetched once more.

    Args:
        pinned: The repository and revision.
        file: The file in it.
        cache_dir: Where downloads are kept; by default the Hugging Face cache.

    Raises:
        LeaveoutError: It cannot be had, or what was had twice is not the pinned file.
    """
    found = ""
    for _ in range(2):
        path = _download(pinned, file, cache_dir)
        try:
            with path.open("rb") as handle:
                found = hashlib.file_digest(handle, "sha256").hexdigest()
            if found == file.sha256:
                return path
            log.warning("%s: sha256 %s, expected %s; removing it", path, found, file.sha256)
            _remove(path)
        except OSError as error:
            raise LeaveoutError(
                f"{path}: cannot be verified ({error}); give a cache folder that can be written "
                f"to, or {_BUNDLED}."
            ) from error
    raise LeaveoutError(
        f"{file.path} of {pinned.repo}@{pinned.revision}: downloaded twice with sha256 {found}, "
        f"expected {file.sha256}. Both copies were removed. If HF_ENDPOINT names a mirror or a "
        f"proxy stands in between, try without; or {_BUNDLED}."
    )


def _download(pinned: HubDataset, file: HubFile, cache_dir: Path | None) -> Path:
    what = f"{file.path} of {pinned.repo}@{pinned.revision}"
    # Read now: the library reads it once, when it is imported.
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or None
    try:
        return Path(
            hf_hub_download(
                pinned.repo,
                file.path,
                repo_type="dataset",
                revision=pinned.revision,
                cache_dir=cache_dir,
                endpoint=endpoint,
            )
        )
    # The library and its HTTP client, which differs by version, share no base class to catch.
    except Exception as error:
        why = _reason(error)
        raise LeaveoutError(f"could not download {what}: {why}.") from error


def _reason(error: Exception) -> str:
    """Say why a download failed and what to do."""
    mirror = f"check HF_ENDPOINT, or {_BUNDLED}"
    # The library wraps a failed first request in one that only says to check the connection.
    chain: list[BaseException] = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    if any(isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT) for e in chain):
        return "the disk is full; free some space, then run the same command again"
    if any(isinstance(e, hub_errors.OfflineModeIsEnabled) for e in chain):
        return f"it is not in the cache and HF_HUB_OFFLINE is set; unset it, or {_BUNDLED}"
    if any(isinstance(e, hub_errors.RevisionNotFoundError) for e in chain):
        return f"the hub has no such revision; {mirror}"
    # The hub answers 401 for a data set that does not exist, lest it tell which private ones do.
    statuses = {e.response.status_code for e in chain if isinstance(e, hub_errors.HfHubHTTPError)}
    if statuses & {401, 403} or any(
        isinstance(e, hub_errors.RepositoryNotFoundError) for e in chain
    ):
        return f"the hub has no such data set, or not for you; {mirror}"
    if any(isinstance(e, hub_errors.RemoteEntryNotFoundError) for e in chain):
        return f"the revision has no such file; {mirror}"
    first = chain[-1]
    detail = f"{type(first).__name__}: {first}".splitlines()[0]
    return f"the hub did not deliver it ({detail}); check the network and run again, or {_BUNDLED}"


def _remove(path: Path) -> None:
    """Remove a cached file: the link in the snapshot and all it leads to, or it would come back."""
    while path.is_symlink():
        target = path.parent / path.readlink()
        path.unlink()
        path = target
    path.unlink(missing_ok=True)


def _decode(path: Path, n: int, classes: Sequence[int] | None) -> Part:
    """Decode the first ``n`` rows, of some classes or of all; fewer where there are fewer."""
    file = pq.ParquetFile(path)
    labels = file.read(columns=["label"])["label"].to_numpy().astype(np.int64)
    ids = np.arange(len(labels)) if classes is None else np.flatnonzero(np.isin(labels, classes))
    ids = ids[:n]
    cells: list[dict[str, Any]] = file.read(columns=["image"]).take(ids)["image"].to_pylist()
    images = np.empty((len(ids), mnist.MNIST.side, mnist.MNIST.side), np.uint8)
    for image, cell in zip(images, cells, strict=True):
        image[:] = np.asarray(Image.open(io.BytesIO(cell["bytes"])))
    return Part(images, labels[ids], ids)
