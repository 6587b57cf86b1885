"""The page for one's own model and data runs as it stands."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def test_the_examples_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    run_examples: Callable[[str, int], dict[str, object]],
) -> None:
    monkeypatch.chdir(tmp_path)
    scope = run_examples("your-own.md", 16)
    said = capsys.readouterr().out
    for method in ("grad_dot", "if_ekfac"):
        line = re.search(
            rf"^{method} lds ([-.\d]+) \(95%: .* ceiling ([.\d]+); 20 of 20", said, re.M
        )
        assert line, said
        assert 0.1 < float(line[1]) < float(line[2])
    assert (tmp_path / "bench" / "problem.json").is_file()

    ((value, ceiling),) = re.findall(r"^bank: lds ([-.\d]+) \(.*ceiling ([.\d]+)", said, re.M)
    assert 0.05 < float(value) < float(ceiling)
    places = re.findall(r"^bank/(\S+)", (DOCS / "banks.md").read_text("utf-8"), re.M)
    assert len(places) >= 7
    for place in places:
        assert (tmp_path / "bank" / place.replace("index_7", "index_20")).is_file(), place

    share, last, projected = re.findall(r"^(?:prop|corr).*: ([\d.]+)%?$", said, re.M)
    assert float(share) > 80  # similar samples of one class help
    assert float(last) > 0.7
    assert float(projected) > 0.8

    helpful, queries = re.findall(r"\[[\d, ]+\]", said.splitlines()[-1])
    assert helpful == queries  # the most helpful training samples are of the query's class
    assert scope["score"].shape == (1500, 3)  # type: ignore[attr-defined]


@pytest.mark.parametrize("page", ["your-own.md", "architecture.md"])
def test_names_are_real(page: str) -> None:
    names = re.findall(r"`(leaveout(?:\.\w+)+)", (DOCS / page).read_text("utf-8"))
    assert len(names) >= 4
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            module, _, attribute = name.rpartition(".")
            assert hasattr(importlib.import_module(module), attribute), name
