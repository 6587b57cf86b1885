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

from leaveout.reporting.pages import table_page

Run = Callable[..., tuple[int, str]]

WIDTH = "Math.max(0, ...[...document.querySelectorAll('#app img')].map(e => e.naturalWidth))"
# what stands behind a text is the nearest background that is not transparent
_LIGHT = """
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const light = colour => {
    canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map(
      v => v / 255 <= .04045 ? v / 255 / 12.92 : ((v / 255 + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const behind = e => {
    const colour = e ? getComputedStyle(e).backgroundColor : "white";
    return colour === "rgba(0, 0, 0, 0)" ? behind(e.parentElement) : light(colour);
  };
"""
CONTRAST = f"""(() => {{ {_LIGHT}
  const own = e => [...e.childNodes].filter(n => n.nodeType === 3).map(n => n.data.trim()).join("");
  return [...document.querySelector(%s).querySelectorAll("*")].filter(
    e => own(e) && e.offsetWidth && !e.closest("style, script")).map(e => {{
    const [a, b] = [light(getComputedStyle(e).color), behind(e)];
    return [own(e), (Math.max(a, b) + .05) / (Math.min(a, b) + .05)];
  }});
}})()"""
BACKGROUND = f"(() => {{ {_LIGHT} return behind(document.querySelector(%s)); }})()"

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

    def wait_for(self, code: str, holds: Callable[[Any], bool]) -> None:
        """Wait until the value of an expression is as wanted."""
        for _ in range(300):
            if holds(self.evaluate(code)):
                return
            time.sleep(0.1)
        raise AssertionError(f"{code} is {self.evaluate(code)!r}")

    def press(self, key: str, number: int) -> None:
        """Press a key."""
        text = "\r" if key == "Enter" else key
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind, key=key, text=text, windowsVirtualKeyCode=number,
            )  # fmt: skip

    def look(self, width: int, scheme: str) -> None:
        """Be so wide, 800 high, light or dark."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=800, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)

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


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests: its start takes longer than they do."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if not program:
        pytest.skip("there is no Chromium")
    opened = Browser(program, tmp_path_factory.mktemp("profile"))
    try:
        yield opened
    finally:
        opened.close()


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    """The browser, light and wide. Afterwards it must have asked for nothing, nor complained."""
    chromium.events.clear()
    chromium.look(1280, "light")
    yield chromium
    assert "Network.requestWillBeSent" in [event["method"] for event in chromium.events]
    for event in chromium.events:
        params = event["params"]
        if event["method"] == "Network.requestWillBeSent":
            assert params["request"]["url"].startswith(("file:", "data:", "blob:"))
        if event["method"] == "Runtime.consoleAPICalled":
            assert params["type"] not in ("error", "assert"), params
        if event["method"] == "Log.entryAdded":
            assert params["entry"]["level"] != "error", params
        assert event["method"] != "Runtime.exceptionThrown", params


@pytest.fixture(scope="module")
def report(finished: Path, tmp_path_factory: pytest.TempPathFactory, snakemake: Run) -> Path:
    """The report of the finished run, with nothing beside it."""
    folder = tmp_path_factory.mktemp("report")
    path = folder / "report.html"
    shutil.copytree(finished, folder / "clone", symlinks=True)
    status, output = snakemake(folder / "clone", "--report", str(path))
    assert status == 0, output
    shutil.rmtree(folder / "clone")
    return path


def test_the_report_names_no_file_outside_itself(report: Path) -> None:
    text = report.read_text()
    loads = r"<(?:script|link|img|iframe)[^>]*(?:src|href)=[\"']?(?:https?:)?//"
    assert not re.search(loads, text)
    assert not re.search(r"@import|url\([\"']?https?:", text)


def shots(tmp_path: Path) -> Path:
    return Path(os.environ.get("LEAVEOUT_SHOTS", tmp_path))


def check_looks(browser: Browser, shows: str, name: str, folder: Path) -> None:
    """Check that a page is read at any width, light and dark: nothing sticks out, texts stand out.

    Args:
        browser: It has the page.
        shows: The part of it whose texts are looked at.
        name: Of the screenshots.
        folder: Where they are kept.
    """
    for width in (1280, 390):
        for scheme in ("light", "dark"):
            browser.look(width, scheme)
            assert browser.evaluate("document.documentElement.scrollWidth") == width
            ratios = dict(browser.evaluate(CONTRAST % json.dumps(shows)))
            assert len(ratios) > 5
            # WCAG 2.2, success criterion 1.4.3, level AA
            assert {text: r for text, r in ratios.items() if r < 4.5} == {}, (width, scheme)
            light = browser.evaluate(BACKGROUND % json.dumps(shows))
            assert light > 0.8 if scheme == "light" else light < 0.1
            browser.screenshot(folder / f"{name}-{width}-{scheme}.png")
    browser.look(1280, "light")


@pytest.mark.browser
def test_the_report_opens_with_who_wins(report: Path, browser: Browser, tmp_path: Path) -> None:
    browser.call("Page.navigate", url=f"file://{report}")
    browser.wait_for_text("noise ceiling")
    top, left = browser.evaluate(
        "(box => [box.top, box.left])(document.querySelector('.start h1').getBoundingClientRect())"
    )
    assert 0 <= top < 100
    assert 0 < left < 400
    best = browser.evaluate("document.querySelectorAll('.start li')[1].innerText")
    assert re.fullmatch(r"(grad_dot|if_explicit)\s+-?\d\.\d{3} \(.* to .*\)", best)
    # below it, the workflow
    assert browser.evaluate("document.querySelector('#rulegraph canvas').width") > 100
    check_looks(browser, ".start", "start", shots(tmp_path))


@pytest.mark.browser
def test_links_of_the_first_page_stay_inside(report: Path, browser: Browser) -> None:
    browser.call("Page.navigate", url=f"file://{report}")
    browser.wait_for_text("noise ceiling")
    count = browser.evaluate("document.querySelectorAll('.start a').length")
    # table and figure of each metric; costs; versions; ranks, where they are a result
    assert count == 3 * 2 + 2 + browser.evaluate("'results/pages/rank.html' in results")
    for place in range(count):
        browser.click("Workflow")
        browser.wait_for_text("noise ceiling")
        href = browser.evaluate(f"document.querySelectorAll('.start a')[{place}].pathname")
        browser.evaluate(f"document.querySelectorAll('.start a')[{place}].click()")
        if href.endswith(".svg"):
            browser.wait_for(WIDTH, lambda width: width > 300)
        else:
            browser.wait_for(
                "document.querySelector('iframe')?.src.slice(0, 14)", "data:text/html".__eq__
            )
    assert browser.evaluate("location.pathname") == str(report)


@pytest.mark.browser
def test_every_result_is_explained_and_every_picture_drawn(
    report: Path, browser: Browser, tmp_path: Path
) -> None:
    browser.call("Page.navigate", url=f"file://{report}")
    browser.wait_for_text("Figures")
    found = browser.evaluate(
        "Object.entries(results).map(([path, r]) => [path, r.mime_type, r.caption, r.labels])"
    )
    assert len(found) > 12
    for path, _, caption, labels in found:
        assert len(re.sub(r"<[^>]+>|\s+", " ", caption).split()) > 8, path
        assert labels, path
        assert all(re.search(r"\w", label) for label in labels.values()), path
    pictures = [path for path, kind, _, _ in found if kind.startswith("image/")]
    assert {Path(path).name for path in pictures} >= {"lds.svg", "loo.svg", "pbrf.svg"}
    for path in pictures:
        browser.evaluate(
            f"app.setView({{ content: 'img', contentPath: results['{path}'].data_uri }})"
        )
        browser.wait_for(WIDTH, lambda width: width > 300)
    browser.screenshot(shots(tmp_path) / "figure.png")


@pytest.mark.browser
def test_the_menu_leads_to_results(report: Path, browser: Browser, tmp_path: Path) -> None:
    browser.call("Page.navigate", url=f"file://{report}")
    for text in ("Figures", "Overview", "Tables"):
        browser.wait_for_text(text)
    browser.click("Figures")
    browser.wait_for_text("the panel")
    panel = "[...document.querySelectorAll('tr')].find(row => row.innerText.includes('the panel'))"
    browser.evaluate(f"{panel}.querySelector('a[iconname=information-circle]').click()")
    browser.wait_for_text("redrawn from our own retrainings")
    browser.click("Results")
    browser.click("Overview")
    for text in ("who wins", "versions, hardware, configuration"):
        browser.wait_for_text(text)
    browser.click("Results")
    browser.click("Tables")
    for text in ("cost", "lds", "loo", "pbrf", "to sort and search"):
        browser.wait_for_text(text)
    offered = browser.evaluate(
        "[...document.querySelectorAll('a[download]')].map(e => [e.download, e.href])"
    )
    tables = {name: href for name, href in offered if name.endswith(".csv")}
    panels = {f"{name}_table.csv" for name in ("lds", "loo", "pbrf")}
    of_all = {f"{name}_table.csv" for name in ("cost", "rank", "published")} | {"tidy.csv"}
    assert set(tables) == panels | of_all
    assert all(href.startswith("data:text/csv") for href in tables.values())
    browser.screenshot(shots(tmp_path) / "tables.png")


VALUES = [round(0.03 * (7 * k % 33) - 0.2, 2) for k in range(33)]


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """The page of a table of 33 methods, of which two have no value."""
    head = "setting,method,params,value,ci_low,ci_high,ceiling,published,not_computed"
    rows = [head]
    for k, value in enumerate(VALUES):
        texts = [f"{number:.4f}" for number in (value, value - 0.03, value + 0.03)]
        why = ""
        if k in (4, 20):
            texts, why = ["nan"] * 3, "it needs more memory than the setting allows: 96 GB, not 8"
        rows.append(
            ",".join(["mnist_lr", f"method_number_{k}", "damping=1", *texts, ".9,0.1", f'"{why}"'])
        )
    (tmp_path / "t.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "t.html").write_text(table_page("lds", tmp_path / "t.csv"))
    return tmp_path / "t.html"


def column(browser: Browser, place: int) -> list[str]:
    """Return the texts of one column, of the rows that are shown."""
    texts = browser.evaluate(
        "[...document.querySelectorAll('tbody tr')].filter(row => row.offsetHeight)"
        f".map(row => row.cells[{place}].innerText)"
    )
    assert isinstance(texts, list)
    return texts


@pytest.mark.browser
def test_a_table_is_sorted_by_keys(page: Path, browser: Browser) -> None:
    browser.call("Page.navigate", url=f"file://{page}")
    browser.wait_for_text("33 of 33 rows")
    numbers = sorted((f"{v:.3f}" for k, v in enumerate(VALUES) if k not in (4, 20)), key=float)
    browser.evaluate("document.querySelectorAll('th button')[1].focus()")
    # it opens with the highest first; what has no value is last either way
    for said, expected in (
        ("descending", numbers[::-1]),
        ("ascending", numbers),
        ("descending", numbers[::-1]),
    ):
        assert column(browser, 1) == [*expected, "not computed", "not computed"]
        assert browser.evaluate("document.querySelectorAll('th')[1].ariaSort") == said
        browser.press("Enter", 13)
    browser.evaluate("document.querySelectorAll('th button')[0].focus()")
    browser.press(" ", 32)
    # 10 comes after 9, and only one column says that it is sorted
    assert column(browser, 0) == [f"method_number_{k}" for k in range(33)]
    assert browser.evaluate("document.querySelectorAll('[aria-sort]').length") == 1


@pytest.mark.browser
def test_a_table_is_searched_and_has_more_columns(page: Path, browser: Browser) -> None:
    browser.call("Page.navigate", url=f"file://{page}")
    browser.wait_for_text("33 of 33 rows")
    browser.evaluate("document.querySelector('input[type=search]').focus()")
    browser.call("Input.insertText", text="Memory NUMBER_2")
    browser.wait_for_text("1 of 33 rows")
    assert column(browser, 0) == ["method_number_20"]
    shown = "[...document.querySelectorAll('th button')].filter(e => e.offsetWidth).length"
    before = browser.evaluate(shown)
    browser.evaluate("document.querySelector('#all').click()")
    assert browser.evaluate(shown) == before + 3  # setting, hyper-parameters, ceiling


@pytest.mark.browser
def test_a_table_is_read_on_a_phone_and_in_the_dark(
    page: Path, browser: Browser, tmp_path: Path
) -> None:
    browser.call("Page.navigate", url=f"file://{page}")
    browser.wait_for_text("33 of 33 rows")
    check_looks(browser, "body", "table", shots(tmp_path))
    browser.look(390, "light")
    browser.evaluate("document.querySelector('#all').click()")
    browser.evaluate("document.querySelector('.wide').scrollTo(300, 300)")
    left, top = browser.evaluate(
        "[document.querySelector('tbody th').getBoundingClientRect().left,"
        " document.querySelector('thead').rows[0].cells[1].getBoundingClientRect().top"
        " - document.querySelector('.wide').getBoundingClientRect().top]"
    )
    assert 0 <= left < 30  # the method stays in sight, and so do the heads
    assert 0 <= top < 3
    assert browser.evaluate("document.documentElement.scrollWidth") == 390


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
