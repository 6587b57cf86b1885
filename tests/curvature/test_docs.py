"""The examples of docs/ekfac.md run as they stand."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TEXT = (Path(__file__).parents[2] / "docs" / "ekfac.md").read_text(encoding="utf-8")


def test_examples(
    capsys: pytest.CaptureFixture[str], run_examples: Callable[[str, int], dict[str, Any]]
) -> None:
    scope = run_examples("ekfac.md", 2)
    # the most helpful training samples are of the query's class
    helpful, queries = re.findall(r"\[.*?\]", capsys.readouterr().out)
    assert helpful == queries
    assert scope["score"].shape == (300, 3)


def test_names_are_real() -> None:
    import importlib

    names = re.findall(r"`(leaveout(?:\.\w+)+)", TEXT)
    assert len(names) >= 2
    for name in names:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name
