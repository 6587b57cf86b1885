from __future__ import annotations

import errno
import json
import os
import pickle
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save, save_file

from leaveout.errors import LeaveoutError
from leaveout.store import artefacts
from leaveout.store.artefacts import CorruptArtefactError, Stream, atomic_path, read, write

TENSORS: dict[str, np.ndarray] = {
    "score": np.arange(6, dtype=np.float32).reshape(3, 2) / 7,
    "mask": np.array([[1, 0, 1]], dtype=np.uint8),
    "train_id": np.array([4, 2, 9], dtype=np.int64),
    "empty": np.zeros((0, 2), dtype=np.float64),
}
DIMS = {
    "score": ("train", "test"),
    "mask": ("subset", "train"),
    "train_id": ("train",),
    "empty": ("none", "test"),
}
META = {"setting": "tiny", "params": {"damping": 0.1, "10": None, "9": [1, "ü"]}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    out = tmp_path / "a.safetensors"
    write(out, "score", TENSORS, DIMS, META)
    return out


def test_round_trip(path: Path) -> None:
    found = read(path, "score")
    assert (found.path, found.kind, found.dims, found.meta) == (path, "score", DIMS, META)
    assert set(found.tensors) == set(TENSORS)
    for name, array in TENSORS.items():
        assert found.tensors[name].dtype == array.dtype
        np.testing.assert_array_equal(found.tensors[name], array)
    assert read(str(path)).sha256 == found.sha256
    assert [p.name for p in path.parent.iterdir()] == ["a.safetensors"]


def test_nan_and_infinity_survive_in_arrays_and_header(tmp_path: Path) -> None:
    odd = np.array([np.nan, -np.inf, -0.0])
    out = tmp_path / "a.safetensors"
    write(
        out,
        "score",
        {"x": odd},
        {"x": ("i",)},
        {"value": float("inf"), "by number": {10: "a", 9: "b"}},
    )
    found = read(out)
    assert found.tensors["x"].tobytes() == odd.tobytes()
    assert found.meta == {"value": float("inf"), "by number": {"10": "a", "9": "b"}}


def test_arrays_in_any_layout(tmp_path: Path) -> None:
    array = np.arange(24.0).reshape(4, 6)
    out = tmp_path / "a.safetensors"
    views = {"t": array.T, "f": np.asfortranarray(array), "s": array[::2, ::-3]}
    write(out, "score", views, {name: (f"{name}0", f"{name}1") for name in views}, {})
    for name, value in read(out).tensors.items():
        np.testing.assert_array_equal(value, views[name])


def test_written_twice_is_the_same_byte_for_byte(path: Path, tmp_path: Path) -> None:
    for number in range(5):  # safetensors orders several metadata entries at random
        again = tmp_path / f"{number}.safetensors"
        write(again, "score", dict(reversed(TENSORS.items())), DIMS, META)
        assert again.read_bytes() == path.read_bytes()


def test_the_digest_is_of_the_contents_alone(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "b.safetensors"
    write(other, "lds", TENSORS, DIMS, {"setting": "other"})
    assert read(other).sha256 == read(path).sha256
    variants: list[dict[str, np.ndarray]] = [
        {"score": TENSORS["score"].reshape(2, 3)},
        {"score": TENSORS["score"].astype(np.float64)},
        {"score": TENSORS["score"] + np.float32(1e-7)},
        {"renamed": TENSORS["score"]},
        {"score": TENSORS["score"].view(np.int32)},
    ]
    digests = {artefacts.digest(v) for v in [{"score": TENSORS["score"]}, *variants]}
    assert len(digests) == 6


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ({**DIMS, "score": ("test", "train")}, "dim t.* has size"),
        ({**DIMS, "score": ("train",)}, "score has shape"),
        ({"score": ("train", "test")}, "dims name"),
        ({**DIMS, "extra": ()}, "dims name"),
    ],
)
def test_dims_that_do_not_fit(tmp_path: Path, dims: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "a.safetensors", "score", TENSORS, dims, {})
    assert list(tmp_path.iterdir()) == []


def test_truncated(path: Path) -> None:
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptArtefactError, match=r"a\.safetensors: .*leaveout|that wrote it"):
            read(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(CorruptArtefactError):
        read(path)


@pytest.mark.parametrize("flip", [0x01, 0x20])
def test_a_flipped_bit_anywhere(path: Path, flip: int) -> None:
    whole = path.read_bytes()
    neutral = []
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= flip
        path.write_bytes(changed)
        try:
            found = read(path)
        except CorruptArtefactError:
            continue
        assert found.meta == META
        assert found.dims == DIMS
        neutral.append(whole[place : place + 1])
    # JSON's own freedom: the escape \u00fc may be written \u00FC
    assert neutral in ([], [b"f", b"c"])


def test_wrong_kind(path: Path) -> None:
    with pytest.raises(CorruptArtefactError, match="kind 'score', expected 'lds'"):
        read(path, "lds")


def test_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = r"x y\.safetensors: no such file\. Make it with: snakemake 'results/x y\.safetensors'$"
    for place in ("results", tmp_path / "results", "results/../results"):
        with pytest.raises(LeaveoutError, match=made):
            read(Path(place) / "x y.safetensors")
    with pytest.raises(LeaveoutError, match=r"x\.safetensors: no such file$"):
        read(tmp_path / "x.safetensors")
    with pytest.raises(LeaveoutError, match="no such file"):
        read(tmp_path)


def test_a_foreign_safetensors_file(tmp_path: Path) -> None:
    out = tmp_path / "foreign.safetensors"
    save_file({"x": np.ones(3)}, out)
    with pytest.raises(CorruptArtefactError, match="no leaveout header"):
        read(out)
    save_file({"x": np.ones(3)}, out, metadata={"leaveout": "[1, 2]"})
    with pytest.raises(CorruptArtefactError, match="no leaveout header"):
        read(out)


def test_a_future_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "a.safetensors"
    monkeypatch.setattr(artefacts, "FORMAT", "leaveout/99")
    write(out, "score", TENSORS, DIMS, META)
    monkeypatch.undo()
    with pytest.raises(CorruptArtefactError, match="format leaveout/99, this version reads"):
        read(out)


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("trapped",))


def test_a_pickle_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "a.safetensors"
    out.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CorruptArtefactError):
        read(out)
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize("junk", [b"", b"{}", b"\xff" * 100, b"\0" * 100, b"<html></html>" * 9])
def test_junk(tmp_path: Path, junk: bytes) -> None:
    out = tmp_path / "a.safetensors"
    out.write_bytes(junk)
    with pytest.raises(CorruptArtefactError):
        read(out)


def test_a_failure_leaves_the_old_file_and_nothing_else(path: Path) -> None:
    old = path.read_bytes()

    class BrokenError(Exception):
        pass

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        assert temporary.suffix == path.suffix
        assert temporary.parent == path.parent
        raise BrokenError

    with pytest.raises(BrokenError), atomic_path(path) as temporary:
        fail(temporary)
    assert path.read_bytes() == old
    assert list(path.parent.iterdir()) == [path]


def test_two_writers_at_once_do_not_meet(path: Path) -> None:
    with atomic_path(path) as one, atomic_path(path) as two:
        one.write_text("one")
        two.write_text("two")
        assert one != two
    assert path.read_text() == "one"  # the last to finish
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("code", "remedy"),
    [(errno.ENOSPC, "free some space"), (errno.EDQUOT, "free some space"), (errno.EROFS, "run in")],
)
def test_a_write_that_fails_names_file_and_remedy(path: Path, code: int, remedy: str) -> None:
    old = path.read_bytes()

    def fail() -> Iterator[np.ndarray]:
        yield TENSORS["score"][:2]
        raise OSError(code, os.strerror(code))

    half = TENSORS | {"score": Stream(np.dtype(np.float32), (3, 2), fail())}
    with pytest.raises(LeaveoutError, match=rf"could not write .*a\.safetensors: .*{remedy}"):
        write(path, "score", half, DIMS, META)
    assert path.read_bytes() == old
    assert list(path.parent.iterdir()) == [path]


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if done.returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_really_full(full_disk: Path) -> None:
    write(full_disk / "small.safetensors", "score", TENSORS, DIMS, META)
    big = {"x": np.zeros(100_000)}
    with pytest.raises(LeaveoutError, match=r"big\.safetensors: the disk is full: free some space"):
        write(full_disk / "big.safetensors", "score", big, {"x": ("i",)}, {})
    assert [p.name for p in full_disk.iterdir()] == ["small.safetensors"]
    read(full_disk / "small.safetensors", "score")


@pytest.mark.parametrize("below", ["out.safetensors", "deeper/out.safetensors"])
def test_a_folder_that_is_a_file(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LeaveoutError, match=r"could not write .*out\.safetensors"):
        write(tmp_path / "file" / below, "score", TENSORS, DIMS, META)


def test_a_missing_folder_is_made(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b" / "out.safetensors"
    write(out, "score", TENSORS, DIMS, META)
    read(out, "score")


CUT_OFF = """
import sys, time
import numpy as np
from leaveout.store import artefacts

def blocks():
    for start in range(0, 10000, 1000):
        if start == int(sys.argv[2]):
            print("so far", flush=True)
            time.sleep(60)
        yield np.arange(start, start + 1000.0)
    print("so far", flush=True)
    time.sleep(60)

stream = artefacts.Stream(np.dtype(np.float64), (10000,), blocks())
artefacts.write(sys.argv[1], "score", {"x": stream}, {"x": ("i",)}, {})
"""


@pytest.mark.parametrize("before", [True, False], ids=["over an old file", "anew"])
@pytest.mark.parametrize("after", ["5000", "10000"], ids=["half of it", "all but the digests"])
def test_killed_in_the_middle_of_a_write(tmp_path: Path, before: bool, after: str) -> None:
    out = tmp_path / "a.safetensors"
    if before:
        write(out, "score", TENSORS, DIMS, META)
    child = subprocess.Popen(
        [sys.executable, "-c", CUT_OFF, str(out), after], stdout=subprocess.PIPE, text=True
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "so far\n"
        os.kill(child.pid, signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    left = [p for p in tmp_path.iterdir() if p != out]
    assert len(left) == 1
    assert left[0].name.startswith(".")
    assert left[0].stat().st_size > 10_000
    with pytest.raises(CorruptArtefactError):
        read(left[0])
    if before:
        assert read(out, "score").meta == META
    else:
        assert not out.exists()
    write(out, "score", TENSORS, DIMS, META)  # and the same command again mends it
    read(out, "score")


def test_the_header_is_plain_json(path: Path) -> None:
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(json.loads(raw[8 : 8 + size])["__metadata__"]["leaveout"])
    assert (header["kind"], header["meta"]) == ("score", META)


def blocks(array: np.ndarray, size: int) -> Stream:
    """An array as a stream of blocks of ``size`` rows."""
    parts = (array[start : start + size] for start in range(0, len(array), size))
    return Stream(array.dtype, array.shape, parts)


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_a_stream_gives_the_file_that_the_whole_array_gives(
    path: Path, tmp_path: Path, size: int
) -> None:
    out = tmp_path / "streamed.safetensors"
    streams = {name: blocks(array, size) for name, array in TENSORS.items()}
    write(out, "score", streams, DIMS, META)
    assert out.read_bytes() == path.read_bytes()


def test_the_file_is_what_the_safetensors_library_writes(tmp_path: Path) -> None:
    kinds = "?BbhHeiIfdqQ"  # every dtype, in numpy's letters
    tensors = {f"{kind}ü": np.arange(5).astype(kind) for kind in kinds} | TENSORS
    dims = {name: DIMS.get(name, (name,)) for name in tensors}
    out = tmp_path / "a.safetensors"
    write(out, "score", tensors, dims, META)
    raw = out.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    metadata = json.loads(raw[8 : 8 + size])["__metadata__"]
    assert raw == save(tensors, metadata=metadata)
    header = json.loads(metadata["leaveout"])
    assert header["sha256"] == artefacts.digest(tensors) == read(out).sha256


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([np.zeros((2, 2), np.float32)], "blocks have 2 rows, the whole has 3"),
        ([np.zeros((4, 2), np.float32)], "blocks have 4 rows, the whole has 3"),
        ([np.zeros((3, 1), np.float32)], r"a block is float32 \(3, 1\)"),
        ([np.zeros((3, 2))], "a block is float64"),
    ],
)
def test_blocks_that_do_not_make_up_the_array(
    path: Path, parts: list[np.ndarray], message: str
) -> None:
    old = path.read_bytes()
    stream = Stream(np.dtype(np.float32), (3, 2), parts)
    with pytest.raises(ValueError, match=message):
        write(path, "score", TENSORS | {"score": stream}, DIMS, META)
    assert path.read_bytes() == old
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("block_bytes", [1, 20, 1 << 20])
def test_rows_of_an_array_left_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    monkeypatch.setattr(artefacts, "BLOCK_BYTES", block_bytes)
    array = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
    out = tmp_path / "a.safetensors"
    tensors = {"score": array, "mask": np.ones((2, 50), np.uint8)}
    write(out, "score", tensors, {name: DIMS[name] for name in tensors}, META)
    found = read(out, "score", leave=["score"])
    assert list(found.tensors) == ["mask"]
    assert found.sha256 == artefacts.digest(tensors)
    rows = found.rows["score"]
    assert (rows.shape, rows.dtype) == ((50, 3), np.float32)
    np.testing.assert_array_equal(rows.whole(), array)
    order = np.random.default_rng(1).permutation(50)
    blocks = list(rows.blocks(order))
    np.testing.assert_array_equal(np.concatenate([order[part] for part, _ in blocks]), order)
    np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), array[order])
    assert len(blocks) == {1: 50, 20: 50, 1 << 20: 1}[block_bytes]  # a row takes 12 bytes
    for some in ([7, 8, 9, 30, 2, 3, 3, 0, 49], [49, 48], []):
        positions = np.array(some, dtype=np.int64)
        np.testing.assert_array_equal(rows.take(positions), array[positions])
    out.write_bytes(out.read_bytes()[:-104])  # the mask and a score
    with pytest.raises(CorruptArtefactError, match="truncated while it was read"):
        rows.whole()


def test_an_array_left_on_disk_is_verified_all_the_same(path: Path) -> None:
    whole = path.read_bytes()
    place = whole.index(TENSORS["score"].tobytes())
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(CorruptArtefactError, match="do not match the sha256"):
        read(path, "score", leave=["score"])


def message(path: Path | str, kind: str | None = None) -> str:
    with pytest.raises(CorruptArtefactError) as error:
        read(path, kind)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 700
    return str(error.value)


@pytest.fixture
def result(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The artefact as a result of a working folder, truncated."""
    monkeypatch.chdir(path.parent)
    out = Path("results/tiny/a.safetensors")
    out.parent.mkdir(parents=True)
    out.write_bytes(path.read_bytes()[:-1])
    return out


def test_only_a_result_that_leaveout_wrote_is_to_be_made_anew(result: Path) -> None:
    said = message(result)
    assert said.startswith("results/tiny/a.safetensors: truncated or damaged (")
    assert said.endswith("). Make it anew with: snakemake results/tiny/a.safetensors")
    assert message(result.absolute()).endswith("snakemake results/tiny/a.safetensors")
    elsewhere = Path("a.safetensors")
    elsewhere.write_bytes(result.read_bytes())
    assert message(elsewhere).endswith("). Make it anew with the command that wrote it.")


@pytest.mark.parametrize("name", ["scores.npy", "scores.safetensors", "results/scores.npy"])
def test_a_users_own_file_is_never_to_be_deleted(result: Path, name: str) -> None:
    if name.endswith(".npy"):
        np.save(name, np.ones((3, 2)))
    else:
        save_file({"score": np.ones((3, 2))}, name, metadata={"made by": "another tool"})
    said = message(name, "score")
    assert said.startswith(f"{name}: it ")
    assert "Expected is a safetensors file of kind 'score' that leaveout wrote." in said
    assert "elete" not in said
    assert "anew" not in said
    if name.startswith("results"):
        assert said.endswith(f" Move this one elsewhere if it is yours; then: snakemake {name}")


def test_a_file_in_the_wrong_place_is_not_to_be_made_anew(result: Path) -> None:
    write(result, "score", TENSORS, DIMS, META)
    assert message(result, "lds").endswith("expected 'lds'. Give a file of that kind.")


def test_a_link_from_the_results_is_a_file_elsewhere(result: Path, path: Path) -> None:
    path.write_bytes(result.read_bytes())
    result.unlink()
    result.symlink_to(path)
    assert "snakemake" not in message(result)


def hostile(path: Path, header: str) -> None:
    save_file({"x": np.ones(3)}, path, metadata={"leaveout": header})


@pytest.mark.parametrize(
    "header", ["[" * 200_000, '{"a":' * 200_000, '{"meta": ' + "[" * 900 + "]" * 900 + "}"]
)
def test_a_header_nested_deeply(tmp_path: Path, header: str) -> None:
    out = tmp_path / "a.safetensors"
    hostile(out, header)
    assert "a.safetensors: it has no leaveout header" in message(out)


def test_a_header_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artefacts, "JSON_LIMIT", 1000)
    out = tmp_path / "a.safetensors"
    hostile(out, "1" * 1001)
    assert re.search(r"its header has \d+ bytes, of which at most 1000 are read", message(out))
    with pytest.raises(ValueError, match=r"b\.safetensors: a header of \d+ bytes; at most 1000"):
        write(tmp_path / "b.safetensors", "score", TENSORS, DIMS, {"text": "a" * 1000})
    assert not (tmp_path / "b.safetensors").exists()
    with pytest.raises(ValueError, match="1001 characters of JSON, of which at most 1000 are"):
        artefacts.parse("1" * 1001)


@pytest.mark.parametrize(
    "change",
    [{"dims": {}}, {"dims": 3}, {"dims": {"x": 3}}, {"dims": {"x": []}}, {"meta": []},
     {"dims": {"y": ["i"]}}, {"format": "x" * 5000}, {"kind": "two\nlines"}],
)  # fmt: skip
def test_a_header_of_the_wrong_shape(tmp_path: Path, change: dict[str, Any]) -> None:
    out = tmp_path / "a.safetensors"
    header: dict[str, Any] = {"format": artefacts.FORMAT, "kind": "score", "dims": {"x": ["i"]}}
    header |= {"sha256": artefacts.digest({"x": np.ones(3)}), "meta": {}} | change
    header["header_sha256"] = artefacts._header_sha256(header)
    hostile(out, json.dumps(header))
    assert "a.safetensors: it" in message(out, "score")


def test_an_empty_array_that_claims_many_rows(tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    shapes = {"x": (1 << 40, 0), "y": (0, 1 << 62)}
    entries = {
        n: {"dtype": "U8", "shape": shape, "data_offsets": [0, 0]} for n, shape in shapes.items()
    }
    for leave in ((), artefacts.ALL):
        header: dict[str, Any] = {"format": artefacts.FORMAT, "kind": "score", "sha256": "0"}
        header |= {"dims": {"x": ["i", "j"], "y": ["k", "l"]}, "meta": {}}
        header["header_sha256"] = artefacts._header_sha256(header)
        text = json.dumps({"__metadata__": {"leaveout": json.dumps(header)}, **entries}).encode()
        out.write_bytes(len(text).to_bytes(8, "little") + text)
        with pytest.raises(CorruptArtefactError, match=r"a\.safetensors: it"):
            read(out, leave=leave)
