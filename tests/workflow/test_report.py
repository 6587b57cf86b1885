"""The report is one file that needs nothing else, and a real browser shows what is in it."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., tuple[int, str]]

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--window-size=1400,900",
    "--remote-debugging-pipe",
]


class Browser:
    """Chromium, spoken to over a pipe in its own protocol: JSON messages that end with a NUL."""

    def __init__(self, program: str, profile: Path) -> None:
        theirs_in, self._to = os.pipe()
        self._from, theirs_out = os.pipe()
        self._process = subprocess.Popen(  # the protocol is spoken on descriptors 3 and 4
            ["bash", "-c", f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}', "-", program, *FLAGS,
             f"--user-data-dir={profile}"],
            pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self._received = b""
        self._number = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def _read(self, seconds: float) -> dict[str, Any] | None:
        end = time.monotonic() + seconds
        while b"\0" not in self._received:
            if not select.select([self._from], [], [], max(0, end - time.monotonic()))[0]:
                return None
            part = os.read(self._from, 1 << 16)
            assert part, "Chromium ended"
            self._received += part
        message, self._received = self._received.split(b"\0", 1)
        loaded = json.loads(message)
        assert isinstance(loaded, dict)
        return loaded

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol; events that come meanwhile are kept."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while answer := self._read(60):
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                result = answer["result"]
                assert isinstance(result, dict)
                return result
            self.events.append(answer)
        raise AssertionError(f"no answer to {method}")

    def evaluate(self, code: str) -> Any:
        """Return the value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=code, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait_for_text(self, text: str) -> None:
        """Wait until the page shows a text."""
        for _ in range(300):
            if text.lower() in str(self.evaluate("document.body?.innerText")).lower():
                return
            time.sleep(0.1)
        raise AssertionError(f"never shown: {text!r}\n{self.evaluate('document.body.innerText')}")

    def click(self, text: str) -> None:
        """Click on what is labelled with a text."""
        found = self.evaluate(
            f"""(() => {{
              const hits = [...document.querySelectorAll('a, button')].filter(
                e => (e.innerText || e.title).trim().toLowerCase() === {text.lower()!r});
              if (hits.length) hits[0].click();
              return hits.length;
            }})()"""
        )
        assert found, f"nothing to click: {text!r}\n{self.evaluate('document.body.innerText')}"

    def screenshot(self, path: Path) -> None:
        """Keep what is on the screen."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def close(self) -> None:
        """End the browser and all it started."""
        with contextlib.suppress(OSError, AssertionError):
            self._session = None
            self.call("Browser.close")
        self._process.wait(timeout=30)
        os.close(self._to)
        os.close(self._from)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if not program:
        pytest.skip("there is no Chromium")
    opened = Browser(program, tmp_path / "profile")
    try:
        yield opened
    finally:
        opened.close()


@pytest.fixture(scope="module")
def report(finished: Path, tmp_path_factory: pytest.TempPathFactory, snakemake: Run) -> Path:
    """The report of the finished run."""
    folder = tmp_path_factory.mktemp("report")
    path = folder / "report.html"
    shutil.copytree(finished, folder / "clone", symlinks=True)
    status, output = snakemake(folder / "clone", "--report", str(path))
    assert status == 0, output
    return path


def test_the_report_names_no_file_outside_itself(report: Path) -> None:
    text = report.read_text()
    loads = r"<(?:script|link|img|iframe)[^>]*(?:src|href)=[\"']?(?:https?:)?//"
    assert not re.search(loads, text)
    assert not re.search(r"@import|url\([\"']?https?:", text)


@pytest.mark.browser
def test_a_browser_shows_the_report_from_disk_alone(
    report: Path, browser: Browser, tmp_path: Path
) -> None:
    # nothing else lies beside it
    alone = shutil.copy(report, tmp_path / "alone.html")
    shots = Path(os.environ.get("LEAVEOUT_SHOTS", tmp_path))

    browser.call("Page.navigate", url=f"file://{alone}")
    for text in ("leaving data out", "Figures", "Tables"):
        browser.wait_for_text(text)
    browser.screenshot(shots / "start.png")

    browser.click("Figures")
    browser.wait_for_text("the panel")
    browser.evaluate("document.querySelector('a[iconname=eye]').click()")
    width = "Math.max(0, ...[...document.querySelectorAll('img')].map(e => e.naturalWidth))"
    for _ in range(100):
        if browser.evaluate(width) > 300:
            break
        time.sleep(0.1)
    else:
        raise AssertionError("the figure is not drawn")
    browser.screenshot(shots / "figure.png")
    panel = "[...document.querySelectorAll('tr')].find(row => row.innerText.includes('the panel'))"
    browser.evaluate(f"{panel}.querySelector('a[iconname=information-circle]').click()")
    browser.wait_for_text("redrawn from our own retrainings")

    browser.click("Results")
    browser.click("Tables")
    for text in ("cost", "lds", "loo", "pbrf", "all methods"):
        browser.wait_for_text(text)
    offered = browser.evaluate(
        "[...document.querySelectorAll('a[download]')].map(e => [e.download, e.href])"
    )
    tables = {name: href for name, href in offered if name.endswith(".csv")}
    assert set(tables) == {"cost_table.csv", "lds_table.csv", "loo_table.csv", "pbrf_table.csv"}
    assert all(href.startswith("data:text/csv") for href in tables.values())
    browser.evaluate("document.querySelectorAll('a[iconname=information-circle]')[1].click()")
    browser.wait_for_text("bootstrap interval")
    browser.screenshot(shots / "table.png")

    said = [event["method"] for event in browser.events]
    assert "Network.requestWillBeSent" in said  # that is, events are seen
    for event in browser.events:
        params = event["params"]
        if event["method"] == "Network.requestWillBeSent":
            assert params["request"]["url"].startswith(("file:", "data:", "blob:"))
        if event["method"] == "Runtime.consoleAPICalled":
            assert params["type"] not in ("error", "assert"), params
        if event["method"] == "Log.entryAdded":
            assert params["entry"]["level"] != "error", params
        assert event["method"] != "Runtime.exceptionThrown", params


def test_the_report_is_made_with_the_results(clone: Path, snakemake: Run) -> None:
    # as `make results` does, on a run with nothing else to do but its last step
    (clone / "results" / "figures" / "lds.svg").unlink()
    # and though a killed run left the mark of a job that had written its file
    marks = clone / ".snakemake" / "incomplete"
    marks.mkdir(exist_ok=True)
    (marks / base64.b64encode(b"results/lds_table.csv").decode()).touch()
    path = clone / "results" / "report.html"
    status, output = snakemake(clone, "results", "--report", str(path), "--report-after-run")
    assert status == 0, output
    assert (clone / "results" / "figures" / "lds.svg").exists()
    assert "lds.svg" in path.read_text()
