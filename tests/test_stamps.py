from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from leaveout import artefacts, stamps
from leaveout.artefacts import CorruptArtefactError
from leaveout.errors import LeaveoutError


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    path = tmp_path / "a.csv"
    path.write_text("x,y\n1,2\n")
    return path


def test_a_file_without_a_stamp_is_a_source(csv: Path) -> None:
    bytes_ = hashlib.sha256(csv.read_bytes()).hexdigest()
    assert stamps.read(csv) is None
    assert stamps.source(csv) == stamps.Source(bytes_, bytes_)


def test_a_stamp_is_read_as_it_was_written(csv: Path, tmp_path: Path) -> None:
    inputs = {"b": stamps.Source("spec-b", "sha-b"), "a": stamps.Source("spec-a", "sha-a")}
    stamps.write(csv, "key", inputs)
    found = stamps.read(csv)
    assert found is not None
    assert (found.key, dict(found.inputs)) == ("key", inputs)
    assert found.spec == hashlib.sha256(b"key\nspec-b\nspec-a").hexdigest()
    assert found.sha256 == hashlib.sha256(csv.read_bytes()).hexdigest()
    assert stamps.source(csv) == stamps.Source(found.spec, found.sha256)
    assert {p.name for p in tmp_path.iterdir()} == {"a.csv", "a.csv.stamp"}


def test_the_spec_follows_key_inputs_and_their_order() -> None:
    specs = [
        stamps.spec_of(*case)
        for case in (("k", ["a", "b"]), ("k", ["b", "a"]), ("l", ["a", "b"]), ("k", ["a"]))
    ]
    assert len(set(specs)) == 4


def test_an_artefact_carries_its_stamp(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    entries = stamps.entries("key", {"d": stamps.Source("s", "h")})
    artefacts.write(path, "lds", {"x": np.arange(3)}, {"x": ("n",)}, entries)
    found = stamps.read(path)
    assert found == stamps.Stamp(
        "key", {"d": stamps.Source("s", "h")}, stamps.spec_of("key", ["s"]),
        artefacts.read(path).sha256,
    )  # fmt: skip
    assert not stamps.beside(path).exists()


def test_an_altered_file_is_refused(csv: Path) -> None:
    stamps.write(csv, "key", {})
    csv.write_text("x,y\n1,3\n")
    with pytest.raises(CorruptArtefactError, match=r"a\.csv: it was altered after it was made"):
        stamps.source(csv)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(LeaveoutError, match=r"no such file\. Make it with: snakemake"):
        stamps.source(tmp_path / "none.csv")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"format": "leaveout-stamp/9"}', '{"format": "leaveout-stamp/1"}',
     '{"format": "leaveout-stamp/1", "key": "k", "spec": "s", "sha256": "h", "inputs": {"a": 1}}'],
)  # fmt: skip
def test_a_stamp_that_is_none(csv: Path, text: str) -> None:
    stamps.beside(csv).write_text(text)
    with pytest.raises(CorruptArtefactError, match="what it was made from can't be read"):
        stamps.read(csv)


def test_an_artefact_without_a_stamp(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    artefacts.write(path, "lds", {"x": np.arange(3)}, {"x": ("n",)}, {})
    with pytest.raises(CorruptArtefactError, match="what it was made from can't be read"):
        stamps.read(path)


def test_a_stamp_has_nothing_of_clock_or_place(csv: Path, tmp_path: Path) -> None:
    stamps.write(csv, "key", {})
    first = stamps.beside(csv).read_bytes()
    (tmp_path / "elsewhere").mkdir()
    other = tmp_path / "elsewhere" / "b.csv"
    other.write_bytes(csv.read_bytes())
    stamps.write(other, "key", {})
    assert stamps.beside(other).read_bytes() == first
    assert set(json.loads(first)) == {"format", "key", "inputs", "spec", "sha256"}
