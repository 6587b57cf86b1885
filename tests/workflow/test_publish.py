"""Publishing: recorded, pushed and committed whole, or refused with a reason."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

Planned = Callable[..., set[str]]
Snakemake = Callable[..., tuple[int, str]]
Run = Callable[..., str]
Edit = Callable[[Path, str, str], None]

EMBEDDED = "data/published"
PUBLISH = ("leaveout", "publish", "--configfile", "config/config.yaml")


@pytest.fixture(scope="session")
def modest(once: Callable[[str, Callable[[Path], None]], Path], laid_out: Path, run: Run) -> Path:
    """A repository that published what this one does: no data, models, scores or chunks."""

    def make(folder: Path) -> None:
        shutil.copytree(laid_out, folder, symlinks=True)
        assert "published" in run(folder, *PUBLISH)

    return once("published", make)


@pytest.fixture
def mine(tmp_path: Path, modest: Path) -> Path:
    """A repository with published results, to be changed."""
    shutil.copytree(modest, tmp_path / "mine", symlinks=True)
    return tmp_path / "mine"


def objects(repository: Path) -> set[str]:
    return {p.name for p in (repository / EMBEDDED / "files").rglob("*") if p.is_file()}


def test_what_is_published_is_committed_and_small(modest: Path, run: Run) -> None:
    assert run(modest, "git", "status", "--porcelain") == ""
    assert run(modest, "git", "log", "--format=%s").splitlines() == ["Publish results", "Lay out"]
    committed = run(modest, "git", "ls-files", EMBEDDED).splitlines()
    assert {Path(p).name for p in committed} == objects(modest) | {"stamps.json"}
    assert "up to date" in run(modest, "dvc", "status")


def test_a_clone_opens_the_report_without_computing(
    modest: Path, tmp_path: Path, run: Run, planned: Planned, snakemake: Snakemake, final: set[str]
) -> None:
    run(tmp_path, "git", "clone", "--quiet", str(modest), "reader")
    reader = tmp_path / "reader"
    run(reader, "dvc", "pull")
    before = {path: path.read_bytes() for path in reader.rglob("results/*") if path.is_file()}
    status, output = snakemake(reader, "--report", "results/report.html")
    assert status == 0, output
    assert {path: path.read_bytes() for path in before} == before
    report = (reader / "results/report.html").read_text()
    assert all(f'"{path}"' in report for path in final)
    first = report.split("var workflow_desc")[1].split("</script>")[0]
    assert "Which training samples made a model say that?" in first
    assert planned(reader) == set()


def test_publishing_twice_adds_nothing(mine: Path, run: Run) -> None:
    before = run(mine, "git", "rev-parse", "HEAD")
    assert "nothing new" in run(mine, *PUBLISH)
    assert run(mine, "git", "rev-parse", "HEAD") == before


def test_the_embedded_remote_holds_no_old_results(
    mine: Path, run: Run, snakemake: Snakemake
) -> None:
    old = objects(mine)
    with (mine / "config" / "causes.yaml").open("a") as file:  # it concerns one table and its page
        file.write("  tiny:\n    lds:\n      grad_dot: nobody knows\n")
    run(mine, "git", "commit", "--quiet", "--all", "--message", "Give a cause")
    assert snakemake(mine)[0] == 0
    run(mine, *PUBLISH, "--message", "Publish with a cause")
    new = objects(mine)
    assert new != old
    kept = {p.stem for p in (mine / "results/tiny").rglob("*.safetensors")}
    assert kept  # models and truths are the same: their objects are shared
    assert new & old
    assert len(new) == len(old)
    assert run(mine, "git", "log", "-1", "--format=%s").strip() == "Publish with a cause"


def refused(run: Run, mine: Path, *arguments: str) -> str:
    before = (mine / "dvc.lock").read_bytes(), objects(mine), run(mine, "git", "rev-parse", "HEAD")
    said = run(mine, *PUBLISH, *arguments, status=1)
    assert "Traceback" not in said
    after = (mine / "dvc.lock").read_bytes(), objects(mine), run(mine, "git", "rev-parse", "HEAD")
    assert after == before
    return said


def test_uncommitted_configuration_is_refused(mine: Path, run: Run) -> None:
    with (mine / "config" / "methods.yaml").open("a") as file:
        file.write("random:\n")
    said = refused(run, mine)
    assert "commit these first" in said
    assert "config/methods.yaml" in said


def test_stale_results_are_refused(mine: Path, run: Run, edit: Edit) -> None:
    edit(mine / "config" / "config.yaml", "bootstrap: 20", "bootstrap: 30")
    run(mine, "git", "commit", "--quiet", "--all", "--message", "Draw more")
    said = refused(run, mine)
    assert "bootstrap: 20 -> 30: results/tiny/metrics/lds/grad_dot.csv" in said
    assert "Run `snakemake results` first" in said


def test_altered_results_are_refused(mine: Path, run: Run) -> None:
    table = mine / "results" / "lds_table.csv"
    table.write_text(table.read_text().replace("tiny", "Tiny"))
    assert "altered after it was made: results/lds_table.csv" in refused(run, mine)


def test_missing_results_are_refused(mine: Path, run: Run) -> None:
    (mine / "results" / "tiny" / "truth" / "lds.safetensors").unlink()
    assert "results/tiny/truth/lds.safetensors is not there" in refused(run, mine)


def test_strangers_are_refused(mine: Path, run: Run) -> None:
    (mine / "results" / "tiny" / "metrics" / "lds" / "mine.csv").write_text("x\n")
    assert "results/tiny/metrics/lds/mine.csv and 0 more are made by no job" in refused(run, mine)


def test_too_much_is_refused(mine: Path, run: Run, edit: Edit) -> None:
    source = mine / "src" / "leaveout" / "workflow" / "sharing.py"
    edit(source, "EMBEDDED_LIMIT = 30_000_000", "EMBEDDED_LIMIT = 1_000")
    run(mine, "git", "commit", "--quiet", "--all", "--message", "Allow less")
    assert re.search(
        r"0\.\d MB in \d+ files are too much .* the largest is results/", refused(run, mine)
    )


def test_an_unknown_remote_is_refused(mine: Path, run: Run) -> None:
    assert "DVC has no remote 'nowhere'" in refused(run, mine, "--remote", "nowhere")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a local S3 server with one bucket, `results`."""
    boto3 = pytest.importorskip("boto3")
    server = pytest.importorskip("moto.moto_server.threaded_moto_server")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3 = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    s3.start()
    address = "http://{}:{}".format(*s3.get_host_and_port())
    boto3.client("s3", endpoint_url=address).create_bucket(Bucket="results")
    yield address
    s3.stop()


def test_s3(mine: Path, tmp_path: Path, bucket: str, run: Run, planned: Planned) -> None:
    for arguments in (
        ("remote", "add", "store", "s3://results/leaveout"),
        ("remote", "modify", "store", "endpointurl", bucket),
    ):
        run(mine, "dvc", *arguments)
    run(mine, "git", "commit", "--quiet", "--all", "--message", "Add a remote")
    (mine / "dvc.lock").unlink()
    run(mine, *PUBLISH, "--remote", "store")
    run(tmp_path, "git", "clone", "--quiet", str(mine), "reader")
    reader = tmp_path / "reader"
    shutil.rmtree(reader / EMBEDDED)
    run(reader, "dvc", "pull", "--remote", "store")
    assert planned(reader) == set()
    assert "up to date" in run(reader, "dvc", "status")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


def test_http(modest: Path, tmp_path: Path, run: Run, planned: Planned) -> None:
    """Any web server that serves the folder of a remote will do for readers."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(modest / EMBEDDED)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        run(tmp_path, "git", "clone", "--quiet", str(modest), "reader")
        reader = tmp_path / "reader"
        shutil.rmtree(reader / EMBEDDED)
        run(reader, "dvc", "remote", "add", "web", f"http://127.0.0.1:{server.server_address[1]}")
        run(reader, "dvc", "pull", "--remote", "web")
        assert planned(reader) == set()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_nothing_here_needs_an_account_or_a_network(modest: Path) -> None:
    config = (modest / ".dvc" / "config").read_text()
    assert "analytics = false" in config
    assert "url = ../data/published" in config
    assert "://" not in config
