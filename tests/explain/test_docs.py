"""docs/artefacts.md and docs/explain.md say what is so: every kind, array, dim, dtype and key."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leaveout.cli import program as cli
from leaveout.config.damping import COLUMNS as DAMPING_COLUMNS
from leaveout.explain.tables import TABLES
from leaveout.explain.text import as_text
from leaveout.metrics import width
from leaveout.metrics.evaluate import COLUMNS as METRIC_COLUMNS
from leaveout.reporting import tables
from leaveout.store import artefacts

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "artefacts.md").read_text(encoding="utf-8")
ONE_LINE = re.sub(r"(?<![\n|])\n( +(?=\S)|(?=[`\w(]))", " ", PAGE)
"""The page, with each paragraph and each entry of a list in one line."""
EXPLAIN = (ROOT / "docs" / "explain.md").read_text(encoding="utf-8")
SHARED = {"commit", "device", "inputs", "key", "seed", "setting", "setting_sha256", "spec"}
SHARED |= {"versions"}


def examples() -> dict[str, artefacts.Artefact]:
    """Return one artefact of each kind that a run leaves."""
    found: dict[str, artefacts.Artefact] = {}
    for path in sorted(Path("results").rglob("*.safetensors")):
        artefact = artefacts.read(path)
        found.setdefault(artefact.kind, artefact)
    return found


def described(artefact: artefacts.Artefact) -> str:
    """Return what the page has to say of a kind, to be pasted into it."""
    lines = ["| array | dims | dtype |", "|---|---|---|"]
    for name, array in artefact.tensors.items():
        dims = ", ".join(dim for dim in artefact.dims[name] if "." not in dim)
        dtype = "the source's" if name.endswith("_inputs") else str(array.dtype)
        if name.startswith("state."):
            name, dims = "state.NAME", f"{dims}, those of the parameter"
        line = f"| `{name}` | {dims} | {dtype} |"
        if line not in lines:
            lines.append(line)
    own, lacks = artefact.meta.keys() - SHARED, SHARED - artefact.meta.keys()
    names, gone = (", ".join(f"`{name}`" for name in sorted(some)) for some in (own, lacks))
    without = f"; without {gone}" if gone else ""
    return "\n".join([*lines, "", f"Header, beside what all have{without}: {names}."])


def kinds_written() -> Iterator[tuple[str, str]]:
    """Return the modules that make artefacts, and the kind as it stands there."""
    source = ROOT / "src" / "leaveout"
    for path in source.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "Arrays":
                yield str(path.relative_to(source)), ast.unparse(node.args[0])


def test_every_kind_that_is_written_is_on_the_page(here: Path) -> None:
    headings = set(re.findall(r"^### `([\w-]+)`", PAGE, re.M))
    written = set(kinds_written())
    named = {ast.literal_eval(kind) for _, kind in written if not kind.isidentifier()}
    # elsewhere the kind is a variable
    variable = {module for module, kind in written if kind.isidentifier()}
    truths = {"lds", "loo", "pbrf"}
    known = {
        "scoring/run.py": {"score", "self_influence"},
        "doors/scores.py": {"score", "self_influence"},
        "doors/banks.py": truths,
        "retraining/truth.py": truths,
        "interop/truths.py": {"lds", "loo"},
    }
    assert variable == known.keys()
    assert headings == named.union(*known.values())
    assert headings >= set(examples())


@pytest.mark.parametrize("kind", re.findall(r"^### `([\w-]+)`", PAGE, re.M))
def test_arrays_dims_dtypes_and_keys(here: Path, kind: str) -> None:
    section = ONE_LINE.partition(f"\n### `{kind}`")[2].partition("\n### ")[0].partition("\n## ")[0]
    if kind not in examples():
        pytest.skip("the tiny run makes none")
    wanted = described(examples()[kind])
    assert wanted in section, f"docs/artefacts.md, {kind}; it should have:\n\n{wanted}\n"


def test_what_all_headers_have() -> None:
    listed = set(re.findall(r"^\| `(\w+)` \|", PAGE.partition("## Kinds")[0], re.M))
    assert listed >= SHARED


@pytest.mark.parametrize(
    ("file", "columns"),
    [
        ("metrics/METRIC/METHOD.csv", METRIC_COLUMNS),
        ("damping/METRIC/METHOD.csv", DAMPING_COLUMNS),
        ("lds_width.csv", width.COLUMNS),
        ("METRIC_table.csv", tables.PANEL_COLUMNS),
        ("cost_table.csv", (*tables.COST_COLUMNS, *tables.COST_OPTIONAL)),
        ("config/published.csv", tables.PUBLISHED_COLUMNS),
    ],
)
def test_columns(file: str, columns: tuple[str, ...]) -> None:
    text = ", ".join(f"`{column}`" for column in columns)
    (line,) = (
        line for line in ONE_LINE.splitlines() if line.startswith("- `") and f"{file}`" in line
    )
    assert text in line, f"docs/artefacts.md, {file}; it should have:\n\n{text}\n"


def test_cost_and_stamp(here: Path) -> None:
    cost = Path("results/tiny/scores/grad_dot/default.cost.json")
    stamp = json.loads(Path(f"{cost}.stamp").read_text())
    for name in [*json.loads(cost.read_text()), *stamp]:
        assert f"`{name}`" in PAGE


def test_the_ways_to_read_one(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
    assert len(blocks) == 2
    truth = artefacts.read("results/tiny/truth/lds.safetensors")
    for block in blocks:
        scope: dict[str, Any] = {}
        exec(block.replace("mnist_lr", "tiny"), scope)  # the page's own code
        np.testing.assert_array_equal(scope["target"], truth.tensors["target"])
        assert capsys.readouterr().out.split() == ["lds", "3"]
    assert "leaveout" not in blocks[1].replace('"leaveout"', "")


def test_the_commands_of_the_page_run(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = re.findall(r"^leaveout explain .*$", EXPLAIN, re.M)
    assert len(lines) >= 3
    for line in lines:
        words = shlex.split(line.replace("mnist_lr", "tiny").replace("if_cg", "if_explicit"))
        assert cli.main(words[1:]) == 0, line
    capsys.readouterr()


def test_the_page_has_all_parts_and_tables(here: Path, told: Any) -> None:
    text = as_text(told("results/lds_table.csv", "method=if_explicit"))
    for title in re.findall(r"^[A-Z].*$", text, re.M):
        assert f"\n{title}\n" in EXPLAIN
    for name in TABLES:
        assert name in EXPLAIN or name.replace("_table.csv", "") in EXPLAIN
    answer = told("results/lds_table.csv", "method=if_explicit", check=True)
    for name in answer:
        assert f"`{name}`" in EXPLAIN, name
