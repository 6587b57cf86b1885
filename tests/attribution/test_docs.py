"""docs/methods.md lists what there is, and its numbers are what is computed."""

from __future__ import annotations

import re
from pathlib import Path

from leaveout.config import load_methods

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")


def test_every_entry_is_in_the_table() -> None:
    (table,) = re.findall(r"^\| family.*?\n\n", TEXT, re.M | re.S)
    rows = [row.split("|")[2] for row in table.splitlines()[2:] if row]
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(named) == sorted(load_methods(ROOT / "config" / "methods.yaml"))


def test_every_link_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", TEXT)
    assert len(links) > 5
    for link in links:
        assert (ROOT / "docs" / link).exists(), link
