from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from leaveout.config import Setting
from leaveout.store import artefacts, stamps
from leaveout.workflow import review as freshness
from leaveout.workflow.review import STALE_MARK
from leaveout.workflow.step import Input, Job, Step

# raw -> a -> (b, c) -> d, with a an artefact and b made by a job with two outputs
KEYS = {"a": '{"step": "a", "x": 1}', "b": '{"step": "b"}', "c": "{}", "d": '{"step": "d"}'}
Make = Callable[..., None]
NO_SETTING: dict[str, Setting] = {}


def job(outputs: tuple[str, ...], inputs: tuple[str, ...], key: str) -> Job:
    """Return a job with a key of our own."""
    made = {str(k): path for k, path in enumerate(outputs)}
    read = {"read": Input("what it reads", "", many=True)}
    step = Step("own", "", made, read, lambda plan: [], "none:none", lambda job: {})
    found = Job(step, {}, {}, NO_SETTING.__getitem__, None, {"read": inputs}, made)
    vars(found)["key"] = key
    return found


def steps(**keys: str) -> list[Job]:
    key = {**KEYS, **keys}
    return [
        job(("a.safetensors",), ("raw.csv",), key["a"]),
        job(("b.csv", "b.json"), ("a.safetensors",), key["b"]),
        job(("c.csv",), ("a.safetensors",), key["c"]),
        job(("d.csv",), ("b.csv", "c.csv"), key["d"]),
    ]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Return a function that runs steps, as the workflow would; all of them have been run."""
    monkeypatch.chdir(tmp_path)
    Path("raw.csv").write_text("raw")

    def run(*names: str, content: str = "content", **keys: str) -> None:
        for step in steps(**keys):
            for path in step.makes:
                if names and path[0] not in names:
                    continue
                inputs = stamps.sources(step.reads)
                if path.endswith(".safetensors"):
                    values = np.frombuffer(content.encode(), dtype=np.uint8)
                    meta = stamps.entries(step.key, inputs)
                    artefacts.write(path, "lds", {"x": values}, {"x": ("n",)}, meta)
                else:
                    Path(path).write_text(f"{path} {content}")
                    stamps.write(path, step.key, inputs)

    run()
    return run


ALL = {"a.safetensors", "b.csv", "b.json", "c.csv", "d.csv"}


def stale(exact: bool = False, **keys: str) -> dict[str, str]:
    return freshness.review(steps(**keys), exact).stale


def test_all_good(make: Make) -> None:
    assert freshness.review(steps()) == freshness.Review({}, frozenset(ALL), frozenset(ALL))


def test_what_was_made_from_something_absent_is_settled(make: Make) -> None:
    Path("a.safetensors").unlink()
    assert freshness.review(steps()).settled == ALL - {"a.safetensors"}
    Path("b.csv").unlink()  # b.json is good, and its job has to run
    found = freshness.review(steps())
    assert found.good - found.settled == {"b.json"}
    assert found.settled == {"c.csv", "d.csv"}


def test_nothing_is_settled_below_what_has_to_be_made_anew(make: Make) -> None:
    Path("c.csv").write_text("altered")
    found = freshness.review(steps(), exact=True)
    assert found.good == ALL - {"c.csv", "d.csv"}
    assert found.settled == found.good
    found = freshness.review(steps())  # d.csv has the specification that is wanted
    assert found.good == ALL - {"c.csv"}
    assert found.settled == ALL - {"c.csv", "d.csv"}
    Path("b.csv").write_text("altered")  # the job's other output has the same fate
    assert freshness.review(steps()).settled == {"a.safetensors"}


def test_a_key_makes_all_below_stale_and_is_described(make: Make) -> None:
    found = stale(a='{"step": "a", "x": 2}')
    assert found == {"a.safetensors": "x: 1 -> 2", **dict.fromkeys(ALL - {"a.safetensors"}, "")}
    assert stale(c='{"y": 1}') == {"c.csv": "y: none -> 1", "d.csv": ""}


def test_a_source_makes_all_below_stale(make: Make) -> None:
    Path("raw.csv").write_text("other")
    assert set(stale()) == ALL


def test_a_source_touched_does_not(make: Make) -> None:
    os.utime("raw.csv")
    assert stale() == {}


def test_nothing_stays_in_the_future(make: Make) -> None:
    for path in (*ALL, "raw.csv"):
        os.utime(path, (4e9, 4e9))
    assert stale() == {}
    assert len({Path(path).stat().st_mtime_ns for path in (*ALL, "raw.csv")}) == 1
    assert Path("raw.csv").stat().st_mtime <= time.time()


@pytest.mark.parametrize("gone", ["a.safetensors", "b.csv", "c.csv"])
def test_what_is_not_there_is_neither(make: Make, gone: str) -> None:
    Path(gone).unlink()
    found = freshness.review(steps())
    assert found.stale == {}
    assert found.good == ALL - {gone}
    # the plan is still known without the file
    assert "d.csv" in stale(a="{}")


def test_another_input_of_the_same_plan(make: Make) -> None:
    make("a", content="rounded otherwise")
    assert stale() == {}  # it differs in its last bits, and is as good
    assert freshness.review(steps()).settled == ALL
    again = ("b.csv", "b.json", "c.csv")
    assert stale(exact=True) == dict.fromkeys(again, "made from another a.safetensors")
    make("b", "c")  # with the same outcome as before
    assert stale(exact=True) == {}
    make("b", content="another outcome")
    assert stale(exact=True) == {"d.csv": "made from another b.csv"}
    assert stale() == {}


@pytest.mark.parametrize("path", sorted(ALL))
def test_altered_contents(make: Make, path: str) -> None:
    content = bytearray(Path(path).read_bytes())
    content[-1] ^= 1
    Path(path).write_bytes(content)
    found = stale()
    # what was made from the good one stays good
    assert found.keys() == {path}
    assert found[path] in ("altered after it was made", "damaged")
    # or is made from another than lies here
    found = stale(exact=True)
    assert all(why.startswith("made from another") for p, why in found.items() if p != path)


@pytest.mark.parametrize("path", sorted(ALL))
@pytest.mark.parametrize("left", [0, 10])
def test_truncated(make: Make, path: str, left: int) -> None:
    Path(path).write_bytes(Path(path).read_bytes()[:left])
    assert path in stale()


def test_two_outputs_of_one_job_read_by_another(make: Make) -> None:
    """They have the same spec, and different contents."""
    key = '{"step": "e"}'
    Path("e.csv").write_text("e")
    stamps.write("e.csv", key, stamps.sources(("b.csv", "b.json")))
    more = [*steps(), job(("e.csv",), ("b.csv", "b.json"), key)]
    assert freshness.review(more, exact=True).stale == {}
    make("b", content="another outcome")
    assert freshness.review(more, exact=True).stale["e.csv"].startswith("made from another b.")
    assert freshness.review(more).stale == {}


def test_no_stamp_and_a_broken_one(make: Make) -> None:
    stamps.beside("b.csv").unlink()
    stamps.beside("c.csv").write_text("{")
    found = stale()
    assert (found["b.csv"], found["c.csv"]) == ("it has no stamp", "its stamp can't be read")


def test_times_are_put_right_and_nothing_else(make: Make) -> None:
    contents = {p: Path(p).read_bytes() for p in ALL}
    times = {"raw.csv": 5e8, "a.safetensors": 9e8, "b.csv": 1e8, "b.json": 2e8, "c.csv": 95e7}
    for path, when in {**times, "d.csv": 3e8}.items():
        os.utime(path, (when, when))
    assert stale() == {}
    now = {p: Path(p).stat().st_mtime for p in times}
    assert now == {**times, "b.csv": 9e8, "b.json": 9e8}
    assert Path("d.csv").stat().st_mtime == 95e7
    assert {p: Path(p).read_bytes() for p in ALL} == contents


def test_times_reach_across_what_is_not_there(make: Make) -> None:
    # a missing b is judged by d's time: a must not look newer than d
    for path, when in {"a.safetensors": 9e8, "c.csv": 1e8, "d.csv": 1e8, "raw.csv": 1e8}.items():
        os.utime(path, (when, when))
    Path("b.csv").unlink()
    Path("c.csv").unlink()
    assert stale() == {}
    assert Path("d.csv").stat().st_mtime == 9e8


def test_a_time_that_cannot_be_set_is_said(
    make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    os.utime("c.csv", (1e8, 1e8))
    monkeypatch.setattr(os, "utime", refuse)
    assert stale() == {}
    assert "c.csv is older than what it was made from" in capsys.readouterr().err


def test_each_file_is_read_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stale() == {}

    def fail(*arguments: object) -> None:
        raise AssertionError(arguments)

    with monkeypatch.context() as patched:
        patched.setattr(
            stamps, "sha256_of", lambda path: "source" if str(path) == "raw.csv" else fail(path)
        )
        patched.setattr(artefacts, "read", fail)
        found = stale()
    assert found.keys() <= ALL  # raw.csv alone was read, and pretended to be another
    assert stale() == {}


def test_a_file_put_back_in_place_is_read_again(make: Make) -> None:
    assert stale() == {}
    old = Path("c.csv").stat()
    Path("c.csv").write_text("c.csv CONTENT")
    os.utime("c.csv", ns=(old.st_atime_ns, old.st_mtime_ns + 1))
    assert stale()["c.csv"] == "altered after it was made"


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"c.csv": [1, 2, 3, "x"]}'])
def test_a_broken_memory_is_no_memory(make: Make, text: str) -> None:
    freshness.CACHE.parent.mkdir(exist_ok=True)
    freshness.CACHE.write_text(text)
    assert stale() == {}


def test_the_mark_is_newer_than_what_is_stale(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    assert freshness.refresh(steps()).stale == {}
    assert not Path(STALE_MARK).exists()
    os.utime("c.csv", (4e9, 4e9))  # stale, and of the future
    found = freshness.refresh(steps(c='{"y": 1}'))
    assert set(found.stale) == {"c.csv", "d.csv"}
    assert found.settled == {"a.safetensors", "b.csv", "b.json"}
    assert Path(STALE_MARK).stat().st_mtime > 4e9
    first = Path(STALE_MARK).read_bytes()
    said = capsys.readouterr().err
    assert "y: none -> 1: c.csv" in said
    assert "1 that follow from others" in said
    freshness.refresh(steps(c='{"y": 1}'))
    assert Path(STALE_MARK).read_bytes() != first


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ({"recipe": {"lr": 0.1}}, {"recipe": {"lr": 0.2}}, "recipe.lr: 0.1 -> 0.2"),
        ({"code": "a"}, {"code": "b"}, "edited code"),
        (
            {"method_code": "a", "x": 1},
            {"method_code": "b"},
            "edited code of the method, x: 1 -> none",
        ),
        ({"items": [[0, i] for i in range(50)]}, {"items": []}, "other items"),
        ({"a": 1}, {"a": 1}, ""),
    ],
)
def test_differences_in_words(old: object, new: object, words: str) -> None:
    assert freshness.difference(json.dumps(old), json.dumps(new)) == words
    assert freshness.difference("not json", "{}") == "made by another version"


def test_a_job_may_read_both_outputs_of_another(make: Make) -> None:
    last = job(("e.csv",), ("b.csv", "b.json"), '{"step": "e"}')
    read = stamps.sources(last.reads)
    Path("e.csv").write_text("e")
    stamps.write("e.csv", last.key, read)
    assert freshness.review([*steps(), last], exact=True).stale == {}
    make("b", content="another")  # by the same plan
    found = freshness.review([*steps(), last], exact=True).stale
    assert found == {
        "d.csv": "made from another b.csv",
        "e.csv": "made from another b.csv",
    }
