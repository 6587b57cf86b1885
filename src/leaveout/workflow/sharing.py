"""Share results through DVC: restore what is missing here, publish what was made here.

DVC stores files and knows nothing of how they come about; the plan and the stamps know that
(:mod:`leaveout.workflow.review`). DVC is called as a program, and never inside a job.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import yaml

from leaveout.errors import LeaveoutError
from leaveout.store import artefacts, stamps
from leaveout.store.artefacts import CorruptArtefactError, atomic_path
from leaveout.store.stamps import beside
from leaveout.workflow.review import Review, describe, review
from leaveout.workflow.step import Job

EMBEDDED_LIMIT = 30_000_000
"""Bytes that may be published inside the repository: every clone carries them."""

DECIDES = ("config", "src", "workflow")
"""What must be committed before results made with it are published."""


def _run(*command: str, capture: bool = False) -> str:
    """Run a program; its own words reach the terminal unless they are asked for."""
    try:
        done = subprocess.run(
            command, check=True, text=True, stdout=subprocess.PIPE if capture else sys.stderr
        )
    except FileNotFoundError as error:
        raise LeaveoutError(f"{command[0]} is not installed here") from error
    except subprocess.CalledProcessError as error:
        said = f"\n{error.stdout}" if error.stdout else ""
        words = " ".join(command).removeprefix(f"{sys.executable} -m ")
        words = words if len(words) <= 100 else f"{words[:100]} …"
        raise LeaveoutError(f"`{words}` failed (see above){said}") from error
    return done.stdout or ""


def _dvc(*arguments: str, capture: bool = False) -> str:
    return _run(sys.executable, "-m", "dvc", *arguments, capture=capture)


def _tracked() -> dict[str, str]:
    """Return the files that DVC has on record, those in tracked folders one by one, and md5s."""
    listed = json.loads(_dvc("list", ".", "--recursive", "--dvc-only", "--json", capture=True))
    return {entry["path"]: entry["md5"] for entry in listed}


def _by_output(jobs: Iterable[Job]) -> dict[str, Job]:
    return {path: job for job in jobs for path in job.makes}


def _remote(name: str = "") -> tuple[str, str]:
    """Return the name and the address of a DVC remote; of the default one, if none is named."""
    lines = _dvc("config", "--list", capture=True).splitlines()  # the most local setting is last
    config = {key: value for key, _, value in (line.partition("=") for line in lines)}
    name = name or config.get("core.remote", "")
    if not name:
        raise LeaveoutError("DVC has no default remote. Set one: dvc remote default NAME")
    url = config.get(f"remote.{name.lower()}.url")
    if url is None:
        raise LeaveoutError(f"DVC has no remote {name!r}; see: dvc remote list")
    return name, url


@contextlib.contextmanager
def _naming(remote: str, url: str) -> Iterator[None]:
    """Name the remote where DVC fails, which often says no more than "unexpected error"."""
    try:
        yield
    except LeaveoutError as error:
        raise LeaveoutError(
            f"{error}\nThe DVC remote is {remote!r}, {url}. Can it be reached from here, and does "
            "it hold what dvc.lock names? `dvc remote default NAME` chooses another."
        ) from error


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _as_made(path: str) -> bool:
    """Return whether a file is exactly as leaveout made it."""
    try:
        if path.endswith(".safetensors"):
            artefacts.read(path, leave=artefacts.ALL)
        stamps.source(path)
        return stamps.read(path) is not None
    except CorruptArtefactError:
        return False


def _frontier(
    targets: Iterable[str], makers: dict[str, Job], reviewed: Review, available: Collection[str]
) -> tuple[set[str], set[str]]:
    """Walk down from the targets to what no job has to make anew, or what can be had.

    Returns:
        The files to have, of ``available``, and those that must be computed.
    """
    have: set[str] = set()
    compute: set[str] = set()
    waiting = list(targets)
    while waiting:
        path = waiting.pop()
        if path in reviewed.settled or path in have | compute or path not in makers:
            continue
        if path in available:
            have.add(path)
            continue
        compute.add(path)
        # a good file is made anew only because of what lies here and is stale
        inputs = makers[path].reads
        waiting += [p for p in inputs if path not in reviewed.good or Path(p).exists()]
    return have, compute


def _copy(path: str, source: Path, target: Path) -> None:
    """Make a file below one folder, and its stamp, what they are below another."""
    for name in (path, str(beside(path))):
        if (source / name).is_file():
            with atomic_path(target / name) as temporary:
                shutil.copy2(source / name, temporary)
        else:
            (target / name).unlink(missing_ok=True)


def restore(jobs: Sequence[Job], targets: Sequence[str]) -> tuple[list[str], list[str]]:
    """Pull what is needed to make some files, and nothing behind it.

    From the targets down, published files are pulled that are not here, or that are stale though
    leaveout made them and nobody altered them: what an experiment left. The search stops at each:
    what they were made from is not needed. A pulled file that today's configuration would not make
    is searched behind, and if it has replaced one, that is put back. Files of the user's own making
    are left alone, and named on standard error.

    Args:
        jobs: All jobs, in order.
        targets: Files that some job makes.

    Returns:
        The pulled files, and those that the workflow will have to compute.

    Raises:
        LeaveoutError: A target is made by no job, or DVC failed.
    """
    makers = _by_output(jobs)
    for target in targets:
        if target not in makers:
            raise LeaveoutError(
                f"{target}: no job makes it, as configured. `snakemake --dry-run` lists what is"
            )
    remote, url = _remote()
    if "://" not in url and not Path(url).is_dir():
        raise LeaveoutError(
            f"the DVC remote {remote!r} is the folder {url}, which is not there. Put it back, or "
            "choose another remote: dvc remote default NAME"
        )
    with _naming(remote, url):
        tracked = _tracked()

    def differs(path: str) -> bool:
        on_record = [name for name in (path, str(beside(path))) if name in tracked]
        return any(not Path(p).is_file() or _md5(Path(p)) != tracked[p] for p in on_record)

    pulled: list[str] = []
    replaced: list[str] = []
    reviewed = review(jobs)
    Path(".snakemake").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="replaced-", dir=".snakemake") as folder:
        aside = Path(folder)
        try:
            while True:
                # what was pulled once and is not good is stale: do not ask for it again
                available = {
                    path
                    for path in tracked.keys() - pulled
                    if not Path(path).exists()
                    or (path in reviewed.stale and differs(path) and _as_made(path))
                }
                have, compute = _frontier(targets, makers, reviewed, available)
                if not have:
                    break
                for path in sorted(have):
                    if Path(path).exists():
                        _copy(path, Path(), aside)
                        replaced.append(path)
                with _naming(remote, url):
                    listed = sorted(have | ({str(beside(path)) for path in have} & tracked.keys()))
                    _dvc("pull", "--force", *listed)
                pulled += sorted(have)
                reviewed = review(jobs)
        finally:
            back = [path for path in replaced if path not in reviewed.good]
            for path in back:
                _copy(path, aside, Path())
    own = [p for p in sorted(compute) if p in reviewed.stale and not _as_made(p)]
    if own:
        print(
            "leaveout: not as leaveout made them, and left alone:",
            *own,
            sep="\n  ",
            file=sys.stderr,
        )
    return [path for path in pulled if path not in back], sorted(compute)


def _outs() -> list[Path]:
    """Return the files and folders that dvc.yaml names."""
    stages = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"]
    outs = [out for stage in stages.values() for out in stage["outs"]]
    return [Path(next(iter(out)) if isinstance(out, dict) else out) for out in outs]


def _embedded(url: str) -> Path | None:
    """Return the folder of a remote that lies inside the repository, from its address."""
    folder = Path(url).resolve()
    return folder if "://" not in url and folder.is_relative_to(Path.cwd().resolve()) else None


def _objects(folder: Path) -> dict[str, Path]:
    """Return all files among DVC's objects in a remote, by digest; ``.dir`` ends that of a list."""
    paths = sorted((folder / "files" / "md5").glob("*/*"))
    return {f"{path.parent.name}{path.name}": path for path in paths if path.is_file()}


def _listed(path: Path) -> list[str]:
    """Return the digests in the list of a folder's files."""
    return [entry["md5"] for entry in json.loads(path.read_bytes())]


def _remove_damaged(folder: Path) -> None:
    """Remove from a remote what is damaged, with the lists that name it: DVC pushes them again.

    DVC does not look into a folder again whose list the remote has.
    """
    objects = _objects(folder)
    sound = {n for n, path in objects.items() if _md5(path) == n.removesuffix(".dir")}
    for name, path in objects.items():
        if name not in sound or (name.endswith(".dir") and not sound.issuperset(_listed(path))):
            path.unlink()


def _remove_old(folder: Path) -> None:
    """Remove from a remote all that dvc.lock does not name, once all that it names is there."""
    objects = _objects(folder)
    stages = yaml.safe_load(Path("dvc.lock").read_text(encoding="utf-8"))["stages"]
    wanted = {out["md5"] for stage in stages.values() for out in stage["outs"]}
    for name in [name for name in wanted if name.endswith(".dir") and name in objects]:
        wanted.update(_listed(objects[name]))
    if lost := wanted.difference(objects):
        raise LeaveoutError(f"after the push, {folder} lacks {len(lost)} objects of dvc.lock's")
    for name in objects.keys() - wanted:
        objects[name].unlink()


def _write_index(outs: Sequence[Path]) -> None:
    """Write the stamps of the files that are published, and can be pulled, one by one."""
    own = [p for p in outs if p.is_file() and p.suffix not in (".safetensors", stamps.ENDING)]
    found = {path.as_posix(): stamps.read(path) for path in own}
    index = {
        path: {"key": stamp.key, "spec": stamp.spec, "sha256": stamp.sha256}
        for path, stamp in found.items()
        if stamp
    }
    with atomic_path(stamps.PUBLISHED) as temporary:
        text = json.dumps(index, indent=1, sort_keys=True) + "\n"
        temporary.write_text(text, encoding="utf-8")


def _check_publishable(jobs: Sequence[Job], outs: Sequence[Path]) -> list[Path]:
    """Return the files to publish, if all of them are as today's plan wants them."""
    if changes := _run("git", "status", "--porcelain", "--", *DECIDES, capture=True):
        raise LeaveoutError(
            "commit these first; results are published with what they were made by:\n" + changes
        )
    inside = [p for p in _by_output(jobs) if any(Path(p).is_relative_to(out) for out in outs)]
    reviewed = review(jobs)
    if bad := {p: why for p, why in reviewed.stale.items() if p in inside}:
        raise LeaveoutError(describe(bad) + "Run `snakemake results` first.")
    read = {path for job in jobs for path in job.reads}
    # half models, say, are made only if a method reads them
    needed = [p for p in inside if p in read or not p.endswith(".safetensors")]
    if missing := [p for p in needed if p not in reviewed.good]:
        raise LeaveoutError(
            f"{missing[0]} is not there (nor {len(missing) - 1} others that dvc.yaml names). Run "
            "`snakemake results` first, or `dvc pull`."
        )
    planned = {Path(p) for p in inside} | {beside(p) for p in inside}
    files = [p for out in outs for p in ([out] if out.is_file() else sorted(out.rglob("*")))]
    files = [p for p in files if p.is_file()]
    if strange := [p for p in files if p not in planned]:
        raise LeaveoutError(
            f"{strange[0]} and {len(strange) - 1} more are made by no job of today's "
            "configuration. Move or delete them, or configure what made them."
        )
    return files


def publish(jobs: Sequence[Job], remote: str, message: str) -> bool:
    """Record today's results in DVC, push them, and commit the record.

    A remote inside the repository holds these results in the end and none of the older ones, which
    are removed when all of the new are there: wherever this is killed, what is published is whole.

    Args:
        jobs: All jobs, in order.
        remote: Name of a DVC remote.
        message: Of the commit.

    Returns:
        Whether there was anything new to commit.

    Raises:
        LeaveoutError: Something to publish is missing, stale or made by no job; configuration or
            code are not committed; the results are too large for a remote inside the repository;
            or git or DVC failed.
    """
    try:
        _run("git", "ls-files", "--error-unmatch", "dvc.yaml", capture=True)
    except LeaveoutError as error:
        raise LeaveoutError(
            "results are published by a commit, and git does not track this folder. Publish from "
            "a git clone of the repository."
        ) from error
    remote, url = _remote(remote)
    folder = _embedded(url)
    outs = _outs()
    files = _check_publishable(jobs, outs)
    total = sum(path.stat().st_size for path in files)
    if folder and total > EMBEDDED_LIMIT:
        largest = max(files, key=lambda path: path.stat().st_size)
        raise LeaveoutError(
            f"{total / 1e6:.1f} MB in {len(files)} files are too much for a remote inside the "
            f"repository (at most {EMBEDDED_LIMIT / 1e6:.0f} MB; the largest is {largest}). Take "
            "some out of dvc.yaml, or choose another --remote."
        )
    _dvc("commit", "--force")
    if folder:
        _remove_damaged(folder)
    with _naming(remote, url):
        _dvc("push", "--remote", remote)
    status = _dvc("status", "--json", capture=True)
    if json.loads(status):
        raise LeaveoutError(f"after the push, `dvc status` finds changes:\n{status}")
    if folder:
        _remove_old(folder)
    _write_index(outs)
    recorded = ["dvc.lock", str(stamps.PUBLISHED), *([str(folder)] if folder else [])]
    _run("git", "add", *recorded)
    if not _run("git", "status", "--porcelain", "--", *recorded, capture=True):
        return False
    _run("git", "commit", "--quiet", "--message", message, "--", *recorded)
    return True
