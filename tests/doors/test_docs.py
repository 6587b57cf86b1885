"""The page for one's own model and data runs as it stands."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest


def test_the_examples_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    run_examples: Callable[[str, int], dict[str, object]],
) -> None:
    monkeypatch.chdir(tmp_path)
    run_examples("your-own.md", 3)
    said = capsys.readouterr().out
    for method in ("grad_dot", "if_ekfac"):
        line = re.search(
            rf"^{method} lds ([-.\d]+) \(95%: .* ceiling ([.\d]+); 20 of 20", said, re.M
        )
        assert line, said
        assert 0.1 < float(line[1]) < float(line[2])
    assert (tmp_path / "bench" / "problem.json").is_file()
