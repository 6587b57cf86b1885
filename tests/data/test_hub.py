from __future__ import annotations

import dataclasses
import errno
import hashlib
import socket
from pathlib import Path

import numpy as np
import pytest

from leaveout.data import hub as hub_source
from leaveout.data import sources
from leaveout.data.raw import RawDataset
from leaveout.errors import LeaveoutError

ARRAYS = ("train_inputs", "train_labels", "test_inputs", "test_labels", "train_id", "test_id")


def bundled(n_train: int, n_test: int, classes: tuple[int, ...] | None = None) -> RawDataset:
    return sources.load("mnist", "bundled", n_train, n_test, classes=classes)


def assert_same(ours: RawDataset, bundled: RawDataset) -> None:
    for name in ARRAYS:
        assert getattr(ours, name).dtype == getattr(bundled, name).dtype
        np.testing.assert_array_equal(getattr(ours, name), getattr(bundled, name))


def flip(contents: bytes, _: int = 0) -> bytes:
    middle = len(contents) // 2
    return contents[:middle] + bytes([contents[middle] ^ 1]) + contents[middle + 1 :]


def held(cache: Path) -> list[Path]:
    """Whatever a reader of the cache could take for a download."""
    everything = [*cache.rglob("blobs/*"), *cache.rglob("*.parquet")]
    return [path for path in everything if not path.name.endswith(".incomplete")]


def test_download_equals_the_bundled_slice_bit_for_bit(hub, cache):
    ours = hub_source.load(5000, 500, cache, hub.pinned)
    assert_same(ours, bundled(5000, 500))
    assert ours.provenance["source"] == "hub"
    assert ours.provenance["revision"].endswith(hub.pinned.revision)
    assert set(ours.provenance["sha256"].values()) == {
        hashlib.sha256(contents).hexdigest() for contents in hub.files.values()
    }


def test_fewer_samples_are_the_first(hub, cache):
    assert_same(hub_source.load(7, 3, cache, hub.pinned), bundled(7, 3))


def test_samples_of_some_classes(hub, cache):
    ours = hub_source.load(70, 12, cache, hub.pinned, classes=(7, 1))
    assert_same(ours, bundled(70, 12, classes=(7, 1)))
    with pytest.raises(LeaveoutError, match=r"n_train: 1114 is more than the 1113 of .* 7, 1"):
        hub_source.load(1114, 12, cache, hub.pinned, classes=(7, 1))


def test_second_call_makes_no_request(hub, cache):
    first = hub_source.load(7, 3, cache, hub.pinned)
    hub.requests.clear()
    assert_same(hub_source.load(7, 3, cache, hub.pinned), first)
    assert hub.requests == []


def test_a_cut_connection_is_resumed(hub, cache):
    hub.sends = lambda n_gets: 0.5 if n_gets == 1 else 1.0
    assert_same(hub_source.load(5000, 500, cache, hub.pinned), bundled(5000, 500))
    (_, first), (_, second), _ = hub.gets()
    assert first is None
    assert int(second.removeprefix("bytes=").rstrip("-")) > 0


def test_a_connection_cut_for_good_leaves_nothing_taken_for_whole(hub, cache):
    hub.sends = lambda n_gets: 0.5 if n_gets == 1 else 0.0
    with pytest.raises(LeaveoutError, match=r"train-.*did not deliver.*source: bundled"):
        hub_source.load(7, 3, cache, hub.pinned)
    assert held(cache) == []
    hub.sends = lambda _: 1.0
    assert_same(hub_source.load(7, 3, cache, hub.pinned), bundled(7, 3))


def test_a_flipped_byte_is_refused_and_not_kept(hub, cache):
    file = hub.pinned.train
    hub.tamper = flip
    with pytest.raises(LeaveoutError, match="downloaded twice") as caught:
        hub_source.load(7, 3, cache, hub.pinned)
    found = hashlib.sha256(flip(hub.files[file.path])).hexdigest()
    assert all(text in str(caught.value) for text in (file.path, file.sha256, found))
    assert len(hub.gets()) == 2
    assert held(cache) == []
    hub.tamper = lambda contents, _: contents
    assert_same(hub_source.load(7, 3, cache, hub.pinned), bundled(7, 3))


def test_a_byte_flipped_once_is_mended_by_the_second_download(hub, cache):
    hub.tamper = lambda contents, n_gets: flip(contents) if n_gets == 1 else contents
    assert_same(hub_source.load(7, 3, cache, hub.pinned), bundled(7, 3))
    assert [path for path, _ in hub.gets()].count(hub.pinned.train.path) == 2


def test_a_cached_file_damaged_later_is_fetched_again(hub, cache):
    path = hub_source.fetch(hub.pinned, hub.pinned.train, cache)
    path.write_bytes(flip(path.read_bytes()))
    hub_source.fetch(hub.pinned, hub.pinned.train, cache)
    assert path.read_bytes() == hub.files[hub.pinned.train.path]


@pytest.mark.parametrize(
    ("status", "code", "why"),
    [
        (404, "RevisionNotFound", "no such revision"),
        (404, "RepoNotFound", "no such data set"),
        (404, "EntryNotFound", "no such file"),
        (401, "", "no such data set, or not for you"),
        (503, "", "did not deliver"),
    ],
)
def test_a_refusal_says_why_and_what_to_do(hub, cache, status, code, why):
    hub.fault = (status, code)
    with pytest.raises(LeaveoutError, match=f"{why}.*source: bundled") as caught:
        hub_source.load(7, 3, cache, hub.pinned)
    assert hub.pinned.train.path in str(caught.value)
    assert hub.pinned.revision in str(caught.value)
    assert held(cache) == []


def test_the_test_file_alone_missing_is_named(hub, cache):
    del hub.files[hub.pinned.test.path]
    with pytest.raises(LeaveoutError, match=r"mnist/test-.*no such file"):
        hub_source.load(7, 3, cache, hub.pinned)


def test_no_network(hub, cache, monkeypatch):
    with socket.socket() as closed:  # bound but not listening: connections are refused
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(LeaveoutError, match=r"refused.*check the network.*source: bundled"):
            hub_source.load(7, 3, cache, hub.pinned)
    assert hub.requests == []
    assert held(cache) == []


def test_a_malformed_endpoint(hub, cache, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "localhost")
    with pytest.raises(LeaveoutError, match=r"did not deliver.*protocol"):
        hub_source.load(7, 3, cache, hub.pinned)


def test_offline_uses_the_cache_and_only_the_cache(hub, cache, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(LeaveoutError, match=r"HF_HUB_OFFLINE is set.*source: bundled"):
        hub_source.load(7, 3, cache, hub.pinned)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    hub_source.load(7, 3, cache, hub.pinned)
    hub.requests.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert_same(hub_source.load(7, 3, cache, hub.pinned), bundled(7, 3))
    assert hub.requests == []


def test_a_full_disk(hub, cache, monkeypatch):
    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hub_source, "hf_hub_download", full)
    with pytest.raises(LeaveoutError, match="the disk is full; free some space"):
        hub_source.load(7, 3, cache, hub.pinned)


def test_pixels_other_than_the_official_ones_are_refused(hub, cache):
    train, test = hub.pinned.train, hub.pinned.test
    # A sound file under its right digest, but with the test images in it.
    hub.files[train.path] = hub.files[test.path]
    wrong = dataclasses.replace(
        hub.pinned, train=dataclasses.replace(train, sha256=test.sha256, rows=500)
    )
    with pytest.raises(LeaveoutError, match="training set: images differ from the official"):
        hub_source.load(7, 3, cache, wrong)


@pytest.mark.parametrize(
    ("n_train", "n_test", "key"),
    [(60_001, 1, "n_train: 60001"), (1, 10_001, "n_test: 10001"), (0, 1, "n_train: 0")],
)
def test_more_samples_than_mnist_has_are_refused_without_a_request(
    hub, cache, n_train, n_test, key
):
    with pytest.raises(LeaveoutError, match=key):
        sources.load("mnist", "hub", n_train, n_test, cache)
    assert hub.requests == []


def test_sources_fetch_the_pinned_files_into_the_given_cache(hub, cache):
    # The right revision, with files of ours: refused by the official digest.
    hub.pinned = dataclasses.replace(hub.pinned, revision=hub_source.MNIST.revision)
    with pytest.raises(LeaveoutError, match=f"expected {hub_source.MNIST.train.sha256}"):
        sources.load("mnist", "hub", 7, 3, cache)
    assert {path for _, path, _ in hub.requests} == {hub_source.MNIST.train.path}
    assert (cache / "datasets--ylecun--mnist").is_dir()
