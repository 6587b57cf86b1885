from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from leaveout.errors import LeaveoutError
from leaveout.store import artefacts, stamps
from leaveout.store.artefacts import CorruptArtefactError


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


def test_a_missing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        LeaveoutError, match=r"no such file\. Make it with: snakemake results/a.csv"
    ):
        stamps.source("results/a.csv")
    with pytest.raises(LeaveoutError, match=r"none\.csv: no such file$"):
        stamps.source(tmp_path / "none.csv")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"format": "leaveout-stamp/9"}', '{"format": "leaveout-stamp/1"}',
     '{"format": "leaveout-stamp/1", "key": "k", "spec": "s", "sha256": "h", "inputs": {"a": 1}}',
     "[" * 200_000, '{"format": ' * 200_000, '{"format": "' + "x" * 5000 + '"}', "\ufeff{}"],
)  # fmt: skip
def test_a_stamp_that_is_none(csv: Path, text: str) -> None:
    stamps.beside(csv).write_text(text)
    with pytest.raises(CorruptArtefactError, match="what it was made from can't be read") as error:
        stamps.read(csv)
    assert f"{csv}: " in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 700


def test_a_stamp_is_bounded(csv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stamps, "JSON_LIMIT", 1000)
    stamps.beside(csv).write_text(" " * 1001)
    with pytest.raises(CorruptArtefactError, match="has 1001 bytes, of which at most 1000 are"):
        stamps.read(csv)


def test_a_stamp_that_is_a_pipe(csv: Path) -> None:
    os.mkfifo(stamps.beside(csv))
    with pytest.raises(CorruptArtefactError, match=r"a\.csv\.stamp is no regular file"):
        stamps.read(csv)


@pytest.mark.parametrize("header", ["[" * 200_000, '{"meta": {"inputs": {}}}', "[]", '{"meta": 1}'])
def test_an_artefact_whose_stamp_is_none(tmp_path: Path, header: str) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"x": np.ones(3)}, path, metadata={"leaveout": header})
    with pytest.raises(CorruptArtefactError, match=r"a\.safetensors: what it was made from can't"):
        stamps.read(path)


def test_what_leaveout_wrote_is_known_by_its_stamp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("results/a b.csv")
    path.parent.mkdir()
    path.write_text("x\n")
    stamps.write(path, "key", {})
    path.write_text("y\n")
    with pytest.raises(CorruptArtefactError, match=r"anew with: snakemake 'results/a b\.csv'"):
        stamps.source(path)
    stamps.beside(path).write_text("mine")
    with pytest.raises(CorruptArtefactError, match="Move this one elsewhere if it is yours"):
        stamps.source(path)


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A published table, pulled without its stamp."""
    monkeypatch.chdir(tmp_path)
    path = Path("results/a.csv")
    path.parent.mkdir()
    path.write_text("x\n")
    fields = {"key": "k", "spec": "s", "sha256": stamps.sha256_of(path)}
    stamps.PUBLISHED.parent.mkdir(parents=True)
    stamps.PUBLISHED.write_text(json.dumps({"results/a.csv": fields}))
    return path


def test_a_published_file_has_its_stamp_from_the_index(published: Path) -> None:
    found = stamps.Stamp("k", {}, "s", stamps.sha256_of(published))
    assert stamps.read(published) == stamps.read(published.absolute()) == found
    assert stamps.source(published) == stamps.Source("s", found.sha256)
    stamps.write(published, "key", {})  # its own counts
    own = stamps.read(published)
    assert own is not None
    assert own.key == "key"


def test_another_file_than_the_one_published_has_no_stamp(published: Path) -> None:
    published.write_text("y\n")
    assert stamps.read(published) is None
    other = Path("results/b.csv")
    other.write_text("x\n")
    assert stamps.read(other) is None


def test_the_index_is_read_again_when_it_is_written_again(published: Path) -> None:
    assert stamps.read(published) is not None
    stamps.PUBLISHED.write_text("{}")
    os.utime(stamps.PUBLISHED, ns=(1, 1))
    assert stamps.read(published) is None
    stamps.PUBLISHED.unlink()
    assert stamps.read(published) is None


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', '{"a": {"key": ""}}', "[" * 200_000])
def test_an_index_that_is_none(published: Path, text: str) -> None:
    stamps.PUBLISHED.write_text(text)
    os.utime(stamps.PUBLISHED, ns=(2, 2))
    with pytest.raises(
        LeaveoutError, match=r"data/published/stamps\.json can't be read .*git chec"
    ):
        stamps.read(published)


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
