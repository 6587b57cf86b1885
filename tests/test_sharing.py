from __future__ import annotations

import json
from pathlib import Path

import pytest

from leaveout import sharing, stamps
from leaveout.errors import LeaveoutError
from leaveout.plan import Step

# raw -> a -> b -> c, and c needs d too
STEPS = [
    Step(("results/a",), (), "a"),
    Step(("results/b",), ("results/a",), "b"),
    Step(("results/d",), ("results/a",), "d"),
    Step(("results/c",), ("results/b", "results/d"), "c"),
]


class Remote:
    """A stand-in for DVC: what is on record, and what was asked of it."""

    def __init__(self, contents: dict[str, str]) -> None:
        self.contents = contents
        self.pulled: list[list[str]] = []

    def __call__(self, command: str, *arguments: str, capture: bool = False) -> str:
        if command == "list":
            return json.dumps([{"path": path} for path in self.contents])
        assert command == "pull"
        self.pulled.append(list(arguments))
        for path in arguments:
            Path(path).parent.mkdir(exist_ok=True)
            Path(path).write_text(self.contents[path])
        return ""


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Remote:
    """All of the steps' outputs, published."""
    monkeypatch.chdir(tmp_path)
    Path("results").mkdir()
    for step in STEPS:
        Path(step.outputs[0]).write_text(step.key)
        stamps.write(step.outputs[0], step.key, stamps.sources(step.inputs))
    files = sorted(Path("results").iterdir())
    remote = Remote({str(path): path.read_text() for path in files})
    for path in files:
        path.unlink()
    monkeypatch.setattr(sharing, "_dvc", remote)
    return remote


def asked(remote: Remote) -> list[set[str]]:
    return [{p.removeprefix("results/").removesuffix(".stamp") for p in a} for a in remote.pulled]


def edited(**keys: str) -> list[Step]:
    return [Step(s.outputs, s.inputs, keys.get(s.outputs[0][-1], s.key)) for s in STEPS]


def test_the_target_alone_is_pulled(remote: Remote) -> None:
    assert sharing.restore(STEPS, ["results/c"]) == (["results/c"], [])
    assert asked(remote) == [{"c"}]


def test_a_stale_one_is_searched_behind_but_no_further_than_needed(remote: Remote) -> None:
    pulled, compute = sharing.restore(edited(c="other"), ["results/c"])
    assert compute == ["results/c"]
    assert pulled == ["results/c", "results/b", "results/d"]
    assert asked(remote) == [{"c"}, {"b", "d"}]
    assert not Path("results/a").exists()


def test_what_must_be_computed_is_named(remote: Remote) -> None:
    _, compute = sharing.restore(edited(b="other"), ["results/c"])
    assert compute == ["results/b", "results/c"]
    assert Path("results/a").exists()
    assert Path("results/d").exists()


def test_what_is_not_published_is_computed(remote: Remote) -> None:
    del remote.contents["results/b"]
    assert sharing.restore(edited(c="other"), ["results/c"])[1] == ["results/b", "results/c"]
    assert asked(remote) == [{"c"}, {"a", "d"}]


def test_what_is_there_is_left(remote: Remote) -> None:
    Path("results/b").write_text("mine")
    sharing.restore(edited(c="other"), ["results/c"])
    assert Path("results/b").read_text() == "mine"
    assert all("b" not in paths for paths in asked(remote))


def test_nothing_to_pull(remote: Remote) -> None:
    sharing.restore(STEPS, ["results/c"])
    remote.pulled.clear()
    assert sharing.restore(STEPS, ["results/c"]) == ([], [])
    assert remote.pulled == []


def test_an_unknown_target(remote: Remote) -> None:
    with pytest.raises(LeaveoutError, match="results/x: no job makes it, as configured"):
        sharing.restore(STEPS, ["results/x"])


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path(".dvc").mkdir()
    Path(".dvc/config").write_text(
        "['remote \"inside\"']\n    url = ../data/published\n"
        "['remote \"outside\"']\n    url = ../../elsewhere\n"
        "['remote \"s3\"']\n    url = s3://bucket/leaveout\n"
    )
    return tmp_path


def test_which_remotes_lie_in_the_repository(settings: Path) -> None:
    assert sharing._embedded("inside") == settings / "data/published"
    assert sharing._embedded("outside") is None
    assert sharing._embedded("s3") is None
    Path(".dvc/config.local").write_text("['remote \"s3\"']\n    url = /mnt/store\n")
    assert sharing._embedded("s3") is None
    with pytest.raises(LeaveoutError, match="DVC has no remote 'nowhere'"):
        sharing._embedded("nowhere")


def test_a_program_that_fails_or_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LeaveoutError, match=r"`false` failed"):
        sharing._run("false")
    with pytest.raises(LeaveoutError, match="no-such-program is not installed"):
        sharing._run("no-such-program")
