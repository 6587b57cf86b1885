from __future__ import annotations

import re
from pathlib import Path

from leaveout.config import load_yaml
from leaveout.reporting.families import FAMILIES, OTHERS, by_family, family

ROOT = Path(__file__).parents[2]


def test_families_are_those_of_the_documentation():
    table = re.findall(
        r"^\| ([a-z ]+) \| (`.*?`) \|", (ROOT / "docs/methods.md").read_text(), re.MULTILINE
    )
    documented = {
        name: re.findall(r"`(\w+)`", entries) for name, entries in table if name in FAMILIES
    }
    methods = load_yaml(ROOT / "config/methods.yaml")
    found = by_family(methods)
    assert {name: set(members) for name, members in found.items()} == {
        name: set(members) for name, members in documented.items()
    }
    assert list(found) == list(FAMILIES)
    assert [m for members in found.values() for m in members if m not in methods] == []


def test_a_method_from_elsewhere_belongs_to_the_others():
    assert family("input_cosine") == OTHERS
    assert family("iffy") == OTHERS
    assert family("if_mine") == "influence functions"
    assert list(by_family(["mine", "magic", "random"])) == ["baselines", "training itself", OTHERS]
