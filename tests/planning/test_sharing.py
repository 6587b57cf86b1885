from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from leaveout.errors import LeaveoutError
from leaveout.store import stamps
from leaveout.workflow import sharing


class Step(NamedTuple):
    """What sharing looks at in a job."""

    makes: tuple[str, ...]
    reads: tuple[str, ...]
    key: str


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
            return json.dumps(
                [
                    {"path": path, "md5": hashlib.md5(text.encode()).hexdigest()}
                    for path, text in self.contents.items()
                ]
            )
        if command == "config":
            return "core.remote=here\nremote.here.url=/nowhere\nremote.here.url=.\n"
        assert (command, arguments[0]) == ("pull", "--force")
        self.pulled.append(list(arguments[1:]))
        for path in arguments[1:]:
            Path(path).parent.mkdir(exist_ok=True)
            Path(path).write_text(self.contents[path])
        return ""


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Remote:
    """All of the steps' outputs, published."""
    monkeypatch.chdir(tmp_path)
    Path("results").mkdir()
    for step in STEPS:
        Path(step.makes[0]).write_text(step.key)
        stamps.write(step.makes[0], step.key, stamps.sources(step.reads))
    files = sorted(Path("results").iterdir())
    remote = Remote({str(path): path.read_text() for path in files})
    for path in files:
        path.unlink()
    monkeypatch.setattr(sharing, "_dvc", remote)
    return remote


def asked(remote: Remote) -> list[set[str]]:
    return [{p.removeprefix("results/").removesuffix(".stamp") for p in a} for a in remote.pulled]


def edited(**keys: str) -> list[Step]:
    return [Step(s.makes, s.reads, keys.get(s.makes[0][-1], s.key)) for s in STEPS]


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


def test_what_is_the_users_own_is_left_and_named(
    remote: Remote, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("results/b").write_text("mine")
    sharing.restore(edited(c="other"), ["results/c"])
    assert Path("results/b").read_text() == "mine"
    assert all("b" not in paths for paths in asked(remote))
    said = capsys.readouterr().err
    assert said == "leaveout: not as leaveout made them, and left alone:\n  results/b\n"


def test_what_was_altered_after_it_was_made_is_left_and_named(
    remote: Remote, capsys: pytest.CaptureFixture[str]
) -> None:
    sharing.restore(STEPS, ["results/c"])
    remote.pulled.clear()
    Path("results/c").write_text("altered")
    assert sharing.restore(STEPS, ["results/c"])[1] == ["results/c"]
    assert Path("results/c").read_text() == "altered"
    assert all("c" not in paths for paths in asked(remote))
    assert "left alone:\n  results/c\n" in capsys.readouterr().err


def run_all(steps: list[Step]) -> None:
    """Make everything, as a run does."""
    for step in steps:
        Path(step.makes[0]).write_text(step.key)
        stamps.write(step.makes[0], step.key, stamps.sources(step.reads))


def test_what_an_experiment_left_is_put_back(
    remote: Remote, capsys: pytest.CaptureFixture[str]
) -> None:
    run_all(edited(b="experiment"))
    pulled, compute = sharing.restore(STEPS, ["results/c"])
    assert (sorted(pulled), compute) == (["results/b", "results/c"], [])
    assert all(Path(s.makes[0]).read_text() == s.key for s in STEPS)
    assert sharing.restore(STEPS, ["results/c"]) == ([], [])
    assert list(Path(".snakemake").glob("replaced-*")) == []
    assert capsys.readouterr().err == ""


def test_what_is_published_does_not_replace_an_experiment_it_does_not_fit(remote: Remote) -> None:
    run_all(edited(b="experiment"))
    before = {path: path.read_bytes() for path in Path("results").iterdir()}
    times = {path: path.stat().st_mtime_ns for path in before}
    # another experiment: neither what is published nor what is here is of it
    assert sharing.restore(edited(b="another"), ["results/c"])[1] == ["results/b", "results/c"]
    assert {path: path.read_bytes() for path in Path("results").iterdir()} == before
    assert {path: path.stat().st_mtime_ns for path in before} == times


def test_a_pull_that_fails_loses_nothing(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    run_all(edited(b="experiment"))
    before = {path: path.read_bytes() for path in Path("results").iterdir()}

    def failing(command: str, *arguments: str, capture: bool = False) -> str:
        if command == "pull":
            Path(arguments[1]).write_text("half")
            raise LeaveoutError("`dvc pull` failed (see above)")
        return remote(command, *arguments, capture=capture)

    monkeypatch.setattr(sharing, "_dvc", failing)
    with pytest.raises(LeaveoutError, match=r"failed .*\nThe DVC remote is 'here', \.\. Can it be"):
        sharing.restore(STEPS, ["results/c"])
    assert {path: path.read_bytes() for path in Path("results").iterdir()} == before


def test_a_remote_that_is_not_there_is_named(
    remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    for said, message in (
        ("core.remote=here\nremote.here.url=/no/where\n", "'here' is the folder /no/where, which"),
        ("core.remote=s3\nremote.here.url=/no/where\n", "DVC has no remote 's3'"),
        ("remote.here.url=/no/where\n", "DVC has no default remote"),
    ):
        monkeypatch.setattr(sharing, "_dvc", lambda *_, capture, said=said: said)
        with pytest.raises(LeaveoutError, match=message):
            sharing.restore(STEPS, ["results/c"])


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
        "[core]\n    no_scm = true\n"
        "['remote \"inside\"']\n    url = ../data/published\n"
        "['remote \"outside\"']\n    url = ../../elsewhere\n"
        "['remote \"s3\"']\n    url = s3://bucket/leaveout\n"
    )
    return tmp_path


def embedded(remote: str) -> Path | None:
    return sharing._embedded(sharing._remote(remote)[1])


def test_which_remotes_lie_in_the_repository(settings: Path) -> None:
    assert embedded("inside") == settings / "data/published"
    assert embedded("outside") is None
    assert embedded("s3") is None
    Path(".dvc/config.local").write_text("['remote \"s3\"']\n    url = /mnt/store\n")
    assert embedded("s3") is None
    Path(".dvc/config.local").write_text("['remote \"outside\"']\n    url = ../data/mine\n")
    assert embedded("outside") == settings / "data/mine"
    with pytest.raises(LeaveoutError, match="DVC has no remote 'nowhere'"):
        embedded("nowhere")


def test_a_program_that_fails_or_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LeaveoutError, match=r"`false` failed"):
        sharing._run("false")
    with pytest.raises(LeaveoutError, match="no-such-program is not installed"):
        sharing._run("no-such-program")
    with pytest.raises(LeaveoutError) as error:
        sharing._run("false", *(f"results/{i}" for i in range(1000)))
    assert len(str(error.value)) < 200


ROOT = Path(__file__).parents[2]
PUBLISHED = Path("data/published")
REAL = [
    Step(("results/tiny/truth.csv",), (), "truth"),
    Step(("results/tiny/metrics/b.csv",), ("results/tiny/truth.csv",), "b"),
    Step(("results/lds_table.csv",), ("results/tiny/metrics/b.csv",), "table"),
]
OUTS = ("results/tiny/metrics", "results/lds_table.csv", "results/lds_table.csv.stamp")


def changed(number: int) -> list[Step]:
    return [REAL[0], *(Step(s.makes, s.reads, f"{s.key} {number}") for s in REAL[1:])]


def make(steps: list[Step]) -> None:
    for step in steps:
        Path(step.makes[0]).parent.mkdir(parents=True, exist_ok=True)
    run_all(steps)


def git(*arguments: str) -> str:
    names = ["-c", "user.name=Somebody", "-c", "user.email=somebody@example.org"]
    command = ["git", *names, *arguments]
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository with this one's settings, and something published, by the real DVC."""
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "Somebody")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "somebody@example.org")
    (tmp_path / "origin" / ".dvc").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "origin")
    for name in (".dvcignore", ".gitignore", ".gitattributes", ".dvc/config", ".dvc/.gitignore"):
        shutil.copy2(ROOT / name, name)
    outs = [{out: {"persist": True}} for out in OUTS]
    stages = {"stages": {"results": {"cmd": "snakemake", "outs": outs}}}
    Path("dvc.yaml").write_text(yaml.safe_dump(stages))
    git("init", "--quiet")
    git("add", "--all")
    git("commit", "--quiet", "--message", "Lay out")
    make(REAL)
    assert sharing.publish(REAL, "embedded", "Publish")
    return tmp_path / "origin"


def test_the_index_of_what_is_published_is_committed(repository: Path) -> None:
    stamp = stamps.read("results/lds_table.csv")
    assert stamp is not None
    assert json.loads(git("show", f"HEAD:{stamps.PUBLISHED}")) == {
        "results/lds_table.csv": {"key": "table", "spec": stamp.spec, "sha256": stamp.sha256}
    }
    assert git("status", "--porcelain") == ""
    assert not sharing.publish(REAL, "embedded", "Again")


def test_a_table_pulled_by_its_name_has_its_stamp(repository: Path) -> None:
    made = stamps.read("results/lds_table.csv")
    shutil.rmtree("results")
    sharing._dvc("pull", "results/lds_table.csv")
    assert [p.name for p in Path("results").iterdir()] == ["lds_table.csv"]
    pulled = stamps.read("results/lds_table.csv")
    assert made is not None
    assert pulled == stamps.Stamp(made.key, {}, made.spec, made.sha256)


def test_an_archive_without_git_can_be_pulled_and_restored(
    repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    git("archive", "--output", str(tmp_path / "a.zip"), "HEAD")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        archive.extractall(tmp_path / "unpacked")
    monkeypatch.chdir(tmp_path / "unpacked")
    sharing._dvc("pull")
    assert Path("results/lds_table.csv").read_text() == "table"
    assert json.loads(sharing._dvc("status", "--json", capture=True)) == {}
    shutil.rmtree("results")
    assert sharing.restore(REAL, ["results/lds_table.csv"]) == (["results/lds_table.csv"], [])
    make(REAL)
    with pytest.raises(LeaveoutError, match="Publish from a git clone of the repository"):
        sharing.publish(REAL, "embedded", "Publish")


def test_an_experiment_in_a_clone_is_put_back_and_own_files_stay(repository: Path) -> None:
    make(changed(1))
    own = Path("results/tiny/metrics/mine.csv")
    own.write_text("mine")
    pulled, compute = sharing.restore(REAL, ["results/lds_table.csv"])
    assert (sorted(pulled), compute) == (
        ["results/lds_table.csv", "results/tiny/metrics/b.csv"],
        [],
    )
    assert Path("results/tiny/metrics/b.csv").read_text() == "b"
    assert own.read_text() == "mine"


def named(lock: str) -> set[str]:
    """What a dvc.lock names, all of which is published and sound."""
    found = {out["md5"] for out in yaml.safe_load(lock)["stages"]["results"]["outs"]}
    for name in [name for name in found if name.endswith(".dir")]:
        text = (PUBLISHED / "files/md5" / name[:2] / name[2:]).read_bytes()
        found |= {entry["md5"] for entry in json.loads(text)}
    for name in found:
        text = (PUBLISHED / "files/md5" / name[:2] / name[2:]).read_bytes()
        assert hashlib.md5(text).hexdigest() == name.removesuffix(".dir")
    return found


class KilledError(BaseException):
    pass


def test_killed_anywhere_what_is_published_is_whole(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_run, real_dvc, real_unlink = sharing._run, sharing._dvc, Path.unlink
    place = ""

    def at(here: str) -> None:
        if here == place:
            raise KilledError

    def run(*command: str, capture: bool = False) -> str:
        at(" ".join(command[:2]))
        return real_run(*command, capture=capture)

    def dvc(*arguments: str, capture: bool = False) -> str:
        at(f"before {arguments[0]}")
        said = real_dvc(*arguments, capture=capture)
        at(f"after {arguments[0]}")
        return said

    def unlink(path: Path, missing_ok: bool = False) -> None:
        real_unlink(path, missing_ok)
        if "files" in path.parts:
            at("unlink")

    monkeypatch.setattr(sharing, "_run", run)
    monkeypatch.setattr(sharing, "_dvc", dvc)
    monkeypatch.setattr(Path, "unlink", unlink)
    for number, where in enumerate(["before push", "after push", "unlink", "git commit"]):
        steps = changed(number)
        make(steps)
        before, place = Path("dvc.lock").read_text(), where
        with pytest.raises(KilledError):
            sharing.publish(steps, "embedded", "Publish")
        named(before if where == "before push" else Path("dvc.lock").read_text())
        place = ""
        assert sharing.publish(steps, "embedded", "Publish again")
        assert git("status", "--porcelain") == ""
        assert named(git("show", "HEAD:dvc.lock")) == set(sharing._objects(PUBLISHED))


def test_a_damaged_object_is_pushed_again(repository: Path) -> None:
    objects = sharing._objects(PUBLISHED)
    (member,) = [path for path in objects.values() if path.read_text() == "b"]
    for damage in (lambda: member.write_text("x"), member.unlink):
        damage()
        stray = member.parent / "unfinished.tmp"
        stray.write_text("half")
        assert not sharing.publish(REAL, "embedded", "Again")
        assert member.read_text() == "b"
        assert not stray.exists()
        assert git("status", "--porcelain") == ""


def test_a_clone_with_autocrlf_has_the_same_bytes(
    repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Path("config").mkdir()
    Path("config/a.yaml").write_text("a: 1\nb: 2\n")
    Path("data.xz").write_bytes(b"plain\r\n")
    (PUBLISHED / "files" / "raw").write_bytes(b"one\r\ntwo\n")
    git("add", "--all")
    git("commit", "--quiet", "--message", "Add")
    before = {p: Path(p).read_bytes() for p in git("ls-files").splitlines()}
    git("-c", "core.autocrlf=true", "clone", "--quiet", ".", str(tmp_path / "clone"))
    monkeypatch.chdir(tmp_path / "clone")
    assert {p: Path(p).read_bytes() for p in git("ls-files").splitlines()} == before
    assert git("status", "--porcelain") == ""


def test_the_results_folder_says_what_is_in_it(repository: Path) -> None:
    Path("results/README.md").write_text("what is here")
    assert git("status", "--porcelain", "--untracked-files=all") == "?? results/README.md\n"
    text = (ROOT / "results/README.md").read_text()
    for name in (
        "lds_table.csv",
        "figures/",
        "pages/",
        "report.html",
        "truth/",
        "metrics/",
        "all/",
    ):
        assert f"`{name}`" in text
