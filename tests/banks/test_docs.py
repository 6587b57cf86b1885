"""The examples of docs/api.md run as they stand."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

TEXT = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")


def test_examples(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    run_examples: Callable[[str, int], object],
) -> None:
    monkeypatch.chdir(tmp_path)
    run_examples("api.md", 6)
    lds = float(re.fullmatch(r"LDS ([-.\d]+)\n", capsys.readouterr().out)[1])  # type: ignore[index]
    assert 0.05 < lds < 1  # similar samples of one class do help
    for pattern in re.findall(r"^bank/(\S+)", TEXT, re.M):
        example = pattern.replace("index_7", "index_20")
        assert (tmp_path / "bank" / example).is_file(), pattern


def test_names_are_real() -> None:
    import importlib

    names = re.findall(r"`(leaveout(?:\.\w+)+)`", TEXT)
    assert len(names) >= 8
    for name in names:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name
