"""MNIST as the hub holds it, and a small server that speaks the hub's protocol."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import io
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from leaveout.data import fashion_mnist, mnist
from leaveout.data.hub import HubDataset, HubFile
from leaveout.data.official import Official
from leaveout.data.slices import read_slice

REVISION = "0123456789abcdef0123456789abcdef01234567"


def parquet(images: np.ndarray, labels: np.ndarray) -> bytes:
    """A parquet file like the hub's: column image {bytes (PNG), path} and column label."""
    cells = []
    for i, image in enumerate(images):
        png = io.BytesIO()
        Image.fromarray(image).save(png, "PNG")
        cells.append({"bytes": png.getvalue(), "path": f"{i}.png"})
    out = io.BytesIO()
    pq.write_table(pa.table({"image": cells, "label": pa.array(labels, pa.int64())}), out)
    return out.getvalue()


@pytest.fixture(scope="session")
def parquets() -> dict[str, bytes]:
    """The slice in two parquet files, by their official paths."""
    train, test = read_slice(mnist.MNIST)
    return {
        "mnist/train-00000-of-00001.parquet": parquet(train.images, train.labels),
        "mnist/test-00000-of-00001.parquet": parquet(test.images, test.labels),
    }


@dataclass
class Hub:
    """What the server has, what it was asked for, and how it misbehaves.

    Attributes:
        files: Contents by path.
        pinned: The data set with the digests of the healthy files.
        requests: Method, path in the repository and Range header of each request.
        tamper: Given the contents and the number of GETs so far, the contents to send.
        sends: Given the number of GETs so far, how much to send before hanging up (1 = all).
        fault: Status and X-Error-Code to answer everything with.
    """

    files: dict[str, bytes]
    pinned: HubDataset
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    tamper: Callable[[bytes, int], bytes] = lambda contents, _: contents
    sends: Callable[[int], float] = lambda _: 1.0
    fault: tuple[int, str] | None = None

    def gets(self) -> list[tuple[str, str | None]]:
        return [(path, span) for method, path, span in self.requests if method == "GET"]


class Handler(http.server.BaseHTTPRequestHandler):
    def __init__(self, hub: Hub, *args: object) -> None:
        self.hub = hub
        super().__init__(*args)

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        hub = self.hub
        prefix = f"/datasets/{hub.pinned.repo}/resolve/{hub.pinned.revision}/"
        path, span = self.path.removeprefix(prefix), self.headers["Range"]
        hub.requests.append((self.command, path, span))
        if hub.fault or not self.path.startswith(prefix) or path not in hub.files:
            status, code = hub.fault or (404, "EntryNotFound")
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        healthy = hub.files[path]
        n_gets = len(hub.gets())
        contents = hub.tamper(healthy, n_gets)
        start = int(span.removeprefix("bytes=").rstrip("-")) if span else 0
        self.send_response(206 if span else 200)
        if span:
            last = len(contents) - 1
            self.send_header("Content-Range", f"bytes {start}-{last}/{len(contents)}")
        self.send_header("X-Repo-Commit", hub.pinned.revision)
        self.send_header("ETag", f'"{hashlib.sha256(healthy).hexdigest()}"')
        self.send_header("Content-Length", str(len(contents) - start))
        self.end_headers()
        if self.command == "GET":
            rest = contents[start:]
            self.wfile.write(rest[: int(len(rest) * hub.sends(n_gets))])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(parquets: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A running local hub, at HF_ENDPOINT."""
    train, test = (
        HubFile(path, hashlib.sha256(contents).hexdigest(), rows)
        for (path, contents), rows in zip(parquets.items(), (5000, 500), strict=True)
    )
    hub = Hub(dict(parquets), HubDataset("ylecun/mnist", REVISION, train, test))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, hub))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    # The client's pauses between attempts, and blocks small enough for a cut file to be resumed.
    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1 << 16)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    huggingface_hub.close_session()
    yield hub
    huggingface_hub.close_session()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """An empty cache folder."""
    return tmp_path / "cache"


def idx(array: np.ndarray) -> bytes:
    """An array as an IDX file."""
    header = np.array([0x0800 + array.ndim, *array.shape], ">u4")
    return header.tobytes() + array.tobytes()


@dataclass(frozen=True)
class StandIn:
    """Small files pinned in place of a data set's official ones: where, what, and the record."""

    folder: Path
    arrays: list[np.ndarray]
    of: Official


@pytest.fixture(params=["mnist", "fashion_mnist"])
def official(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> StandIn:
    """Stand-ins for the official files of each data set: folder, arrays and record."""
    module = {"mnist": mnist, "fashion_mnist": fashion_mnist}[request.param]
    real: Official = getattr(module, request.param.upper())
    rng = np.random.default_rng(0)
    arrays: list[np.ndarray] = []
    for n in (30, 20):
        arrays += [rng.integers(0, 256, (n, 28, 28), np.uint8), np.arange(n, dtype=np.uint8) % 10]
        rng.shuffle(arrays[-1])
    folder = tmp_path / "idx"
    folder.mkdir()
    digests = {}
    for name, array in zip(real.sha256, arrays, strict=True):
        (folder / name).write_bytes(idx(array))
        digests[name] = hashlib.sha256(idx(array)).hexdigest()
    of = dataclasses.replace(
        real, sha256=digests, slice_train=5, slice_test=3, slice_path=tmp_path / "slice.xz"
    )
    monkeypatch.setattr(module, request.param.upper(), of)
    monkeypatch.setenv(of.folder, str(folder))
    return StandIn(folder, arrays, of)
