"""The examples of docs/tracin.md run as they stand."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest


def test_examples(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    run_examples: Callable[[str, int], object],
) -> None:
    monkeypatch.chdir(tmp_path)
    run_examples("tracin.md", 7)
    share, last, projected = re.findall(r": ([\d.]+)%?$", capsys.readouterr().out, re.M)
    assert float(share) > 80  # similar samples of one class help
    assert float(last) > 0.7
    assert float(projected) > 0.8


def test_names_are_real() -> None:
    import leaveout
    from leaveout.config import load_methods

    for name in ("TracInCP", "TracInCPFast", "TracInCPFastRandProj"):
        assert getattr(leaveout, name).__name__ == name
    methods = load_methods(Path(__file__).parents[2] / "config" / "methods.yaml")
    assert {"tracin_cp", "tracin_cp_last", "tracin_cp_projected"} <= methods.keys()
