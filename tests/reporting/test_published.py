from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from leaveout.errors import LeaveoutError
from leaveout.reporting.published import COLUMNS, published_table, read_causes
from leaveout.reporting.tables import PUBLISHED_COLUMNS, Row, read_csv
from leaveout.store.contents import save

Measured = Callable[..., tuple[Path, Path]]
CONFIG = Path(__file__).parents[2] / "config"
PUBLISHED = """\
panel,setting,metric,method,value,source
toy_lds,toy,lds,near,0.55,a paper
toy_lds,toy,lds,off,0.38,a paper
toy_lds,toy,lds,far,0.90,a paper
toy_lds,toy,lds,strange,0.90,a paper
toy_other,toy,lds,near,0.99,another paper
toy_lds,toy,lds,not_shown,0.5,a paper
toy_loo,toy,loo,all methods,<=0.02,a paper
toy_lds,elsewhere,lds,near,0.1,a paper
"""
CAUSES = """\
tolerance: {toy: 0.15}
causes:
  toy:
    lds:
      within tolerance: one draw of the ground truth
      far: another recipe
      near: not shown, for there is nothing to explain
"""
MAIN = ("method", "published", "difference", "inside_interval", "within_tolerance", "cause")


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., list[Row]]:
    (tmp_path / "published.csv").write_text(PUBLISHED)
    (tmp_path / "causes.yaml").write_text(CAUSES)

    def make(*csvs: Path, out: str = "out.csv") -> list[Row]:
        given = (tmp_path / "published.csv", tmp_path / "causes.yaml")
        save(tmp_path / out, published_table(csvs, *given))
        rows = read_csv(tmp_path / out, COLUMNS)
        assert not rows or tuple(rows[0]) == COLUMNS
        return rows

    return make


def test_a_row_for_each_published_value_and_a_cause_where_it_is_outside(
    measured: Measured, table: Callable[..., list[Row]]
) -> None:
    names = ("near", "off", "far", "strange", "random")
    rows = table(*(measured(name, {"default": {}})[0] for name in names))
    assert [tuple(row[name] for name in MAIN) for row in rows] == [
        ("near", "0.55", "-0.0500", "yes", "yes", ""),
        ("near", "0.99", "-0.4900", "no", "no", "not shown, for there is nothing to explain"),
        ("off", "0.38", "0.1200", "no", "yes", "one draw of the ground truth"),
        ("far", "0.90", "-0.4000", "no", "no", "another recipe"),
        ("strange", "0.90", "-0.4000", "no", "no", "not known"),
    ]
    assert [row["source"] for row in rows[:2]] == ["a paper", "another paper"]
    assert {(row["value"], row["ci_low"], row["tolerance"]) for row in rows} == {
        ("0.5000", "0.4000", "0.15")
    }


def test_ours_are_the_published_protocols(
    measured: Measured, table: Callable[..., list[Row]]
) -> None:
    cells = {"d=1": {("mean", "select"): 0.9}, "d=2": {("single", "all"): 0.6}}
    row = table(measured("near", cells)[0])[0]
    assert (row["params"], row["value"], row["difference"]) == ("d=2", "0.6000", "0.0500")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (-0.01, ("<=0.02", "0.0000", "yes", "yes", "")),
        (0.10, ("<=0.02", "0.0800", "yes", "yes", "")),  # the interval reaches down to .00
        (0.17, ("<=0.02", "0.1500", "no", "yes", "not known")),
        (0.30, ("<=0.02", "0.2800", "no", "no", "not known")),
    ],
)
def test_a_bound_is_kept_from_above(
    measured: Measured,
    table: Callable[..., list[Row]],
    value: float,
    expected: tuple[str, ...],
) -> None:
    cells = {"default": dict.fromkeys([("single", "all")], value)}
    path = measured("near", cells, metric="loo")[0]
    (row,) = table(path, measured("random", cells, metric="loo")[0])  # the paper has no random
    assert tuple(row[name] for name in MAIN[1:]) == expected


def test_what_could_not_be_computed_differs_by_nothing(
    measured: Measured, table: Callable[..., list[Row]]
) -> None:
    nothing = dict.fromkeys(("value", "ci_low", "ci_high"), "nan")
    path = measured("far", {"default": {}}, not_computed="memory: 96 GB", **nothing)[0]
    (row,) = table(path)
    assert (row["value"], row["not_computed"]) == ("nan", "memory: 96 GB")
    assert row["difference"] == row["inside_interval"] == row["cause"] == ""


def test_without_a_tolerance_nothing_is_said_of_it(
    measured: Measured, table: Callable[..., list[Row]]
) -> None:
    rows = table(measured("near", {"default": {}}, setting="elsewhere")[0])
    assert [(row["tolerance"], row["within_tolerance"], row["cause"]) for row in rows] == [
        ("", "", "not known")
    ]
    assert table(measured("random", {"default": {}})[0], out="none.csv") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tolerances: {}", "tolerances: it has tolerance and causes only"),
        ("tolerance: {toy: much}", "toy: 'much' is not a number"),
        ("tolerance: 3", "tolerance: expected keys and values, found 3"),
        ("causes: {toy: {lds: because}}", "toy: lds: expected keys and values, found 'because'"),
        ("causes: {toy: {lds: {far: 3}}}", "causes: toy: lds: far: 3 is not a text"),
        ("causes: {toy: {}, toy: {}}", "toy"),
    ],
)
def test_malformed_causes_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(LeaveoutError, match=rf"c\.yaml.*{message}"):
        read_causes(tmp_path / "c.yaml")


def test_committed_causes_are_of_published_values() -> None:
    tolerances, causes = read_causes(CONFIG / "causes.yaml")
    rows = read_csv(CONFIG / "published.csv", PUBLISHED_COLUMNS)
    known = {(row["setting"], row["metric"], row["method"]) for row in rows}
    settings = {path.stem for path in (CONFIG / "settings").glob("*.yaml")}
    assert set(tolerances) <= settings
    published = yaml.safe_load((CONFIG / "causes.yaml").read_text())["tolerance"]
    assert tolerances == published
    for setting, metric, method in causes:
        if method != "within tolerance":
            assert (setting, metric, method) in known
