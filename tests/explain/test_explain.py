from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from base64 import urlsafe_b64encode
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from leaveout.cli import program as cli
from leaveout.config import load_yaml
from leaveout.errors import LeaveoutError
from leaveout.explain.streams import streams
from leaveout.explain.tables import METRICS, TABLES
from leaveout.explain.text import as_text
from leaveout.store import artefacts, stamps
from leaveout.training.trials import Trial
from leaveout.workflow import lock
from leaveout.workflow.lock import method_version, step_version
from leaveout.workflow.plan import Plan
from leaveout.workflow.steps import STEPS, load_plan

Explain = Callable[..., dict[str, Any]]
LDS, WIDTH = "results/lds_table.csv", "results/tiny/lds_width.csv"
DATA, FULL = "results/tiny/data.safetensors", "results/tiny/models/full/0.safetensors"
TRUTH = "results/tiny/truth/lds.safetensors"
SCORES = [
    f"results/tiny/scores/if_explicit/{params}.safetensors"
    for params in ("damping=1", "damping=0.01")
]
METRIC = "results/tiny/metrics/lds/if_explicit.csv"


def chunks(layer: str) -> list[str]:
    """Return the chunks that lie in a folder of the run."""
    return sorted(map(str, Path(f"results/tiny/retrain/{layer}").glob("*.safetensors")))


def rows(path: str | Path) -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def entry(answer: dict[str, Any], path: str) -> dict[str, Any]:
    (found,) = (file for file in answer["files"] if file["path"] == path)
    return dict(found)


def plan() -> Plan:
    return load_plan(load_yaml(Path("config/config.yaml")), "config")


def good(answer: dict[str, Any]) -> bool:
    return not answer["broken"] and all(
        file["there"] and file["stale"] is None for file in answer["files"]
    )


def test_the_chain_of_a_panel_is_all_that_the_number_was_made_from(
    here: Path, told: Explain
) -> None:
    answer = told(LDS, "method=if_explicit")
    found = [file["path"] for file in answer["files"]]
    assert len(chunks("lds")) == 4
    assert sorted(found) == sorted([LDS, METRIC, TRUTH, *SCORES, *chunks("lds"), FULL, DATA])
    assert good(answer)
    for file in answer["files"]:  # whatever a file was made from comes after it
        for name in file["inputs"]:
            assert found.index(file["path"]) < found.index(name)
    assert entry(answer, METRIC)["inputs"] == [TRUTH, *SCORES]
    assert entry(answer, LDS)["inputs"] == [METRIC]
    assert entry(answer, DATA)["data"]["source"]["name"] == "digits"
    assert answer["config"] == "config/config.yaml"
    assert answer["config_note"] == ""


@pytest.mark.parametrize(
    ("column", "truth", "on", "reported", "params"),
    [
        ("value", "mean", "select", "report", "params"),
        ("ci_low", "mean", "select", "report", "params"),
        ("ceiling", "mean", "select", "report", "params"),
        ("as_published_value", "single", "all", "all", "as_published_params"),
    ],
)
@pytest.mark.parametrize("metric", METRICS)
def test_choice_and_number_are_the_metrics_file_s(
    here: Path,
    told: Explain,
    metric: str,
    column: str,
    truth: str,
    on: str,
    reported: str,
    params: str,
) -> None:
    table = f"results/{metric}_table.csv"
    (row,) = (r for r in rows(table) if r["method"] == "if_explicit")
    found = rows(f"results/tiny/metrics/{metric}/if_explicit.csv")
    choice = [r for r in found if (r["truth"], r["half"]) == (truth, on)]
    best = max(choice, key=lambda r: float(r["value"]))
    answer = told(table, "method=if_explicit", column)
    assert answer["chosen"] == best["params"] == row[params]
    assert [(c["params"], c["value"]) for c in answer["choice"]] == [
        (r["params"], r["value"]) for r in choice
    ]
    (own,) = (
        r
        for r in found
        if (r["truth"], r["half"], r["params"]) == (truth, reported, best["params"])
    )
    base = column.removeprefix("as_published_")
    assert float(answer["cell"]) == pytest.approx(float(own[base]), abs=5e-5, nan_ok=True)
    assert answer["reported"]["value"] == own["value"]
    assert answer["samples"]["of"] == int(own["n_test"])
    layer = "self_influence" if metric == "auc" else "scores"
    path = f"results/tiny/{layer}/if_explicit/{best['params']}.safetensors"
    assert [file["path"] for file in answer["files"] if file.get("chosen")] == [path]
    assert good(answer)


def test_other_columns_have_other_sources(here: Path, told: Explain) -> None:
    damping = "results/tiny/damping/lds/if_explicit.csv"
    answer = told(LDS, "method=if_explicit", "surrogate_value")
    assert entry(answer, LDS)["inputs"] == [METRIC, damping]
    assert [c["value"] for c in answer["choice"]] == [r["indicator"] for r in rows(damping)]
    (chosen,) = (r["params"] for r in rows(damping) if r["chosen"] == "yes")
    assert answer["chosen"] == chosen
    assert good(answer)
    with pytest.raises(LeaveoutError, match="the row has no surrogate_value"):
        told(LDS, "method=grad_dot", "surrogate_value")


def test_auc_comes_from_self_influence_and_no_truth(here: Path, told: Explain) -> None:
    answer = told("results/auc_table.csv", "method=grad_dot")
    score = "results/tiny/self_influence/grad_dot/default.safetensors"
    metric = "results/tiny/metrics/auc/grad_dot.csv"
    table = "results/auc_table.csv"
    assert {file["path"] for file in answer["files"]} == {table, metric, score, FULL, DATA}
    assert entry(answer, metric)["inputs"] == [DATA, score]
    flips = [s for s in answer["seeds"]["streams"] if "flipped" in s["what"]]
    assert flips == [{"what": flips[0]["what"], "identity": ["digits", "label_noise"]}]


def test_half_models_and_base_models_are_in_the_chain(here: Path, told: Explain) -> None:
    answer = told("results/pbrf_table.csv", "method=trak_1")
    half = sorted(map(str, Path("results/tiny/models/half").glob("*.safetensors")))
    score = next(file for file in answer["files"] if file.get("chosen"))
    assert half
    assert score["inputs"] == [DATA, FULL, *half]
    for chunk in chunks("pbrf"):
        assert entry(answer, chunk)["inputs"] == [DATA, FULL]


def test_costs(here: Path, told: Explain) -> None:
    table = "results/cost_table.csv"
    cost = "results/tiny/scores/if_explicit/damping=1.cost.json"
    costs = "results/tiny/metrics/lds/if_explicit.costs.json"
    own = "method=if_explicit,params=damping=1,what=score"
    answer = told(table, own)
    assert {file["path"] for file in answer["files"]} == {table, costs, cost, DATA, FULL}
    assert answer["machine"]["cost"]["wall_s"] == float(answer["cell"])
    assert good(answer)
    answer = told(table, own.replace("score", "self_influence"), "peak_rss_mb")
    auc = "results/tiny/metrics/auc/if_explicit.costs.json"
    assert entry(answer, table)["inputs"] == [auc]
    assert entry(answer, auc)["inputs"] == [
        "results/tiny/self_influence/if_explicit/damping=1.cost.json"
    ]
    answer = told(table, own, "loo_chosen")
    assert entry(answer, table)["inputs"] == ["results/tiny/metrics/loo/if_explicit.csv"]
    check = told(table, own, check=True)["check"]
    assert (check["done"], check["why"][:15]) == (False, "it was measured")


def test_the_chain_of_a_width(here: Path, told: Explain) -> None:
    answer = told(WIDTH, "1")
    assert entry(answer, WIDTH)["inputs"][0] == TRUTH
    assert len(entry(answer, WIDTH)["inputs"]) == 4
    assert good(answer)


@pytest.mark.parametrize(
    "table",
    [f"results/{m}_table.csv" for m in METRICS]
    + [WIDTH, "results/tidy.csv", "results/rank_table.csv"],
)
def test_computed_again_every_row_is_the_same(here: Path, told: Explain, table: str) -> None:
    count = len(rows(table))
    for number in {1, count // 2 + 1, count}:
        column = "kind" if table == WIDTH else None  # some rows have no width
        check = told(table, str(number), column, check=True)["check"]
        assert check["done"], check
        assert check["same"]
        assert check["differs"] == {}
        assert check["columns"] == len(rows(table)[0])


def test_seeds_are_those_of_the_trainings(here: Path, told: Explain) -> None:
    seeds = told(LDS, "method=trak_1")["seeds"]
    assert seeds["root"] == 3
    first = {s["what"]: s["first_seed"] for s in seeds["streams"] if "first" in s}
    for what, *identity in (
        ("full models", "tiny", "full", 0),
        ("half models", "tiny", "half", 0),
        ("models on subsets", "tiny", "lds", 0, 0),
    ):
        assert first[what] == Trial(3, tuple(identity)).init_seed()
    # the identities are those that headers name
    names = artefacts.read(chunks("lds")[0]).meta["trainings"]["models"]
    assert names[0].startswith("lds:0:0 on ")
    paired = told("results/loo_table.csv", "method=grad_dot")["seeds"]["streams"]
    (own,) = (s for s in paired if s["what"].startswith("leave-one-out"))
    assert own["first_seed"] == Trial(3, ("tiny", "full", 0)).init_seed()
    assert any(
        n == "full:0 -0" for n in artefacts.read(chunks("loo")[0]).meta["trainings"]["models"]
    )


def test_code_is_that_of_today(here: Path, told: Explain) -> None:
    code = {e["step"]: e for e in told(LDS, "method=if_explicit")["code"]}
    steps = ("prepare", "train", "retrain_lds", "merge_truth", "attribute", "evaluate", "table")
    for step in steps:
        assert code[step]["code"] == code[step]["today"] == step_version(STEPS[step])
    method = plan().methods["if_explicit"]
    own = code["method if_explicit"]
    assert own["code"] == own["today"] == method_version(method)
    assert own["module"] == "leaveout.attribution.if_explicit"
    assert code["train"]["commits"] == [artefacts.read(FULL).meta["commit"]]


def test_the_steps_make_the_number_anew(copy: Path, told: Explain) -> None:
    """A chain is complete if its commands, and no others, make the same number from nothing."""
    answer = told(LDS, "method=if_explicit")
    assert answer["remake"]["command"] == f"snakemake {LDS} --configfile config/config.yaml"
    before = Path(METRIC).read_text()
    shutil.rmtree("results")
    *most, last = answer["remake"]["steps"]
    for line in most:
        assert cli.main(line.split()[1:]) == 0
    assert Path(METRIC).read_text() == before
    assert last.startswith("leaveout table --metric lds ")


# ---- what is not here, broken or stale


def test_what_is_not_here_is_followed_all_the_same(copy: Path, told: Explain) -> None:
    whole = told(LDS, "method=if_explicit")
    gone = [*chunks("lds"), FULL, SCORES[0]]
    for path in gone:
        Path(path).unlink()
    answer = told(LDS, "method=if_explicit", check=True)
    assert [f["path"] for f in answer["files"]] == [f["path"] for f in whole["files"]]
    assert {f["path"] for f in answer["files"] if not f["there"]} == set(gone)
    assert answer["broken"] == []
    for path in gone:
        assert entry(answer, path)["key"] == entry(whole, path)["key"]
        assert entry(answer, path)["sha256"] == entry(whole, path)["sha256"]
        assert entry(answer, path)["stale"] is None
    assert answer["seeds"] == whole["seeds"]
    text = as_text(answer)
    assert "To have them here: snakemake results/tiny/retrain/lds/0-0.safetensors" in text
    check = answer["check"]
    assert check["same"]
    assert "1 of 2 grid points have no scores here" in check["note"]
    Path(SCORES[1]).unlink()
    check = told(LDS, "method=if_explicit", check=True)["check"]
    assert (check["done"], SCORES[0] in check["why"]) == (False, True)


def test_an_absent_file_of_other_code_ends_the_chain(copy: Path, told: Explain) -> None:
    for path in chunks("lds"):
        Path(path).unlink()
    setting = Path("config/settings/tiny.yaml")
    text = setting.read_text()
    setting.write_text(text.replace("lds: {", "lds: {ratio: 0.4, "))
    answer = told(LDS, "method=if_explicit")
    absent = [f for f in answer["files"] if not f["there"]]
    assert len(absent) == 4
    for file in absent:
        assert file["key"] is None
        assert "other code or configuration" in file["stale"]


def test_an_edited_configuration_is_said_key_by_key(copy: Path, told: Explain) -> None:
    setting = Path("config/settings/tiny.yaml")
    setting.write_text(setting.read_text().replace("epochs: 2", "epochs: 3"))
    answer = told(LDS, "method=if_explicit")
    assert answer["broken"] == []  # what lies here is still what the number was made from
    assert "nearest" in answer["config_note"]
    assert entry(answer, DATA)["stale"] is None
    assert "recipe.epochs: 2 -> 3" in entry(answer, FULL)["stale"]
    assert entry(answer, METRIC)["stale"] == "what it was made from is"
    text = as_text(answer)
    assert "Stale: " in text
    assert "Fresh: " not in text


def test_another_file_than_the_one_that_was_read(
    copy: Path, told: Explain, capsys: pytest.CaptureFixture[str]
) -> None:
    """A score file swapped for a sound one of another content."""
    found = artefacts.read(SCORES[0])
    tensors = {**found.tensors, "score": found.tensors["score"] * 2 + 1}
    artefacts.write(SCORES[0], found.kind, tensors, found.dims, found.meta)
    answer = told(LDS, "method=if_explicit")
    assert len(answer["broken"]) == 1
    assert f"{SCORES[0]}: {METRIC} was made from another one" in answer["broken"][0]
    assert [f["path"] for f in answer["files"] if f["faults"]] == [SCORES[0]]
    assert cli.main(["explain", LDS, "--row", "method=if_explicit"]) == 1
    said = capsys.readouterr()
    assert "BROKEN" in said.out
    assert SCORES[0] in said.err
    assert told(LDS, "method=grad_dot")["broken"] == []  # that one has no part in it


@pytest.mark.parametrize("path", [METRIC, TRUTH, SCORES[1], FULL, DATA, LDS])
def test_altered_and_damaged_files(copy: Path, told: Explain, path: str) -> None:
    content = bytearray(Path(path).read_bytes())
    at = content.rindex(b"0") if path.endswith(".csv") else len(content) - 1
    content[at] ^= 1
    Path(path).write_bytes(content)
    answer = told(LDS, "method=if_explicit", "as_published_value")
    assert any(text.startswith(f"{path}: ") for text in answer["broken"]), answer["broken"]
    assert {f["path"] for f in answer["files"] if f["faults"]} == {path}


def test_a_cell_that_is_not_what_its_metrics_say(
    copy: Path, told: Explain, rewrite: Callable[[str, str, str], None]
) -> None:
    (row,) = (r for r in rows(LDS) if r["method"] == "if_explicit")
    rewrite(LDS, f",{row['value']},{row['ci_low']}", f",0.9876,{row['ci_low']}")
    answer = told(LDS, "method=if_explicit", check=True)
    assert [text for text in answer["broken"] if "has value = 0.9876" in text]
    assert (answer["check"]["same"], answer["check"]["again"]) == (False, row["value"])
    # the metrics altered too: files agree, but scores and truth do not make them
    stem = [r for r in rows(METRIC) if (r["truth"], r["half"]) == ("mean", "report")]
    (own,) = (r for r in stem if r["params"] == row["params"])
    rewrite(METRIC, f"mean,report,{own['value']}", "mean,report,0.987600")
    answer = told(LDS, "method=if_explicit", check=True)
    assert (answer["check"]["same"], answer["check"]["again"]) == (False, row["value"])


def test_a_table_without_a_stamp_goes_by_the_plan(copy: Path, told: Explain) -> None:
    whole = told(LDS, "method=grad_dot")
    Path(f"{LDS}.stamp").unlink()
    answer = told(LDS, "method=grad_dot")
    assert [f["path"] for f in answer["files"]] == [f["path"] for f in whole["files"]]
    assert entry(answer, LDS)["stale"] == "it has no stamp"


def test_the_configuration_that_made_a_table_is_found(copy: Path, told: Explain) -> None:
    Path("config/config.yaml").rename("config/second.yaml")
    Path("config/config.yaml").write_text("settings: [tiny]\nmethods: [grad_dot]\nbootstrap: 30\n")
    answer = told(LDS, "method=if_explicit")
    assert (answer["config"], answer["config_note"]) == ("config/second.yaml", "")
    assert "--configfile config/second.yaml" in answer["remake"]["command"]
    named = told(LDS, "method=grad_dot", configfile=Path("config/config.yaml"))
    assert named["config"] == "config/config.yaml"
    assert "bootstrap: 20 -> 30" in entry(named, "results/tiny/metrics/lds/grad_dot.csv")["stale"]


def test_the_table_of_a_named_configuration(
    copy: Path, told: Explain, make: Callable[[Path, str], None]
) -> None:
    """It lies in a folder of its own, and so does what it measures otherwise."""
    text = "name: tiny\nsettings: [tiny]\nmethods: [grad_dot, if_explicit]\nmetrics: [lds]\n"
    Path("config/other.yaml").write_text(f"{text}bootstrap: 10\n")
    table, metric = "results/tiny/lds_table.csv", "results/tiny/tiny/metrics/lds/if_explicit.csv"
    for path in (table, "results/tiny/tidy.csv"):
        make(Path("config/other.yaml"), path)
    answer = told(table, "method=if_explicit", check=True)
    assert (answer["config"], answer["config_note"]) == ("config/other.yaml", "")
    assert entry(answer, table)["inputs"] == [metric]
    assert entry(answer, metric)["inputs"] == [TRUTH, *SCORES]
    assert good(answer)
    assert answer["check"]["same"]
    assert told(LDS, "method=if_explicit")["config"] == "config/config.yaml"
    # the name is a setting's too, and says nothing of which files a row is made from
    rows_of = told("results/tiny/tidy.csv", "3", check=True)
    assert METRIC not in {file["path"] for file in rows_of["files"]}
    assert rows_of["check"]["same"]
    # a table that no configuration makes is followed by its stamp all the same
    Path("config/other.yaml").unlink()
    answer = told(table, "method=if_explicit")
    assert "no configuration of config makes this row" in answer["config_note"]
    assert answer["broken"] == []
    assert entry(answer, metric)["stale"] == "no job of today's configuration makes it"
    assert entry(answer, TRUTH)["stale"] is None


def test_a_published_file_without_a_stamp_of_its_own_goes_by_the_plan(
    copy: Path, told: Explain
) -> None:
    whole = told(LDS, "method=if_explicit")
    index = {}
    for path in (LDS, METRIC):
        found = stamps.read(path)
        assert found is not None
        index[path] = {"key": found.key, "spec": found.spec, "sha256": found.sha256}
        stamps.beside(path).unlink()
    stamps.PUBLISHED.parent.mkdir(parents=True)
    stamps.PUBLISHED.write_text(json.dumps(index))
    gone = [*chunks("lds"), FULL, *SCORES]
    for path in gone:
        Path(path).unlink()
    answer = told(LDS, "method=if_explicit")
    assert [f["path"] for f in answer["files"]] == [f["path"] for f in whole["files"]]
    assert {f["path"] for f in answer["files"] if not f["there"]} == set(gone)
    assert answer["broken"] == []
    assert all(file["stale"] is None for file in answer["files"])
    assert answer["seeds"] == whole["seeds"]
    # of other code or configuration: nobody knows what it was made from, and nobody says so
    setting = Path("config/settings/tiny.yaml")
    setting.write_text(setting.read_text().replace("epochs: 2", "epochs: 3"))
    answer = told(LDS, "method=if_explicit")
    for path in SCORES:
        assert entry(answer, path)["key"] is None
        assert entry(answer, path)["stale"].startswith("it is not known what was read")
    assert FULL not in [file["path"] for file in answer["files"]]


def test_versions_then_and_today(
    copy: Path, told: Explain, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = told(LDS, "method=if_explicit")
    (then,) = (e["code"] for e in before["code"] if e["step"] == "train")
    assert "no configuration" not in as_text(before)
    for today, edited in (("7", False), ("7+0123456789abcdef", True)):
        monkeypatch.setitem(lock._FOUND, ("steps", "train"), today)
        answer = told(LDS, "method=if_explicit")
        (code,) = (e for e in answer["code"] if e["step"] == "train")
        assert (code["code"], code["today"], code["edited"]) == (then, today, edited)
        assert entry(answer, FULL)["stale"] == "edited code"
        (line,) = re.findall(r"^  train .*\n(?:    .*\n)*", as_text(answer), re.M)
        assert f"version {then}  today {today}" in line
        assert ("edited since it was confirmed" in " ".join(line.split())) is edited


def test_what_a_table_is_made_from_is_not_what_today_s_configuration_says(
    copy: Path, told: Explain
) -> None:
    """A table that is made again whole is compared only if it would be the same one."""
    table = "results/rank_table.csv"
    assert told(table, "1", check=True)["check"]["same"]
    config = Path("config/config.yaml")
    config.write_text(config.read_text().replace("methods: all", "methods: [grad_dot]"))
    check = told(table, "1", check=True)["check"]
    assert not check["done"]
    assert "makes another results/rank_table.csv (of other files)" in check["why"]
    config.write_text(config.read_text().replace("bootstrap: 20", "bootstrap: 30"))
    check = told(WIDTH, "1", "kind", check=True)["check"]
    assert not check["done"]


@pytest.mark.parametrize(
    ("metric", "why"), [("lds", "with a run that diverged"), ("pbrf", "that did not converge")]
)
def test_what_was_left_out(here: Path, told: Explain, metric: str, why: str) -> None:
    answer = told(f"results/{metric}_table.csv", "1")
    assert "left out" not in as_text(answer)
    answer["samples"]["unconverged"] = 2
    assert f"left out: 2 {why}" in " ".join(as_text(answer).split())


# ---- rows, columns, tables


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("method=if_explicti", "no row has method = 'if_explicti'; did you mean 'if_explicit'"),
        ("setting=tiny", "3 rows have setting=tiny; say more. Candidates:\n  1: setting=tiny,"),
        ("methud=x", "no column 'methud'; did you mean 'method'"),
        ("4", "there is no row 4. Valid: 1 to 3"),
        ("0", "there is no row 0"),
        ("nonsense", "neither column=value nor a row's number"),
        ("method=grad_dot,params=k=1", "beside the rest of --row"),
        (None, "say which row is meant by --row. Candidates:\n  1: setting=tiny,method=grad_dot"),
    ],
)
def test_rows_that_are_none(here: Path, told: Explain, row: str | None, says: str) -> None:
    with pytest.raises(LeaveoutError, match=re.escape(says)):
        told(LDS, row)


def test_a_row_is_found_by_what_it_says_and_by_its_number(here: Path, told: Explain) -> None:
    one, other = told(LDS, "2"), told(LDS, "setting=tiny,method=if_explicit")
    assert one == other
    assert one["names"] == "setting=tiny,method=if_explicit"
    again = told(LDS, f"{one['names']},params={one['cells']['params']}")  # a value with '=' in it
    assert again["row"] == 2
    absolute = told(str(here / LDS), "2")
    assert absolute["table"] == LDS


def test_unknown_columns_and_tables(here: Path, told: Explain) -> None:
    with pytest.raises(LeaveoutError, match="no column 'valeu'; did you mean 'value'"):
        told(LDS, "1", "valeu")
    with pytest.raises(LeaveoutError, match=r"did you mean 'loo_table.csv'.*Valid: lds_table.csv"):
        told("results/lo_table.csv", "1")
    with pytest.raises(LeaveoutError, match="lies outside"):
        told("/lds_table.csv", "1")
    with pytest.raises(LeaveoutError, match="no such file"):
        told("lds_table.csv", "1")


def test_every_table_of_the_workflow_is_known(here: Path) -> None:
    """Tables are what `shown` names, and lie where rules put them."""
    tables = {p.name for p in Path("results").glob("*.csv")} | {"lds_width.csv"}
    assert len(tables) >= 6
    assert tables <= set(TABLES)
    for path in Path("results").glob("*.csv"):
        columns = path.read_text().splitlines()[0].split(",")
        assert {*TABLES[path.name].identify, TABLES[path.name].value} <= {*columns}


# ---- words


@pytest.mark.parametrize("table", [f"results/{m}_table.csv" for m in METRICS] + [WIDTH])
def test_the_text_names_every_file_or_its_folder(here: Path, told: Explain, table: str) -> None:
    answer = told(table, "1")
    text = as_text(answer)
    for file in answer["files"]:
        path = Path(file["path"])
        assert file["path"] in text or f"{path.parent}: " in text
    assert answer["cell"] in text
    assert "The chain is whole" in text
    assert "Fresh: " in text
    tree = text[text.index("Where it comes from") : text.index("Make it again")]
    assert max(map(len, tree.splitlines())) <= 104


def test_the_command(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", LDS, "--row", "2"]) == 0
    assert capsys.readouterr().out.startswith(f"{LDS}, row 2: setting=tiny,method=if_explicit\n")
    assert cli.main(["explain", LDS, "--row", "x"]) == 1
    assert "leaveout explain: " in capsys.readouterr().err


@pytest.mark.parametrize("more", [[], ["--check"]])
def test_no_torch_is_loaded(here: Path, more: list[str]) -> None:
    code = (
        "import sys; from leaveout.cli import program as cli;"
        f"cli.main(['explain', {LDS!r}, '--row', '2', *sys.argv[1:]]);"
        "print(*sorted(m for m in sys.modules if '.' not in m), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *more],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert "Fresh: " in done.stdout
    loaded = set(done.stderr.split())
    assert "leaveout" in loaded
    assert not loaded & {"torch", "snakemake", "sklearn", "matplotlib", "dvc"}


# ---- published or made here


def test_where_files_came_from(copy: Path, told: Explain) -> None:
    def md5(path: str) -> str:
        return hashlib.md5(Path(path).read_bytes()).hexdigest()

    assert entry(told(LDS, "2"), DATA)["origin"] == "here; no record of where it was made"
    folder = Path("results/tiny/metrics")
    listing = [
        {"md5": md5(str(p)), "relpath": str(p.relative_to(folder))}
        for p in sorted(folder.rglob("*.csv"))
    ]
    store = Path("data/published/files/md5/ab/cdef.dir")
    store.parent.mkdir(parents=True)
    store.write_text(json.dumps(listing))
    outs = [
        {"path": str(folder), "md5": "abcdef.dir"},
        {"path": "results/tiny/models/full", "md5": "012345.dir"},  # its listing is not here
        {"path": DATA, "md5": md5(DATA)},
        {"path": LDS, "md5": "0" * 32},
    ]
    Path("dvc.lock").write_text(json.dumps({"stages": {"results": {"outs": outs}}}))
    records = Path(".snakemake/metadata")
    records.mkdir(parents=True)
    for made in (TRUTH, METRIC):
        (records / urlsafe_b64encode(made.encode()).decode()).touch()
    Path(chunks("lds")[0]).unlink()
    Path(FULL).unlink()
    answer = told(LDS, "method=if_explicit")
    first = sorted(f["path"] for f in answer["files"] if not f["there"])[-1]
    found = {
        path: entry(answer, path)["origin"] for path in (DATA, METRIC, TRUTH, LDS, SCORES[0], FULL)
    }
    assert found == {
        DATA: "as published (dvc pull)",
        METRIC: "made here, and published",
        TRUTH: "made here",
        LDS: "no record of where it was made; published is another",
        SCORES[0]: "here; no record of where it was made",
        FULL: "not here, but published",
    }
    assert entry(answer, first)["origin"] == "not here: left out of what is published"
    text = as_text(answer)
    assert f"To have them here: dvc pull {FULL}" in text
    assert f"To have them here: snakemake {first}" in text


def test_seeds_of_unpaired_and_paired_subsets(here: Path) -> None:
    today = plan()
    setting = today.settings["tiny"]
    for pairing, identity in (("none", ("tiny", "lds", 0, 0)), ("drop", ("tiny", "full", 0))):
        own = setting.model_copy(
            update={"lds": setting.lds.model_copy(update={"pairing": pairing})}
        )
        job = replace(today, settings={"tiny": own}).job(
            "retrain_lds", {"setting": "tiny", "chunk": "0-0"}
        )
        found = streams([(json.loads(job.key), job)])
        (trained,) = (s for s in found["streams"] if "first" in s)
        assert trained["first_seed"] == Trial(3, identity).init_seed()
        # whose first training it was, only the job knows
        unknown = streams([(json.loads(job.key), None)])["streams"]
        assert [s["what"] for s in unknown] == [s["what"] for s in found["streams"]]
        assert not any("first" in s for s in unknown)
